"""Every kind of optimizer and dtype of rows, through lookup, backward, step and checkpoint."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recis_lightning.embedding import EmbeddingCollection
from recis_lightning.optim import SparseOptimizer
from recis_lightning.ragged import Ragged
from recis_lightning.schema import Schema
from recis_lightning.tables import build_groups
from recis_lightning.training.checkpoint import READER, load_checkpoint, load_tables, save_checkpoint

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"kind": "sgd"},
    "momentum": {"kind": "sgd", "momentum": 0.9},
    "nesterov": {"kind": "sgd", "momentum": 0.9, "nesterov": True},
    "adagrad": {"kind": "adagrad", "initial_accumulator_value": 0.1},
    "rowwise_adagrad": {"kind": "rowwise_adagrad"},
    "adam": {"kind": "adam"},
    "adam_per_row": {"kind": "adam", "step": "per_row"},
    "adamw": {"kind": "adamw", "weight_decay": 0.1, "eps_placement": "corrected"},
    "adamw_tf": {"kind": "adamw", "weight_decay": 0.1, "decay_by_lr": False},
    "ftrl": {"kind": "ftrl", "l1": 0.001, "l2": 0.1},
}
NARROW = [("bfloat16", None), ("bfloat16", "bfloat16"), ("float16", "bfloat16"), ("float32", "bfloat16")]


def make_collection(*tables: dict[str, Any], seed: int = 0, **feature: Any) -> EmbeddingCollection:
    """A list feature for each table, named as it; 3 wide, with uniform first values."""
    defaults = {"dim": 3, "initializer": {"kind": "uniform", "low": -0.5, "high": 0.5}}
    schema = Schema.from_dict(
        {
            "columns": [{"name": table["name"], "dtype": "int64", "layout": "list"} for table in tables],
            "tables": [defaults | table for table in tables],
            "features": [{"name": table["name"], "table": table["name"], **feature} for table in tables],
        }
    )
    return EmbeddingCollection(schema, seed=seed, max_rows=10_000)


def random_ids(seed: int, rows: int = 8) -> Ragged:
    generator = torch.Generator().manual_seed(seed)
    return Ragged(torch.randint(30, (2 * rows,), generator=generator), torch.arange(0, 2 * rows + 1, 2))


def train(collection: EmbeddingCollection, *batches: Ragged, rows: int | None = None) -> None:
    """One step on all batches, of which the loss is the mean over rows."""
    rows = rows or sum(len(batch) for batch in batches)
    for batch in batches:
        found = collection(dict.fromkeys(collection.features, batch))
        (sum((pooled - 0.3).square().sum() for pooled in found.values()) / rows).backward()  # type: ignore[union-attr]
    SparseOptimizer(collection.groups).step()


def contents(collection: EmbeddingCollection) -> dict[str, Tensor]:
    """All that tables hold, by table and name, in the order of ids."""
    found = {}
    for name, table in collection.tables.items():
        part = table.export()
        named = {"ids": part.ids, "weight": part.weight, "last_step": part.last_step, "count": part.count}
        found |= {f"{name}/{key}": value for key, value in (named | dict(part.slots)).items()}
        found[f"{name}/step"] = torch.tensor(table.step)
    return found


def assert_same_bytes(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.dtype == expected[name].dtype
        assert torch.equal(value, expected[name]), name


# ---------------------------------------------------------------------------------------------------- what steps mean


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("grad_reduce", ["sum", "mean"])
def test_accumulated_batches_equal_one_of_all(optimizer: str, grad_reduce: str) -> None:
    options = {"dtype": "float64", "optimizer": OPTIMIZERS[optimizer] | {"lr": 0.1}}
    tables = {"name": "a", "grad_reduce": grad_reduce, **options}, {"name": "b", **options}
    accumulated, whole = make_collection(*tables), make_collection(*tables)
    for step in range(4):
        parts = [random_ids(seed=10 * step + part) for part in range(9)]
        joined = Ragged(torch.cat([part.values for part in parts]), torch.arange(0, 145, 2))
        train(accumulated, *parts)
        train(whole, joined)
    found, expected = contents(accumulated), contents(whole)
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-10)


def test_mean_divides_the_gradient_of_an_id_by_its_occurrences() -> None:
    sgd = {"dtype": "float64", "optimizer": {"kind": "sgd", "lr": 1.0}}
    collection = make_collection({"name": "a", "grad_reduce": "mean", **sgd}, {"name": "b", **sgd})
    ids = Ragged.from_lists([[5, 5], [5, 7]])
    before = {name: collection({"a": ids, "b": ids}) and table.export().weight.clone()
              for name, table in collection.tables.items()}  # fmt: skip
    for factor in (1.0, 2.0):  # two batches of one step
        pooled = collection({"a": ids, "b": ids})
        (factor * (pooled["a"].sum() + pooled["b"].sum())).backward()
    optimizer = SparseOptimizer(collection.groups)
    # id 5 has gradients 3 * 1 and 3 * 2 in 6 occurrences, id 7 has 1 and 2 in 2.
    assert optimizer.grad_norm_sq().item() == pytest.approx(3 * (1.5**2 + 1.5**2 + 9**2 + 3**2))
    optimizer.step()
    change = {name: (before[name] - table.export().weight)[:, 0] for name, table in collection.tables.items()}
    order = collection.tables["a"].export().ids.tolist()
    assert dict(zip(order, change["a"].tolist(), strict=True)) == pytest.approx({5: 1.5, 7: 1.5})
    assert dict(zip(order, change["b"].tolist(), strict=True)) == pytest.approx({5: 9.0, 7: 3.0})


def test_means_stay_means_when_looked_at_between_batches() -> None:
    table = {"name": "a", "grad_reduce": "mean", "dtype": "float64", "optimizer": {"kind": "sgd", "lr": 1.0}}
    looked_at, other = make_collection(table), make_collection(table)
    for collection in (looked_at, other):
        for seed in range(3):
            collection({"a": random_ids(seed)})["a"].square().sum().backward()
            if collection is looked_at:
                SparseOptimizer(collection.groups).grad_norm_sq()
        SparseOptimizer(collection.groups).step()
    torch.testing.assert_close(looked_at.tables["a"].export().weight, other.tables["a"].export().weight)


def test_a_row_of_its_own_count_moves_by_lr_when_it_first_appears_late() -> None:
    adam = {"kind": "adam", "lr": 0.1}
    tables = [{"name": step, "dtype": "float64", "optimizer": adam | {"step": step}} for step in ("per_row", "table")]
    collection = make_collection(*tables)
    for _ in range(50):
        train(collection, Ragged.from_lists([[1]]))
    new = Ragged.from_lists([[2]])
    with torch.no_grad():
        collection.train()
    first = {}
    for name, table in collection.tables.items():
        table.find_or_insert(torch.tensor([2]))
        first[name] = table.weight(table.find(torch.tensor([2])))
    train(collection, new)
    moved = {
        name: (table.weight(table.find(torch.tensor([2]))) - first[name]).abs().max().item()
        for name, table in collection.tables.items()
    }
    assert moved["per_row"] == pytest.approx(0.1, rel=1e-6)
    assert moved["table"] == pytest.approx(0.1 * (1 - 0.9) * math.sqrt((1 - 0.999**51) / (1 - 0.999)) / (1 - 0.9**51))
    assert collection.tables["per_row"].export().slots["step"].squeeze(1).tolist() in ([50, 1], [1, 50])


# -------------------------------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize(("dtype", "state_dtype"), NARROW)
def test_narrow_rows_follow_those_of_float32(dtype: str, state_dtype: str | None) -> None:
    adam = {"kind": "adam", "lr": 0.01}
    wide = make_collection({"name": "a", "optimizer": adam})
    narrow = make_collection({"name": "a", "dtype": dtype, "optimizer": adam | {"state_dtype": state_dtype}})
    for step in range(150):
        for collection in (wide, narrow):
            train(collection, random_ids(step % 4))
    table = narrow.tables["a"]
    assert str(table.dtype) == f"torch.{dtype}"
    assert {str(slot.dtype) for slot in table.export().slots.values()} == {f"torch.{state_dtype or 'float32'}"}
    pooled = narrow({"a": random_ids(0)})["a"]
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, wide({"a": random_ids(0)})["a"], rtol=0, atol=0.03)


def test_updates_too_small_for_bfloat16_add_up() -> None:
    sgd = {"kind": "sgd", "lr": 1e-4}
    collection = make_collection(
        {
            "name": "a",
            "dim": 256,
            "dtype": "bfloat16",
            "initializer": {"kind": "constant", "value": 1.0},
            "optimizer": sgd,
        }
    )
    optimizer = SparseOptimizer(collection.groups)
    for _ in range(400):
        collection({"a": Ragged.from_lists([[1]])})["a"].sum().backward()
        optimizer.step()
    # A step is a fortieth of what lies between 1 and the bfloat16 below it: rounded to the nearest it would be lost.
    assert collection.tables["a"].export().weight.float().mean().item() == pytest.approx(0.96, abs=0.002)


def test_rounding_does_not_depend_on_where_rows_lie() -> None:
    table = {"name": "a", "dtype": "bfloat16", "optimizer": {"kind": "adam", "state_dtype": "bfloat16"}}
    one, other, reseeded = make_collection(table), make_collection(table), make_collection(table, seed=1)
    other.tables["a"].find_or_insert(torch.arange(29, -1, -1))
    for collection in (one, other, reseeded):
        for step in range(5):
            train(collection, random_ids(step))
    found, expected = contents(one), contents(other)
    held = torch.isin(expected["a/ids"], found["a/ids"])
    for name in ("weight", "exp_avg", "exp_avg_sq"):
        assert torch.equal(found[f"a/{name}"], expected[f"a/{name}"][held])
    assert not torch.equal(contents(reseeded)["a/exp_avg_sq"], found["a/exp_avg_sq"])


KEPT = [(name, dtype, state) for name in OPTIMIZERS for dtype, state in (("float32", None), ("bfloat16", "bfloat16"))]
KEPT += [("adam", dtype, state) for dtype, state in (("float64", None), ("float16", None), ("float32", "bfloat16"))]


@pytest.mark.parametrize(("optimizer", "dtype", "state_dtype"), KEPT)
def test_every_kind_is_saved_and_goes_on_bit_equal(
    optimizer: str, dtype: str, state_dtype: str | None, tmp_path: Path
) -> None:
    has_state = optimizer != "sgd"
    state_dtype = state_dtype if has_state and optimizer != "adam_per_row" else None
    options = OPTIMIZERS[optimizer] | {"lr": 0.1, "state_dtype": state_dtype}
    table = {"name": "a", "dtype": dtype, "optimizer": options}
    without_a_break, saved, read = (make_collection(table) for _ in range(3))
    for step in range(6):
        train(without_a_break, random_ids(step))
    for step in range(3):
        train(saved, random_ids(step))
    checkpoint = {"epoch": 0, "global_step": 3, "state_dict": {}, "optimizer_states": []}
    save_checkpoint(checkpoint, str(tmp_path / "x.ckpt"), saved.tables)
    load_tables(read.tables, load_checkpoint(str(tmp_path / "x.ckpt"))[READER])
    assert_same_bytes(contents(read), contents(saved))
    for step in range(3, 6):
        train(read, random_ids(step))
    assert_same_bytes(contents(read), contents(without_a_break))


def test_a_group_takes_what_one_update_serves() -> None:
    adam, adamw = {"kind": "adam"}, {"kind": "adamw", "schedule": {"warmup_steps": 3}}
    tables = [
        {"name": "a", "optimizer": adam},
        {"name": "b", "optimizer": adamw, "grad_reduce": "mean"},
        {"name": "c", "optimizer": adam | {"state_dtype": "bfloat16"}},
        {"name": "d", "optimizer": adam, "dtype": "bfloat16"},
        {"name": "e", "optimizer": adam | {"step": "per_row"}},
        {"name": "f", "trainable": False},
        {"name": "g", "trainable": False, "dtype": "int8", "initializer": "zeros"},
        {"name": "h", "optimizer": {"kind": "sgd"}},
        {"name": "i", "optimizer": {"kind": "sgd", "momentum": 0.5}},
    ]
    groups = make_collection(*tables).groups
    assert [[table.name for table in group] for group in groups] == [["a", "b"], *([name] for name in "cdefghi")]
    sizes = {group[0].name: group.weight.itemsize + group.state.shape[1] / 3 * group.state.itemsize for group in groups}
    assert sizes["a"] == 12
    assert sizes["c"] == 8
    assert sizes["d"] == 10
    assert (sizes["f"], sizes["g"], sizes["h"], sizes["i"]) == (4, 1, 4, 8)
    with pytest.raises(ValueError, match="tables a, c are of 2 kinds"):
        type(groups[0])([groups[0][0].declaration, groups[1][0].declaration])


# ----------------------------------------------------------------------------------------------- tables that stay so


def frozen_collection(dtype: str = "float32", **options: Any) -> EmbeddingCollection:
    initializer = {"kind": "constant", "value": 3}
    return make_collection({"name": "a", "dtype": dtype, "trainable": False, "initializer": initializer, **options})


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
@pytest.mark.parametrize(
    ("dtype", "read"),
    [("float32", "float32"), ("bfloat16", "float32"), ("int8", "float32"), ("int32", "int64"), ("int64", "int64")],
)
def test_frozen_tables_are_looked_up_grow_and_never_change(
    dtype: str, read: str, implementation: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_OPS", implementation)
    collection = frozen_collection(dtype)
    table = collection.tables["a"]
    rows = table.find_or_insert(torch.tensor([1, 2]))
    table.group.weight[rows] = torch.tensor([[1, 2, 3], [100, -100, 50]]).to(table.dtype)
    for _ in range(2):
        pooled = collection({"a": Ragged.from_lists([[1, 2], [], [9, 1]])})["a"]
        assert str(pooled.dtype) == f"torch.{read}"
        assert pooled.tolist() == [[101, -98, 53], [0, 0, 0], [4, 5, 6]]
        assert not pooled.requires_grad
        SparseOptimizer(collection.groups).step()
    assert len(table) == 3, "9 is new, and has a row"
    assert table.step == 2
    part = table.export()
    assert dict(zip(part.ids.tolist(), part.count.tolist(), strict=True)) == {1: 4, 2: 2, 9: 2}
    assert set(part.last_step.tolist()) == {2}
    assert not part.slots
    save_checkpoint(
        {"epoch": 0, "global_step": 3, "state_dict": {}, "optimizer_states": []}, str(tmp_path / "x"), collection.tables
    )
    again = frozen_collection(dtype)
    load_tables(again.tables, load_checkpoint(str(tmp_path / "x"))[READER])
    assert_same_bytes(contents(again), contents(collection))
    assert table.stats(scan=True)["norm_max"] == pytest.approx(150.0)


def test_a_frozen_table_beside_a_trained_one_gets_no_gradient_and_may_forget() -> None:
    frozen = {"trainable": False, "capacity": 2, "eviction": "lru"}
    collection = make_collection({"name": "a", **frozen}, {"name": "b", "optimizer": {"kind": "sgd", "lr": 0.1}})
    for number in range(4):
        train(collection, Ragged.from_lists([[number], [3]]))
        collection.evict()
    assert sorted(collection.tables["a"].export().ids.tolist()) == [2, 3]
    assert collection.tables["a"].step == collection.tables["b"].step == 4
    assert [group["name"] for group in SparseOptimizer(collection.groups).param_groups] == ["sparse/sgd"]


def test_a_frozen_table_that_is_read_only_does_not_grow() -> None:
    collection = frozen_collection(admission="read_only")
    assert collection({"a": Ragged.from_lists([[7]])})["a"].tolist() == [[0, 0, 0]]
    assert len(collection.tables["a"]) == 0


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_large_integers_come_out_exactly(dtype: str) -> None:
    largest = torch.iinfo(getattr(torch, dtype)).max
    for pooling in ("sum", "none"):
        options = {"name": "a", "dtype": dtype, "trainable": False}
        collection = make_collection(options | {"initializer": {"kind": "constant", "value": 7}}, pooling=pooling)
        table = collection.tables["a"]
        table.group.weight[table.find_or_insert(torch.tensor([1]))] = largest
        found = collection({"a": Ragged.from_lists([[1], [2]])})["a"]
        values = found.values if isinstance(found, Ragged) else found
        assert values.dtype == torch.int64
        assert values.tolist() == [[largest] * 3, [7] * 3]


# ---------------------------------------------------------------------------------------------------------------- tile


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_tile_lays_the_first_rows_side_by_side(dtype: str) -> None:
    table = {"name": "a", "dtype": dtype, "optimizer": {"kind": "sgd", "lr": 1.0}}
    collection = make_collection(table, pooling="tile", tile_length=2)
    tiles = collection({"a": Ragged.from_lists([[5, 7, 9], [], [7]])})["a"]
    table = collection.tables["a"]
    five, seven = (table.weight(table.find(torch.tensor([id_])))[0].to(tiles.dtype) for id_ in (5, 7))
    zeros = torch.zeros(3, dtype=tiles.dtype)
    expected = torch.stack([torch.cat([five, seven]), torch.cat([zeros, zeros]), torch.cat([seven, zeros])])
    assert torch.equal(tiles, expected)
    assert len(table) == 2, "9 is beyond the tile"
    weights = torch.arange(18, dtype=tiles.dtype).view(3, 6)
    (tiles * weights).sum().backward()
    pending = collection.groups[0].coalesce()
    assert pending is not None
    assert pending.grads.tolist() == [[0, 1, 2], [3 + 12, 4 + 13, 5 + 14]]


def test_tables_without_a_layout_in_common_are_apart() -> None:
    schema = make_collection({"name": "a"}, {"name": "b", "dtype": "bfloat16"}).tables
    assert [len(group) for group in build_groups([table.declaration for table in schema.values()], max_rows=100)] == [
        1,
        1,
    ]
