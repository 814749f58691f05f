"""The definition of packing, in NumPy: short rather than fast."""

import ctypes
from typing import Any

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


def place_starts(
    column: ListColumn,
    rows: NDArray[np.uint32],
    places: NDArray[np.uint32],
    lengths: NDArray[np.int64],
    starts: NDArray[np.int64],
) -> None:
    lengths[places] = _lengths(column, rows)
    starts[places] = column.values.ctypes.data + column.values.itemsize * column.offsets[rows].astype(np.int64)


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


def group_rows(order: NDArray[np.int64], bounds: NDArray[np.int64]) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    piece_of = np.searchsorted(bounds[1:-1], order, side="right")
    places = np.argsort(piece_of, kind="stable")
    return (order - bounds[piece_of])[places].astype(np.uint32), places.astype(np.uint32)


def _at(address: int, count: int, dtype: type[np.generic]) -> NDArray[Any]:
    """A copy of what lies at an address."""
    return np.frombuffer(ctypes.string_at(address, count * np.dtype(dtype).itemsize), dtype)


def _present(address: int, first: int, last: int) -> NDArray[np.bool_]:
    return _at(address + first, last - first, np.uint8).astype(np.bool_) if address else np.ones(last - first, np.bool_)


def count_present(present_PI: NDArray[np.int64], spans_P2: NDArray[np.int64], counts_I: NDArray[np.int64]) -> None:
    for addresses_I, (first, last) in zip(present_PI.tolist(), spans_P2.tolist(), strict=True):
        counts_I += np.array([_present(address, first, last).sum() for address in addresses_I], np.int64)


def append_rows(
    ids_PI: NDArray[np.int64],
    present_PI: NDArray[np.int64],
    dense_PF: NDArray[np.int64],
    spans_P2: NDArray[np.int64],
    words: NDArray[np.int64],
    floats: NDArray[np.float32],
    values_I: NDArray[np.int64],
    offsets_I: NDArray[np.int64],
    dense_F: NDArray[np.int64],
) -> None:
    spans = spans_P2.tolist()
    for column, (value, offset) in enumerate(zip(values_I, offsets_I, strict=True)):
        present = np.concatenate([_present(int(present_PI[p, column]), *span) for p, span in enumerate(spans)])
        ids = np.concatenate(
            [_at(int(ids_PI[p, column]), last, np.int64)[first:] for p, (first, last) in enumerate(spans)]
        )
        words[value : value + present.sum()] = ids[present]
        if offset >= 0:
            words[offset : offset + len(ids) + 1] = np.concatenate([[0], np.cumsum(present)])
    for column, start in enumerate(dense_F):
        dense = [_at(int(dense_PF[p, column]), last, np.float32)[first:] for p, (first, last) in enumerate(spans)]
        floats[start : start + sum(map(len, dense))] = np.concatenate(dense)


def _span_offsets(address: int, first: int, last: int) -> NDArray[np.int64]:
    return _at(address, last + 1, np.int64)[first:]


def count_lists(offsets_PL: NDArray[np.int64], spans_P2: NDArray[np.int64], counts_L: NDArray[np.int64]) -> None:
    for addresses_L, (first, last) in zip(offsets_PL.tolist(), spans_P2.tolist(), strict=True):
        counts_L += np.array([np.ptp(_span_offsets(address, first, last)) for address in addresses_L], np.int64)


def append_lists(
    offsets_PL: NDArray[np.int64],
    starts_PL: NDArray[np.int64],
    spans_P2: NDArray[np.int64],
    words: NDArray[np.int64],
    typed: NDArray[np.generic],
    values_L: NDArray[np.int64],
    offsets_L: NDArray[np.int64],
) -> None:
    for column, (value, offset) in enumerate(zip(values_L, offsets_L, strict=True)):
        at, lengths = int(value), [0]
        for p, (first, last) in enumerate(spans_P2.tolist()):
            starts = _at(int(starts_PL[p, column]), last, np.int64)[first:].tolist()
            spans = np.diff(_span_offsets(int(offsets_PL[p, column]), first, last)).tolist()
            for start, length in zip(starts, spans, strict=True):
                typed[at : at + length] = _at(start, length, typed.dtype.type)
                at += length
            lengths += spans
        words[offset : offset + len(lengths)] = np.cumsum(lengths)
