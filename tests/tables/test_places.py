"""Rows in blocks: they grow a slab at a time, and a table that finds no memory says so and stays what it was."""

import pytest
import torch

from recis_lightning.schema import Adagrad, Table
from recis_lightning.tables import TableFullError, TableGroup, places
from triton_ops.blocks import Blocks


@pytest.fixture(autouse=True)
def in_blocks(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks, whatever runs the ops."""
    monkeypatch.setattr(places, "lies_in_blocks", lambda device: True)
    monkeypatch.setattr(places, "BLOCK_ROWS", 128)
    if implementation == "cpu":  # Numba knows no blocks
        monkeypatch.setenv("TRITON_OPS", "reference")


def make_group(**options: int) -> TableGroup:
    tables = [Table(name=name, dim=4, optimizer=Adagrad()) for name in ("item", "user")]
    return TableGroup(tables, max_rows=1 << 16, **options)  # type: ignore[arg-type]


def refuse(monkeypatch: pytest.MonkeyPatch, beyond: int) -> None:
    """Have the allocator hold no slab of more blocks than these."""
    allocate = Blocks.new_slab

    def new_slab(self: Blocks, blocks: int) -> torch.Tensor:
        if blocks > beyond:
            raise torch.OutOfMemoryError(f"no memory for {blocks} blocks")
        return allocate(self, blocks)

    monkeypatch.setattr(Blocks, "new_slab", new_slab)


def test_slabs_grow_and_small_groups_stay_small() -> None:
    group = make_group()
    assert group.weight.rows == 128, "one block, for the zeros of unknown ids"
    for end in (100, 1000, 5000):
        group[0].find_or_insert(torch.arange(end))
    sizes = [len(slab) // 128 for slab in group.weight.slabs]
    assert sum(sizes) * 128 >= 5064
    assert len(sizes) < 15, "each is half of what there was before"
    assert group.state.rows == group.meta.rows == group.weight.rows


def test_growth_out_of_memory_names_table_rows_and_bytes_and_leaves_the_table_usable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = make_group()
    item, user = group
    item.find_or_insert(torch.arange(100))
    user.find_or_insert(torch.arange(10))
    before = [table.export() for table in group]
    with monkeypatch.context() as patch:
        refuse(patch, beyond=0)
        # A row is 2 * 4 floats and a record of 4 words: 64 bytes.
        with pytest.raises(TableFullError, match=r"'item' can't grow: no memory on cpu for 128 more rows \(8,192 b"):
            item.find_or_insert(torch.arange(1000))
        held = len(item)
        assert 100 <= held < 1000
        assert torch.equal(item.export().select(item.export().ids < 100).weight, before[0].weight)
        assert torch.equal(user.export().weight, before[1].weight)
        assert item.find(torch.arange(100)).min() >= 0
    item.find_or_insert(torch.arange(1000))
    assert len(item) == 1000, "with memory again it grows again"


def test_growth_takes_what_is_needed_where_there_is_no_memory_for_more_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    group = make_group()
    group[0].find_or_insert(torch.arange(20_000))
    refuse(monkeypatch, beyond=32)  # a table asks for 4,096 rows, and half of all rows is more
    group[0].find_or_insert(torch.arange(25_000))
    assert len(group[0]) == 25_000


def test_slab_refused_half_way_leaves_all_arrays_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    group = make_group()
    allocate, calls = Blocks.new_slab, []

    def third_fails(self: Blocks, blocks: int) -> torch.Tensor:
        calls.append(blocks)
        if len(calls) % 3 == 0:
            raise torch.OutOfMemoryError("no memory for the records")
        return allocate(self, blocks)

    with monkeypatch.context() as patch:
        patch.setattr(Blocks, "new_slab", third_fails)
        with pytest.raises(TableFullError, match="no memory"):
            group[0].find_or_insert(torch.arange(500))
    assert group.weight.rows == group.state.rows == group.meta.rows
    group[0].find_or_insert(torch.arange(500))
    assert (group[0].export().ids.sort().values == torch.arange(500)).all()


def test_groups_move_with_all_that_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    group = make_group(seed=3)
    group[0].find_or_insert(torch.arange(500))
    group[1].find_or_insert(torch.arange(40))
    group[0].step, group.events[1, 2] = 7, 5
    before, tables, erasures = [table.export() for table in group], group.tables, group.erasures
    monkeypatch.setattr(places, "lies_in_blocks", lambda device: False)
    group.move_to(torch.device("cpu"))
    assert isinstance(group.weight, Blocks), "it is there already"
    group.build_anew(torch.device("cpu"))
    assert isinstance(group.weight, torch.Tensor)
    for table, old in zip(group, before, strict=True):
        new = table.export()
        for name in ("ids", "weight", "last_step", "count"):
            assert torch.equal(getattr(new, name), getattr(old, name)), name
        assert torch.equal(new.slots["sum"], old.slots["sum"])
    assert group.tables is tables
    assert (group[0].step, group.events[1, 2], group.seed) == (7, 5, 3)
    assert group.erasures > erasures, "rows that were looked up before are others'"
