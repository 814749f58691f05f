"""Triton kernels of the id index: buckets of four {key, row} slots, read by 16 bytes a thread, inserted by relaxed CAS.

N ids in a call, K runs of ids ordered by table, B blocks of ids that belong to one run each, J listed ids, T tables,
G segments, E entries of a table's directory.

An insertion is several launches, and no thread waits for another:
  find     reads the row of each id, and lists those that have none
  claim    gives each listed id a slot: the first empty one on its way, by compare-and-swap, or the one that holds it
  rank     says which listed id was the first of its equals; torch's cumsum numbers these
  publish  gives the r-th new id of a table the table's r-th free row, and each listed id its row
  finish   moves the tables' cursors on
and an erasure is find, claim, rank, bury, finish, which list the ids that are there. So which row an id gets depends on
the order of ids alone.

Why claim is right, on any schedule and with reads as stale as can be: while it runs, a key changes once, from EMPTY to
an id. All threads that claim an id look at the same slots in the same order, and take the first that is EMPTY when
their compare-and-swap comes. A stale read can only show EMPTY, which the compare-and-swap then contradicts. A thread
passes a slot after each failure, so it ends, in a full segment too. Launches are ordered, which is all that is relied
on: atomics are relaxed.

Three words are no keys of a slot: EMPTY, TOMB of an erased id, and NEVER, which idle threads compare with. An id that
is one of them is kept under another key in a segment of its table's own, for these three alone: the last entry of the
directory.

What the kernels read, int64:
  tables    [T, 8]      PLACES and others, of device_layout.py: addresses of arrays that may grow between launches
  places    [E + 1, 4]  of a table: address, slots - 1 and number of the entry's segment
  held      [G, 2]      slots of a segment that are not empty, and how many of these are erased
  counters  [T, 4]      COUNT and others
  runs      [5, K + 1]  FIRST_BLOCK and others; the last column ends them
  records   [B * BLOCK] listed ids, block by block: position | run << RUN_SHIFT; ends[b] are listed up to block b
  spots     [J]         the slot of each listed id, 0 where its segment was full; sums[j] are firsts up to j
"""

from typing import Any

import triton
import triton.language as tl

from triton_ops.index import device_layout as layout
from triton_ops.launches import Configuration
from triton_ops.row_layout import GRANULE as _GRANULE
from triton_ops.row_layout import ID as _ID
from triton_ops.row_layout import RECORD as _RECORD
from triton_ops.shared.kernels import FLAT, mix64, row_pointers

BLOCK = 64
"""Ids a program. At least 64 a warp: on AMD, threads that share an id would each see only their own swap succeed."""
WARPS = 1

EMPTY, TOMB, NEVER = (tl.constexpr(layout.EMPTY + k) for k in range(3))
SPECIALS = tl.constexpr(layout.SPECIALS)
PLACES, HELD, STACK, GRANULES, SHIFT, SUPPLY = map(
    tl.constexpr, (layout.PLACES, layout.HELD, layout.STACK, layout.GRANULES, layout.SHIFT, layout.SUPPLY)
)
COUNT, FREE, TAKEN, LOST = map(tl.constexpr, (layout.COUNT, layout.FREE, layout.TAKEN, layout.LOST))
FIRST_BLOCK, BEGIN, END, TABLE, TABLE_BLOCK = map(
    tl.constexpr, (layout.FIRST_BLOCK, layout.BEGIN, layout.END, layout.TABLE, layout.TABLE_BLOCK)
)
OLD, OLD_SLOTS, BIT, NEW = map(tl.constexpr, (layout.OLD, layout.OLD_SLOTS, layout.BIT, layout.NEW))

RUN_SHIFT = tl.constexpr(40)
POSITION = tl.constexpr((1 << 40) - 1)
ERASING = tl.constexpr(1 << 41)  # above all numbers
GRANULE = tl.constexpr(_GRANULE)
RECORD = tl.constexpr(_RECORD)
ID = tl.constexpr(_ID)


@triton.jit
def _at(address):
    """int64 words at an address."""
    return address.to(tl.pointer_type(tl.int64))


@triton.jit
def _count_upto(rising, size, values, STEPS: tl.constexpr):
    """How many of rising[:size] are <= each of ``values``; ``size`` is at most 2^STEPS, and not 0."""
    base = values * 0
    left = size
    for _ in tl.static_range(STEPS):
        half = left // 2
        probe = tl.load(rising + base + half - 1, mask=(base >= 0) & (half > 0), other=0)
        base = tl.where((probe <= values) & (half > 0), base + half, base)
        left -= half
    return base + (tl.load(rising + base) <= values).to(tl.int64)


