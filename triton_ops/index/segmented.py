"""The CPU's id index: a directory of segments for each table, grown segment by segment around the kernels of cpu.py.

N ids in a call, K runs of ids that belong to one table each, T tables, G segments, E directory entries, S slots.

A table starts with one segment of 64 slots. A segment that is half full doubles until it has 2^18 slots; from there it
splits in two by the next top bit of the mixed id, and the table's directory doubles where that bit is new to it. Past
12 bits, the virtual shards, segments double again. So none of these steps moves more than 2^17 ids (a few milliseconds)
below half a billion ids a table, and a segment never spans shards that another one has a part of. Since ids fill all
segments of a table alike, large ones would all split within one batch: each has a limit of its own, between three
eighths and a half, which spreads their splits over many batches.
"""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from triton_ops.index import cpu
from triton_ops.index.cpu import BEGIN, COUNT, DIRECTORY, HELD, LIMIT, MASK, SHIFT
from triton_ops.index.layout import NO_ROW, SHARDS, Inserted, RowPool
from triton_ops.index.reference import unmix64
from triton_ops.index.slot_heap import SlotHeap
from triton_ops.threads import limited_to, threads_for

FIRST_SEGMENT = 64  # slots: 1 KB
LARGEST_SEGMENT = 1 << 18  # slots: 4 MB
DEEPEST = SHARDS.bit_length() - 1


