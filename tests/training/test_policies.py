"""Admission and eviction in a fit: when they act, what they log, and that they come back with a checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from recis_lightning.ragged import Ragged
from recis_lightning.schema import Schema
from recis_lightning.tables import TableFullError
from recis_lightning.training import RecModule
from recis_lightning.training.callbacks import table_statistics
from tests.training.helpers import (
    InterruptAt,
    MemoryLoader,
    everything,
    make_module,
    make_schema,
    make_trainer,
    table_bytes,
)

BATCHES = 6
POLICIES: dict[str, dict[str, Any]] = {
    "counter-age": {
        "admission": {"kind": "counter", "threshold": 3},
        "eviction": {"kind": "age", "steps": 2, "every": 1},
    },
    "counter-lru": {"admission": {"kind": "counter", "threshold": 2}, "eviction": "lru", "capacity": 12},
    "bloom-lfu": {
        "admission": {"kind": "bloom", "threshold": 2, "bytes": 65536},
        "eviction": {"kind": "lfu", "every": 3},
        "capacity": 20,
    },
    "probability-norm": {
        "admission": {"kind": "probability", "probability": 0.3},
        "eviction": {"kind": "l2_norm", "below": 0.11, "every": 2},
    },
}


def schema_with(**policies: Any) -> Schema:
    settings = make_schema().to_dict()
    return Schema.from_dict(settings | {"tables": [table | policies for table in settings["tables"]]})


def fit(
    root: Path, policies: dict[str, Any], *callbacks: Callback, ckpt_path: str | None = None, **options: Any
) -> RecModule:
    module = make_module(schema_with(**policies))
    torch.manual_seed(1 if ckpt_path is None else 999)
    make_trainer(root, *callbacks, **options).fit(module, MemoryLoader(BATCHES), ckpt_path=ckpt_path)
    return module


def state_of(module: RecModule) -> dict[str, Any]:
    """All that is trained, and all that policies know."""
    counted = {
        f"{name}/{key}": value.numpy().tobytes()
        for name, table in module.tables.items()
        for key, value in table.export_admission().items()
    }
    return everything(module) | counted | {name: table.policy_state() for name, table in module.tables.items()}


@pytest.mark.parametrize("kind", POLICIES)
def test_resumed_run_admits_and_evicts_as_the_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", POLICIES[kind])
    stats = whole.tables["item"].stats()
    assert stats["evicted"] > 0
    assert stats["refused"] > 0
    with pytest.raises(SystemExit):
        fit(tmp_path, POLICIES[kind], InterruptAt(7))
    resumed = fit(tmp_path, POLICIES[kind], ckpt_path=str(tmp_path / "interrupted.ckpt"))
    assert state_of(resumed) == state_of(whole)


class RecordEvictions(Callback):
    def __init__(self) -> None:
        self.rows: list[tuple[int, int]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *arguments: Any) -> None:
        self.rows.append((trainer.global_step, len(pl_module.tables["item"])))


def test_nothing_is_evicted_between_accumulated_batches(tmp_path: Path) -> None:
    record = RecordEvictions()
    fit(tmp_path, {"capacity": 8, "eviction": "lru"}, record, accumulate_grad_batches=3, max_epochs=1)
    (first, second, third), later = record.rows[:3], record.rows[3:]
    assert [step for step, _ in (first, second, third)] == [0, 0, 1]
    assert second[1] > 8
    assert third[1] == 8
    assert later[-1] == (2, 8)


@pytest.mark.parametrize("kind", POLICIES)
def test_a_run_is_the_same_bytes_each_time_and_under_deterministic_algorithms(kind: str, tmp_path: Path) -> None:
    first = state_of(fit(tmp_path, POLICIES[kind]))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        second = fit(tmp_path, POLICIES[kind], deterministic=True)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    assert {k: v for k, v in state_of(second).items() if "/" in k} == {k: v for k, v in first.items() if "/" in k}


def test_totals_of_policies_are_logged_for_tables_that_have_some(tmp_path: Path) -> None:
    module = fit(tmp_path, POLICIES["counter-age"])
    logged = table_statistics(module.tables)
    stats = module.tables["item"].stats()
    for event in ("inserted", "admitted", "refused", "evicted", "waiting"):
        assert logged[f"sparse/item/{event}"] == stats[event]
    assert stats["inserted"] - stats["evicted"] == stats["ids"]
    assert not any(name.endswith("refused") for name in table_statistics(make_module().tables))


def test_ids_not_admitted_give_zeros_and_get_no_gradient() -> None:
    module = make_module(schema_with(admission={"kind": "counter", "threshold": 2})).train()
    inputs = {"user": Ragged.from_lists([[1], [2], [2]]), "items": Ragged.from_lists([[], [], []])}
    pooled = module.embedding(inputs)["user"]
    assert (pooled[0] == 0).all()
    assert (pooled[1:] != 0).any(dim=1).all()
    pooled.sum().backward()
    (pending,) = [pending for group in module.embedding.groups for pending in group.pending]
    assert len(pending.rows) == 1
    assert pending.grads.tolist() == [[2.0] * 4]


def test_backward_after_ids_were_erased_is_refused_with_the_feature() -> None:
    module = make_module().train()
    inputs = {"user": Ragged.from_lists([[1], [2]]), "items": Ragged.from_lists([[], []])}
    pooled = module.embedding(inputs)["user"]
    module.tables["user"].erase(torch.tensor([1]))
    with pytest.raises(RuntimeError, match=r"feature 'user' \(table 'user'\): ids were erased or evicted between"):
        pooled.sum().backward()


def test_full_table_ends_the_fit_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(TableFullError, match="is full: it holds 5 ids, its capacity"):
        fit(tmp_path, {"capacity": 5, "admission": "always"})


def test_checkpoint_of_weights_alone_holds_no_counts_and_still_loads(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, "x", save_weights_only=True, every_n_train_steps=5)
    module = fit(tmp_path, POLICIES["counter-age"], saver, max_epochs=1)
    loaded = RecModule.load_from_checkpoint(str(tmp_path / "x.ckpt"))
    assert loaded.schema == module.schema
    assert len(loaded.tables["item"].export_admission()["ids"]) == 0
    manifest = json.loads((tmp_path / "x.ckpt" / "manifest.json").read_text())
    assert manifest["tables"]["item"]["policies"]["times"] == []
    assert set(table_bytes(loaded)) == set(table_bytes(module))
