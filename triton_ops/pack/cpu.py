"""Numba kernels of packing, without the interpreter lock: one value takes about a nanosecond.

Placement reads at random and writes in order, which is two to three times faster than the reverse. Loops are kept apart
(gather, flags, range check) and free of branches on data, since each then becomes a tight one; one loop for all took
twice the sum. Row numbers are uint32: a signed index is checked for wrap-around, and a wider one costs bandwidth.
"""

import numba
import numpy as np
from numba import njit
from numpy.typing import NDArray

from triton_ops.columns import float32_at, int64_at, uint8_at, values_at
from triton_ops.jit import kernel
from triton_ops.pack.types import LARGEST_WHOLE, Column, ListColumn, Scan
from triton_ops.prefetch import LINE, prefetch

_ROWS_AHEAD, _BYTES_AHEAD = 4, 512
_LARGEST_FLOAT = float(np.finfo(np.float32).max)


@njit(inline="always")
def _bit(validity, row):  # type: ignore[no-untyped-def]
    return (validity[row >> np.uint32(3)] >> (row & np.uint32(7))) & np.uint8(1)


@njit(inline="always")
def _is_unfit(value, limit):  # type: ignore[no-untyped-def]
    # Infinity and NaN fit: less themselves they are NaN.
    return ((value > limit) | (value < -limit)) & (value - value == 0)


@kernel
def _gather(values, rows, places, target):  # type: ignore[no-untyped-def]
    for k in range(len(rows)):
        target[places[k]] = values[rows[k]]


@kernel
def _gather_valid(values, validity, rows, places, target, default):  # type: ignore[no-untyped-def]
    missing = 0
    for k in range(len(rows)):
        valid, value = _bit(validity, rows[k]), values[rows[k]]
        target[places[k]] = value if valid else default
        missing += 1 - valid
    return missing


@kernel
def _mark(validity, rows, places, present):  # type: ignore[no-untyped-def]
    for k in range(len(rows)):
        present[places[k]] = _bit(validity, rows[k])


@kernel
def _count_unfit(values, validity, rows, limit):  # type: ignore[no-untyped-def]
    unfit = 0
    for k in range(len(rows)):
        unfit += _is_unfit(values[rows[k]], limit) & (len(validity) == 0 or _bit(validity, rows[k]) != 0)
    return unfit


@kernel
def _gather_optional(  # type: ignore[no-untyped-def]
    values, value_validity, offsets, validity, rows, places, target, present, default, limit
):
    missing, unfit, long = 0, 0, 0
    for k in range(len(rows)):
        row, place = rows[k], places[k]
        start, length = offsets[row], offsets[row + 1] - offsets[row]
        if len(validity) > 0 and not _bit(validity, row):
            length = 0
        long += length > 1
        if length > 0 and (len(value_validity) == 0 or _bit(value_validity, np.uint32(start))):
            value = values[start]
            unfit += _is_unfit(value, limit)
            target[place] = value
        else:
            missing += 1
            target[place] = default
            if len(present) > 0:
                present[place] = 0
    return missing, unfit, long


def _limit(source: np.dtype, target: np.dtype) -> float:
    """The largest magnitude that fits; infinity where every value does."""
    if target != np.float32 or source == np.float32:
        return np.inf
    return float(LARGEST_WHOLE) if source == np.int64 else _LARGEST_FLOAT


def place_singles(
    column: Column | ListColumn,
    rows: NDArray[np.uint32],
    places: NDArray[np.uint32],
    target: NDArray[np.generic],
    present: NDArray[np.uint8],
    default: float | None,
) -> Scan:
    values = column.values
    filler, limit = target.dtype.type(default or 0), _limit(values.dtype, target.dtype)
    marks = present if default is None else present[:0]
    if isinstance(column, ListColumn):
        return Scan(*_gather_optional(*column, rows, places, target, marks, filler, limit))
    unfit = _count_unfit(values, column.validity, rows, limit) if limit != np.inf else 0
    if not len(column.validity):
        _gather(values, rows, places, target)
        return Scan(0, unfit)
    missing = _gather_valid(values, column.validity, rows, places, target, filler)
    if missing and len(marks):
        _mark(column.validity, rows, places, marks)
    return Scan(missing, unfit)


@kernel
def _place_starts(origin, width, offsets, validity, rows, places, lengths, starts):  # type: ignore[no-untyped-def]
    for k in range(len(rows)):
        row, place = rows[k], places[k]
        valid = len(validity) == 0 or _bit(validity, row) != 0
        lengths[place] = offsets[row + 1] - offsets[row] if valid else 0
        starts[place] = origin + width * offsets[row]


def place_starts(
    column: ListColumn,
    rows: NDArray[np.uint32],
    places: NDArray[np.uint32],
    lengths: NDArray[np.int64],
    starts: NDArray[np.int64],
) -> None:
    values = column.values
    _place_starts(values.ctypes.data, values.itemsize, column.offsets, column.validity, rows, places, lengths, starts)


@kernel
def _gather_lists(values, offsets, validity, rows, places, target_offsets, target):  # type: ignore[no-untyped-def]
    for k in range(len(rows)):
        row = rows[k]
        if len(validity) == 0 or _bit(validity, row):
            at, start = target_offsets[places[k]], offsets[row]
            for index in range(offsets[row + 1] - start):
                target[at + index] = values[start + index]


@kernel
def _gather_checked_lists(  # type: ignore[no-untyped-def]
    values, value_validity, offsets, validity, rows, places, target_offsets, target, default, limit
):
    missing, unfit = 0, 0
    for k in range(len(rows)):
        row = rows[k]
        if len(validity) == 0 or _bit(validity, row):
            at = target_offsets[places[k]]
            for index in range(offsets[row], offsets[row + 1]):
                valid = len(value_validity) == 0 or _bit(value_validity, np.uint32(index))
                value = values[index] if valid else default
                missing += not valid
                unfit += _is_unfit(value, limit)
                target[at] = value
                at += 1
    return missing, unfit


