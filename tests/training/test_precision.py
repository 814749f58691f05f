"""Precision and schedules of tables in a fit: loss scalers, autocast, narrow rows, learning rates of their own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from recis_lightning.ragged import Ragged
from recis_lightning.schema import Schedule, Schema
from recis_lightning.training import RecModule
from tests.training.helpers import MemoryLoader, SmallNet, everything, make_module, make_schema, make_trainer


def schema_of(**table: Any) -> Schema:
    """`make_schema` with other options for its table of items."""
    settings = make_schema().to_dict()
    settings["tables"][1] |= table
    return Schema.from_dict(settings)


def float16() -> MixedPrecision:
    # bfloat16 is what Lightning makes of precision 16-mixed on CPUs; the scaler is the same.
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))


class Overflow(Callback):
    """Makes the gradients of one batch infinite, and keeps what was trained before and after its step."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.states: list[dict[str, bytes]] = []
        self.scales: list[float] = []

    def on_before_backward(self, trainer: Any, module: RecModule, loss: Tensor) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            loss.register_hook(lambda grad: grad * float("inf"))

    def on_train_batch_end(self, trainer: Any, module: RecModule, *_: Any) -> None:
        self.states.append(everything(module))
        self.scales.append(trainer.precision_plugin.scaler.get_scale())


def weights_and_state(state: dict[str, bytes]) -> dict[str, bytes]:
    return {name: value for name, value in state.items() if not name.endswith(("/count", "/last_step"))}


@pytest.mark.trap(16)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_float16_skips_the_step_of_an_overflow_and_trains_on(clip: float | None, tmp_path: Path) -> None:
    overflow = Overflow(batch=3)
    trainer = make_trainer(tmp_path, overflow, plugins=[float16()], max_epochs=1, gradient_clip_val=clip)
    trainer.fit(make_module(), MemoryLoader(6, rows=64))  # after three batches all 30 ids are known
    states = list(map(weights_and_state, overflow.states))
    assert states[3] == states[2]
    assert states[4].keys() == states[3].keys()
    assert all(states[4][name] != states[3][name] for name in ("item/weight", "user/sum", "network.heads.0.weight"))
    assert overflow.scales == [2.0**10] * 3 + [2.0**9] * 3


def test_a_float16_fit_resumes_with_its_scale_bit_equal(tmp_path: Path) -> None:
    def run(epochs: int, path: str | None = None) -> tuple[Any, RecModule]:
        module = make_module()
        trainer = make_trainer(tmp_path, Overflow(batch=1), plugins=[float16()], max_epochs=epochs)
        trainer.fit(module, MemoryLoader(4), ckpt_path=path)
        return trainer, module

    _, whole = run(2)
    trainer, _ = run(1)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    again, resumed = run(2, str(tmp_path / "x.ckpt"))
    assert again.precision_plugin.scaler.get_scale() == 2.0**9
    assert everything(resumed) == everything(whole)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_autocast_never_touches_tables(precision: Any, dtype: str, tmp_path: Path) -> None:
    seen: set[torch.dtype] = set()

    class Watched(SmallNet):
        def forward(self, inputs: Any) -> dict[str, Tensor]:
            seen.update(inputs[name].dtype for name in ("user", "items"))
            return super().forward(inputs)

    class Gradients(Callback):
        def on_before_optimizer_step(self, trainer: Any, module: RecModule, optimizer: Any) -> None:
            pending = [group.coalesce() for group in module.embedding.groups]
            seen.update(found.grads.dtype for found in pending if found is not None)

    module = make_module(schema_of(dtype=dtype), network=Watched)
    make_trainer(tmp_path, Gradients(), precision=precision, max_epochs=1).fit(module, MemoryLoader(2))
    assert seen == {torch.float32}
    assert str(module.tables["item"].dtype) == f"torch.{dtype}"
    assert module.tables["item"].export().slots["sum"].dtype == torch.float32


