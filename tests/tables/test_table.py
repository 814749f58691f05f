"""DynamicTable: what one table holds, and how it goes to and from slices."""

import copy
import dataclasses

import pytest
import torch
from hypothesis import strategies as st

from recis_lightning.schema import Adam, AdamW, RowwiseAdagrad, Sgd, SparseOptimizer, Table, Uniform
from recis_lightning.schema.policies import Lru
from recis_lightning.tables import DynamicTable, TableFullError, TableGroup, TableSlice, build_groups, virtual_shard
from tests.tables.blocks import Check, device
from triton_ops.index import mix64
from triton_ops.row_layout import COUNT, LAST_STEP

INT64 = torch.iinfo(torch.int64)
OPTIMIZERS: list[SparseOptimizer] = [Sgd(), RowwiseAdagrad(), AdamW()]


def make_table(optimizer: SparseOptimizer, name: str = "user", dim: int = 3) -> DynamicTable:
    declaration = Table(name=name, dim=dim, initializer=Uniform(low=-1.0, high=1.0), optimizer=optimizer)
    return build_groups([declaration], max_rows=1 << 14, device=device())[0][0]


def train(table: DynamicTable, ids: torch.Tensor, step: int) -> None:
    """Leave traces of a training step, different for each id, in all that a row has."""
    rows = table.find_or_insert(ids)
    marks = (mix64(ids) >> 40).to(torch.float32)[:, None] + step
    table.group.weight[rows] += marks
    table.group.state[rows] = marks + torch.arange(table.group.state.shape[1]) * 0.5
    table.group.meta[rows, LAST_STEP] = step
    table.group.meta[rows, COUNT] += 1
    table.step = step


def assert_equal_slices(one: TableSlice, other: TableSlice) -> None:
    for field in dataclasses.fields(TableSlice):
        left, right = getattr(one, field.name), getattr(other, field.name)
        assert list(left) == list(right) if field.name == "slots" else torch.equal(left, right), field.name
    assert all(torch.equal(one.slots[name], other.slots[name]) for name in one.slots)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer.kind)
def test_loading_an_exported_slice_gives_the_same_table(optimizer: SparseOptimizer) -> None:
    table, other = make_table(optimizer), make_table(optimizer)
    train(table, torch.arange(-300, 300), step=1)
    train(table, torch.arange(0, 100), step=2)
    other.find_or_insert(torch.arange(250, 280))  # there already, and overwritten
    exported = table.export()
    other.load(exported)
    assert len(exported) == len(other) == 600
    assert_equal_slices(other.export(), exported)
    assert (
        set(exported.slots)
        == {"sgd": set(), "rowwise_adagrad": {"sum"}, "adamw": {"exp_avg", "exp_avg_sq"}}[optimizer.kind]
    )
    rows = other.find(torch.tensor([0, 100]))
    assert other.group.meta[rows, LAST_STEP].tolist() == [2, 1]
    assert other.group.meta[rows, COUNT].tolist() == [2, 1]


def test_slices_by_virtual_shard_join_to_the_whole() -> None:
    table = make_table(Adam())
    train(table, torch.arange(500), step=1)
    whole = table.export()
    parts = [table.export(first, first + 1024) for first in range(0, 4096, 1024)]
    assert torch.equal(torch.cat([part.ids for part in parts]), whole.ids)
    assert torch.equal(torch.cat([part.weight for part in parts]), whole.weight)
    assert ((virtual_shard(parts[2].ids) >= 2048) & (virtual_shard(parts[2].ids) < 3072)).all()
    other = make_table(Adam())
    for part in reversed(parts):
        other.load(part)
    assert_equal_slices(other.export(), whole)


def test_slice_is_a_copy_that_later_training_does_not_touch() -> None:
    table = make_table(Adam())
    train(table, torch.arange(10), step=1)
    exported = table.export()
    kept = exported.weight.clone(), exported.slots["exp_avg"].clone(), exported.last_step.clone()
    train(table, torch.arange(10), step=2)
    assert torch.equal(exported.weight, kept[0])
    assert torch.equal(exported.slots["exp_avg"], kept[1])
    assert torch.equal(exported.last_step, kept[2])


def test_empty_table_exports_and_loads_an_empty_slice() -> None:
    table = make_table(Adam())
    exported = table.export()
    assert (len(exported), exported.weight.shape, exported.slots["exp_avg"].shape) == (0, (0, 3), (0, 3))
    table.load(exported)
    assert len(table) == 0


