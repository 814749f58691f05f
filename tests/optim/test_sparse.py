"""SparseOptimizer: accumulation, broken gradients, loss scaling, and its groups."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from recis_lightning.embedding import EmbeddingCollection
from recis_lightning.optim import SparseOptimizer
from recis_lightning.ragged import Ragged
from recis_lightning.schema import Schema


def make_collection(tables: Mapping[str, Any], dim: int = 2, dtype: str = "float64") -> EmbeddingCollection:
    """A list feature for each table, named as it; values are the tables' optimizers."""
    schema = Schema.from_dict(
        {
            "columns": [{"name": name, "dtype": "int64", "layout": "list"} for name in tables],
            "tables": [
                {"name": name, "dim": dim, "dtype": dtype, "initializer": {"kind": "uniform"}, "optimizer": optimizer}
                for name, optimizer in tables.items()
            ],
            "features": [{"name": name, "table": name} for name in tables],
        }
    )
    return EmbeddingCollection(schema, max_rows=10_000)


def random_inputs(names: Mapping[str, Any], seed: int, rows: int = 8) -> dict[str, Ragged]:
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.arange(0, 2 * rows + 1, 2)
    return {name: Ragged(torch.randint(30, (2 * rows,), generator=generator), offsets) for name in names}


def loss_of(collection: EmbeddingCollection, inputs: Mapping[str, Ragged]) -> Tensor:
    return torch.stack([(pooled - 0.3).square().mean() for pooled in collection(inputs).values()]).mean()


def contents(collection: EmbeddingCollection) -> dict[str, list[Tensor]]:
    """Weights and optimizer state of every table, in the order of ids."""
    exported = {name: table.export() for name, table in collection.tables.items()}
    return {name: [part.ids, part.weight, *part.slots.values()] for name, part in exported.items()}


KINDS = ["sgd", "adagrad", "rowwise_adagrad", "adam", "adamw"]


@pytest.mark.parametrize("kind", KINDS)
def test_four_accumulated_batches_equal_one_four_times_as_large(kind: str) -> None:
    tables = {"a": {"kind": kind, "lr": 0.1}, "b": {"kind": kind, "lr": 0.1}}
    accumulated, whole = make_collection(tables), make_collection(tables)
    for step in range(5):
        parts = [random_inputs(tables, seed=4 * step + part) for part in range(4)]
        for inputs in parts:
            (loss_of(accumulated, inputs) / 4).backward()
        assert len(accumulated.groups[0].pending) == 4
        joined = {
            name: Ragged(torch.cat([part[name].values for part in parts]), torch.arange(0, 65, 2)) for name in tables
        }
        loss_of(whole, joined).backward()
        for collection in (accumulated, whole):
            SparseOptimizer(collection.groups).step()
    found, expected = contents(accumulated), contents(whole)
    for name in tables:
        for ours, control in zip(found[name], expected[name], strict=True):
            torch.testing.assert_close(ours, control, rtol=1e-10, atol=1e-10)
        assert accumulated.tables[name].step == whole.tables[name].step == 5


@pytest.mark.parametrize("broken", [float("inf"), float("-inf"), float("nan")])
def test_a_broken_gradient_names_table_and_id_and_updates_nothing(broken: float) -> None:
    collection = make_collection({"good": "adam", "bad": "adam"})
    ids = Ragged.from_lists([[5], [7]])
    found = collection({"good": ids, "bad": ids})
    before = contents(collection)
    (found["good"].sum() + (found["bad"] * torch.tensor([[1.0], [broken]])).sum()).backward()
    with pytest.raises(
        FloatingPointError, match="table 'bad': the gradient of id 7 is not finite.* 1 of 4 touched rows"
    ):
        SparseOptimizer(collection.groups).step()
    after = contents(collection)
    assert all(torch.equal(a, b) for name in before for a, b in zip(before[name], after[name], strict=True))
    assert collection.tables["good"].step == 0


def test_large_gradients_whose_sum_overflows_are_no_error() -> None:
    collection = make_collection({"a": "sgd"}, dtype="float32")
    pooled = collection({"a": Ragged.from_lists([[5], [7]])})["a"]
    (pooled * 3e38).sum().backward()
    SparseOptimizer(collection.groups).step()
    assert collection.tables["a"].export().weight.isfinite().all()