def place_lists(
    column: ListColumn,
    rows: NDArray[np.uint32],
    places: NDArray[np.uint32],
    target_offsets: NDArray[np.int64],
    target: NDArray[np.generic],
    default: float | None,
) -> Scan:
    values, value_validity, offsets, validity = column
    filler, limit = target.dtype.type(default or 0), _limit(values.dtype, target.dtype)
    if limit == np.inf and not len(value_validity):
        _gather_lists(values, offsets, validity, rows, places, target_offsets, target)
        return Scan(0, 0)
    return Scan(*_gather_checked_lists(*column, rows, places, target_offsets, target, filler, limit))


@kernel
def _group_rows(order, bounds, rows, places):  # type: ignore[no-untyped-def]
    cursors = bounds[:-1].copy()
    for place in range(len(order)):
        row = order[place]
        low, high = 0, len(cursors) - 1
        while low < high:
            middle = (low + high + 1) >> 1
            if bounds[middle] <= row:
                low = middle
            else:
                high = middle - 1
        at = cursors[low]
        cursors[low] = at + 1
        rows[at], places[at] = row - bounds[low], place


def group_rows(order: NDArray[np.int64], bounds: NDArray[np.int64]) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    rows, places = np.empty(len(order), np.uint32), np.empty(len(order), np.uint32)
    _group_rows(order, bounds, rows, places)
    return rows, places


@njit(inline="always")
def _count_present(present, first, last):  # type: ignore[no-untyped-def]
    count = 0
    for row in range(first, last):
        count += present[row]
    return count


@njit(inline="always")
def _copy(source, target):  # type: ignore[no-untyped-def]
    # Numba takes two seconds to compile an assignment of slices, which becomes no better code.
    for index in range(len(source)):
        target[index] = source[index]


@kernel
def count_present(present_PI, spans_P2, counts_I):  # type: ignore[no-untyped-def]
    for column in range(len(counts_I)):
        for p in range(len(spans_P2)):
            first, last, address = spans_P2[p, 0], spans_P2[p, 1], present_PI[p, column]
            if address == 0:
                counts_I[column] += last - first
            else:
                counts_I[column] += _count_present(numba.carray(uint8_at(address), last), first, last)


@kernel
def append_rows(  # type: ignore[no-untyped-def]
    ids_PI, present_PI, dense_PF, spans_P2, words, floats, values_I, offsets_I, dense_F
):
    for column in range(len(values_I)):
        value, offset = values_I[column], offsets_I[column]
        filled = np.int64(0)
        if offset >= 0:
            words[offset] = 0
        for p in range(len(spans_P2)):
            first, last = spans_P2[p, 0], spans_P2[p, 1]
            count = last - first
            ids = numba.carray(int64_at(ids_PI[p, column]), last)
            is_complete = present_PI[p, column] == 0
            present = numba.carray(uint8_at(present_PI[p, column]), last)
            total = count if is_complete else _count_present(present, first, last)
            at = value + filled
            if total == count:
                _copy(ids[first:last], words[at : at + count])
                if offset >= 0:
                    for index in range(count):
                        words[offset + 1 + index] = filled + index + 1
            else:
                taken = np.int64(0)
                for index in range(count):
                    # Written whether there is an id or not, and then overwritten: branching on it would often go wrong.
                    if taken < total:
                        words[at + taken] = ids[first + index]
                    taken += present[first + index]
                    words[offset + 1 + index] = filled + taken
            filled += total
            if offset >= 0:
                offset += count
    for column in range(len(dense_F)):
        at = dense_F[column]
        for p in range(len(spans_P2)):
            first, last = spans_P2[p, 0], spans_P2[p, 1]
            dense = numba.carray(float32_at(dense_PF[p, column]), last)
            _copy(dense[first:last], floats[at : at + last - first])
            at += last - first


@kernel
def count_lists(offsets_PL, spans_P2, counts_L):  # type: ignore[no-untyped-def]
    for column in range(len(counts_L)):
        for p in range(len(spans_P2)):
            first, last = spans_P2[p, 0], spans_P2[p, 1]
            offsets = numba.carray(int64_at(offsets_PL[p, column]), last + 1)
            counts_L[column] += offsets[last] - offsets[first]


@kernel
def append_lists(  # type: ignore[no-untyped-def]
    offsets_PL, starts_PL, spans_P2, words, typed, values_L, offsets_L
):
    # Not closures over a type each: Numba keeps none that closes over a function, and compiles it in every process.
    for column in range(len(values_L)):
        at, offset, filled = values_L[column], offsets_L[column], np.int64(0)
        words[offset] = 0
        for p in range(len(spans_P2)):
            first, last = spans_P2[p, 0], spans_P2[p, 1]
            offsets = numba.carray(int64_at(offsets_PL[p, column]), last + 1)
            starts = numba.carray(int64_at(starts_PL[p, column]), last)
            for row in range(first, last):
                length = offsets[row + 1] - offsets[row]
                # Rows lie anywhere in their stripes: asking ahead hides the way to memory.
                ahead = min(row + _ROWS_AHEAD, last - 1)
                extent = offsets[ahead + 1] - offsets[ahead]
                near = numba.carray(values_at(starts[ahead], typed), extent)
                for byte in range(0, min(extent * typed.itemsize, _BYTES_AHEAD), LINE):
                    prefetch(near, byte)
                source = numba.carray(values_at(starts[row], typed), length)
                for index in range(length):
                    typed[at + index] = source[index]
                at += length
                filled += length
                offset += 1
                words[offset] = filled
