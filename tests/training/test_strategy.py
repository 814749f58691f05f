import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recis_lightning.schema import Schema
from recis_lightning.training import RecModule, ShardedStrategy
from recis_lightning.training.files import CheckpointError
from tests.training.helpers import (
    MemoryLoader,
    everything,
    make_batch,
    make_module,
    make_schema,
    make_trainer,
    table_bytes,
)


def test_importing_the_package_is_light_and_its_training_makes_the_strategy_known() -> None:
    program = (
        "import sys, recis_lightning\n"
        "assert 'torch' not in sys.modules and 'lightning' not in sys.modules\n"
        "import recis_lightning.training\n"
        "from lightning.pytorch import Trainer\n"
        "strategy = Trainer(strategy='recis_sharded', accelerator='cpu', devices=1, logger=False).strategy\n"
        "print(type(strategy).__module__, type(strategy).__name__)"
    )
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 120}
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, **options).stdout
    assert found.split()[-2:] == ["recis_lightning.training.strategy", "ShardedStrategy"]


@pytest.mark.trap(19)
def test_no_launcher_so_that_notebooks_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Lightning refuses subclasses of DDP in an interactive interpreter, unless they launch nothing.
    monkeypatch.setattr("lightning.pytorch.trainer.connectors.accelerator_connector._IS_INTERACTIVE", True)
    trainer = make_trainer(tmp_path)
    assert trainer.strategy.launcher is None
    trainer.fit(make_module(), MemoryLoader(2))


@pytest.mark.trap(19)
def test_several_processes_are_launched_and_those_of_torchrun_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = make_trainer(tmp_path, devices=2).strategy.launcher
    assert type(launcher).__name__ == "_SubprocessScriptLauncher"
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "GROUP_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    trainer = make_trainer(tmp_path, devices=2)
    assert trainer.strategy.cluster_environment.creates_processes_externally
    assert trainer.world_size == 2


def test_a_precision_that_no_row_travels_in_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match="grads_as is 'int8', need one of full, bf16, fp16"):
        ShardedStrategy(grads_as="int8")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dense": "fsdp"}, "dense is 'fsdp', need ddp or fsdp2"),
        ({"dense": "fsdp2", "static_graph": True}, "static_graph: options of DDP, and dense is fsdp2; leave them out"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        ShardedStrategy(**options)


def test_other_accelerators_are_refused() -> None:
    strategy = ShardedStrategy(parallel_devices=[torch.device("mps")])
    with pytest.raises(MisconfigurationException, match=r"the accelerator is mps; write Trainer\(accelerator='cpu'"):
        strategy._configure_launcher()


def test_ranks_of_gpus_meet_over_nccl_each_on_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[Any] = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(ShardedStrategy, "set_world_ranks", lambda strategy: None)
    monkeypatch.setattr(ShardedStrategy, "_refuse_other_numbers", lambda strategy: None)
    monkeypatch.setattr("recis_lightning.training.strategy.connect", lambda *arguments: met.append(arguments))
    monkeypatch.setattr(dist, "new_group", lambda backend, timeout: met.append(backend))
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 2)
    environment = LightningEnvironment()
    gpus = [torch.device("cuda", index) for index in range(2)]
    strategy = ShardedStrategy(parallel_devices=gpus, cluster_environment=environment)
    strategy._configure_launcher()
    strategy.setup_distributed()
    # Dense gradients and rows travel between GPUs; what ranks say of paths and failures between CPUs.
    assert [met[0][1], met[0][3], *met[1:]] == ["nccl", gpus[1], "gloo", "nccl"]


@pytest.mark.trap(9)
def test_checkpoint_plugins_that_know_no_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="AsyncCheckpointIO would not"):
        make_trainer(tmp_path, plugins=[AsyncCheckpointIO(TorchCheckpointIO())])


def test_the_process_group_needs_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "no.such.host.invalid")
    monkeypatch.setenv("MASTER_PORT", "1")
    seen = []

    class Look(Callback):
        def on_train_start(self, *_: Any) -> None:
            seen.append((dist.get_backend(), dist.get_world_size()))

    hook = sys.excepthook
    make_trainer(tmp_path, Look()).fit(make_module(), MemoryLoader(2))
    assert seen == [("gloo", 1)]
    assert sys.excepthook is hook
    assert os.environ["MASTER_PORT"] == "1"


@pytest.mark.trap(3)
@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_a_strategy_that_would_lose_tables_is_refused_in_every_stage(
    stage: str, strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path, strategy=strategy)
    with pytest.raises(MisconfigurationException, match=r'Write Trainer\(strategy="recis_sharded"'):
        getattr(trainer, stage)(make_module(), MemoryLoader(1))
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.trap(7)
@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_evaluation_changes_no_table(stage: str, tmp_path: Path) -> None:
    module = make_module()
    make_trainer(tmp_path).fit(module, MemoryLoader())
    before = everything(module)
    getattr(make_trainer(tmp_path), stage)(module, MemoryLoader(3, seed=5, ids=10_000))
    assert everything(module) == before


@pytest.mark.trap(6)
def test_moves_and_casts_of_the_module_do_not_reach_tables(tmp_path: Path) -> None:
    # Lightning calls module.cpu() after every stage, and module.to(dtype) before some.
    module = make_module()
    make_trainer(tmp_path).fit(module, MemoryLoader())
    before = table_bytes(module)
    module.to("cpu").half().double().float()
    assert table_bytes(module) == before
    assert not any("embedding" in name for name, _ in module.named_parameters())
    assert not any("embedding" in name for name in module.state_dict())