@triton.jit
def _locate(ids, places, shift, exists):
    """Of each id its key, the address of its segment, the number of it, its buckets - 1, and the first to look into."""
    is_special = ids <= NEVER
    keys = tl.where(is_special, ids + SPECIALS, ids)
    mixed = mix64(keys.to(tl.uint64, bitcast=True))
    entries = ((mixed >> 1) >> shift.to(tl.uint64)).to(tl.int64)
    entries = tl.where(is_special, tl.full([1], 1, tl.int64) << (63 - shift), entries)
    lines = _at(places + entries * 32)
    addresses = tl.load(lines, mask=exists, other=0)
    masks = (tl.load(lines + 1, mask=exists, other=0) >> 2).to(tl.int32)
    segments = tl.load(lines + 2, mask=exists, other=0)
    return keys, addresses, segments, masks, mixed.to(tl.int32) & masks


@triton.jit
def _load_buckets(addresses, exists, BLOCK: tl.constexpr, CACHE: tl.constexpr):
    """The keys and rows, [BLOCK, 4], of the buckets at these addresses."""
    # The hint must be on pointers: one on the int64 is lost, and loads fall to 8 bytes.
    lines = tl.multiple_of(_at(addresses)[:, None], [64, 64])
    words = tl.load(lines + tl.arange(0, 8)[None, :], mask=exists[:, None], other=EMPTY, cache_modifier=CACHE)
    return tl.split(tl.reshape(words, [BLOCK, 4, 2]))


@triton.jit
def _claim(keys, addresses, masks, buckets, wanted, idle, BLOCK: tl.constexpr):
    """The address of each wanted key's slot, which claims an empty one where there is none; 0 where there is no room.

    ``idle`` is where threads without a swap to make compare a word of their own with NEVER.
    """
    lane = tl.arange(0, 4)[None, :]
    spots = tl.zeros([BLOCK], tl.int64)
    cursors = tl.zeros([BLOCK], tl.int32)
    passed = tl.zeros([BLOCK], tl.int32)
    empty, never = tl.full([BLOCK], EMPTY, tl.int64), tl.full([BLOCK], NEVER, tl.int64)
    active = wanted
    while tl.max(active.to(tl.int32), axis=0) > 0:
        lines = addresses + buckets.to(tl.int64) * 64
        found, _ = _load_buckets(lines, active, BLOCK, ".cg")
        hit = tl.max(tl.where(found == keys[:, None], lane, -1), axis=1)
        free = tl.min(tl.where((found == EMPTY) & (lane >= cursors[:, None]), lane, 4), axis=1)
        swaps = active & (hit < 0) & (free < 4)
        done = active & (hit >= 0)
        if tl.max(swaps.to(tl.int32), axis=0) > 0:
            targets = _at(tl.where(swaps, lines + free.to(tl.int64) * 16, idle))
            old = tl.atomic_cas(targets, tl.where(swaps, empty, never), tl.where(swaps, keys, never), sem="relaxed")
            done = done | (swaps & ((old == EMPTY) | (old == keys)))
        spots = tl.where(done, lines + tl.where(hit >= 0, hit, free).to(tl.int64) * 16, spots)
        cursors = free + 1
        is_passed = cursors >= 4
        passed += is_passed.to(tl.int32)
        buckets = tl.where(is_passed, (buckets + 1) & masks, buckets)
        cursors = tl.where(is_passed, 0, cursors)
        active = active & (done == 0) & (passed <= masks)
    return spots


