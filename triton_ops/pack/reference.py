"""The definition of packing, in NumPy: short rather than fast."""

import numpy as np
from numpy.typing import NDArray

from triton_ops.pack.types import LARGEST_WHOLE, NOWHERE, Column, ListColumn, Scan

NO_FLAGS = np.empty(0, np.uint8)


def unpack_bits(validity: NDArray[np.uint8], first: int, count: int) -> NDArray[np.bool_]:
    """Bits [first, first + count), lowest first: byte 6 -> False, True, True; all true where there are no bytes."""
    if not len(validity):
        return np.ones(count, np.bool_)
    return np.unpackbits(validity, count=first + count, bitorder="little")[first:].astype(np.bool_)


def find_unfit(values: NDArray[np.generic], target: np.dtype) -> NDArray[np.bool_]:
    """Which numbers the target can't stand for; ids always fit."""
    if target == np.float32 and values.dtype == np.int64:
        return np.abs(values.astype(np.float64)) > LARGEST_WHOLE
    if target == np.float32 and values.dtype == np.float64:
        return np.isfinite(values) & (np.abs(values) > np.finfo(np.float32).max)
    return np.zeros(len(values), np.bool_)


def _least(positions: NDArray[np.int64]) -> int:
    return int(positions.min()) if len(positions) else NOWHERE


def _store(
    values: NDArray[np.generic],
    is_missing: NDArray[np.bool_],
    positions: NDArray[np.int64],
    target: NDArray[np.generic],
    present: NDArray[np.uint8],
    default: float | None,
) -> Scan:
    unfit = find_unfit(values, target.dtype) & ~is_missing
    filled = np.where(is_missing, values.dtype.type(default or 0), values)
    with np.errstate(over="ignore", invalid="ignore"):  # reported as unfit
        target[positions] = filled.astype(target.dtype)
    if len(present) and default is None:
        present[positions] = ~is_missing
    return Scan(int(is_missing.sum()), _least(positions[is_missing]), _least(positions[unfit]), NOWHERE)


def place_values(
    column: Column,
    first: int,
    positions: NDArray[np.int64],
    target: NDArray[np.generic],
    present: NDArray[np.uint8],
    default: float | None,
) -> Scan:
    values = column.values[first : first + len(positions)]
    is_missing = ~unpack_bits(column.validity, first, len(positions))
    return _store(values, is_missing, positions, target, present, default)


def _lengths(column: ListColumn, first: int, count: int) -> NDArray[np.int64]:
    lengths = np.diff(column.offsets[first : first + count + 1]).astype(np.int64)
    return lengths * unpack_bits(column.validity, first, count)


def place_optionals(
    column: ListColumn,
    first: int,
    positions: NDArray[np.int64],
    target: NDArray[np.generic],
    present: NDArray[np.uint8],
    default: float | None,
) -> Scan:
    lengths = _lengths(column, first, len(positions))
    values = np.zeros(len(positions), column.values.dtype)
    is_missing = np.ones(len(positions), np.bool_)
    for row in np.flatnonzero(lengths):
        at = int(column.offsets[first + row])
        if unpack_bits(column.value_validity, at, 1)[0]:
            values[row], is_missing[row] = column.values[at], False
    scan = _store(values, is_missing, positions, target, present, default)
    return scan._replace(long_at=_least(positions[lengths > 1]))


def place_lengths(column: ListColumn, first: int, positions: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
    lengths[positions] = _lengths(column, first, len(positions))


def place_lists(
    column: ListColumn,
    first: int,
    positions: NDArray[np.int64],
    target_offsets: NDArray[np.int64],
    target: NDArray[np.generic],
    default: float | None,
) -> Scan:
    total = Scan(0, NOWHERE, NOWHERE, NOWHERE)
    lengths = _lengths(column, first, len(positions))
    for row, position in enumerate(positions.tolist()):
        at, start, length = int(column.offsets[first + row]), int(target_offsets[position]), int(lengths[row])
        values, is_missing = column.values[at : at + length], ~unpack_bits(column.value_validity, at, length)
        scan = _store(values, is_missing, np.arange(start, start + length), target, NO_FLAGS, default)
        total = Scan(
            total.missing + scan.missing,
            min(total.missing_at, position if scan.missing else NOWHERE),
            min(total.unfit_at, position if scan.unfit_at != NOWHERE else NOWHERE),
            NOWHERE,
        )
    return total


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