@pytest.mark.trap(7)
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_training_goes_on_after_evaluation_without_gradients(mode: Any, tmp_path: Path) -> None:
    # Under gloo Lightning uses no_grad, which hides what inference tensors would break elsewhere.
    evaluated, other = make_module(), make_module()
    for module in (evaluated, other):
        torch.manual_seed(0)
        make_trainer(tmp_path, max_epochs=1).fit(module, MemoryLoader())
        if module is evaluated:
            with mode():
                make_trainer(tmp_path).validate(module, MemoryLoader(3, seed=5, ids=10_000), verbose=False)
                module.eval()(make_batch(8, seed=6, ids=10_000))
                module.train()
        make_trainer(tmp_path, max_epochs=1).fit(module, MemoryLoader(seed=3))
    assert everything(evaluated) == everything(other)


@pytest.mark.trap(10)
@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_every_stage_restores_what_was_saved(stage: str, tmp_path: Path) -> None:
    # On the way that restores after set-up Lightning passes weights_only=None.
    module = make_module()
    trainer = make_trainer(tmp_path)
    trainer.fit(module, MemoryLoader())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    read = make_module(seed=7)
    getattr(make_trainer(tmp_path), stage)(read, MemoryLoader(), ckpt_path=str(tmp_path / "x.ckpt"))
    assert everything(read) == everything(module)


def test_a_checkpoint_of_other_tables_is_refused_before_training(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.fit(make_module(), MemoryLoader(1))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"x.ckpt' holds the (tables|dense weights) of another model"):
        make_trainer(tmp_path).fit(make_module(make_schema(dim=8)), MemoryLoader(1), ckpt_path=tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="has the state of optimizer adagrad, this model's is adam"):
        make_trainer(tmp_path).fit(
            make_module(make_schema(kind="adam")), MemoryLoader(1), ckpt_path=tmp_path / "x.ckpt"
        )


def test_a_checkpoint_of_other_hashes_is_refused_by_column() -> None:
    def schema(hash: str) -> Schema:
        settings = make_schema().to_dict()
        settings["columns"] += [{"name": "{city,shop}", "dtype": "string", "hash": hash}]
        settings["features"] += [{"name": "{city,shop}", "table": "user"}]
        return Schema.from_dict(settings)

    module = make_module(schema("farm"))
    module.on_load_checkpoint({"schema": schema("farm").to_dict()})
    with pytest.raises(CheckpointError, match="column 'city' was hashed by murmur, is by farm\n.*'shop'"):
        module.on_load_checkpoint({"schema": schema("murmur").to_dict()})


@pytest.mark.trap(21)
def test_checkpoints_at_urls_work(tmp_path: Path) -> None:
    module = make_module()
    trainer = make_trainer(tmp_path)
    trainer.fit(module, MemoryLoader(2))
    trainer.save_checkpoint("memory://runs/x.ckpt")
    read = make_module(seed=7)
    make_trainer(tmp_path).validate(read, MemoryLoader(1), ckpt_path="memory://runs/x.ckpt", verbose=False)
    assert everything(read) == everything(module)
    assert everything(RecModule.load_from_checkpoint("memory://runs/x.ckpt")) == everything(module)


@pytest.mark.trap(15)
def test_saving_between_two_optimizer_steps_warns(tmp_path: Path) -> None:
    class Save(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                trainer.save_checkpoint(tmp_path / "x.ckpt")

    make_trainer(tmp_path, Save(), accumulate_grad_batches=2).fit(make_module(), MemoryLoader(3))
    with pytest.warns(UserWarning, match="was saved between two optimizer steps"):
        make_trainer(tmp_path, Save(), accumulate_grad_batches=3).fit(make_module(), MemoryLoader(3))


@pytest.mark.trap(20)
def test_hyper_parameters_that_are_no_json_are_refused_before_training(tmp_path: Path) -> None:
    module = make_module()
    module.hparams["schema"] = make_schema()
    with pytest.raises(ValueError, match=r"hyper_parameters.schema is a Schema.*save_hyperparameters\(ignore="):
        make_trainer(tmp_path).fit(module, MemoryLoader(1))


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "bf16-true"])
def test_other_precisions_train_and_leave_tables_in_their_dtype(precision: Any, tmp_path: Path) -> None:
    module = make_module()
    trainer = make_trainer(tmp_path, precision=precision)
    trainer.fit(module, MemoryLoader(2), MemoryLoader(1))
    assert {table.dtype for table in module.tables.values()} == {torch.float32}
    assert trainer.callback_metrics["val/loss"].isfinite()


def test_fp64_runs_from_end_to_end_in_fp64(tmp_path: Path) -> None:
    module = make_module(make_schema(dtype="float64"))
    trainer = make_trainer(tmp_path, precision="64-true")
    trainer.fit(module, MemoryLoader(2))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    assert trainer.callback_metrics["train/loss"].dtype == torch.float64
    read = RecModule.load_from_checkpoint(str(tmp_path / "x.ckpt"))
    assert read.dtype == torch.float64
    assert everything(read) == everything(module)
