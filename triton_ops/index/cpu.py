"""Numba kernels of the id index: segments of {id, row} slots, linear probing, at most half full.

The way from an id to its row: m = mix64(id). The top bits of m pick an entry of the table's directory, and so a
segment. The low bits of m pick the slot in it where probing starts; probing goes from slot to slot, and from the last
to the first. A slot is {id, row}, empty where its row is negative, so that every id is legal. Slots of 64 ids are
prefetched before the first is probed, since a probe branches on what it reads and would wait for line after line.

find and find_or_insert serve all tables of a group in one call. Where find_or_insert needs more slots or more rows, it
stops at that id and says so; the caller provides them and calls again with the position to go on from.

What the kernels read, for T tables, E directory entries, G segments, S slots and R rows:
  tables     int64 [T, 3]   DIRECTORY, SHIFT, COUNT
  places     uint64 [E, 2]  BEGIN, MASK of the entry's segment: repeated for each entry, so that a probe reads one line
  directory  int32 [E]      the number of the entry's segment
  used       int64 [G, 2]   HELD, LIMIT: how many ids a segment holds, and how many it may hold before it grows
  slots      int64 [S, 2]   ID, ROW
  cursors    int64 [T, 3]   and row_ids int64 [R]: see RowPool
"""

from typing import Any

import numpy as np
from numba import prange

from triton_ops.index.directory import BEGIN, COUNT, DIRECTORY, HELD, LIMIT, MASK, SHIFT
from triton_ops.index.layout import END, FREE, NEXT
from triton_ops.jit import kernel
from triton_ops.prefetch import prefetch
from triton_ops.shared.cpu import mix64

ID, ROW = 0, 1
SLOT_BYTES = 16

# Why find_or_insert stopped.
DONE, SEGMENT_FULL, NO_ROWS = 0, 1, 2

BLOCK = 64  # ids whose slots are prefetched together: enough lines in flight, few enough to stay in the first cache


@kernel
def _entry_of(mixed: Any, first_entry: Any, shift: Any) -> Any:
    """The directory entry of a mixed id. Two shifts, since one by all 64 bits is undefined."""
    return np.uint64(first_entry) + ((mixed >> np.uint64(1)) >> np.uint64(shift))


@kernel
def _start_block(ids: Any, begin: Any, count: Any, first_entry: Any, shift: Any, places: Any, slots: Any, starts: Any,
                 masks: Any) -> None:  # fmt: skip
    """Write where probing starts for ids[begin : begin + count], with these lines on their way to the cache."""
    for i in range(count):
        mixed = mix64(ids[begin + i])
        entry = _entry_of(mixed, first_entry, shift)
        masks[i] = places[entry, MASK]
        starts[i] = places[entry, BEGIN] | (mixed & masks[i])
        prefetch(slots, starts[i] * np.uint64(SLOT_BYTES))


@kernel
def _probe(id_: Any, slot: Any, mask: Any, slots: Any) -> Any:
    """The slot that holds an id, or else the empty slot where it belongs, going on from ``slot``."""
    while slots[slot, ROW] >= 0 and slots[slot, ID] != id_:
        slot = (slot & ~mask) | ((slot + np.uint64(1)) & mask)
    return slot


@kernel
def find(ids: Any, splits: Any, tables_of_runs: Any, missing: Any, tables: Any, places: Any, slots: Any,
         rows: Any, start: Any, stop: Any) -> None:  # fmt: skip
    """Write the row of each of ids[start:stop], or ``missing``, to ``rows``. Changes nothing else."""
    starts, masks = np.empty(BLOCK, np.uint64), np.empty(BLOCK, np.uint64)
    for run in range(len(tables_of_runs)):
        first_entry, shift = tables[tables_of_runs[run], DIRECTORY], tables[tables_of_runs[run], SHIFT]
        end = min(splits[run + 1], stop)
        for begin in range(max(splits[run], start), end, BLOCK):
            count = min(BLOCK, end - begin)
            _start_block(ids, begin, count, first_entry, shift, places, slots, starts, masks)
            for i in range(count):
                row = slots[_probe(ids[begin + i], starts[i], masks[i], slots), ROW]
                rows[begin + i] = row if row >= 0 else missing


def _find_on_threads(ids: Any, splits: Any, tables_of_runs: Any, missing: Any, tables: Any, places: Any, slots: Any,
                     rows: Any, parts: Any) -> None:  # fmt: skip
    """`find` for all ids, in so many parts at once."""
    size = (len(ids) + parts - 1) // parts
    for part in prange(parts):
        start = part * size
        find(ids, splits, tables_of_runs, missing, tables, places, slots, rows, start, min(start + size, len(ids)))


find_on_threads = kernel(_find_on_threads, parallel=True)