def test_steps_count_only_for_tables_that_were_looked_up() -> None:
    collection = make_collection({"a": "adam", "b": "adam"})
    optimizer = SparseOptimizer(collection.groups)
    for used in ("a", "ab", "b", "b"):
        found = collection(random_inputs({"a": 0, "b": 0}, seed=0))
        sum(found[name].sum() for name in used).backward()  # type: ignore[union-attr]
        optimizer.step()
    assert [collection.tables[name].step for name in "ab"] == [2, 3]
    optimizer.step()
    assert [collection.tables[name].step for name in "ab"] == [2, 3], "a step without gradients is none"


def test_norm_scale_and_clamp_act_on_rows_summed_up() -> None:
    collection = make_collection({"a": "sgd", "b": "adam"}, dim=1)
    optimizer = SparseOptimizer(collection.groups)
    assert optimizer.grad_norm_sq() == 0
    for factor in (1.0, 2.0):
        found = collection({"a": Ragged.from_lists([[5]]), "b": Ragged.from_lists([[5, 6, 6]])})
        (factor * (found["a"] + found["b"]).sum()).backward()
    assert optimizer.grad_norm_sq() == pytest.approx(3**2 + 3**2 + 6**2)
    optimizer.scale_grads(torch.tensor(0.5))
    assert optimizer.grad_norm_sq() == pytest.approx((3**2 + 3**2 + 6**2) / 4)
    optimizer.clamp_grads(2.0)
    assert optimizer.grad_norm_sq() == pytest.approx(1.5**2 + 1.5**2 + 2**2)
    optimizer.zero_grad()
    assert optimizer.grad_norm_sq() == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_unscaling_finds_what_is_infinite(dtype: str) -> None:
    collection = make_collection({"a": "sgd"}, dtype=dtype)
    optimizer = SparseOptimizer(collection.groups)
    for factor, found in ((1024.0, 0.0), (float("inf"), 1.0)):
        (collection({"a": Ragged.from_lists([[5]])})["a"] * factor).sum().backward()
        found_inf = torch.zeros(1)
        optimizer.unscale_(torch.tensor([1 / 512]), found_inf)
        assert found_inf.item() == found
        if not found:
            assert collection.groups[0].pending[0].grads.tolist() == [[2.0, 2.0]]
        optimizer.zero_grad()


def test_each_declaration_has_one_group_of_settings() -> None:
    tables = {"a": {"kind": "adam", "lr": 0.1}, "b": {"kind": "adam", "lr": 0.1}, "c": {"kind": "adam", "lr": 0.2}}
    optimizer = SparseOptimizer(make_collection(tables | {"d": "sgd"}).groups)
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {
        "sparse/adam/a": 0.1,
        "sparse/adam/c": 0.2,
        "sparse/sgd": 0.01,
    }
    assert all(group["params"] == [] for group in optimizer.param_groups)


def test_changed_settings_act_on_the_tables_of_their_group() -> None:
    collection = make_collection({"a": {"kind": "sgd", "lr": 0.5}, "b": {"kind": "sgd", "lr": 0.25}}, dim=1)
    optimizer = SparseOptimizer(collection.groups)
    next(group for group in optimizer.param_groups if group["name"] == "sparse/sgd/b")["lr"] = 2.0
    ids = Ragged.from_lists([[5]])
    found = collection({"a": ids, "b": ids})
    before = {name: part[1].clone() for name, part in contents(collection).items()}
    (found["a"] + found["b"]).sum().backward()
    optimizer.step()
    after = contents(collection)
    assert (before["a"] - after["a"][1]).item() == pytest.approx(0.5)
    assert (before["b"] - after["b"][1]).item() == pytest.approx(2.0)


def test_settings_are_saved_and_loaded() -> None:
    optimizer = SparseOptimizer(make_collection({"a": "adam", "b": "sgd"}).groups)
    optimizer.param_groups[0]["lr"] = 7.0
    saved = optimizer.state_dict()
    other = SparseOptimizer(make_collection({"a": "adam", "b": "sgd"}).groups)
    kept = other.param_groups[0]
    other.load_state_dict(saved)
    assert kept is other.param_groups[0]
    assert kept["lr"] == 7.0
    with pytest.raises(ValueError, match="has the groups sparse/adam, sparse/sgd, this one sparse/adam;"):
        SparseOptimizer(make_collection({"a": "adam"}).groups).load_state_dict(saved)
