"""The definition of packing, in NumPy: short rather than fast."""

import numpy as np
from numpy.typing import NDArray

from triton_ops.pack.types import LARGEST_WHOLE, Column, ListColumn, Scan

_NO_FLAGS = np.empty(0, np.uint8)


def is_valid(validity: NDArray[np.uint8], rows: NDArray[np.integer]) -> NDArray[np.bool_]:
    """The bits of some rows, lowest first: byte 6, rows 0, 1, 2 -> F, T, T; all true where there are no bytes."""
    if not len(validity):
        return np.ones(len(rows), np.bool_)
    return np.unpackbits(validity, bitorder="little")[rows].astype(np.bool_)


def find_unfit(values: NDArray[np.generic], target: np.dtype) -> NDArray[np.bool_]:
    """Which numbers the target can't stand for; ids always fit."""
    if target == np.float32 and values.dtype == np.int64:
        return np.abs(values.astype(np.float64)) > LARGEST_WHOLE
    if target == np.float32 and values.dtype == np.float64:
        return np.isfinite(values) & (np.abs(values) > np.finfo(np.float32).max)
    return np.zeros(len(values), np.bool_)


def pick(
    column: Column | ListColumn, rows: NDArray[np.uint32]
) -> tuple[NDArray[np.generic], NDArray[np.bool_], NDArray[np.bool_]]:
    """The value of each row (for lists the first), whether it is missing, and whether there are more."""
    if isinstance(column, Column):
        return column.values[rows], ~is_valid(column.validity, rows), np.zeros(len(rows), np.bool_)
    lengths = _lengths(column, rows)
    values, is_missing = np.zeros(len(rows), column.values.dtype), lengths == 0
    first = column.offsets[rows[~is_missing]]
    values[~is_missing] = column.values[first]
    is_missing[~is_missing] = ~is_valid(column.value_validity, first)
    return values, is_missing, lengths > 1


def _lengths(column: ListColumn, rows: NDArray[np.uint32]) -> NDArray[np.int64]:
    return np.diff(column.offsets).astype(np.int64)[rows] * is_valid(column.validity, rows)


def place_singles(
    column: Column | ListColumn,
    rows: NDArray[np.uint32],
    places: NDArray[np.uint32],
    target: NDArray[np.generic],
    present: NDArray[np.uint8],
    default: float | None,
) -> Scan:
    values, is_missing, is_long = pick(column, rows)
    unfit = find_unfit(values, target.dtype) & ~is_missing
    with np.errstate(over="ignore", invalid="ignore"):  # reported as unfit
        target[places] = np.where(is_missing, target.dtype.type(default or 0), values.astype(target.dtype))
    if len(present) and default is None:
        present[places] = ~is_missing
    return Scan(int(is_missing.sum()), int(unfit.sum()), int(is_long.sum()))


def place_lengths(
    column: ListColumn, rows: NDArray[np.uint32], places: NDArray[np.uint32], lengths: NDArray[np.int64]
) -> None:
    lengths[places] = _lengths(column, rows)


def place_lists(
    column: ListColumn,
    rows: NDArray[np.uint32],
    places: NDArray[np.uint32],
    target_offsets: NDArray[np.int64],
    target: NDArray[np.generic],
    default: float | None,
) -> Scan:
    missing = unfit = 0
    values = Column(column.values, column.value_validity)
    for row, place, length in zip(rows, places, _lengths(column, rows), strict=True):
        at = (column.offsets[row] + np.arange(length)).astype(np.uint32)
        to = (target_offsets[place] + np.arange(length)).astype(np.uint32)
        scan = place_singles(values, at, to, target, _NO_FLAGS, default)
        missing, unfit = missing + scan.missing, unfit + scan.unfit
    return Scan(missing, unfit)


def count_present(
    present_IR: NDArray[np.uint8], complete_I: NDArray[np.bool_], first: int, last: int, counts_I: NDArray[np.int64]
) -> None:
    counts_I += np.where(complete_I, last - first, present_IR[:, first:last].sum(axis=1, dtype=np.int64))


def append_rows(
    ids_IR: NDArray[np.int64],
    present_IR: NDArray[np.uint8],
    complete_I: NDArray[np.bool_],
    dense_FR: NDArray[np.float32],
    first: int,
    last: int,
    words: NDArray[np.int64],
    floats: NDArray[np.float32],
    values_I: NDArray[np.int64],
    offsets_I: NDArray[np.int64],
    dense_F: NDArray[np.int64],
    row: int,
    filled_I: NDArray[np.int64],
) -> None:
    count = last - first
    for column in range(len(ids_IR)):
        is_present = present_IR[column, first:last].astype(np.bool_) | complete_I[column]
        values, offsets = ids_IR[column, first:last][is_present], np.concatenate([[0], np.cumsum(is_present)])
        start = values_I[column] + filled_I[column]
        words[start : start + len(values)] = values
        if offsets_I[column] >= 0:
            start = offsets_I[column] + row
            words[start : start + count + 1] = filled_I[column] + offsets
        filled_I[column] += len(values)
    for column, start in enumerate(dense_F):
        floats[start + row : start + row + count] = dense_FR[column, first:last]


def append_lists(
    offsets_LR: NDArray[np.int64],
    values: NDArray[np.generic],
    starts_L: NDArray[np.int64],
    first: int,
    last: int,
    words: NDArray[np.int64],
    typed: NDArray[np.generic],
    values_L: NDArray[np.int64],
    offsets_L: NDArray[np.int64],
    row: int,
    filled_L: NDArray[np.int64],
) -> None:
    for column in range(len(offsets_LR)):
        offsets = offsets_LR[column, first : last + 1] - offsets_LR[column, first]
        source, count = starts_L[column] + offsets_LR[column, first], offsets[-1]
        start = values_L[column] + filled_L[column]
        typed[start : start + count] = values[source : source + count]
        start = offsets_L[column] + row
        words[start : start + len(offsets)] = filled_L[column] + offsets
        filled_L[column] += count