@triton.jit(do_not_specialize=["run_count", "missing", "lists"])
def find(ids, rows, runs, run_count, tables, missing, lists, records, listed, wanted, STEPS: tl.constexpr,
         BLOCK: tl.constexpr):  # fmt: skip
    """Write the row of each id of a block, or ``missing``; ``lists`` says which ids to list, and whether any.

    Of these only those that are ``wanted``, where it is given.
    """
    block = tl.program_id(0).to(tl.int64)
    columns = run_count + 1
    run = _count_upto(runs + FIRST_BLOCK * columns, run_count, block, STEPS) - 1
    begin, end = tl.load(runs + BEGIN * columns + run), tl.load(runs + END * columns + run)
    table = tables + tl.load(runs + TABLE * columns + run) * 8
    first = begin + (block - tl.load(runs + FIRST_BLOCK * columns + run)) * BLOCK
    positions = first + tl.arange(0, BLOCK)
    exists = positions < end
    each_id = tl.load(ids + positions, mask=exists, other=0)
    places, shift = tl.load(table + PLACES), tl.load(table + SHIFT)
    keys, addresses, _, masks, buckets = _locate(each_id, places, shift, exists)
    found_rows = tl.full([BLOCK], EMPTY, tl.int64)
    passed = tl.zeros([BLOCK], tl.int32)
    active = exists
    while tl.max(active.to(tl.int32), axis=0) > 0:
        found, held_rows = _load_buckets(addresses + buckets.to(tl.int64) * 64, active, BLOCK, "")
        hits = active[:, None] & (found == keys[:, None])
        found_rows = tl.maximum(found_rows, tl.max(tl.where(hits, held_rows, EMPTY), axis=1))
        ends = tl.max((hits | (found == EMPTY)).to(tl.int32), axis=1) > 0
        passed += 1
        buckets = (buckets + 1) & masks
        active = active & (ends == 0) & (passed <= masks)
    is_hit = found_rows >= 0
    tl.store(rows + positions, tl.where(is_hit, found_rows, missing), mask=exists)
    if lists != 0:
        is_listed = exists & (is_hit == (lists == 2))
        if wanted is not None:
            is_listed = is_listed & (tl.load(wanted + positions, mask=exists, other=0) != 0)
        number = tl.cumsum(is_listed.to(tl.int32), axis=0)
        tl.store(records + block * BLOCK + number - 1, positions | (run << RUN_SHIFT), mask=is_listed)
        tl.store(listed + block, tl.max(number, axis=0).to(tl.int64))