class SegmentedIndex:
    """Id -> row for several tables over one array of slots. `triton_ops.index.op.Index` says what the methods mean.

    The arrays are those that cpu.py describes.
    """

    def __init__(self, tables: int, slots: np.ndarray) -> None:
        self._slots = slots
        self._heap = SlotHeap(len(slots))
        self._tables = np.zeros((tables, 3), dtype=np.int64)
        self._tables[:, DIRECTORY] = np.arange(tables)
        self._places = np.zeros((tables, 2), dtype=np.uint64)
        self._directory = np.zeros(tables, dtype=np.int32)
        self._used = np.zeros((tables, 2), dtype=np.int64)
        self._free_segments = list(range(tables - 1, -1, -1))
        for table in range(tables):
            self._start(table)

    def _start(self, table: int) -> None:
        """Give a table its first, empty segment."""
        self._tables[table, SHIFT] = 63
        self._tables[table, COUNT] = 0
        place = self._new_place(FIRST_SEGMENT)
        if place is None:
            raise MemoryError(
                f"{len(self._slots)} slots do not hold a first segment for each of {len(self._tables)} tables"
            )
        entry = self._entries(table)
        self._places[entry] = place
        self._directory[entry] = self._new_segment(FIRST_SEGMENT)

    # ------------------------------------------------------------------------------------------------ the operations

    def find(self, ids_N: Tensor, splits_K1: Tensor, tables_K: Tensor, missing: int) -> Tensor:
        rows_N = torch.empty_like(ids_N)
        runs = ids_N.numpy(), splits_K1.numpy(), tables_K.numpy()
        arrays = *runs, missing, self._tables, self._places, self._slots, rows_N.numpy()
        threads = threads_for(len(ids_N))
        if threads > 1:
            with limited_to(threads):
                cpu.find_on_threads(*arrays, threads)
        else:
            cpu.find(*arrays, 0, len(ids_N))
        return rows_N

    def find_or_insert(self, ids_N: Tensor, splits_K1: Tensor, tables_K: Tensor, pool: RowPool) -> Inserted:
        if threads_for(len(ids_N)) == 1:
            return self._find_or_insert(ids_N, splits_K1, tables_K, pool)
        # Unknown ids go in one after the other, in their order, so that rows do not depend on the number of threads.
        rows_N = self.find(ids_N, splits_K1, tables_K, NO_ROW)
        unknown = (rows_N == NO_ROW).nonzero().squeeze(1)
        inserted = self._find_or_insert(ids_N[unknown], torch.searchsorted(unknown, splits_K1), tables_K, pool)
        rows_N[unknown] = inserted.rows
        if inserted.full_table is not None:
            rows_N[int(unknown[inserted.rows == NO_ROW][0]) :] = NO_ROW
        return Inserted(rows_N, inserted.new_rows, inserted.full_table)

    def _find_or_insert(self, ids_N: Tensor, splits_K1: Tensor, tables_K: Tensor, pool: RowPool) -> Inserted:
        rows_N, new_rows_N = torch.empty_like(ids_N), torch.empty_like(ids_N)
        runs = ids_N.numpy(), splits_K1.numpy(), tables_K.numpy()
        results = rows_N.numpy(), new_rows_N.numpy()
        position, count = 0, 0
        while True:
            index = self._tables, self._places, self._directory, self._used, self._slots  # growth may replace them
            position, count, why, table, segment = cpu.find_or_insert(
                *runs, position, *index, pool.cursors, pool.row_ids, *results, count
            )
            if why == cpu.DONE:
                return Inserted(rows_N, new_rows_N[:count], None)
            grown = self._grow(table, segment) if why == cpu.SEGMENT_FULL else pool.refill(table)
            if not grown:
                rows_N[position:] = -1
                return Inserted(rows_N, new_rows_N[:count], table)

    def erase(self, ids_N: Tensor, splits_K1: Tensor, tables_K: Tensor, pool: RowPool) -> int:
        runs = ids_N.numpy(), splits_K1.numpy(), tables_K.numpy()
        index = self._tables, self._places, self._directory, self._used, self._slots
        return int(cpu.erase(*runs, *index, pool.cursors, pool.row_ids))

    def items(self, table: int, first_shard: int, last_shard: int) -> tuple[Tensor, Tensor]:
        places = self._places_of(table, first_shard, last_shard)
        size = int(places[:, MASK].sum() + len(places)) // 2  # at most half full
        mixed, rows, count = np.empty(size, np.uint64), np.empty(size, np.int64), 0
        for begin, mask in places.tolist():
            count = cpu.collect(begin, mask + 1, first_shard, last_shard, self._slots, mixed, rows, count)
        order = np.argsort(mixed[:count])
        return unmix64(torch.from_numpy(mixed[order].view(np.int64))), torch.from_numpy(rows[order])

    def clear(self, table: int) -> None:
        for begin, mask in self._places_of(table, 0, SHARDS).tolist():
            self._heap.free(begin, mask + 1)
        self._free_segments += np.unique(self._directory[self._entries(table)]).tolist()
        self._start(table)

    def count(self, table: int) -> int:
        return int(self._tables[table, COUNT])

    def stats(self, table: int) -> dict[str, int]:
        places = self._places_of(table, 0, SHARDS)
        slots = int(places[:, MASK].sum()) + len(places)
        return {"ids": self.count(table), "slots": slots, "segments": len(places), "index_bytes": slots * 16}

    def probe_lengths(self, table: int) -> tuple[float, int]:
        total, most = 0, 0
        for begin, mask in self._places_of(table, 0, SHARDS).tolist():
            segment_total, longest = cpu.probe_lengths(begin, mask + 1, self._slots)
            total, most = total + int(segment_total), max(most, int(longest))
        return (total / self.count(table), most) if self.count(table) else (1.0, 1)

    def _entries(self, table: int) -> slice:
        """The table's part of the directory."""
        begin = int(self._tables[table, DIRECTORY])
        return slice(begin, begin + (1 << self._depth(table)))

    def _depth(self, table: int) -> int:
        """The number of top bits that pick an entry of the table's directory."""
        return 63 - int(self._tables[table, SHIFT])

    def _places_of(self, table: int, first_shard: int, last_shard: int) -> np.ndarray:
        """Where the segments lie that may hold ids of a range of virtual shards."""
        shards_per_entry = SHARDS >> self._depth(table)
        chosen = slice(first_shard // shards_per_entry, -(-last_shard // shards_per_entry))
        return np.unique(self._places[self._entries(table)][chosen], axis=0)

    # ------------------------------------------------------------------------------------------------------- growth

    def _grow(self, table: int, segment: int) -> bool:
        """Make room in a segment that is half full; False where the slots are used up."""
        mine = self._entries(table).start + np.flatnonzero(self._directory[self._entries(table)] == segment)
        depth = self._depth(table) - (len(mine).bit_length() - 1)  # top bits that its ids share
        size = int(self._places[mine[0], MASK]) + 1
        if size < LARGEST_SEGMENT or depth == DEEPEST:
            return self._double(mine)
        if len(mine) == 1:
            mine = self._double_directory(table, mine[0])
        return self._split(mine, bit=63 - depth)

    def _double(self, mine: np.ndarray) -> bool:
        """Move the segment of these entries into one of twice the size."""
        begin, mask = self._places[mine[0]].tolist()
        place = self._new_place(2 * (mask + 1))
        if place is None:
            return False
        cpu.move(begin, mask + 1, 0, place, place, self._slots)
        self._places[mine] = place
        self._set_limit(self._directory[mine[0]], 2 * (mask + 1))
        self._heap.free(begin, mask + 1)
        return True

    def _split(self, mine: np.ndarray, bit: int) -> bool:
        """Give the upper half of these entries a segment of their own, with the ids whose mixed id has this bit set."""
        begin, mask = self._places[mine[0]].tolist()
        segment, half = self._directory[mine[0]], len(mine) // 2
        high_count = int(cpu.count_set(begin, mask + 1, bit, self._slots))
        low_count = int(self._used[segment, HELD]) - high_count
        # Sized by what each will hold: where all ids share the bit, the empty half must not cost a large segment.
        low, high = self._new_place(_roomy(low_count)), self._new_place(_roomy(high_count))
        if low is None or high is None:
            for place in (low, high):
                if place is not None:
                    self._heap.free(int(place[BEGIN]), int(place[MASK]) + 1)
            return False
        cpu.move(begin, mask + 1, bit, low, high, self._slots)
        self._places[mine[:half]], self._places[mine[half:]] = low, high
        self._directory[mine[half:]] = new_segment = self._new_segment(int(high[MASK]) + 1)
        self._set_limit(segment, int(low[MASK]) + 1)
        self._used[segment, HELD], self._used[new_segment, HELD] = low_count, high_count
        self._heap.free(begin, mask + 1)
        return True

    def _new_place(self, size: int) -> np.ndarray | None:
        """BEGIN and MASK of a run of empty slots, or None where the slots are used up."""
        begin = self._heap.allocate(size)
        if begin is None:
            return None
        cpu.clear_slots(begin, size, self._slots)
        return np.array([begin, size - 1], dtype=np.uint64)

    def _new_segment(self, size: int) -> int:
        """The number of a new segment, with so many slots and no ids."""
        if not self._free_segments:
            count = len(self._used)
            self._used = np.concatenate([self._used, np.zeros_like(self._used)])
            self._free_segments = list(range(2 * count - 1, count - 1, -1))
        segment = self._free_segments.pop()
        self._used[segment, HELD] = 0
        self._set_limit(segment, size)
        return segment

    def _set_limit(self, segment: int, size: int) -> None:
        spread = size // 8 if size >= LARGEST_SEGMENT else 0
        # Multiples of the golden ratio lie evenly between whole numbers, however many there are.
        self._used[segment, LIMIT] = size // 2 - int(spread * (0.6180339887498949 * int(segment) % 1))

    def _double_directory(self, table: int, entry: int) -> np.ndarray:
        """Give a table a directory of one bit more, behind all others, and say which two entries were ``entry``.

        Its old entries are left unused: all of them together are fewer than those it has.
        """
        old = self._entries(table)
        self._tables[table, DIRECTORY] = len(self._directory)
        self._tables[table, SHIFT] -= 1
        self._directory = np.concatenate([self._directory, np.repeat(self._directory[old], 2)])
        self._places = np.concatenate([self._places, np.repeat(self._places[old], 2, axis=0)])
        first = self._tables[table, DIRECTORY] + 2 * (entry - old.start)
        return np.array([first, first + 1])

    # ------------------------------------------------------------------------------------------------------ copying

    def snapshot(self) -> dict[str, Any]:
        """Everything it holds, as copies: arrays and plain values."""
        kept = {name: value for name, value in vars(self).items() if name != "_slots"}
        return copy.deepcopy(kept) | {"_slots": self._slots[: self._heap.end].copy()}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Become what a snapshot holds, in the slots of this index."""
        kept = copy.deepcopy(snapshot)
        used = kept.pop("_slots")
        if len(used) > len(self._slots):
            raise MemoryError(f"the snapshot has {len(used)} slots, this index {len(self._slots)}; reserve more rows")
        self._slots[: len(used)] = used
        vars(self).update(kept)
        self._heap.capacity = len(self._slots)


def _roomy(count: int) -> int:
    """Slots that hold ``count`` ids at a load of a sixth to a third: 65_536 -> 262_144."""
    return max(FIRST_SEGMENT, 1 << (3 * count - 1).bit_length())
