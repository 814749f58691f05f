"""The id index against a Python dict, and its CPU kernels against its reference, row for row."""

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.triton_ops.conftest import ON_TRITON
from triton_ops.index import DevicePool, Index, Inserted, RowPool, directory, mix64, segmented, unmix64, virtual_shard
from triton_ops.index.directory import Directory
from triton_ops.index.layout import END, NEXT
from triton_ops.index.slot_heap import SlotHeap
from triton_ops.row_layout import GRANULE, ID, RECORD

INT64 = torch.iinfo(torch.int64)
TABLES = 3


@pytest.fixture(params=["reference", "cpu", "triton"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    choose(request.param, monkeypatch)
    if request.param == "triton":
        few_programs(monkeypatch)
    return request.param


def choose(implementation: str, patch: pytest.MonkeyPatch) -> None:
    """Make it the one that indices have which are made from here on."""
    if implementation == "triton":
        pytest.importorskip("triton")
        patch.setenv("TRITON_INTERPRET", "1" if ON_TRITON.type == "cpu" else "0")
    patch.setenv("TRITON_OPS", implementation)


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments that split at 128 slots, so that few ids make deep directories."""
    monkeypatch.setattr(directory, "LARGEST_SEGMENT", 128)
    monkeypatch.setattr(directory, "FILLED_SEGMENT", 128)


def few_programs(patch: pytest.MonkeyPatch) -> None:
    """Triton, with larger programs where they are interpreted, which takes some 20 ms each, whatever their size."""
    choose("triton", patch)
    kernels = pytest.importorskip("triton_ops.index.kernels")
    if ON_TRITON.type == "cpu":
        patch.setattr(kernels, "BLOCK", 256)


class Tables:
    """An index and rows for it: in blocks of 8 rows a table, or with ``apart`` for each table a part of the rows.

    What goes in and comes out lies on the CPU.
    """

    def __init__(self, tables: int = TABLES, rows: int = 1 << 14, slots: int = 1 << 18, apart: bool = False) -> None:
        self.device = ON_TRITON if os.environ.get("TRITON_OPS") == "triton" else torch.device("cpu")
        self.rows_of_table = rows // tables // GRANULE * GRANULE if apart else 0
        self.taken = [table * self.rows_of_table for table in range(tables)] if apart else [0]
        self.pool: RowPool | DevicePool
        if os.environ.get("TRITON_OPS") == "triton":
            self.index = Index(tables, None, self.device)
            self.meta = torch.zeros((rows, RECORD), dtype=torch.int64, device=self.device)
            self.pool = DevicePool(self.meta, self._supply)
        else:
            self.index = Index(tables, np.full((slots, 2), 7, dtype=np.int64))
            self.meta = torch.zeros((rows, RECORD), dtype=torch.int64)
            self.pool = RowPool(RowPool.empty_cursors(tables), self.meta[:, ID].numpy(), self._refill)

    def _take(self, table: int, count: int) -> int:
        """How many of so many rows it can have; they end at ``taken``."""
        part = table if self.rows_of_table else 0
        end = (table + 1) * self.rows_of_table if self.rows_of_table else len(self.meta)
        count = min(count, end - self.taken[part])
        self.taken[part] += count
        return count

    def _refill(self, table: int) -> bool:
        count = self._take(table, 8)
        end = self.taken[table if self.rows_of_table else 0]
        self.pool.cursors[table, NEXT], self.pool.cursors[table, END] = end - count, end
        return count > 0

    def _supply(self, table: int, lacking: int) -> list[tuple[int, int]]:
        count = self._take(table, -(-lacking // GRANULE) * GRANULE)
        end = self.taken[table if self.rows_of_table else 0]
        return [(end - count, end)] if count else []

    def find_or_insert(self, ids: Tensor, splits: Tensor, tables: Tensor) -> Inserted:
        rows, new_rows, full_table = self.index.find_or_insert(ids.to(self.device), splits, tables, self.pool)
        return Inserted(rows.cpu(), new_rows[new_rows >= 0].cpu(), full_table)

    def insert(self, ids: Tensor, table: int = 0) -> Tensor:
        rows, _, full_table = self.find_or_insert(ids, one_run(ids), torch.tensor([table]))
        assert full_table is None
        return rows

    def find(self, ids: Tensor, table: int = 0) -> Tensor:
        return self.index.find(ids.to(self.device), one_run(ids), torch.tensor([table])).cpu()

    def erase(self, ids: Tensor, table: int = 0) -> int:
        return int(self.index.erase(ids.to(self.device), one_run(ids), torch.tensor([table]), self.pool))

    def items(self, *what: int) -> list[Tensor]:
        return [part.cpu() for part in self.index.items(*what)]


def one_run(ids: Tensor) -> Tensor:
    return torch.tensor([0, len(ids)])


def mixed_to(words: Iterator[int] | range | list[int]) -> Tensor:
    """Ids whose mix64 is each of these unsigned words."""
    return unmix64(torch.tensor([word - 2**64 if word >= 2**63 else word for word in words], dtype=torch.int64))


# ------------------------------------------------------------------------------------------------------------- mixing


def test_mix64_gives_the_published_values_of_murmurs_finaliser() -> None:
    words = [int(word) % 2**64 for word in mix64(torch.tensor([0, 1, 2, -1]))]
    assert words == [0, 0xB456BCFC34C2CB2C, 0x3ABF2A20650683E7, 0x64B5720B4B825F21]
    assert virtual_shard(torch.tensor([0, 1])).tolist() == [0, 0xB45]


@given(st.lists(st.integers(INT64.min, INT64.max)))
def test_unmix64_inverts_mix64(values: list[int]) -> None:
    ids = torch.tensor(values, dtype=torch.int64)
    assert torch.equal(unmix64(mix64(ids)), ids)
    assert torch.equal(mix64(unmix64(ids)), ids)


# ----------------------------------------------------------------------------------------------- find, insert and erase


def test_rows_are_numbered_as_ids_are_first_seen(implementation: str) -> None:
    tables = Tables()
    ids = torch.tensor([9, -4, 9, 0, -4])
    rows, new_rows, full_table = tables.find_or_insert(ids, one_run(ids), torch.tensor([1]))
    assert rows.tolist() == [0, 1, 0, 2, 1]
    assert new_rows.tolist() == [0, 1, 2]
    assert full_table is None
    assert tables.meta[:3, ID].tolist() == [9, -4, 0]
    assert tables.find(torch.tensor([0, 1, 9]), table=1).tolist() == [2, -1, 0]
    assert tables.find(torch.tensor([0, 1, 9]), table=0).tolist() == [-1, -1, -1]


def test_extreme_ids_are_ids_like_others(implementation: str) -> None:
    tables = Tables()
    ids = torch.tensor([0, -1, INT64.min, INT64.max, INT64.min + 1, 1])
    assert tables.find(ids).tolist() == [-1] * 6
    assert tables.insert(ids).tolist() == list(range(6))
    assert tables.find(ids).tolist() == list(range(6))
    assert tables.erase(ids[:4]) == 4
    assert tables.find(ids).tolist() == [-1, -1, -1, -1, 4, 5]


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 1000])
def test_sizes_around_a_block(implementation: str, size: int) -> None:
    tables = Tables()
    ids = torch.arange(size) * 7919 - 500
    assert tables.insert(ids).tolist() == list(range(size))
    assert tables.find(ids).tolist() == list(range(size))
    assert tables.insert(ids).tolist() == list(range(size))
    assert tables.index.count(0) == size


def test_batch_of_one_repeated_id_is_one_id(implementation: str) -> None:
    tables = Tables()
    assert tables.insert(torch.full((1000,), 5)).tolist() == [0] * 1000
    assert tables.index.count(0) == 1


def test_erased_rows_go_to_new_ids_last_erased_first(implementation: str) -> None:
    tables = Tables()
    tables.insert(torch.arange(6))
    assert tables.erase(torch.tensor([1, 3, 99, 1])) == 2
    assert tables.insert(torch.tensor([50, 51, 52])).tolist() == [3, 1, 6]
    assert tables.find(torch.arange(6)).tolist() == [0, -1, 2, -1, 4, 5]


@pytest.mark.parametrize("implementation", ["reference", "cpu"], indirect=True)
def test_table_without_rows_stops_the_call_and_is_named(implementation: str) -> None:
    tables = Tables(rows=16)
    ids = torch.arange(20)
    splits, runs = torch.tensor([0, 9, 20]), torch.tensor([2, 0])
    rows, new_rows, full_table = tables.find_or_insert(ids, splits, runs)
    assert full_table == 0
    assert rows.tolist() == [*range(9), *[-1] * 11]
    assert new_rows.tolist() == list(range(9))
    assert tables.index.find(ids, splits, runs, missing=-5).tolist() == [*range(9), *[-5] * 11]
    tables.erase(torch.tensor([4]), table=2)
    assert tables.insert(torch.tensor([4, 77]), table=2).tolist() == [4, 9]


def test_items_are_ordered_by_mixed_id_and_cut_by_virtual_shard(implementation: str) -> None:
    tables = Tables()
    ids = torch.arange(-500, 500)
    rows = tables.insert(ids, table=1)
    found_ids, found_rows = tables.items(1)
    unsigned = [int(word) % 2**64 for word in mix64(found_ids)]
    assert unsigned == sorted(unsigned)
    assert dict(zip(found_ids.tolist(), found_rows.tolist(), strict=True)) == dict(
        zip(ids.tolist(), rows.tolist(), strict=True)
    )
    parts = [tables.items(1, first, first + 512) for first in range(0, 4096, 512)]
    assert torch.equal(torch.cat([part[0] for part in parts]), found_ids)
    assert all(((virtual_shard(part[0]) // 512) == number).all() for number, part in enumerate(parts))
    assert len(tables.index.items(1, 7, 7)[0]) == 0
    assert len(tables.index.items(0)[0]) == 0


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("implementation", ["reference", "cpu"], indirect=True)
def test_clear_empties_one_table_and_its_slots_serve_again(implementation: str) -> None:
    tables = Tables(slots=1 << 13)
    kept = tables.insert(torch.arange(100), table=1)
    for _ in range(20):  # without reuse, the slots would not last for three rounds
        tables.insert(torch.arange(500), table=0)
        tables.index.clear(0)
        assert tables.index.count(0) == 0
        assert (tables.find(torch.arange(500)) == -1).all()
    assert torch.equal(tables.find(torch.arange(100), table=1), kept)


# ----------------------------------------------------------------------------------------------- properties and growth

# Ids in one bucket of a segment of any size, ids in one segment of any depth, and the ends of a segment, where probing
# wraps from the last slot to the first.
SAME_BUCKET = mixed_to([(k << 40) | 21 for k in range(96)])
SAME_SHARD = mixed_to([(1234 << 52) | (k * 7919) for k in range(96)])
LAST_BUCKETS = mixed_to([(k << 50) | (2**20 - 1 - k % 3) for k in range(96)])
EXTREMES = torch.tensor([0, -1, 1, INT64.min, INT64.max])
POOL = torch.cat([EXTREMES, SAME_BUCKET, SAME_SHARD, LAST_BUCKETS, torch.arange(2, 300)])


@st.composite
def batches(draw: st.DrawFn) -> Tensor:
    """Some ids of the pool in any order, with repeats, or a long stretch of it."""
    if draw(st.booleans()):
        return POOL[draw(st.lists(st.integers(0, len(POOL) - 1), max_size=80))]
    begin = draw(st.integers(0, len(POOL)))
    return POOL[begin : begin + draw(st.integers(0, 300))]


steps = st.tuples(
    st.sampled_from(["insert", "insert", "find", "erase", "items", "clear"]),
    st.lists(batches(), min_size=1, max_size=3),
)


def agree(sequence, random, implementation: str, apart: bool) -> None:  # type: ignore[no-untyped-def]
    """Play a sequence of calls on an implementation, the reference and dicts."""
    with pytest.MonkeyPatch.context() as patch:
        choose(implementation, patch)
        subject = Tables(apart=apart)
        choose("reference", patch)
        reference = Tables(apart=apart)
    model: list[dict[int, int]] = [{} for _ in range(TABLES)]
    for name, parts in sequence:
        runs = torch.tensor([random.randrange(TABLES) for _ in parts])
        table = int(runs[0])
        ids = torch.cat(parts)
        splits = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)
        owners = torch.repeat_interleave(runs, splits.diff()).tolist()
        if name == "insert":
            inserted = subject.find_or_insert(ids, splits, runs)
            expected = reference.find_or_insert(ids, splits, runs)
            assert torch.equal(inserted.rows, expected.rows)
            if implementation == "cpu":
                assert torch.equal(inserted.new_rows, expected.new_rows)
            assert sorted(inserted.new_rows.tolist()) == sorted(expected.new_rows.tolist())
            for owner, id_, row in zip(owners, ids.tolist(), inserted.rows.tolist(), strict=True):
                assert model[owner].setdefault(id_, row) == row
        elif name == "find":
            rows = subject.index.find(ids.to(subject.device), splits, runs)
            assert rows.tolist() == [model[owner].get(id_, -1) for owner, id_ in zip(owners, ids.tolist(), strict=True)]
        elif name == "erase":
            erased = sum(
                model[owner].pop(id_, None) is not None for owner, id_ in zip(owners, ids.tolist(), strict=True)
            )
            for tables in (subject, reference):
                assert int(tables.index.erase(ids.to(tables.device), splits, runs, tables.pool)) == erased
        elif name == "items":
            for one, other in zip(subject.items(table), reference.items(table), strict=True):
                assert torch.equal(one, other)
        else:
            for tables in (subject, reference):
                tables.erase(torch.tensor(sorted(model[table]), dtype=torch.int64), table)
                if implementation == "cpu":  # on a GPU this starts with the table's first row again, as pools cannot
                    tables.index.clear(table)
            model[table].clear()
        assert [subject.index.count(number) for number in range(TABLES)] == [len(ids) for ids in model]
        used = [row for ids in model for row in ids.values()]
        assert len(set(used)) == len(used)
    for table in range(TABLES):
        ids, rows = subject.items(table)
        assert dict(zip(ids.tolist(), rows.tolist(), strict=True)) == model[table]
        assert subject.meta.cpu()[rows, ID].tolist() == ids.tolist()


@pytest.mark.usefixtures("small_segments")
@settings(max_examples=60, deadline=None)
@given(st.lists(steps, max_size=12), st.randoms(use_true_random=False))
def test_any_sequence_of_calls_agrees_with_a_dict_and_with_the_reference(sequence, random) -> None:  # type: ignore[no-untyped-def]
    agree(sequence, random, "cpu", apart=False)


@settings(max_examples=3, deadline=None)
@given(st.lists(steps, min_size=3, max_size=6), st.randoms(use_true_random=False))
def test_any_sequence_of_kernels_agrees_with_a_dict_and_with_the_reference(sequence, random) -> None:  # type: ignore[no-untyped-def]
    with pytest.MonkeyPatch.context() as patch:
        few_programs(patch)
        patch.setattr(directory, "LARGEST_SEGMENT", 256)
        agree(sequence, random, "triton", apart=True)


@pytest.mark.usefixtures("small_segments")
def test_ids_of_one_shard_grow_their_segment_beyond_the_deepest_directory() -> None:
    tables = Tables()
    ids = mixed_to([(1234 << 52) | k * 7919 for k in range(5000)])
    others = torch.arange(2000)
    rows = tables.insert(torch.cat([ids[:200], others, ids[200:]]))
    assert rows.tolist() == list(range(7000))
    assert torch.equal(tables.find(ids)[:200], rows[:200])
    assert len(tables.index.items(0, 1234, 1235)[0]) >= 5000
    assert tables.erase(ids) == 5000
    assert torch.equal(tables.find(others), rows[200:2200])


def test_table_is_never_more_than_half_full_and_grows_in_bounded_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "LARGEST_SEGMENT", 1 << 10)
    moved = []
    move = segmented.cpu.move
    monkeypatch.setattr(
        segmented.cpu, "move", lambda begin, size, *rest: (moved.append(size), move(begin, size, *rest))
    )
    tables = Tables(rows=1 << 17, slots=1 << 20)
    for part in torch.arange(100_000).split(9_000):
        tables.insert(part)
        stats = tables.index.stats(0)
        assert 2 * stats["ids"] <= stats["slots"] <= 8 * max(stats["ids"], 32)
    assert max(moved) == 1 << 10
    assert tables.find(torch.arange(100_000)).tolist() == list(range(100_000))


def test_small_table_takes_a_kilobyte_until_it_is_half_full() -> None:
    tables = Tables(tables=200, slots=200 * 64 + 128)
    tables.insert(torch.arange(32), table=7)
    assert tables.index.stats(7) == {"ids": 32, "slots": 64, "segments": 1, "index_bytes": 1024}
    tables.insert(torch.tensor([32]), table=7)
    assert tables.index.stats(7) == {"ids": 33, "slots": 128, "segments": 1, "index_bytes": 2048}


def test_slots_that_growth_leaves_behind_serve_again() -> None:
    tables = Tables(tables=2, rows=24_000, slots=65_536)
    tables.insert(torch.arange(16_000), table=0)  # doubled from 64 slots to the upper 32_768, leaving the lower ones
    tables.insert(torch.arange(8_000), table=1)
    assert [tables.index.stats(table)["slots"] for table in range(2)] == [32_768, 16_384]
    assert tables.find(torch.arange(8_000), table=1).tolist() == list(range(16_000, 24_000))


def test_index_without_slots_stops_like_one_without_rows() -> None:
    tables = Tables(tables=1, slots=128)
    ids = torch.arange(100)
    inserted = tables.find_or_insert(ids, one_run(ids), torch.tensor([0]))
    assert inserted.full_table == 0
    assert len(inserted.new_rows) == int((inserted.rows >= 0).sum()) == tables.index.count(0)
    with pytest.raises(MemoryError, match="128 slots have no room for a first segment of each of 3 tables"):
        Tables(tables=3, slots=128)


def test_restored_snapshot_goes_its_own_way(implementation: str) -> None:
    first, second = Tables(), Tables()
    rows = first.insert(torch.arange(200), table=1)
    second.index.restore(first.index.snapshot())
    assert first.erase(torch.arange(100), table=1) == 100
    assert torch.equal(second.find(torch.arange(200), table=1), rows)
    assert second.index.count(1) == 200


def test_arguments_that_do_not_fit_are_refused(implementation: str) -> None:
    tables = Tables()
    ids, run = torch.arange(4), torch.tensor([0])
    with pytest.raises(ValueError, match="ids are torch.int32"):
        tables.find(ids.int())
    with pytest.raises(ValueError, match=f"ids are on meta, this index is on {tables.device.type}"):
        tables.index.find(ids.to("meta"), one_run(ids), run)
    with pytest.raises(ValueError, match="must rise from 0 to the number of ids, 4"):
        tables.index.find(ids.to(tables.device), torch.tensor([0, 3]), run)
    with pytest.raises(ValueError, match="must rise"):
        tables.index.find(ids, torch.tensor([0, 5, 4]), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="3 splits for 1 runs"):
        tables.index.find(ids, torch.tensor([0, 2, 4]), run)
    with pytest.raises(ValueError, match=r"tables \[3\] must be numbers within 0 to 2"):
        tables.index.find(ids, one_run(ids), torch.tensor([3]))
    with pytest.raises(ValueError, match="no table -1"):
        tables.index.items(-1)
    with pytest.raises(ValueError, match="no range within 0 to 4096"):
        tables.index.items(0, 5, 4097)


def test_strided_ids_are_looked_up_as_they_read(implementation: str) -> None:
    tables = Tables()
    ids = torch.arange(20).reshape(10, 2)[:, 1]
    assert tables.insert(ids).tolist() == list(range(10))
    assert tables.find(torch.tensor([1, 3, 2])).tolist() == [0, 1, -1]


# ------------------------------------------------------------------------------------------------------------ slot heap


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 10**6)), max_size=80))
def test_heap_hands_out_aligned_runs_that_do_not_overlap(actions: list[tuple[bool, int, int]]) -> None:
    heap, taken = SlotHeap(256), {}
    for allocates, exponent, choice in actions:
        if allocates:
            begin = heap.allocate(size := 1 << exponent)
            if begin is not None:
                assert begin % size == 0
                assert begin + size <= heap.end <= 256
                assert all(begin + size <= other or other + other_size <= begin for other, other_size in taken.items())
                taken[begin] = size
        elif taken:
            begin = sorted(taken)[choice % len(taken)]
            heap.free(begin, taken.pop(begin))
    for begin, size in taken.items():
        heap.free(begin, size)
    assert heap.end == 0
    assert heap.allocate(256) == 0
    assert heap.allocate(1) is None


@pytest.mark.parametrize("implementation", ["reference", "cpu"])  # a GPU's grows before each launch
@pytest.mark.parametrize(("ids", "shards"), [(0, (0, 4096)), (5, (0, 4096)), (900, (0, 4096)), (700, (100, 300))])
def test_a_reserved_index_holds_what_one_that_grew_does(
    monkeypatch: pytest.MonkeyPatch, implementation: str, small_segments: None, ids: int, shards: tuple[int, int]
) -> None:
    monkeypatch.setenv("TRITON_OPS", implementation)
    low, high = (shard << 52 for shard in shards)
    mixed = [low + (high - low) * number // max(ids, 1) for number in range(ids)]
    found = unmix64(torch.tensor([word - 2**64 if word >= 2**63 else word for word in mixed], dtype=torch.int64))
    grown, reserved = Tables(), Tables()
    for tables in (grown, reserved):
        tables.insert(torch.arange(50), 1)
    reserved.index.reserve(0, ids, *shards)
    grow, growths = Directory.grow, list[int]()

    def count_growth(self: Directory, table: int, segment: int) -> bool:
        growths.append(segment)
        return grow(self, table, segment)

    with monkeypatch.context() as counting:
        counting.setattr(Directory, "grow", count_growth)
        rows = reserved.insert(found)
    assert len(growths) == len(set(growths)) <= reserved.index.stats(0).get("segments", 0), "each segment once"
    assert torch.equal(grown.insert(found), rows)
    for tables in (grown, reserved):
        tables.insert(torch.arange(10**6, 10**6 + 500))
        tables.erase(found[::3])
    for of_grown, of_reserved in zip(grown.index.items(0), reserved.index.items(0), strict=True):
        assert torch.equal(of_grown, of_reserved)
    assert torch.equal(grown.find(torch.arange(50), 1), reserved.find(torch.arange(50), 1))
    reserved.index.reserve(1, 10**6)  # not empty: nothing happens
    reserved.index.clear(0)
    reserved.index.reserve(0, 10**9)  # more than there are slots: it grows as it can
    assert reserved.index.count(0) == 0
    assert torch.equal(reserved.find(reserved.index.items(1)[0], 1), reserved.index.items(1)[1])
