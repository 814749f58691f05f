"""A language model trained with ids by stock Lightning: groups, schedules, caches, exact resuming, checkpoints."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from recis_lightning.schema import Schema
from recis_lightning.schema.schedules import Schedule
from recis_lightning.towers.backbone import load_backbone
from recis_lightning.training import RecModule
from recis_lightning.training.interrupt import RunInterrupted
from recis_lightning.training.schedules import DeclaredSchedules
from tests.towers.tiny import BERT
from tests.training.helpers import (
    InterruptAt,
    Losses,
    MemoryLoader,
    make_batch,
    make_module,
    make_schema,
    make_trainer,
)

README = Path(__file__).parents[2] / "README.md"
DROPOUT = BERT | {"hidden_dropout_prob": 0.2}
LORA = {"train": "lora", "lora": {"rank": 2, "targets": ["query", "value"]}}


def tower_schema(**options: Any) -> Schema:
    """The schema of the helpers, whose items are token ids of a language model instead of ids of a table."""
    settings = make_schema().to_dict()
    settings["tables"] = [table for table in settings["tables"] if table["name"] == "user"]
    tower = {"name": "text", "dim": 3, "model": BERT} | options
    settings["features"] = [
        {"name": "user", "table": "user"},
        {"name": "items", "tower": tower["name"]},
        {"name": "age"},
    ]
    settings["towers"] = [tower]
    return Schema.from_dict(settings)


class Run:
    """A fit of two epochs from the same first values."""

    def __init__(self, root: Path, schema: Schema, *callbacks: Callback, ckpt: Any = None, **options: Any) -> None:
        self.losses = Losses()
        self.module = make_module(schema, **options.pop("module", {}))
        torch.manual_seed(1 if ckpt is None else 999)
        self.trainer = make_trainer(root, self.losses, *callbacks, **options)
        self.interrupted: str | None = None
        try:
            self.trainer.fit(self.module, MemoryLoader(6, ids=60), MemoryLoader(2, seed=9, ids=60), ckpt_path=ckpt)
        except RunInterrupted as stop:
            self.interrupted = stop.path


def backbone_state(module: RecModule) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.towers["text"].backbone.state_dict().items()}


# ----------------------------------------------------------------------------------------------------- what is trained


@pytest.mark.parametrize("options", [{}, LORA, {"train": "full"}], ids=["frozen", "lora", "full"])
def test_a_fit_changes_what_is_declared_and_leaves_the_rest_bit_equal(tmp_path: Path, options: dict[str, Any]) -> None:
    schema = tower_schema(**options)
    before = backbone_state(make_module(schema))
    run = Run(tmp_path, schema)
    changed = {name for name, value in backbone_state(run.module).items() if not torch.equal(value, before[name])}
    if not options:
        assert changed == set()
    elif options is LORA:
        assert changed == {name for name in before if "lora_" in name}
    else:
        assert len(changed) > 20
    assert len(run.module.tables["user"]) > 20


def test_the_module_passes_on_what_its_towers_give(tmp_path: Path) -> None:
    module = make_module(tower_schema()).eval()
    batch = make_batch(8, ids=60)
    seen = {}
    module.network.register_forward_pre_hook(lambda network, inputs: seen.update(inputs[0]))
    module(batch)
    assert torch.equal(seen["items"], module.towers["text"](batch["items"]))
    assert seen["items"].shape == (8, 3)


# ---------------------------------------------------------------------------------------------------- rates, schedules


class Rates(Callback):
    """Keeps the learning rate of each group at each step, by the group's name."""

    def __init__(self) -> None:
        self.by_name: dict[str, list[float]] = {}

    def on_train_batch_start(self, trainer: Any, *rest: Any) -> None:
        for group in trainer.optimizers[0].param_groups:
            self.by_name.setdefault(group.get("name", "dense"), []).append(group["lr"])


def halve(optimizer: Any) -> torch.optim.lr_scheduler.LambdaLR:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)


SCHEDULE = {"warmup_steps": 3, "decay": "linear", "total_steps": 10}


def test_a_tower_has_a_rate_of_its_own(tmp_path: Path) -> None:
    rates = Rates()
    Run(tmp_path, tower_schema(**LORA, lr=1e-4), rates, max_epochs=1)
    assert rates.by_name.pop("dense") == [0.01] * 6
    assert rates.by_name.pop("tower/text") == [1e-4] * 6
    assert len(rates.by_name) == 1  # of the table