def test_slice_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    table = make_table(Adam())
    train(source := make_table(Adam()), torch.arange(4), step=1)
    part = source.export()
    with pytest.raises(
        ValueError, match=r"table 'user': weight of the slice is torch.float32 \[4, 2\], need .* \[4, 3\]"
    ):
        table.load(dataclasses.replace(part, weight=part.weight[:, :2]))
    with pytest.raises(ValueError, match="is updated by adam, with the state exp_avg, exp_avg_sq; the slice has sum"):
        table.load(dataclasses.replace(part, slots={"sum": part.weight}))
    with pytest.raises(ValueError, match="weight of the slice is torch.float64"):
        table.load(dataclasses.replace(part, weight=part.weight.double()))
    with pytest.raises(ValueError, match=r"last_step of the slice is torch.int64 \[0\]"):
        table.load(dataclasses.replace(part, last_step=part.last_step[:0]))
    with pytest.raises(ValueError, match="1 of 4 ids in the slice repeat others"):
        table.load(dataclasses.replace(part, ids=part.ids[[0, 1, 2, 0]]))
    assert len(table) == 0


def test_cleared_table_starts_anew_in_the_rows_it_had() -> None:
    table = make_table(Adam())
    ids = torch.arange(1000)
    rows = table.find_or_insert(ids)
    first = table.weight(rows)
    train(table, ids, step=4)
    owned = table.stats()["rows"]
    table.clear()
    assert (len(table), table.step, table.stats()["rows"]) == (0, 0, owned)
    assert (table.find(ids) == -1).all()
    again = table.find_or_insert(ids)
    assert torch.equal(again, rows)
    assert torch.equal(table.weight(again), first)
    assert not table.group.state[again].any()
    assert table.stats()["rows"] == owned


def test_stats_count_ids_rows_and_bytes() -> None:
    table = make_table(Adam())
    table.find_or_insert(torch.arange(100))
    assert table.erase(torch.arange(30)) == 30
    stats = table.stats()
    assert (stats["ids"], stats["rows"], stats["erased_rows"]) == (70, 128, 30)
    assert stats["row_bytes"] == 128 * (3 * 4 + 6 * 4 + 4 * 8)
    assert repr(table) == "DynamicTable('user', 70 ids, dim 3, torch.float32, adam)"


def test_scan_tells_probe_lengths_and_norms() -> None:
    table = make_table(Sgd())
    empty = table.stats(scan=True)
    assert (empty["probe_mean"], empty["probe_max"], empty["norm_max"]) == (1.0, 1, 0.0)
    rows = table.find_or_insert(torch.arange(3000))
    table.group.weight[rows] = 0.0
    table.group.weight[rows[:2]] = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 1.0]])
    stats = table.stats(scan=True)
    assert (stats["norm_min"], stats["norm_mean"], stats["norm_max"]) == (0.0, 6.0 / 3000, 5.0)
    assert 1.0 <= stats["probe_mean"] < 2.5  # 1.5 is expected of linear probing at a load of a half
    assert stats["probe_max"] >= stats["probe_mean"]


def test_weight_gives_a_copy_and_refuses_rows_that_are_none() -> None:
    table = make_table(Sgd())
    rows = table.find_or_insert(torch.tensor([1, 2]))
    copied = table.weight(rows)
    copied.zero_()
    assert table.weight(rows).any()
    with pytest.raises(IndexError):
        table.weight(table.find(torch.tensor([3])))


ids_lists = st.lists(st.one_of(st.integers(-40, 40), st.sampled_from([INT64.min, INT64.max])), max_size=60)
calls = st.lists(st.tuples(st.sampled_from(["train", "train", "erase", "load", "clear"]), ids_lists), max_size=8)


@pytest.mark.interpreted
def test_any_sequence_of_calls_agrees_with_a_dict(check: Check) -> None:
    check(agrees_with_a_dict, calls, examples=40)