def test_a_fit_with_narrow_rows_resumes_bit_equal(tmp_path: Path) -> None:
    adam = {"kind": "adamw", "state_dtype": "bfloat16", "schedule": {"warmup_steps": 5}}

    def run(epochs: int, path: str | None = None) -> tuple[Any, RecModule]:
        module = make_module(schema_of(dtype="bfloat16", grad_reduce="mean", optimizer=adam))
        trainer = make_trainer(tmp_path, max_epochs=epochs)
        trainer.fit(module, MemoryLoader(4), ckpt_path=path)
        return trainer, module

    _, whole = run(2)
    trainer, _ = run(1)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    _, resumed = run(2, str(tmp_path / "x.ckpt"))
    loaded = RecModule.load_from_checkpoint(str(tmp_path / "x.ckpt"), network=SmallNet)
    assert loaded.tables["item"].dtype == torch.bfloat16
    for name, table in resumed.tables.items():
        part, expected = table.export(), whole.tables[name].export()
        for key, value in {"weight": part.weight, **part.slots}.items():
            assert torch.equal(value, {"weight": expected.weight, **expected.slots}[key])


# ----------------------------------------------------------------------------------------------------------- schedules


class Rates(Callback):
    """Keeps the learning rate of each group at each step, by the group's name."""

    def __init__(self) -> None:
        self.by_name: dict[str, list[float]] = {}

    def on_train_batch_start(self, trainer: Any, *rest: Any) -> None:
        for group in trainer.optimizers[0].param_groups:
            self.by_name.setdefault(group.get("name", "dense"), []).append(group["lr"])


def halve(optimizer: Any) -> torch.optim.lr_scheduler.LambdaLR:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)


@pytest.mark.parametrize("scheduler", [None, halve])
def test_a_table_follows_its_own_schedule_and_the_others_that_of_the_run(scheduler: Any, tmp_path: Path) -> None:
    schedule = {"warmup_steps": 2, "decay": "cosine", "total_steps": 8, "floor": 0.1}
    schema = schema_of(optimizer={"kind": "adagrad", "lr": 0.2, "schedule": schedule})
    rates = Rates()
    make_trainer(tmp_path, rates).fit(make_module(schema, lr_scheduler=scheduler), MemoryLoader(5))
    declared = Schedule(**schedule)
    assert rates.by_name["sparse/adagrad/item"] == pytest.approx([0.2 * declared.factor(step) for step in range(10)])
    halved = [0.5**step if scheduler else 1.0 for step in range(10)]
    assert rates.by_name["sparse/adagrad/user"] == pytest.approx([0.05 * factor for factor in halved])
    assert rates.by_name["dense"] == pytest.approx([0.01 * factor for factor in halved])


def test_a_schedule_goes_on_where_a_checkpoint_left_it(tmp_path: Path) -> None:
    schema = schema_of(optimizer={"kind": "sgd", "lr": 1.0, "schedule": {"decay": "step", "every": 2, "gamma": 0.5}})
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(make_module(schema), MemoryLoader(3))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    rates = Rates()
    again = make_trainer(tmp_path, rates, max_epochs=2)
    again.fit(make_module(schema), MemoryLoader(3), ckpt_path=str(tmp_path / "x.ckpt"))
    assert rates.by_name["sparse/sgd"] == [0.5, 0.25, 0.25]


def test_frozen_integers_reach_the_network_as_they_are(tmp_path: Path) -> None:
    schema = schema_of(
        dtype="int64", trainable=False, optimizer="adagrad", initializer={"kind": "constant", "value": 2**60}
    )
    found: list[Tensor | Ragged] = []

    class Watched(SmallNet):
        def forward(self, inputs: Any) -> dict[str, Tensor]:
            found.append(inputs["items"])
            return super().forward(inputs | {"items": inputs["items"] * 1e-19})

    make_trainer(tmp_path, max_epochs=1).fit(make_module(schema, network=Watched), MemoryLoader(1))
    assert found[0].dtype == torch.int64
    assert int(found[0].max()) % 2**60 == 0