@pytest.mark.parametrize("scheduler", [None, halve])
def test_a_schedule_drives_its_tower_and_nothing_else(tmp_path: Path, scheduler: Any) -> None:
    rates = Rates()
    Run(tmp_path, tower_schema(**LORA, lr=1e-3, schedule=SCHEDULE), rates, module={"lr_scheduler": scheduler})
    schedule = Schedule(warmup_steps=3, decay="linear", total_steps=10)
    assert rates.by_name["tower/text"] == pytest.approx([1e-3 * schedule.factor(step) for step in range(12)])
    assert rates.by_name["dense"] == pytest.approx([0.01 * (0.5**step if scheduler else 1) for step in range(12)])


def test_without_a_schedule_of_its_own_a_tower_follows_that_of_the_run(tmp_path: Path) -> None:
    rates = Rates()
    Run(tmp_path, tower_schema(**LORA, lr=1e-3), rates, max_epochs=1, module={"lr_scheduler": halve})
    assert rates.by_name["tower/text"] == pytest.approx([1e-3 * 0.5**step for step in range(6)])


def test_a_schedule_without_a_rate_starts_from_that_of_the_dense_optimizer() -> None:
    module = make_module(tower_schema(train="full", schedule={"warmup_steps": 1}))
    (optimizer,), (config,) = module.configure_optimizers()
    assert isinstance(config["scheduler"], DeclaredSchedules)
    assert {group.get("name"): group["lr"] for group in optimizer.param_groups}["tower/text"] == 0.005


# ------------------------------------------------------------------------------------------------ resume, checkpoints


@pytest.mark.trap(2)
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    options = LORA | {"lr": 1e-3, "schedule": SCHEDULE, "model": DROPOUT, "empty": "learned"}
    declared = tower_schema(**options).to_dict()
    declared["columns"][0]["dropout"] = 0.3
    schema = Schema.from_dict(declared)
    module = {"lr_scheduler": halve}
    whole = Run(tmp_path / "whole", schema, module=module)
    for batch in (2, 5, 7):
        stopped = Run(tmp_path / f"{batch}", schema, InterruptAt(batch), module=module)
        resumed = Run(tmp_path / f"{batch}", schema, ckpt=stopped.interrupted, module=module)
        assert stopped.losses.by_batch | resumed.losses.by_batch == whole.losses.by_batch
        assert_equal(resumed.module, whole.module)


def assert_equal(one: RecModule, other: RecModule) -> None:
    states = []
    for module in (one, other):
        state = module.state_dict()
        extra = state.pop("towers.towers.text._extra_state")
        states.append((extra, {name: value.numpy().tobytes() for name, value in state.items()}))
    assert states[0] == states[1]


def test_a_checkpoint_holds_lora_weights_and_names_what_they_stand_on(tmp_path: Path) -> None:
    run = Run(tmp_path, tower_schema(**LORA))
    path = tmp_path / "x.ckpt"
    run.trainer.save_checkpoint(path)
    dense = safetensors.torch.load_file(path / "dense.safetensors")
    tower = {name.removeprefix("towers.towers.text.") for name in dense if name.startswith("towers.")}
    assert {name for name in tower if not name.startswith("backbone.")} == {"projection.weight", "projection.bias"}
    assert all(".lora_" in name for name in tower if name.startswith("backbone."))
    assert sorted(file.name for file in (path / "towers/text").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["schema"]["towers"][0]["model"] == BERT
    assert "towers/text/adapter_model.safetensors" in manifest["files"]


@pytest.mark.parametrize("options", [{}, LORA, {"train": "full"}], ids=["frozen", "lora", "full"])
def test_a_loaded_module_predicts_what_the_saved_one_did(tmp_path: Path, options: dict[str, Any]) -> None:
    run = Run(tmp_path, tower_schema(**options))
    run.trainer.save_checkpoint(tmp_path / "x.ckpt")
    torch.manual_seed(77)
    loaded = RecModule.load_from_checkpoint(str(tmp_path / "x.ckpt"))
    batch = make_batch(16, ids=60)
    assert torch.equal(loaded.eval()(batch)["ctr"], run.module.eval()(batch)["ctr"])


def test_base_weights_kept_in_bfloat16_stay_so_when_loaded(tmp_path: Path) -> None:
    run = Run(tmp_path, tower_schema(**LORA, dtype="bfloat16"), max_epochs=1)
    run.trainer.save_checkpoint(tmp_path / "x.ckpt")
    loaded = RecModule.load_from_checkpoint(str(tmp_path / "x.ckpt"))
    dtypes = {name: value.dtype for name, value in backbone_state(loaded).items()}
    assert {dtype for name, dtype in dtypes.items() if "lora_" in name} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if "lora_" not in name} == {torch.bfloat16}