def agrees_with_a_dict(sequence: list[tuple[str, list[int]]]) -> None:
    table = make_table(RowwiseAdagrad(), dim=2)
    pristine = make_table(RowwiseAdagrad(), dim=2)
    model: dict[int, tuple[list[float], list[float], int, int]] = {}  # id -> weight, sum, last step, count
    for step, (name, ids) in enumerate(sequence, start=1):
        distinct = torch.tensor(list(dict.fromkeys(ids)), dtype=torch.int64)
        if name == "train":
            rows = table.find_or_insert(torch.tensor(ids, dtype=torch.int64))
            first = pristine.weight(pristine.find_or_insert(torch.tensor(ids, dtype=torch.int64))).tolist()
            for id_, weight in zip(ids, first, strict=True):
                model.setdefault(id_, (weight, [0.0], 0, 0))
            assert len(set(rows.tolist())) == len(distinct)
        elif name == "erase":
            assert table.erase(torch.tensor(ids, dtype=torch.int64)) == len(
                [1 for id_ in distinct.tolist() if model.pop(id_, None)]
            )
        elif name == "load":
            count = len(distinct)
            weight, total = torch.full((count, 2), float(step)), torch.full((count, 1), step + 0.5)
            table.load(
                TableSlice(distinct, weight, {"sum": total}, torch.full((count,), step), torch.full((count,), 9))
            )
            model |= dict.fromkeys(distinct.tolist(), ([float(step)] * 2, [step + 0.5], step, 9))
        else:
            table.clear()
            model.clear()
        exported = table.export()
        assert len(table) == len(model)
        columns = exported.ids, exported.weight, exported.slots["sum"], exported.last_step, exported.count
        found = {id_: tuple(rest) for id_, *rest in zip(*(column.tolist() for column in columns), strict=True)}
        assert found == model


def test_a_table_that_owns_some_virtual_shards_has_their_part_of_the_capacity() -> None:
    declarations = [
        Table(name="kept", dim=2, capacity=100_000, eviction=(Lru(every=1),)),
        Table(name="full", dim=2, capacity=1000),
        Table(name="free", dim=2),
    ]
    kept, full, free = group = TableGroup(declarations, max_rows=1 << 18)
    ids = torch.arange(300_000)
    own = ids[(virtual_shard(ids) >= 1366) & (virtual_shard(ids) < 2731)]
    for table in group:
        table.keep(1366, 2731)
    copied = copy.deepcopy(group)
    assert [table.capacity for table in copied] == [33_326, 334, None]
    kept.find_or_insert(own[:60_000])
    kept.step = 1
    group.evict()
    assert len(kept) == 33_326
    full.find_or_insert(own[:400])  # chance may give a rank some more than its part
    with pytest.raises(TableFullError, match="table 'full' is full: it holds 4.. ids, its capacity"):
        full.find_or_insert(own[:800])
    free.find_or_insert(own[:800])
    copied[1].find_or_insert(own[:400])
    with pytest.raises(TableFullError):
        copied[1].find_or_insert(own[:800])


def test_a_slice_that_names_an_id_twice_is_refused_and_leaves_the_table_as_it_was() -> None:
    for known in (0, 5):
        table = make_table(Adam())
        table.find_or_insert(torch.arange(known))
        before = table.export()
        part = table.complete(torch.tensor([7, 3, 8, 7]), torch.ones(4, table.dim))
        with pytest.raises(ValueError, match="table 'user': 1 of 4 ids in the slice repeat others"):
            table.load(part)
        assert_equal_slices(table.export(), before)


@pytest.mark.parametrize("dim", [1, 3, 16])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer.kind)
def test_thousands_of_ids_are_loaded_into_blocks_that_lie_between_those_of_another_table(
    optimizer: SparseOptimizer, dim: int
) -> None:
    declarations = [Table(name=name, dim=dim, optimizer=optimizer) for name in ("user", "item")]
    group, generator = TableGroup(declarations, max_rows=1 << 16), torch.Generator().manual_seed(dim)
    ids = torch.randint(-(2**63), 2**63 - 1, (12_000,), generator=generator)
    parts = []
    for piece in ids.split(5000):  # blocks of rows go to one table and the other by turns
        for table in group:
            like = table.export(0, 0).slots.items()
            slots = {name: torch.rand(len(piece), *slot.shape[1:], generator=generator) for name, slot in like}
            weight, steps = torch.rand(len(piece), dim, generator=generator), torch.arange(len(piece))
            parts.append((table, TableSlice(piece, weight, slots, steps, steps * 3)))
            table.load(parts[-1][1])
    for table, part in parts:
        assert_equal_slices(table.slice(table.find(part.ids)), part)


def test_loading_over_erased_and_known_rows_writes_each_where_it_is() -> None:
    table = make_table(Adam())
    table.find_or_insert(torch.arange(200))
    table.erase(torch.arange(0, 200, 2))
    ids = torch.arange(50, 400)
    generator = torch.Generator().manual_seed(0)
    slots = {
        name: torch.rand(350, *slot.shape[1:], generator=generator) for name, slot in table.export(0, 0).slots.items()
    }
    part = TableSlice(
        ids, torch.rand(350, table.dim, generator=generator), slots, torch.arange(350), torch.arange(350) * 2
    )
    rows = table.load(part)
    found = table.slice(rows)
    assert torch.equal(found.ids, ids)
    assert_equal_slices(found, part)
