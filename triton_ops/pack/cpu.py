"""Numba kernels of packing: one pass over each column, without the interpreter lock.

Arrow's buffers are read in order and the block is written in permuted order, since a window's column (128 kB at 16k
rows) stays in the cache while the stripe streams through.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from triton_ops.pack.types import LARGEST_WHOLE, NOWHERE, Column, ListColumn, Scan

_NO_LIMIT = np.inf
_LARGEST_FLOAT = float(np.finfo(np.float32).max)


def _limit(source: np.dtype, target: np.dtype) -> float:
    """The largest magnitude that fits, infinity where nothing has to be looked at."""
    if target != np.float32 or source == np.float32:
        return _NO_LIMIT
    return float(LARGEST_WHOLE) if source == np.int64 else _LARGEST_FLOAT


def _default(values: NDArray[np.generic], default: float | None) -> np.generic:
    return values.dtype.type(default or 0)


@njit(inline="always")
def _is_valid(validity, index):  # type: ignore[no-untyped-def]
    return (validity[index >> 3] >> (index & 7)) & 1 != 0


@njit(inline="always")
def _is_unfit(value, limit):  # type: ignore[no-untyped-def]
    # Infinity and NaN differ from themselves less themselves, and fit.
    return (value > limit or value < -limit) and value - value == 0


@njit(nogil=True, cache=True)
def _place_all(values, first, positions, target):  # type: ignore[no-untyped-def]
    for row in range(len(positions)):
        target[positions[row]] = values[first + row]


@njit(nogil=True, cache=True)
def _place_values(values, validity, first, positions, target, present, has_default, default, limit):  # type: ignore[no-untyped-def]
    missing, missing_at, unfit_at = 0, NOWHERE, NOWHERE
    mark = len(present) > 0 and not has_default
    for row in range(len(positions)):
        position = positions[row]
        if len(validity) == 0 or _is_valid(validity, first + row):
            value = values[first + row]
            if _is_unfit(value, limit):
                unfit_at = min(unfit_at, position)
            target[position] = value
        else:
            missing += 1
            missing_at = min(missing_at, position)
            target[position] = default
            if mark:
                present[position] = 0
    return missing, missing_at, unfit_at, NOWHERE


def place_values(
    column: Column,
    first: int,
    positions: NDArray[np.int64],
    target: NDArray[np.generic],
    present: NDArray[np.uint8],
    default: float | None,
) -> Scan:
    values, validity = column
    limit = _limit(values.dtype, target.dtype)
    if not len(validity) and limit == _NO_LIMIT:
        _place_all(values, first, positions, target)
        return Scan(0, NOWHERE, NOWHERE, NOWHERE)
    filler = _default(values, default)
    return Scan(*_place_values(values, validity, first, positions, target, present, default is not None, filler, limit))


@njit(nogil=True, cache=True)
def _place_optionals(  # type: ignore[no-untyped-def]
    values, value_validity, offsets, validity, first, positions, target, present, has_default, default, limit
):
    missing, missing_at, unfit_at, long_at = 0, NOWHERE, NOWHERE, NOWHERE
    mark = len(present) > 0 and not has_default
    for row in range(len(positions)):
        position = positions[row]
        start, stop = offsets[first + row], offsets[first + row + 1]
        if len(validity) > 0 and not _is_valid(validity, first + row):
            stop = start
        if stop - start > 1:
            long_at = min(long_at, position)
        if stop > start and (len(value_validity) == 0 or _is_valid(value_validity, start)):
            value = values[start]
            if _is_unfit(value, limit):
                unfit_at = min(unfit_at, position)
            target[position] = value
        else:
            missing += 1
            missing_at = min(missing_at, position)
            target[position] = default
            if mark:
                present[position] = 0
    return missing, missing_at, unfit_at, long_at


def place_optionals(
    column: ListColumn,
    first: int,
    positions: NDArray[np.int64],
    target: NDArray[np.generic],
    present: NDArray[np.uint8],
    default: float | None,
) -> Scan:
    filler, limit = _default(column.values, default), _limit(column.values.dtype, target.dtype)
    return Scan(*_place_optionals(*column, first, positions, target, present, default is not None, filler, limit))


@njit(nogil=True, cache=True)
def _place_lengths(offsets, validity, first, positions, lengths):  # type: ignore[no-untyped-def]
    for row in range(len(positions)):
        length = offsets[first + row + 1] - offsets[first + row]
        if len(validity) > 0 and not _is_valid(validity, first + row):
            length = 0
        lengths[positions[row]] = length


def place_lengths(column: ListColumn, first: int, positions: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
    _place_lengths(column.offsets, column.validity, first, positions, lengths)


@njit(nogil=True, cache=True)
def _place_lists(  # type: ignore[no-untyped-def]
    values, value_validity, offsets, validity, first, positions, target_offsets, target, has_default, default, limit
):
    missing, missing_at, unfit_at = 0, NOWHERE, NOWHERE
    for row in range(len(positions)):
        if len(validity) > 0 and not _is_valid(validity, first + row):
            continue
        position = positions[row]
        start, stop, at = offsets[first + row], offsets[first + row + 1], target_offsets[position]
        for index in range(start, stop):
            value = values[index]
            if len(value_validity) > 0 and not _is_valid(value_validity, index):
                missing += 1
                missing_at = min(missing_at, position)
                value = default
            elif _is_unfit(value, limit):
                unfit_at = min(unfit_at, position)
            target[at + index - start] = value
    return missing, missing_at, unfit_at, NOWHERE


def place_lists(
    column: ListColumn,
    first: int,
    positions: NDArray[np.int64],
    target_offsets: NDArray[np.int64],
    target: NDArray[np.generic],
    default: float | None,
) -> Scan:
    filler, limit = _default(column.values, default), _limit(column.values.dtype, target.dtype)
    return Scan(*_place_lists(*column, first, positions, target_offsets, target, default is not None, filler, limit))


@njit(inline="always")
def _count_present(present_IR, column, first, last):  # type: ignore[no-untyped-def]
    count = 0
    for row in range(first, last):
        count += present_IR[column, row]
    return count


@njit(nogil=True, cache=True)
def count_present(present_IR, complete_I, first, last, counts_I):  # type: ignore[no-untyped-def]
    for column in range(len(complete_I)):
        counts_I[column] += last - first if complete_I[column] else _count_present(present_IR, column, first, last)


@njit(nogil=True, cache=True)
def append_rows(  # type: ignore[no-untyped-def]
    ids_IR,
    present_IR,
    complete_I,
    dense_FR,
    first,
    last,
    words,
    floats,
    values_I,
    offsets_I,
    dense_F,
    row,
    filled_I,
):
    count = last - first
    for column in range(len(ids_IR)):
        at, begun = values_I[column] + filled_I[column], filled_I[column]
        total = count if complete_I[column] else _count_present(present_IR, column, first, last)
        filled_I[column] += total
        start = offsets_I[column] + row
        if total == count:
            words[at : at + count] = ids_IR[column, first:last]
            if offsets_I[column] >= 0:
                for index in range(count + 1):
                    words[start + index] = begun + index
            continue
        taken = 0
        words[start] = begun
        for index in range(count):
            # Written whether there is an id or not, and then overwritten: branching on the id would often go wrong.
            if taken < total:
                words[at + taken] = ids_IR[column, first + index]
            taken += present_IR[column, first + index]
            words[start + 1 + index] = begun + taken
    for column in range(len(dense_FR)):
        at = dense_F[column] + row
        floats[at : at + count] = dense_FR[column, first:last]


@njit(nogil=True, cache=True)
def append_lists(  # type: ignore[no-untyped-def]
    offsets_LR, values, starts_L, first, last, words, typed, values_L, offsets_L, row, filled_L
):
    for column in range(len(offsets_LR)):
        origin, begun = offsets_LR[column, first], filled_L[column]
        for index in range(last - first + 1):
            words[offsets_L[column] + row + index] = begun + offsets_LR[column, first + index] - origin
        count = offsets_LR[column, last] - origin
        source, at = starts_L[column] + origin, values_L[column] + begun
        typed[at : at + count] = values[source : source + count]
        filled_L[column] += count