def test_a_checkpoint_on_another_base_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path, tower_schema(**LORA), max_epochs=1)
    run.trainer.save_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="tower 'text' was saved with base weights"):
        Run(tmp_path, tower_schema(**LORA, seed=1), ckpt=str(tmp_path / "x.ckpt"))


def test_lora_of_a_checkpoint_loads_into_plain_peft_as_the_readme_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (lines,) = [block for block in README.read_text().split("```") if "PeftModel" in block]
    monkeypatch.chdir(tmp_path)
    load_backbone(BERT).save_pretrained("models/small")
    run = Run(tmp_path, tower_schema(**LORA | {"model": "models/small", "lr": 0.05, "name": "title"}), max_epochs=1)
    run.trainer.save_checkpoint("last.ckpt")
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for what that has renamed
        exec(lines.removeprefix("python\n"), names)
    tokens = torch.tensor([[4, 8, 15]])
    plain, tuned = load_backbone(BERT).eval(), run.module.towers["title"].eval()
    expected = tuned.backbone(input_ids=tokens).last_hidden_state
    torch.testing.assert_close(names["model"](input_ids=tokens).last_hidden_state, expected, rtol=0, atol=1e-6)
    assert (plain(input_ids=tokens).last_hidden_state - expected).abs().max() > 1e-3


# ---------------------------------------------------------------------------------------------------- cache, statistics


def test_a_cache_changes_no_loss_and_is_read_by_the_next_run(tmp_path: Path) -> None:
    without = Run(tmp_path / "a", tower_schema())
    cached = tower_schema(cache=str(tmp_path / "cache"))
    filling, filled = (Run(tmp_path / name, cached) for name in "bc")
    assert without.losses.by_batch == filling.losses.by_batch == filled.losses.by_batch
    assert everything_but_extra(without.module) == everything_but_extra(filled.module)
    assert filled.module.towers["text"].statistics.computed == 0


def everything_but_extra(module: RecModule) -> dict[str, Any]:
    state = module.state_dict()
    return {name: value.numpy().tobytes() for name, value in state.items() if isinstance(value, Tensor)}


def test_a_cache_is_written_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    class Look(Callback):
        found: list[int] = []

        def on_train_epoch_start(self, *rest: Any) -> None:
            self.found.append(len(list((tmp_path / "cache").rglob("*.safetensors"))))

    Run(tmp_path, tower_schema(cache=str(tmp_path / "cache")), Look())
    assert Look.found == [0, 1]


def test_shares_of_distinct_and_computed_rows_are_logged(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, "log")
    schema = tower_schema(cache=str(tmp_path / "cache"))
    Run(tmp_path, schema, LearningRateMonitor(), logger=logger, log_every_n_steps=3)
    lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    columns = {name: index for index, name in enumerate(lines[0].split(","))}
    shares = {
        name: [float(value) for line in lines[1:] if (value := line.split(",")[columns[f"towers/text/{name}"]])]
        for name in ("distinct", "computed")
    }
    assert len(shares["distinct"]) == 4
    assert all(0.5 < share <= 1 for share in shares["distinct"])
    assert shares["computed"][0] == shares["distinct"][0]
    assert sum(shares["computed"]) < sum(shares["distinct"])


def test_a_tower_can_be_validated_saved_and_trained_on(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path / "ckpt", monitor="val/auc", mode="max", save_last=True)
    schema = tower_schema(cache=str(tmp_path / "cache"))
    run = Run(tmp_path, schema, checkpoint)
    run.trainer.validate(run.module, MemoryLoader(2, seed=9, ids=60), verbose=False)
    later = Run(tmp_path, schema, ckpt=checkpoint.last_model_path, max_epochs=3)
    assert max(later.losses.by_batch) == 17
    whole = Run(tmp_path, schema, max_epochs=3)
    assert run.losses.by_batch | later.losses.by_batch == whole.losses.by_batch
