"""A group of 200 tables against Python dicts: lookups, erasing, eviction, growth, and ways out and in again.

Ids are drawn from those that collide in one bucket, in one virtual shard and at the end of a segment, from the ends of
int64, and from plain ones. Segments split at 128 slots, so that few ids make deep directories.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from recis_lightning.schema import RowwiseAdagrad, Table, Uniform
from recis_lightning.schema.policies import Age, Lfu
from recis_lightning.tables import TableGroup, export_table, import_table
from tests.tables.blocks import Check, device, sized
from tests.triton_ops.test_index import EXTREMES, LAST_BUCKETS, SAME_BUCKET, SAME_SHARD
from triton_ops.index import directory
from triton_ops.row_layout import COUNT, LAST_STEP

TABLES, USED, CAPACITY, AGE = 200, (0, 63, 199), 60, 3
PLAIN = torch.arange(10, 200)
POOL = torch.cat([EXTREMES, EXTREMES + 2, SAME_BUCKET, SAME_SHARD, LAST_BUCKETS, PLAIN])
# A program asks for the next slot as often as ids are in one bucket: some milliseconds each time, where Python runs it.
SMALL_POOL = torch.cat([EXTREMES, EXTREMES + 2, SAME_BUCKET[:8], SAME_SHARD[:24], LAST_BUCKETS[:8], PLAIN[:60]])
BOUNDED, AGING = USED[1:]
FORMATS = ("safetensors", "parquet", "orc")

Row = tuple[list[float], int, int]  # weight, last step, count


def make_group() -> TableGroup:
    options: dict[int, dict[str, Any]] = {
        BOUNDED: {"capacity": CAPACITY, "eviction": (Lfu(every=1),)},
        AGING: {"eviction": (Age(steps=AGE, every=1),)},
    }
    tables = [
        Table(name=f"t{n}", dim=2, initializer=Uniform(), optimizer=RowwiseAdagrad(), **options.get(n, {}))
        for n in range(TABLES)
    ]
    return TableGroup(tables, max_rows=1 << 16, device=device())


@st.composite
def batches(draw: st.DrawFn, pool: Tensor) -> Tensor:
    """Any ids of the pool, one id many times, none, or a long stretch of the pool."""
    kind = draw(st.sampled_from(["any", "equal", "empty", "stretch", "stretch"]))
    if kind == "empty":
        return pool[:0]
    begin = draw(st.integers(0, len(pool) - 1))
    if kind == "equal":
        return pool[begin].expand(draw(st.integers(1, 200))).clone()
    if kind == "stretch":
        return pool[begin : begin + draw(st.integers(1, 250))]
    return pool[draw(st.lists(st.integers(0, len(pool) - 1), max_size=40))]


def actions(pool: Tensor) -> st.SearchStrategy[Any]:
    return st.tuples(
        st.sampled_from(["train", "train", "train", "find", "erase", "round trip", "copy"]),
        st.lists(st.tuples(st.sampled_from(USED), batches(pool)), min_size=1, max_size=3),
        st.sampled_from(FORMATS),
    )


class Model:
    """What the tables must hold."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[int, Row]] = {table: {} for table in USED}
        self.pristine = make_group()

    def train(self, table: int, ids: Tensor, step: int) -> None:
        fresh = self.pristine[table]
        first = fresh.weight(fresh.find_or_insert(ids)).tolist()
        for id_, weight in zip(ids.tolist(), first, strict=True):
            weight, _, count = self.rows[table].get(id_, (weight, 0, 0))
            self.rows[table][id_] = weight, step, count + 1

    def evict(self, step: int) -> dict[str, int]:
        before = {table: len(rows) for table, rows in self.rows.items()}
        bounded, aging = self.rows[BOUNDED], self.rows[AGING]
        excess = max(len(bounded) - CAPACITY, 0)
        order = sorted(bounded, key=lambda id_: (bounded[id_][2], bounded[id_][1], id_))
        for id_ in order[:excess]:
            del bounded[id_]
        for id_ in [id_ for id_, row in aging.items() if row[1] < step - AGE]:
            del aging[id_]
        counts = {table: before[table] - len(rows) for table, rows in self.rows.items()}
        return {f"t{table}": count for table, count in counts.items() if count}


def as_runs(parts: list[tuple[int, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    splits = torch.tensor([0, *(len(ids) for _, ids in parts)]).cumsum(0)
    return torch.cat([ids for _, ids in parts]), splits, torch.tensor([table for table, _ in parts])


def run(group: TableGroup, model: Model, action: str, parts: list[tuple[int, Tensor]], file: Path) -> TableGroup:
    ids, splits, tables = as_runs(parts)
    ids = ids.to(group.device)
    if action == "train":
        rows = group.lookup(ids, splits, tables, insert=True)
        group.unique_rows(rows, record=True)
        step = group.clock
        for table, its_ids in parts:
            group[table].step = step
            model.train(table, its_ids, step)
        assert group.evict() == model.evict(step)
    elif action == "find":
        rows = group.lookup(ids, splits, tables, insert=False)
        owners = tables.repeat_interleave(splits.diff()).tolist()
        held = [id_ in model.rows[table] for table, id_ in zip(owners, ids.tolist(), strict=True)]
        assert (rows != group.default_row).tolist() == held
    elif action == "erase":
        expected = [0] * TABLES
        for table, its_ids in parts:
            expected[table] += sum(model.rows[table].pop(id_, None) is not None for id_ in its_ids.tolist())
        assert group.erase(ids, splits, tables) == expected
    elif action == "round trip":
        table = group[parts[0][0]]
        step = table.step
        written = export_table(table, file)
        group.erase(table.export().ids.to(group.device), torch.tensor([0, len(table)]), torch.tensor([table.number]))
        assert import_table(table, file) == written.rows == len(model.rows[table.number])
        assert table.step == step
    else:
        group = TableGroup.__deepcopy__(group, {})
    return group


def held(group: TableGroup, table: int) -> dict[int, Row]:
    rows = group[table].export()
    columns = rows.ids.tolist(), rows.weight.tolist(), rows.last_step.tolist(), rows.count.tolist()
    return {id_: tuple(rest) for id_, *rest in zip(*columns, strict=True)}  # type: ignore[misc]


@pytest.mark.interpreted
def test_any_sequence_of_calls_leaves_in_200_tables_what_dicts_hold(
    check: Check, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def leaves_what_dicts_hold(sequence: list[tuple[str, list[tuple[int, Tensor]], str]]) -> None:
        run_all(sequence, tmp_path_factory.mktemp("tables"))

    pool = sized(POOL, SMALL_POOL)
    check(leaves_what_dicts_hold, st.lists(actions(pool), max_size=sized(10, 6)), examples=25)


def run_all(sequence: list[tuple[str, list[tuple[int, Tensor]], str]], folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(directory, "LARGEST_SEGMENT", 128)
        group, model = make_group(), Model()
        for number, (action, parts, format) in enumerate(sequence):
            group = run(group, model, action, parts, folder / f"{number}.{format}")
            for table in USED:
                assert held(group, table) == model.rows[table]
        assert sum(map(len, group)) == sum(map(len, model.rows.values())), "tables that nothing named are empty"
        records = group.meta[: group.rows.capacity]
        assert (records[group[0].find(POOL).clamp(min=0), LAST_STEP] >= 0).all()
        assert (records[:, COUNT] >= 0).all()
