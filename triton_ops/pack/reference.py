"""The definition of packing, in NumPy: short rather than fast."""

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triton_ops.columns import array_at
from triton_ops.pack.types import (
    BITS,
    COUNT,
    KIND,
    KINDS,
    LARGEST_WHOLE,
    OFFSETS,
    VALUE_BITS,
    VALUES,
    Column,
    ListColumn,
)


def _at(address: int, count: int, dtype: Any) -> NDArray[Any]:
    """A copy of what lies at an address."""
    return np.frombuffer(ctypes.string_at(int(address), int(count) * np.dtype(dtype).itemsize), dtype)


def _bits(address: int, count: int) -> NDArray[np.uint8]:
    return _at(address, -(-count // 8), np.uint8) if address else np.empty(0, np.uint8)


def _extent(indices: NDArray[np.uint32]) -> int:
    return int(indices.max()) + 1 if len(indices) else 0


def _column(source_6: NDArray[np.int64], rows: NDArray[np.uint32]) -> Column | ListColumn:
    """The column that a line of a table of sources tells of, as far as these rows of it."""
    source = source_6.tolist()
    count = _extent(rows)
    values = Column(_at(source[VALUES], source[COUNT], KINDS[source[KIND]]), _bits(source[VALUE_BITS], source[COUNT]))
    if not source[OFFSETS]:
        return values
    return ListColumn(*values, _at(source[OFFSETS], count + 1, np.int32), _bits(source[BITS], count))


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


def _convert(
    values: NDArray[np.generic], is_missing: NDArray[np.bool_], default: Any
) -> tuple[NDArray[Any], list[int]]:
    """Values of the dtype of the default, which stands for what is missing; and how many are missing, and unfit."""
    unfit = find_unfit(values, default.dtype) & ~is_missing
    with np.errstate(over="ignore", invalid="ignore"):  # reported as unfit
        return np.where(is_missing, default, values.astype(default.dtype)), [int(is_missing.sum()), int(unfit.sum())]


def find_buffers(
    record: int, columns_K: NDArray[np.int64], slots_K: NDArray[np.int64], sources: NDArray[np.int64]
) -> bool:
    children = _at(record, 7, np.int64)[6]
    are_whole = True
    for column, slot in zip(columns_K.tolist(), slots_K.tolist(), strict=True):
        outer = _at(_at(children, column + 1, np.int64)[column], 7, np.int64)
        count, nulls, offset, buffers, nested = outer[:5].tolist()
        places = _at(outer[5], buffers, np.int64).tolist()
        are_whole &= offset == 0
        if not nested:
            sources[slot, :KIND] = places[-1], count, places[0] if nulls else 0, places[1] if buffers == 3 else 0, 0
            continue
        inner = _at(_at(outer[6], 1, np.int64)[0], 7, np.int64)
        inner_places = _at(inner[5], inner[3], np.int64).tolist()
        are_whole &= inner[2] == 0
        bits = inner_places[0] if inner[1] else 0, places[1], places[0] if nulls else 0
        sources[slot, :KIND] = inner_places[1], inner[0], *bits
    return bool(are_whole)


def place_singles(
    sources_K6: NDArray[np.int64],
    rows: NDArray[np.uint32],
    places: NDArray[np.uint32],
    targets_K: NDArray[np.int64],
    presents_K: NDArray[np.int64],
    defaults_K: NDArray[np.generic],
) -> NDArray[np.int64]:
    scans, extent = [], _extent(places)
    for source_6, target, present, default in zip(sources_K6, targets_K, presents_K, defaults_K, strict=True):
        values, is_missing, is_long = pick(_column(source_6, rows), rows)
        converted, counts = _convert(values, is_missing, default)
        array_at(int(target), extent, default.dtype)[places] = converted
        if present:
            array_at(int(present), extent, np.uint8)[places] = ~is_missing
        scans.append([*counts, int(is_long.sum())])
    return np.array(scans, np.int64).reshape(-1, 3)


def measure_lists(
    sources_L6: NDArray[np.int64],
    rows: NDArray[np.uint32],
    places: NDArray[np.uint32],
    lengths_L: NDArray[np.int64],
    starts_L: NDArray[np.int64],
) -> NDArray[np.int64]:
    counts, extent = [], _extent(places)
    for source_6, length, start in zip(sources_L6, lengths_L, starts_L, strict=True):
        column = _column(source_6, rows)
        assert isinstance(column, ListColumn)
        lengths = _lengths(column, rows)
        array_at(int(length), extent, np.int64)[places] = lengths
        width = KINDS[source_6[KIND]].itemsize
        array_at(int(start), extent, np.int64)[places] = source_6[VALUES] + width * column.offsets[rows].astype(
            np.int64
        )
        counts.append([int(lengths.sum()), int((lengths > 1).sum())])
    return np.array(counts, np.int64).reshape(-1, 2)


def place_lists(
    sources_L6: NDArray[np.int64],
    rows: NDArray[np.uint32],
    places: NDArray[np.uint32],
    targets_L: NDArray[np.int64],
    starts_L: NDArray[np.int64],
    dims_L: NDArray[np.int64],
    defaults_L: NDArray[np.generic],
) -> NDArray[np.int64]:
    scans, extent = [], _extent(places)
    for source_6, target, start, dim, default in zip(
        sources_L6, targets_L, starts_L, dims_L.tolist(), defaults_L, strict=True
    ):
        column, at, counts = _column(source_6, rows), 0, np.zeros(3, np.int64)
        assert isinstance(column, ListColumn)
        for row, place, length in zip(rows.tolist(), places.tolist(), _lengths(column, rows).tolist(), strict=True):
            if dim and length != dim:
                continue
            own = (column.offsets[row] + np.arange(length)).astype(np.uint32)
            values, is_missing, _ = pick(Column(column.values, column.value_validity), own)
            converted, found = _convert(values, is_missing, default)
            address = int(target) + default.dtype.itemsize * (dim * place if dim else at)
            array_at(address, length, default.dtype)[:] = converted
            if not dim:
                array_at(int(start), extent, np.int64)[place] = address
            counts[:2] += found
            at += length
        scans.append(counts)
    return np.array(scans, np.int64).reshape(-1, 3)


def group_rows(order: NDArray[np.int64], bounds: NDArray[np.int64]) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    piece_of = np.searchsorted(bounds[1:-1], order, side="right")
    places = np.argsort(piece_of, kind="stable")
    return (order - bounds[piece_of])[places].astype(np.uint32), places.astype(np.uint32)


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


def count_lists(lengths_PL: NDArray[np.int64], spans_P2: NDArray[np.int64], counts_L: NDArray[np.int64]) -> None:
    for addresses_L, (first, last) in zip(lengths_PL.tolist(), spans_P2.tolist(), strict=True):
        counts_L += np.array([_at(address, last, np.int64)[first:].sum() for address in addresses_L], np.int64)


def append_lists(
    lengths_PL: NDArray[np.int64],
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
            spans = _at(int(lengths_PL[p, column]), last, np.int64)[first:].tolist()
            for start, length in zip(starts, spans, strict=True):
                typed[at : at + length] = _at(start, length, typed.dtype.type) if length else []
                at += length
            lengths += spans
        words[offset : offset + len(lengths)] = np.cumsum(lengths)
