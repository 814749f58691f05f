"""The CPU's id index: the directories of directory.py over one array of slots, around the kernels of cpu.py.

N ids in a call, K runs of ids that belong to one table each, T tables, S slots.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from triton_ops.index import cpu
from triton_ops.index.cpu import BEGIN, COUNT, MASK
from triton_ops.index.directory import FIRST_SEGMENT, Directory
from triton_ops.index.layout import NO_ROW, Inserted, RowPool
from triton_ops.index.slot_heap import SlotHeap
from triton_ops.shared.reference import unmix64
from triton_ops.threads import limited_to, threads_for


class SegmentedIndex:
    """Id -> row for several tables over one array of slots. `triton_ops.index.op.Index` says what the methods mean.

    The arrays are those that cpu.py describes.
    """

    def __init__(self, tables: int, slots: np.ndarray) -> None:
        self._slots = slots
        self._memory = _Slots(slots)
        self._directory = Directory(tables, self._memory)

    def find(self, ids_N: Tensor, splits_K1: Tensor, tables_K: Tensor, missing: int) -> Tensor:
        rows_N = torch.empty_like(ids_N)
        runs = ids_N.numpy(), splits_K1.numpy(), tables_K.numpy()
        arrays = *runs, missing, self._directory.tables, self._directory.places, self._slots, rows_N.numpy()
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
            index = self._arrays()  # growth may replace them
            position, count, why, table, segment = cpu.find_or_insert(
                *runs, position, *index, pool.cursors, pool.row_ids, *results, count
            )
            if why == cpu.DONE:
                return Inserted(rows_N, new_rows_N[:count], None)
            grown = self._directory.grow(table, segment) if why == cpu.SEGMENT_FULL else pool.refill(table)
            if not grown:
                rows_N[position:] = -1
                return Inserted(rows_N, new_rows_N[:count], table)

    def erase(self, ids_N: Tensor, splits_K1: Tensor, tables_K: Tensor, pool: RowPool) -> int:
        runs = ids_N.numpy(), splits_K1.numpy(), tables_K.numpy()
        return int(cpu.erase(*runs, *self._arrays(), pool.cursors, pool.row_ids))

    def items(self, table: int, first_shard: int, last_shard: int) -> tuple[Tensor, Tensor]:
        places = self._directory.places_of(table, first_shard, last_shard)
        size = int(places[:, MASK].sum() + len(places)) // 2  # at most half full
        mixed, rows, count = np.empty(size, np.uint64), np.empty(size, np.int64), 0
        for begin, mask in places.tolist():
            count = cpu.collect(begin, mask + 1, first_shard, last_shard, self._slots, mixed, rows, count)
        order = np.argsort(mixed[:count])
        return unmix64(torch.from_numpy(mixed[order].view(np.int64))), torch.from_numpy(rows[order])

    def clear(self, table: int) -> None:
        self._directory.clear(table)

    def reserve(self, table: int, ids: int, first_shard: int, last_shard: int) -> None:
        self._directory.reserve(table, ids, first_shard, last_shard)

    def count(self, table: int) -> int:
        return int(self._directory.tables[table, COUNT])

    def stats(self, table: int) -> dict[str, int]:
        places = self._directory.places_of(table)
        slots = int(places[:, MASK].sum()) + len(places)
        return {"ids": self.count(table), "slots": slots, "segments": len(places), "index_bytes": slots * 16}

    def probe_lengths(self, table: int) -> tuple[float, int]:
        total, most = 0, 0
        for begin, mask in self._directory.places_of(table).tolist():
            segment_total, longest = cpu.probe_lengths(begin, mask + 1, self._slots)
            total, most = total + int(segment_total), max(most, int(longest))
        return (total / self.count(table), most) if self.count(table) else (1.0, 1)

    def _arrays(self) -> tuple[np.ndarray, ...]:
        directory = self._directory
        return directory.tables, directory.places, directory.segments, directory.used, self._slots

    def snapshot(self) -> dict[str, Any]:
        """Everything it holds, as copies: arrays and plain values."""
        return {"directory": self._directory.snapshot(), "memory": self._memory.snapshot()}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Become what a snapshot holds, in the slots of this index."""
        self._memory.restore(snapshot["memory"])
        self._directory.restore(snapshot["directory"])


class _Slots:
    """Segments as runs of one array of slots."""

    def __init__(self, slots: np.ndarray) -> None:
        self._slots = slots
        self._heap = SlotHeap(len(slots))

    def __str__(self) -> str:
        return f"{len(self._slots)} slots"

    def allocate(self, size: int) -> np.ndarray | None:
        begin = self._heap.allocate(size)
        if begin is None:
            return None
        cpu.clear_slots(begin, size, self._slots)
        return np.array([begin, size - 1], dtype=np.uint64)

    def free(self, place: np.ndarray) -> None:
        self._heap.free(int(place[BEGIN]), int(place[MASK]) + 1)

    def halves(self, place: np.ndarray, bit: int, held: int) -> tuple[tuple[int, int], tuple[int, int]]:
        high = int(cpu.count_set(place[BEGIN], place[MASK] + 1, bit, self._slots))
        # Sized by what each will hold: where all ids share the bit, the empty half must not cost a large segment.
        return (_roomy(held - high), _roomy(high)), (held - high, high)

    def move(self, old: np.ndarray, bit: int, parts: tuple[tuple[np.ndarray, int], tuple[np.ndarray, int]]) -> None:
        cpu.move(old[BEGIN], old[MASK] + 1, bit, parts[0][0], parts[1][0], self._slots)

    def snapshot(self) -> dict[str, Any]:
        return {"heap": self._heap.copy(), "slots": self._slots[: self._heap.end].copy()}

    def restore(self, snapshot: dict[str, Any]) -> None:
        used = snapshot["slots"]
        if len(used) > len(self._slots):
            raise MemoryError(f"the snapshot has {len(used)} slots, this index {len(self._slots)}; reserve more rows")
        self._slots[: len(used)] = used
        self._heap = snapshot["heap"].copy()
        self._heap.capacity = len(self._slots)


def _roomy(count: int) -> int:
    """Slots that hold ``count`` ids at a load of a sixth to a third: 65_536 -> 262_144."""
    return max(FIRST_SEGMENT, 1 << (3 * count - 1).bit_length())