@kernel
def find_or_insert(ids: Any, splits: Any, tables_of_runs: Any, start: Any, tables: Any, places: Any, directory: Any,
                   used: Any, slots: Any, cursors: Any, row_ids: Any, rows: Any, new_rows: Any,
                   new_count: Any) -> Any:  # fmt: skip
    """Write the rows of ids[start:], giving new ids the next row of their table, in order.

    Returns (position, new_count, why, table, segment): all is done, or it stopped at ids[position] because that segment
    is full or that table has no row left. ``new_rows[:new_count]`` are the rows handed out.
    """
    starts, masks = np.empty(BLOCK, np.uint64), np.empty(BLOCK, np.uint64)
    for run in range(len(tables_of_runs)):
        table = tables_of_runs[run]
        first_entry, shift = tables[table, DIRECTORY], tables[table, SHIFT]
        for begin in range(max(splits[run], start), splits[run + 1], BLOCK):
            count = min(BLOCK, splits[run + 1] - begin)
            _start_block(ids, begin, count, first_entry, shift, places, slots, starts, masks)
            for i in range(count):
                id_ = ids[begin + i]
                slot = _probe(id_, starts[i], masks[i], slots)
                row = slots[slot, ROW]
                if row < 0:
                    segment = directory[_entry_of(mix64(id_), first_entry, shift)]
                    if used[segment, HELD] >= used[segment, LIMIT]:
                        return begin + i, new_count, SEGMENT_FULL, table, segment
                    row = cursors[table, FREE]
                    if row >= 0:
                        cursors[table, FREE] = row_ids[row]
                    elif cursors[table, NEXT] < cursors[table, END]:
                        row = cursors[table, NEXT]
                        cursors[table, NEXT] += 1
                    else:
                        return begin + i, new_count, NO_ROWS, table, segment
                    row_ids[row] = id_
                    slots[slot, ID] = id_
                    slots[slot, ROW] = row
                    used[segment, HELD] += 1
                    tables[table, COUNT] += 1
                    new_rows[new_count] = row
                    new_count += 1
                rows[begin + i] = row
    return len(ids), new_count, DONE, np.int64(-1), np.int32(-1)


@kernel
def erase(ids: Any, splits: Any, tables_of_runs: Any, tables: Any, places: Any, directory: Any, used: Any, slots: Any,
          cursors: Any, row_ids: Any) -> Any:  # fmt: skip
    """Take ids out of their tables, giving their rows back; returns how many there were."""
    starts, masks = np.empty(BLOCK, np.uint64), np.empty(BLOCK, np.uint64)
    erased = 0
    for run in range(len(tables_of_runs)):
        table = tables_of_runs[run]
        first_entry, shift = tables[table, DIRECTORY], tables[table, SHIFT]
        for begin in range(splits[run], splits[run + 1], BLOCK):
            count = min(BLOCK, splits[run + 1] - begin)
            _start_block(ids, begin, count, first_entry, shift, places, slots, starts, masks)
            for i in range(count):
                slot = _probe(ids[begin + i], starts[i], masks[i], slots)
                row = slots[slot, ROW]
                if row >= 0:
                    row_ids[row] = cursors[table, FREE]
                    cursors[table, FREE] = row
                    used[directory[_entry_of(mix64(ids[begin + i]), first_entry, shift)], HELD] -= 1
                    tables[table, COUNT] -= 1
                    _close_gap(slot, masks[i], slots)
                    erased += 1
    return erased


@kernel
def _close_gap(gap: Any, mask: Any, slots: Any) -> None:
    """Empty a slot, moving later ones of its run forward so that no probe ends before the id it looks for.

    A slot may move into the gap unless its probing starts behind the gap (Knuth, volume 3, section 6.4, algorithm R).
    """
    slot = gap
    while True:
        slot = (slot & ~mask) | ((slot + np.uint64(1)) & mask)
        if slots[slot, ROW] < 0:
            break
        home = mix64(slots[slot, ID])
        if ((slot - home) & mask) >= ((slot - gap) & mask):
            slots[gap, ID] = slots[slot, ID]
            slots[gap, ROW] = slots[slot, ROW]
            gap = slot
    slots[gap, ROW] = -1


@kernel
def clear_slots(begin: Any, size: Any, slots: Any) -> None:
    """Make a run of slots empty."""
    for slot in range(begin, begin + size):
        slots[slot, ROW] = -1


@kernel
def count_set(begin: Any, size: Any, bit: Any, slots: Any) -> Any:
    """How many ids in a run of slots have this bit of their mixed id set."""
    count = np.uint64(0)
    for slot in range(begin, begin + size):
        if slots[slot, ROW] >= 0:
            count += (mix64(slots[slot, ID]) >> np.uint64(bit)) & np.uint64(1)
    return count


@kernel
def probe_lengths(begin: Any, size: Any, slots: Any) -> Any:
    """How many slots are read to find each id in a run of slots, all together; and the most for one of them."""
    total, most, mask = np.int64(0), np.int64(0), np.uint64(size - 1)
    for slot in range(begin, begin + size):
        if slots[slot, ROW] >= 0:
            length = np.int64((np.uint64(slot) - mix64(slots[slot, ID])) & mask) + 1
            total += length
            most = max(most, length)
    return total, most


@kernel
def move(begin: Any, size: Any, bit: Any, low: Any, high: Any, slots: Any) -> None:
    """Copy the ids in a run of slots to the place ``high`` where this bit of the mixed id is set, else to ``low``."""
    for old in range(begin, begin + size):
        if slots[old, ROW] >= 0:
            mixed = mix64(slots[old, ID])
            place = high if (mixed >> np.uint64(bit)) & np.uint64(1) else low
            slot = _probe(slots[old, ID], place[BEGIN] | (mixed & place[MASK]), place[MASK], slots)
            slots[slot, ID] = slots[old, ID]
            slots[slot, ROW] = slots[old, ROW]


@kernel
def collect(begin: Any, size: Any, first_shard: Any, last_shard: Any, slots: Any, mixed_out: Any, rows_out: Any,
            count: Any) -> Any:  # fmt: skip
    """Write mixed ids and rows of the ids of some virtual shards behind the first ``count``; returns the new count."""
    for slot in range(begin, begin + size):
        if slots[slot, ROW] >= 0:
            mixed = mix64(slots[slot, ID])
            shard = np.int64(mixed >> np.uint64(52))
            if shard >= first_shard and shard < last_shard:
                mixed_out[count] = mixed
                rows_out[count] = slots[slot, ROW]
                count += 1
    return count