@triton.jit
def _listed_places(numbers, ends, blocks, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    """Where in ``records`` each number's id is, and which numbers there are."""
    exists = numbers < tl.load(ends + blocks - 1)
    block = tl.minimum(_count_upto(ends, blocks, numbers, STEPS), blocks - 1)
    begin = tl.load(ends + block - 1, mask=block > 0, other=0)
    return tl.where(exists, block * BLOCK + numbers - begin, 0), exists


@triton.jit(do_not_specialize=["run_count", "blocks"])
def claim(ids, runs, run_count, tables, records, ends, blocks, positions, spots, ERASE: tl.constexpr,
          STEPS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Write each listed id's record and slot, and leave the least of its equals' numbers in the slot's row.

    As -2 - number, which is above EMPTY and below all rows; with ERASE as number - ERASING, of ids that have a row.
    """
    if tl.program_id(0).to(tl.int64) * BLOCK >= tl.load(ends + blocks - 1):
        return  # most programs, in most steps
    numbers = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    places, exists = _listed_places(numbers, ends, blocks, STEPS, BLOCK)
    record = tl.load(records + places, mask=exists, other=0)
    tl.store(positions + numbers, record, mask=exists)
    table = tables + tl.load(runs + TABLE * (run_count + 1) + (record >> RUN_SHIFT), mask=exists, other=0) * 8
    each_id = tl.load(ids + (record & POSITION), mask=exists, other=0)
    directories = tl.load(table + PLACES, mask=exists, other=0)
    shifts = tl.load(table + SHIFT, mask=exists, other=63)
    keys, addresses, _, masks, buckets = _locate(each_id, directories, shifts, exists)
    idle = (spots + numbers).to(tl.int64)
    found = _claim(keys, addresses, masks, buckets, exists, idle, BLOCK)
    is_placed = exists & (found != 0)
    if ERASE:
        tl.atomic_min(_at(found) + 1, numbers - ERASING, mask=is_placed, sem="relaxed")
    else:
        tl.atomic_max(_at(found) + 1, -2 - numbers, mask=is_placed, sem="relaxed")
    tl.store(spots + numbers, found, mask=exists)


@triton.jit(do_not_specialize=["blocks", "count"])
def rank(ends, blocks, spots, firsts, new_rows, count, ERASE: tl.constexpr, BLOCK: tl.constexpr):
    """Mark the listed ids that are the first of their equals, and make ``new_rows`` -1."""
    numbers = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    spot = tl.load(spots + numbers, mask=numbers < tl.load(ends + blocks - 1), other=0)
    word = tl.load(_at(spot) + 1, mask=spot != 0, other=0)
    mark = numbers - ERASING if ERASE else -2 - numbers
    tl.store(firsts + numbers, ((spot != 0) & (word == mark)).to(tl.int32), mask=numbers < count)
    tl.store(new_rows + numbers, tl.full([BLOCK], -1, tl.int64), mask=numbers < count)


@triton.jit
def _upto(sums, numbers, exists):
    """sums[number - 1], which is 0 for number 0."""
    return tl.load(sums + numbers - 1, mask=exists & (numbers > 0), other=0).to(tl.int64)


@triton.jit
def _add_to_segments(held, segments, counted, BLOCK: tl.constexpr):
    """Count slots of segments; by one addition where a program's are of one segment, as a small table's are."""
    count = tl.sum(counted.to(tl.int64), axis=0)
    if count > 0:
        lowest = tl.min(tl.where(counted, segments, 2**62), axis=0)
        if lowest == tl.max(tl.where(counted, segments, -1), axis=0):
            tl.atomic_add(held + lowest * 2, count, sem="relaxed")
        else:
            ones = tl.full([BLOCK], 1, tl.int64)
            tl.atomic_add(held + segments * 2, ones, mask=counted, sem="relaxed")


@triton.jit(do_not_specialize=["run_count", "blocks", "lost_row"])
def publish(ids, rows, runs, run_count, tables, counters, ends, blocks, positions, spots, sums, pointers, new_rows,
            lost_row, SHIFT_OF_BLOCKS: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Write the row of each listed id; the first of its equals takes it for them, with its id in the row's record.

    Where a table has no rows left, ids read ``lost_row``, are counted as LOST, and their slots become TOMB.
    """
    if tl.program_id(0).to(tl.int64) * BLOCK >= tl.load(ends + blocks - 1):
        return  # most programs, in most steps
    numbers = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = numbers < tl.load(ends + blocks - 1)
    record = tl.load(positions + numbers, mask=exists, other=0)
    spot = tl.load(spots + numbers, mask=exists, other=0)
    is_placed = spot != 0
    position = record & POSITION
    run = record >> RUN_SHIFT
    number_of_table = tl.load(runs + TABLE * (run_count + 1) + run, mask=exists, other=0)
    table, counter = tables + number_of_table * 8, counters + number_of_table * 4
    word = tl.load(_at(spot) + 1, mask=is_placed, other=0)
    # The first may have written the row meanwhile: then the word is the row, else it says who the first is.
    leaders = tl.where(word < 0, -2 - word, numbers)
    table_block = tl.load(runs + TABLE_BLOCK * (run_count + 1) + run, mask=exists, other=0)
    before = _upto(sums, _upto(ends, table_block, exists), exists)
    ranks = _upto(sums, leaders, exists) - before
    free, taken = tl.load(counter + FREE, mask=exists, other=0), tl.load(counter + TAKEN, mask=exists, other=0)
    from_stack = ranks < free
    stack = _at(tl.load(table + STACK, mask=exists, other=0))
    erased = tl.load(stack + free - 1 - ranks, mask=exists & from_stack, other=0)
    fresh = taken + ranks - free
    is_lucky = is_placed & (from_stack | (fresh < tl.load(table + SUPPLY, mask=exists, other=0)) | (word >= 0))
    granules = _at(tl.load(table + GRANULES, mask=exists, other=0))
    granule = tl.load(granules + fresh // GRANULE, mask=is_lucky & (from_stack == 0) & (word < 0), other=0)
    given = tl.where(from_stack, erased, granule * GRANULE + fresh % GRANULE)
    row = tl.where(word >= 0, word, given)
    tl.store(rows + position, tl.where(is_lucky, row, lost_row), mask=exists)

    number_up_to = tl.load(sums + numbers, mask=exists, other=0).to(tl.int64)
    is_first = is_placed & (number_up_to > _upto(sums, numbers, exists))
    each_id = tl.load(ids + position, mask=exists, other=0)
    directories = tl.load(table + PLACES, mask=exists, other=0)
    shifts = tl.load(table + SHIFT, mask=exists, other=63)
    _, _, segments, _, _ = _locate(each_id, directories, shifts, exists)
    held = _at(tl.load(tables + HELD))  # one array for all tables
    _add_to_segments(held, segments, is_first, BLOCK)
    wins = is_first & is_lucky
    tl.store(_at(spot) + 1, row, mask=wins)
    tl.store(new_rows + number_up_to - 1, row, mask=wins)
    record_of_row = row_pointers(pointers, tl.where(wins, row, 0), tl.int64, RECORD, SHIFT_OF_BLOCKS, ALIGN)
    tl.store(record_of_row + ID, each_id, mask=wins)
    loses = exists & ((is_placed == 0) | (is_first & (is_lucky == 0)))
    if tl.max(loses.to(tl.int32), axis=0) > 0:
        tl.store(_at(spot), tl.full([BLOCK], TOMB, tl.int64), mask=loses & is_placed)
        ones = tl.full([BLOCK], 1, tl.int64)
        tl.atomic_add(held + segments * 2 + 1, ones, mask=loses & is_placed, sem="relaxed")
        tl.atomic_add(counter + LOST, ones, mask=loses, sem="relaxed")


@triton.jit(do_not_specialize=["run_count", "blocks"])
def bury(ids, rows, runs, run_count, tables, counters, ends, blocks, positions, spots, sums, BLOCK: tl.constexpr):
    """Erase the listed ids, and put their rows on the stacks of their tables in order."""
    if tl.program_id(0).to(tl.int64) * BLOCK >= tl.load(ends + blocks - 1):
        return  # most programs, in most steps
    numbers = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = numbers < tl.load(ends + blocks - 1)
    number_up_to = tl.load(sums + numbers, mask=exists, other=0).to(tl.int64)
    is_first = exists & (number_up_to > _upto(sums, numbers, exists))
    record = tl.load(positions + numbers, mask=is_first, other=0)
    spot = tl.load(spots + numbers, mask=is_first, other=0)
    position = record & POSITION
    run = record >> RUN_SHIFT
    number_of_table = tl.load(runs + TABLE * (run_count + 1) + run, mask=is_first, other=0)
    table = tables + number_of_table * 8
    table_block = tl.load(runs + TABLE_BLOCK * (run_count + 1) + run, mask=is_first, other=0)
    before = _upto(sums, _upto(ends, table_block, is_first), is_first)
    free = tl.load(counters + number_of_table * 4 + FREE, mask=is_first, other=0)
    stack = _at(tl.load(table + STACK, mask=is_first, other=0))
    row = tl.load(rows + position, mask=is_first, other=0)
    tl.store(stack + free + number_up_to - 1 - before, row, mask=is_first)
    each_id = tl.load(ids + position, mask=is_first, other=0)
    directories = tl.load(table + PLACES, mask=is_first, other=0)
    shifts = tl.load(table + SHIFT, mask=is_first, other=63)
    _, _, segments, _, _ = _locate(each_id, directories, shifts, is_first)
    _add_to_segments(_at(tl.load(tables + HELD)) + 1, segments, is_first, BLOCK)
    tl.store(_at(spot), tl.full([BLOCK], TOMB, tl.int64), mask=is_first)
    tl.store(_at(spot) + 1, tl.full([BLOCK], EMPTY, tl.int64), mask=is_first)


@triton.jit(do_not_specialize=["run_count"])
def finish(runs, run_count, tables, counters, ends, sums, ERASE: tl.constexpr, BLOCK: tl.constexpr):
    """Move the cursors of the tables that a call was for; a program looks at runs, and at the last one of a table."""
    run = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    columns = run_count + 1
    exists = run < run_count
    number_of_table = tl.load(runs + TABLE * columns + run, mask=exists, other=-1)
    is_last = exists & (number_of_table != tl.load(runs + TABLE * columns + run + 1, mask=exists, other=-1))
    begin = tl.load(runs + TABLE_BLOCK * columns + run, mask=is_last, other=0)
    end = tl.load(runs + FIRST_BLOCK * columns + run + 1, mask=is_last, other=0)
    count = _upto(sums, _upto(ends, end, is_last), is_last) - _upto(sums, _upto(ends, begin, is_last), is_last)
    counter = counters + number_of_table * 4
    ids, free = tl.load(counter + COUNT, mask=is_last, other=0), tl.load(counter + FREE, mask=is_last, other=0)
    if ERASE:
        tl.store(counter + COUNT, ids - count, mask=is_last)
        tl.store(counter + FREE, free + count, mask=is_last)
    else:
        taken = tl.load(counter + TAKEN, mask=is_last, other=0)
        supply = tl.load(tables + number_of_table * 8 + SUPPLY, mask=is_last, other=0)
        given = tl.minimum(count, free + supply - taken)
        from_stack = tl.minimum(given, free)
        tl.store(counter + COUNT, ids + given, mask=is_last)
        tl.store(counter + FREE, free - from_stack, mask=is_last)
        tl.store(counter + TAKEN, taken + given - from_stack, mask=is_last)


@triton.jit
def move(jobs, held, BLOCK: tl.constexpr):
    """Copy the ids of old segments to new ones, and count them there."""
    job = jobs + tl.program_id(1) * 9
    slots = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    pairs = tl.multiple_of(_at(tl.load(job + OLD)), 16) + slots[:, None] * 2 + tl.arange(0, 2)[None, :]
    is_there = slots < tl.load(job + OLD_SLOTS)
    keys, rows = tl.split(tl.load(pairs, mask=is_there[:, None], other=EMPTY))
    moves = is_there & (keys > TOMB) & (rows >= 0)
    mixed = mix64(keys.to(tl.uint64, bitcast=True))
    side = job + NEW + ((mixed >> tl.load(job + BIT).to(tl.uint64)) & 1).to(tl.int64) * 3
    _add_to_segments(held, tl.load(side + 2, mask=moves, other=0), moves, BLOCK)
    addresses = tl.load(side, mask=moves, other=0)
    masks = (tl.load(side + 1, mask=moves, other=0) >> 2).to(tl.int32)
    idle = tl.load(job + OLD) + tl.minimum(slots, tl.load(job + OLD_SLOTS) - 1) * 16
    spots = _claim(keys, addresses, masks, mixed.to(tl.int32) & masks, moves, idle, BLOCK)
    # Read again: kept in registers while slots are claimed, rows would not fit.
    rows = tl.load(_at(tl.load(job + OLD)) + slots * 2 + 1, mask=moves, other=0)
    tl.store(_at(spots) + 1, rows, mask=moves & (spots != 0))


RUN_STEPS, BLOCK_STEPS = 4, 8
"""Searches among runs and blocks take a multiple of so many steps: few kernels, for up to 2^12 runs and 2^30 ids."""


def steps_for(size: int, round_to: int) -> int:
    """Halvings that narrow so many down to one: 100 by 4 -> 8."""
    return -(-(size - 1).bit_length() // round_to) * round_to


def _listed(kernel: Any, names: str, *, wide: bool = False, **constants: Any) -> Configuration:
    """A launch, by the names of what it is given: those below are numbers, others point to int64."""
    numbers = ("run_count", "blocks", "count", "missing", "lists", "lost_row")
    signature = {name: "i32" if name in numbers else "*i64" for name in names.split()}
    signature |= {"firsts": "*i32"} if "firsts" in signature else {}
    signature |= {"sums": "*i32"} if "sums" in signature else {}
    signature |= {"wanted": "*u8"} if "wanted" in signature else {}
    return Configuration(kernel, signature, {**constants, "BLOCK": BLOCK}, {"num_warps": WARPS}, wide)


_FIND = "ids rows runs run_count tables missing lists records listed"
_CLAIM = "ids runs run_count tables records ends blocks positions spots"
_RANK = "ends blocks spots firsts new_rows count"
_PUBLISH = "ids rows runs run_count tables counters ends blocks positions spots sums pointers new_rows lost_row"
_BURY = "ids rows runs run_count tables counters ends blocks positions spots sums"
_FINISH = "runs run_count tables counters ends sums"

CONFIGURATIONS = (
    *(_listed(find, _FIND, wide=True, STEPS=steps, wanted=None) for steps in range(0, 13, RUN_STEPS)),
    *(_listed(find, f"{_FIND} wanted", wide=True, STEPS=steps) for steps in range(0, 13, RUN_STEPS)),
    *(
        _listed(claim, _CLAIM, wide=True, ERASE=erase, STEPS=steps)
        for erase in (0, 1)
        for steps in range(0, 25, BLOCK_STEPS)
    ),
    *(_listed(rank, _RANK, ERASE=erase) for erase in (0, 1)),
    *(_listed(publish, _PUBLISH, SHIFT_OF_BLOCKS=shift, ALIGN=16) for shift in (FLAT.value, 16)),
    _listed(bury, _BURY),
    *(_listed(finish, _FINISH, ERASE=erase) for erase in (0, 1)),
    _listed(move, "jobs held", wide=True),
)
