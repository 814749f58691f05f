"""group_by_row in Triton: no sorting, no hashing, and the order of the CPU.

A row's stamp takes the largest of tick * 2^32 + (2^32 - 1 - place) over the places of its values: that of the first. So
which value is the first one does not depend on which program ran first, and neither do the numbers of unique rows, a
running sum of first values. Stamps of earlier calls, whose ticks are smaller, lose by themselves.

N values, U unique rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_ops import row_layout
from triton_ops.launches import Configuration
from triton_ops.places import FLAT, Rows, place_of
from triton_ops.shared.kernels import device_words, row_pointers

BLOCK = 512
GRANULE, UNTRAINED = tl.constexpr(row_layout.GRANULE), tl.constexpr(row_layout.UNTRAINED)
STAMP, LAST_STEP, COUNT = map(tl.constexpr, (row_layout.STAMP, row_layout.LAST_STEP, row_layout.COUNT))
LAST = tl.constexpr(2**32 - 1)


@triton.jit
def _load_records(rows, meta, granule_table, count, WIDTH: tl.constexpr, SHIFT: tl.constexpr, ALIGN: tl.constexpr,
                  BLOCK: tl.constexpr):  # fmt: skip
    """Of a program's values: their places, rows, records, and which are of a table."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows + i, mask=i < count, other=-1)
    is_row = row >= 0
    table = tl.load(granule_table + row // GRANULE, mask=is_row, other=UNTRAINED)
    is_trained = is_row & (table != UNTRAINED)
    record = row_pointers(meta, tl.where(is_trained, row, 0), tl.int64, WIDTH, SHIFT, ALIGN)
    return i, row, record, is_trained


@triton.jit(do_not_specialize=("count",))
def mark_firsts(rows, meta, granule_table, tick, count, WIDTH: tl.constexpr, SHIFT: tl.constexpr, ALIGN: tl.constexpr,
                BLOCK: tl.constexpr):  # fmt: skip
    """Stamp each row with the place of its first value."""
    i, _, record, is_trained = _load_records(rows, meta, granule_table, count, WIDTH, SHIFT, ALIGN, BLOCK)
    stamp = (tl.load(tick) << 32) + (LAST - i)
    # What is read may be old, and then smaller: the atomic decides. Of a hot row most values need none.
    wins = is_trained & (tl.load(record + STAMP, mask=is_trained, other=0) < stamp)
    tl.atomic_max(record + STAMP, stamp, mask=wins, sem="relaxed")


@triton.jit(do_not_specialize=("count",))
def flag_firsts(rows, meta, granule_table, tick, step, counts, firsts, count, WIDTH: tl.constexpr,
                SHIFT: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Write which values are a row's first; given a step, record it and how often each row appears."""
    i, _, record, is_trained = _load_records(rows, meta, granule_table, count, WIDTH, SHIFT, ALIGN, BLOCK)
    stamp = (tl.load(tick) << 32) + (LAST - i)
    is_first = is_trained & (tl.load(record + STAMP, mask=is_trained, other=0) == stamp)
    tl.store(firsts + i, is_first.to(tl.int32), mask=i < count)
    if step is not None:
        now = tl.load(step) + i * 0
        tl.store(record + LAST_STEP, now, mask=is_first)
        if counts is None:
            times = tl.full([BLOCK], 1, tl.int64)
        else:
            times = tl.load(counts + i, mask=is_trained, other=0)
        tl.atomic_add(record + COUNT, times, mask=is_trained, sem="relaxed")


@triton.jit(do_not_specialize=("count",))
def number_rows(rows, meta, granule_table, ranks, unique, inverse, count, WIDTH: tl.constexpr, SHIFT: tl.constexpr,
                ALIGN: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Write unique rows, -1 behind the last, and each value's place among them; ``ranks`` count first values."""
    i, row, record, is_trained = _load_records(rows, meta, granule_table, count, WIDTH, SHIFT, ALIGN, BLOCK)
    first = LAST - (tl.load(record + STAMP, mask=is_trained, other=0) & LAST)
    local = tl.load(ranks + first, mask=is_trained, other=0) - 1
    tl.store(inverse + i, local, mask=i < count)
    tl.store(unique + local, row, mask=is_trained & (first == i))
    tl.store(unique + i, tl.full([BLOCK], -1, tl.int64), mask=(i < count) & (i >= tl.load(ranks + count - 1)))


def group_by_row(
    rows_N: Tensor, meta: Rows, granule_table: Tensor, tick: int | Tensor, step: int | Tensor | None,
    counts_N: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See op.py; rows_U is as long as rows_N."""
    count, device = len(rows_N), rows_N.device
    unique_N, inverse_N = torch.empty_like(rows_N), torch.empty_like(rows_N)
    if count == 0:
        return unique_N, inverse_N
    assert count < 2**31, "more values than a kernel counts"
    ticks, steps = _on_device(tick, device), None if step is None else _on_device(step, device)
    place = place_of(meta)
    arrays, where = (rows_N, place.pointers, granule_table), place.constants()
    firsts_N = torch.empty(count, dtype=torch.int32, device=device)
    grid = (triton.cdiv(count, BLOCK),)
    mark_firsts[grid](*arrays, ticks, count, **where, BLOCK=BLOCK)
    flag_firsts[grid](*arrays, ticks, steps, counts_N, firsts_N, count, **where, BLOCK=BLOCK)
    number_rows[grid](*arrays, firsts_N.cumsum(0), unique_N, inverse_N, count, **where, BLOCK=BLOCK)
    return unique_N, inverse_N


def _on_device(number: int | Tensor, device: torch.device) -> Tensor:
    return number if isinstance(number, Tensor) else device_words((number, *[0] * 7), device)


_WHERE = {"WIDTH": row_layout.RECORD, "SHIFT": 12, "ALIGN": 16, "BLOCK": BLOCK}
_ROWS = {"rows": "*i64", "meta": "*i64", "granule_table": "*i32", "count": "i32"}
_FLAGS = _ROWS | {"tick": "*i64", "firsts": "*i32"}
CONFIGURATIONS = (
    Configuration(mark_firsts, _ROWS | {"tick": "*i64"}, _WHERE),
    Configuration(flag_firsts, _FLAGS | {"step": "*i64", "counts": "*i64"}, _WHERE),
    Configuration(flag_firsts, _FLAGS | {"step": "*i64"}, _WHERE | {"counts": None}),
    Configuration(flag_firsts, _FLAGS, _WHERE | {"counts": None, "step": None}),
    Configuration(number_rows, _ROWS | {"ranks": "*i64", "unique": "*i64", "inverse": "*i64"}, _WHERE),
    Configuration(mark_firsts, _ROWS | {"tick": "*i64"}, _WHERE | {"SHIFT": FLAT}),
)
