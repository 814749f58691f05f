from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from recis_lightning.embedding.exchange import Exchange
from recis_lightning.ragged import Batch, Ragged
from recis_lightning.schema import Schema
from recis_lightning.training import RecModule
from recis_lightning.training.files import CheckpointError
from tests.ranks import run_ranks
from tests.training.helpers import (
    ListLoader,
    Losses,
    MemoryLoader,
    SmallNet,
    everything,
    make_batch,
    make_module,
    make_schema,
    make_trainer,
    table_bytes,
)
from triton_ops.index import virtual_shard


def two_tasks() -> Schema:
    one = make_schema().to_dict()
    cvr = {"name": "cvr", "label": "label", "where": "clicked", "weight": 0.5}
    return Schema.from_dict(one | {"tasks": [*one["tasks"], cvr]})


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    losses = Losses()
    module = make_module(network=partial(SmallNet, dropout=0.0))
    make_trainer(tmp_path, losses, max_epochs=30).fit(module, MemoryLoader(2, rows=64))
    values = list(losses.by_batch.values())
    assert sum(values[-2:]) < 0.8 * sum(values[:2])


def test_metrics_of_one_task_have_short_names(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.fit(make_module(), MemoryLoader(), MemoryLoader(2, seed=9))
    logged = {name for name in trainer.callback_metrics if name.startswith(("train/", "val/"))}
    assert logged == {"train/loss", "val/loss", "val/auc", "val/logloss", "val/ne", "val/calibration"}
    trainer.test(make_module(), MemoryLoader(2, seed=9), verbose=False)
    assert {name for name in trainer.callback_metrics if name.startswith("test/")} == {
        "test/loss",
        "test/auc",
        "test/logloss",
        "test/ne",
        "test/calibration",
    }


def test_metrics_of_several_tasks_name_their_task_beside_the_weighted_sum(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.fit(make_module(two_tasks()), MemoryLoader(), MemoryLoader(2, seed=9))
    found = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert found["val/loss"] == pytest.approx(found["val/ctr/loss"] + 0.5 * found["val/cvr/loss"])
    assert found["train/loss"] == pytest.approx(found["train/ctr/loss"] + 0.5 * found["train/cvr/loss"])
    assert {"val/ctr/auc", "val/cvr/auc", "val/cvr/calibration"} <= set(found)


@pytest.mark.parametrize("every", [0, 4, 100])
def test_training_loss_is_logged_at_logged_steps_and_at_the_end_of_an_epoch(every: int, tmp_path: Path) -> None:
    seen: dict[int, bool] = {}

    class Look(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            logged = trainer.callback_metrics.get("train/loss")
            seen[batch_idx] = logged is not None and logged.item() == outputs["loss"].item()

    make_trainer(tmp_path, Look(), max_epochs=1, log_every_n_steps=every).fit(make_module(), MemoryLoader(6))
    assert [batch for batch, logged in seen.items() if logged] == ([3, 5] if every == 4 else [5])


@pytest.mark.trap(12)
def test_logged_means_are_weighted_by_rows(tmp_path: Path) -> None:
    # Left alone, Lightning takes the length of the first tensor it finds in a batch for its size.
    class Noting(RecModule):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            self.log("rows", float(batch.size), on_epoch=True)

    torch.manual_seed(0)
    trainer = make_trainer(tmp_path)
    with pytest.warns(UserWarning, match="sync_dist"):
        trainer.validate(Noting(make_schema(), SmallNet), ListLoader(make_batch(30), make_batch(10)), verbose=False)
    assert trainer.callback_metrics["rows"].item() == (30 * 30 + 10 * 10) / 40


def test_a_batch_without_rows_is_a_step_without_effect_on_rows(tmp_path: Path) -> None:
    module = make_module()
    losses = Losses()
    make_trainer(tmp_path, losses, max_epochs=1).fit(module, ListLoader(make_batch(8), make_batch(0), make_batch(8)))
    assert losses.by_batch[1] == 0
    assert all(rows.isfinite().all() for rows in (table.export().weight for table in module.tables.values()))


def test_predictions_are_scores_by_task(tmp_path: Path) -> None:
    module = make_module(two_tasks())
    batches = [make_batch(8), make_batch(5)]
    predicted = make_trainer(tmp_path).predict(module, ListLoader(*batches))
    assert predicted is not None
    module.eval()
    for found, batch in zip(predicted, batches, strict=True):
        assert set(found) == {"ctr", "cvr"}
        torch.testing.assert_close(found["ctr"], module(batch)["ctr"].sigmoid())


def test_the_catalogue_gives_rows_in_pieces_and_inserts_nothing(tmp_path: Path) -> None:
    module = make_module()
    make_trainer(tmp_path).fit(module, MemoryLoader())
    table = module.tables["user"]
    known = table.export()
    unknown = torch.tensor([10**12, -7])
    asked = torch.cat([known.ids, unknown])
    pieces = list(module.catalogue(asked, table="user", chunk=7))
    assert {len(ids) for ids, _ in pieces[:-1]} == {7}
    assert torch.equal(torch.cat([ids for ids, _ in pieces]), asked)
    rows = torch.cat([rows for _, rows in pieces])
    assert torch.equal(rows[: len(known)], known.weight)
    assert not rows[len(known) :].any()
    assert len(table) == len(known)
    rows.fill_(9.0)
    assert torch.equal(table.export().weight, known.weight)


@pytest.mark.parametrize("chunk", [3, 1000])
def test_the_catalogue_of_a_whole_table_has_every_id_once(chunk: int, tmp_path: Path) -> None:
    module = make_module()
    make_trainer(tmp_path).fit(module, MemoryLoader())
    pieces = list(module.catalogue(table="item", chunk=chunk))
    assert all(len(ids) <= chunk for ids, _ in pieces)
    assert torch.equal(torch.cat([ids for ids, _ in pieces]), module.tables["item"].export().ids)


def test_a_misspelt_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'usr' is not declared; did you mean 'user'"):
        next(make_module().catalogue(torch.tensor([1]), table="usr"))


class Rates(Callback):
    """Keeps the learning rates of every step."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])


def halve(step: int) -> float:
    return 0.5**step


@pytest.mark.trap(17)
def test_one_scheduler_drives_the_rates_of_dense_and_sparse_groups(tmp_path: Path) -> None:
    rates = Rates()
    module = make_module(lr_scheduler=partial(LambdaLR, lr_lambda=halve))
    trainer = make_trainer(tmp_path, rates, max_epochs=1)
    trainer.fit(module, MemoryLoader(3))
    dense, *sparse = rates.seen[-1]
    assert dense == pytest.approx(0.01 / 8)
    assert sparse
    assert sparse == pytest.approx([0.05 / 8] * len(sparse))
    assert trainer.global_step == 3


def test_a_plateau_scheduler_watches_the_metric_it_names(tmp_path: Path) -> None:
    rates = Rates()
    watching = partial(ReduceLROnPlateau, monitor="val/auc", patience=0, threshold=9.0, factor=0.1)
    module = make_module(lr_scheduler=watching)
    make_trainer(tmp_path, rates, max_epochs=3).fit(module, MemoryLoader(2), MemoryLoader(1, rows=64))
    assert rates.seen[0][0] == pytest.approx(0.01)
    assert rates.seen[-1][0] < 0.01


def sgd_module(**options: Any) -> RecModule:
    # SGD, for Adam-like rules hide a gradient that is off by a factor.
    schema = make_schema(dtype="float64", kind="sgd")
    network = partial(SmallNet, dropout=0.0)
    return make_module(schema, network=network, dense_optimizer=partial(torch.optim.SGD, lr=0.1), **options).double()


@pytest.mark.trap(18)
def test_clipping_takes_the_joint_norm_of_dense_and_sparse_gradients(tmp_path: Path) -> None:
    batch = make_batch(32)
    free, clipped = sgd_module(), sgd_module()
    make_trainer(tmp_path, max_epochs=1).fit(free, ListLoader(batch))
    first = sgd_module()
    first(batch)  # inserts the rows, with their first values
    changes = _changes(first, free)
    norm = torch.sqrt(sum((change.pow(2).sum() for change in changes), start=torch.zeros(()))).item()
    factor = (norm / 3) / (norm + 1e-6)  # as torch.nn.utils.clip_grad_norm_
    make_trainer(tmp_path, max_epochs=1, gradient_clip_val=norm / 3).fit(clipped, ListLoader(batch))
    for full, part in zip(changes, _changes(first, clipped), strict=True):
        torch.testing.assert_close(part, full * factor, rtol=1e-9, atol=1e-12)


def _changes(before: RecModule, after: RecModule) -> list[Tensor]:
    """What one step of SGD moved, divided by its learning rate: the gradients."""
    old, new = before.state_dict(), after.state_dict()
    dense = [(old[name] - new[name]) / 0.1 for name in old]
    sparse = [
        (before.tables[name].export().weight - table.export().weight) / 0.05 for name, table in after.tables.items()
    ]
    return dense + sparse


def test_a_norm_below_the_bound_is_left_alone(tmp_path: Path) -> None:
    free, clipped = sgd_module(), sgd_module()
    make_trainer(tmp_path).fit(free, MemoryLoader(2))
    make_trainer(tmp_path, gradient_clip_val=1e6).fit(clipped, MemoryLoader(2))
    assert everything(free) == everything(clipped)


def test_clipping_by_value_reaches_dense_and_sparse_gradients(tmp_path: Path) -> None:
    batch = make_batch(32)
    clipped, first = sgd_module(), sgd_module()
    first(batch)
    trainer = make_trainer(tmp_path, max_epochs=1, gradient_clip_val=1e-4, gradient_clip_algorithm="value")
    trainer.fit(clipped, ListLoader(batch))
    changes = _changes(first, clipped)
    assert [change.abs().max().item() for change in changes] == pytest.approx([1e-4] * len(changes))


@pytest.mark.trap(17)
def test_accumulated_batches_equal_one_as_large(tmp_path: Path) -> None:
    whole, parts = sgd_module(), sgd_module()
    batches = [make_batch(16, seed=seed) for seed in range(4)]
    make_trainer(tmp_path, max_epochs=1).fit(whole, ListLoader(_joined(batches)))
    trainer = make_trainer(tmp_path, max_epochs=1, accumulate_grad_batches=4)
    trainer.fit(parts, ListLoader(*batches))
    assert trainer.global_step == 1
    for name, table in whole.tables.items():
        other = parts.tables[name]
        assert torch.equal(table.export().ids, other.export().ids)
        torch.testing.assert_close(table.export().weight, other.export().weight, rtol=1e-12, atol=1e-15)
        assert table.step == other.step == 1
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(value, parts.state_dict()[name], rtol=1e-12, atol=1e-15)


def _joined(batches: list[Batch]) -> Batch:
    size = sum(batch.size for batch in batches)
    entries: dict[str, Any] = {}
    for name in batches[0]:
        parts: list[Any] = [batch[name] for batch in batches]
        if isinstance(parts[0], Ragged):
            entries[name] = Ragged.from_lists([row for part in parts for row in part.to_lists()])
        else:
            entries[name] = torch.cat(parts)
    return Batch.pack(entries, size)


def test_a_loaded_module_is_the_one_that_was_saved(tmp_path: Path) -> None:
    module = make_module(network=partial(SmallNet, hidden=5), lr_scheduler=partial(LambdaLR, lr_lambda=halve))
    trainer = make_trainer(tmp_path)
    trainer.fit(module, MemoryLoader(2))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="lr_scheduler was"):
        RecModule.load_from_checkpoint(str(tmp_path / "x.ckpt"))  # a function among its arguments has no plain form
    read = RecModule.load_from_checkpoint(str(tmp_path / "x.ckpt"), lr_scheduler=None)
    assert everything(read) == everything(module)
    assert read.schema == module.schema
    assert read.hparams["network"] == {"class_path": "tests.training.helpers.SmallNet", "init_args": {"hidden": 5}}


def test_arguments_replace_those_a_checkpoint_names(tmp_path: Path) -> None:
    module = make_module(network=lambda schema: SmallNet(schema, hidden=5))
    trainer = make_trainer(tmp_path)
    trainer.fit(module, MemoryLoader(2))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"pass it: load_from_checkpoint\(path, network=...\)"):
        RecModule.load_from_checkpoint(str(tmp_path / "x.ckpt"))
    read = RecModule.load_from_checkpoint(str(tmp_path / "x.ckpt"), network=partial(SmallNet, hidden=5))
    assert everything(read) == everything(module)


def test_a_network_that_is_built_already_is_refused() -> None:
    with pytest.raises(TypeError, match="network=SmallNet, or partial"):
        RecModule(make_schema(), network=SmallNet(make_schema()))


def test_a_schema_without_tasks_cannot_be_trained(tmp_path: Path) -> None:
    schema = Schema.from_dict(make_schema().to_dict() | {"tasks": []})
    with pytest.raises(MisconfigurationException, match="declares no task"):
        make_trainer(tmp_path).fit(make_module(schema), MemoryLoader(1))


def test_first_values_of_rows_depend_on_the_seed_alone(tmp_path: Path) -> None:
    firsts = []
    for seed, draws in ((0, 0), (0, 5), (1, 0)):
        torch.rand(draws)
        module = make_module(seed=seed)
        module.tables["user"].find_or_insert(torch.arange(10))
        firsts.append(table_bytes(module)["user/weight"])
    assert firsts[0] == firsts[1] != firsts[2]


def catalogue_of_rank(asked: list[list[int]]) -> dict[str, Any]:
    """What each of several ranks gets of its own ids, and of the whole table."""
    module = make_module()
    assert dist.group.WORLD is not None
    module.embedding.shard(Exchange(dist.group.WORLD))
    table = module.tables["item"]
    first, last = table.shards
    ids = torch.arange(50)
    own = ids[(virtual_shard(ids) >= first) & (virtual_shard(ids) < last)]
    table.find_or_insert(own)
    mine = torch.tensor(asked[dist.get_rank()], dtype=torch.int64)
    pieces = list(module.catalogue(mine, table="item", chunk=7))
    held = [ids for ids, _ in module.catalogue(table="item")]
    return {"pieces": pieces, "held": torch.cat(held), "own": own, "rows": len(table)}


def test_the_catalogue_gives_each_of_several_ranks_the_rows_of_any_ids() -> None:
    asked = [[*range(30), 10**12], [], [49, 3, 3, -5]]
    alone = make_module().tables["item"]
    found = run_ranks(3, catalogue_of_rank, asked)
    for wanted, rank in zip(asked, found, strict=True):
        assert [len(ids) for ids, _ in rank["pieces"]] == [min(7, len(wanted) - at) for at in range(0, len(wanted), 7)]
        for ids, rows in rank["pieces"]:
            known = (ids >= 0) & (ids < 50)
            assert torch.equal(rows[known], alone.weight(alone.find_or_insert(ids[known])))
            assert not rows[~known].any()
        assert rank["rows"] == len(rank["own"]) == len(rank["held"]), "nothing was inserted"
    assert sorted(torch.cat([rank["held"] for rank in found]).tolist()) == list(range(50))
