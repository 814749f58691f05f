"""Numba kernels of packing, without the interpreter lock: one value takes about a nanosecond.

Placement reads at random and writes in order, which is two to three times faster than the reverse. Loops are kept apart
(gather, flags, range check) and free of branches on data, since each then becomes a tight one; one loop for all took
twice the sum. Row numbers are uint32: a signed index is checked for wrap-around, and a wider one costs bandwidth.
"""

import numba
import numpy as np
from numba import njit
from numpy.typing import NDArray

from triton_ops.columns import float32_at, float64_at, int32_at, int64_at, uint8_at, values_at
from triton_ops.jit import kernel
from triton_ops.pack.types import (
    BITS,
    COUNT,
    INT64,
    KIND,
    KINDS,
    LARGEST_WHOLE,
    LONG,
    MISSING,
    OFFSETS,
    UNFIT,
    VALUE_BITS,
    VALUES,
)

_LARGEST_FLOAT = float(np.finfo(np.float32).max)
_WIDTHS = tuple(kind.itemsize for kind in KINDS)
# Words of Arrow's C struct of an array.
_LENGTH, _NULLS, _OFFSET, _N_BUFFERS, _N_CHILDREN, _BUFFERS, _CHILDREN = range(7)


@njit(inline="always")
def _words(address, count):  # type: ignore[no-untyped-def]
    return numba.carray(int64_at(address), count)


@njit(inline="always")
def _behind_last(rising):  # type: ignore[no-untyped-def]
    return np.int64(rising[-1]) + 1


@njit(inline="always")
def _behind_largest(indices):  # type: ignore[no-untyped-def]
    return np.int64(indices.max()) + 1


@njit(inline="always")
def _offsets_at(address, count):  # type: ignore[no-untyped-def]
    return numba.carray(int32_at(address), count + 1)


@njit(inline="always")
def _bits_at(address, count):  # type: ignore[no-untyped-def]
    # No bytes where there is no address: nothing is null.
    return numba.carray(uint8_at(address), (count + 7) >> 3 if address != 0 else 0)


@njit(inline="always")
def _bit(validity, row):  # type: ignore[no-untyped-def]
    return (validity[row >> np.uint32(3)] >> (row & np.uint32(7))) & np.uint8(1)


@njit(inline="always")
def _is_unfit(value, limit):  # type: ignore[no-untyped-def]
    # Infinity and NaN fit: less themselves they are NaN.
    return ((value > limit) | (value < -limit)) & (value - value == 0)


@kernel
def _find_buffers(record, columns_K, slots_K, sources):  # type: ignore[no-untyped-def]
    children = _words(_words(record, 7)[_CHILDREN], columns_K.max() + 1 if len(columns_K) else 0)
    are_whole = True
    for k in range(len(columns_K)):
        outer, slot = _words(children[columns_K[k]], 7), slots_K[k]
        buffers = _words(outer[_BUFFERS], outer[_N_BUFFERS])
        bits = buffers[0] if outer[_NULLS] != 0 else 0
        are_whole = are_whole and outer[_OFFSET] == 0
        if outer[_N_CHILDREN] == 0:
            values, count, value_bits = buffers[-1], outer[_LENGTH], bits
            offsets, bits = buffers[1] if outer[_N_BUFFERS] == 3 else 0, 0
        else:
            inner = _words(_words(outer[_CHILDREN], 1)[0], 7)
            inner_buffers = _words(inner[_BUFFERS], 2)
            are_whole = are_whole and inner[_OFFSET] == 0
            values, count, offsets = inner_buffers[1], inner[_LENGTH], buffers[1]
            value_bits = inner_buffers[0] if inner[_NULLS] != 0 else 0
        sources[slot, VALUES], sources[slot, COUNT], sources[slot, VALUE_BITS] = values, count, value_bits
        sources[slot, OFFSETS], sources[slot, BITS] = offsets, bits
    return are_whole


def find_buffers(
    record: int, columns_K: NDArray[np.int64], slots_K: NDArray[np.int64], sources: NDArray[np.int64]
) -> bool:
    found: bool = _find_buffers(record, columns_K, slots_K, sources)
    return found


@njit
def _gather(values, rows, places, target):  # type: ignore[no-untyped-def]
    for k in range(len(rows)):
        target[places[k]] = values[rows[k]]


@njit
def _gather_valid(values, validity, rows, places, target, default):  # type: ignore[no-untyped-def]
    missing = 0
    for k in range(len(rows)):
        valid, value = _bit(validity, rows[k]), values[rows[k]]
        target[places[k]] = value if valid else default
        missing += 1 - valid
    return missing


@njit
def _mark(validity, rows, places, present):  # type: ignore[no-untyped-def]
    for k in range(len(rows)):
        present[places[k]] = _bit(validity, rows[k])


@njit
def _count_unfit(values, validity, rows, limit):  # type: ignore[no-untyped-def]
    unfit = 0
    for k in range(len(rows)):
        unfit += _is_unfit(values[rows[k]], limit) & (len(validity) == 0 or _bit(validity, rows[k]) != 0)
    return unfit


@njit
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
            if limit is not None:  # decided when it is compiled, as all that asks for None
                unfit += _is_unfit(value, limit)
            target[place] = value
        else:
            missing += 1
            target[place] = default
            if len(present) > 0:
                present[place] = 0
    return missing, unfit, long


@njit(inline="always")
def _present_at(address, extent):  # type: ignore[no-untyped-def]
    return numba.carray(uint8_at(address), extent if address != 0 else 0)


@njit(inline="always")
def _note(scan, counts):  # type: ignore[no-untyped-def]
    scan[MISSING], scan[UNFIT], scan[LONG] = counts


@njit(inline="always")
def _place_column(values, source, rows, places, target, present, default, limit):  # type: ignore[no-untyped-def]
    bits = _bits_at(source[VALUE_BITS], source[COUNT])
    unfit = 0 if limit is None else _count_unfit(values, bits, rows, limit)
    missing = 0
    if len(bits) == 0:
        _gather(values, rows, places, target)
    else:
        missing = _gather_valid(values, bits, rows, places, target, default)
        if missing > 0 and len(present) > 0:
            _mark(bits, rows, places, present)
    return missing, unfit, 0


@njit(inline="always")
def _place_optional(values, source, rows, places, target, present, default, limit):  # type: ignore[no-untyped-def]
    count = _behind_largest(rows)
    validity = _bits_at(source[VALUE_BITS], source[COUNT]), _bits_at(source[BITS], count)
    offsets = _offsets_at(source[OFFSETS], count)
    return _gather_optional(values, validity[0], offsets, validity[1], rows, places, target, present, default, limit)


# Four kernels, of which most data need but the first, since each is compiled at its first call.
@kernel
def _place_alike(sources, rows, places, targets, presents, defaults, scans):  # type: ignore[no-untyped-def]
    extent = _behind_last(places)
    for k in range(len(sources)):
        source, default = sources[k], defaults[k]
        values = numba.carray(values_at(source[VALUES], defaults), source[COUNT])
        target, present = numba.carray(values_at(targets[k], defaults), extent), _present_at(presents[k], extent)
        _note(scans[k], _place_column(values, source, rows, places, target, present, default, None))


@kernel
def _place_converted(sources, rows, places, targets, presents, defaults, scans):  # type: ignore[no-untyped-def]
    extent = _behind_last(places)
    for k in range(len(sources)):
        source, default, count = sources[k], defaults[k], sources[k, COUNT]
        target, present = numba.carray(values_at(targets[k], defaults), extent), _present_at(presents[k], extent)
        if source[KIND] == INT64:
            whole, limit = _words(source[VALUES], count), LARGEST_WHOLE
            _note(scans[k], _place_column(whole, source, rows, places, target, present, default, limit))
        else:
            wide = numba.carray(float64_at(source[VALUES]), count)
            _note(scans[k], _place_column(wide, source, rows, places, target, present, default, _LARGEST_FLOAT))


@kernel
def _place_optional_alike(sources, rows, places, targets, presents, defaults, scans):  # type: ignore[no-untyped-def]
    extent = _behind_last(places)
    for k in range(len(sources)):
        source, default = sources[k], defaults[k]
        values = numba.carray(values_at(source[VALUES], defaults), source[COUNT])
        target, present = numba.carray(values_at(targets[k], defaults), extent), _present_at(presents[k], extent)
        _note(scans[k], _place_optional(values, source, rows, places, target, present, default, None))


@kernel
def _place_optional_converted(  # type: ignore[no-untyped-def]
    sources, rows, places, targets, presents, defaults, scans
):
    extent = _behind_last(places)
    for k in range(len(sources)):
        source, default, count = sources[k], defaults[k], sources[k, COUNT]
        target, present = numba.carray(values_at(targets[k], defaults), extent), _present_at(presents[k], extent)
        if source[KIND] == INT64:
            whole, limit = _words(source[VALUES], count), LARGEST_WHOLE
            _note(scans[k], _place_optional(whole, source, rows, places, target, present, default, limit))
        else:
            wide = numba.carray(float64_at(source[VALUES]), count)
            _note(scans[k], _place_optional(wide, source, rows, places, target, present, default, _LARGEST_FLOAT))


def place_singles(
    sources_K6: NDArray[np.int64],
    rows: NDArray[np.uint32],
    places: NDArray[np.uint32],
    targets_K: NDArray[np.int64],
    presents_K: NDArray[np.int64],
    defaults_K: NDArray[np.generic],
) -> NDArray[np.int64]:
    scans_K3 = np.zeros((len(sources_K6), 3), np.int64)
    if not len(rows):
        return scans_K3
    is_alike_K = sources_K6[:, KIND] == KINDS.index(defaults_K.dtype)
    is_list_K = sources_K6[:, OFFSETS] != 0
    choices = (
        (_place_alike, is_alike_K & ~is_list_K),
        (_place_converted, ~is_alike_K & ~is_list_K),
        (_place_optional_alike, is_alike_K & is_list_K),
        (_place_optional_converted, ~is_alike_K & is_list_K),
    )
    for place, chosen_K in choices:
        if chosen_K.all() and len(chosen_K):  # as a rule, and then nothing is to be picked out
            place(sources_K6, rows, places, targets_K, presents_K, defaults_K, scans_K3)
            break
        if chosen_K.any():
            found = np.zeros((int(chosen_K.sum()), 3), np.int64)
            picked = (targets_K[chosen_K], presents_K[chosen_K], defaults_K[chosen_K])
            place(sources_K6[chosen_K], rows, places, *picked, found)
            scans_K3[chosen_K] = found
    return scans_K3


@kernel
def _measure_lists(sources, rows, places, lengths_L, starts_L, counts):  # type: ignore[no-untyped-def]
    extent, count = _behind_last(places), _behind_largest(rows)
    for column in range(len(sources)):
        source = sources[column]
        offsets, bits = _offsets_at(source[OFFSETS], count), _bits_at(source[BITS], count)
        lengths, starts = _words(lengths_L[column], extent), _words(starts_L[column], extent)
        origin, width = source[VALUES], _WIDTHS[source[KIND]]
        total, long = np.int64(0), np.int64(0)
        for k in range(len(rows)):
            row, place = rows[k], places[k]
            valid = len(bits) == 0 or _bit(bits, row) != 0
            length = np.int64(offsets[row + np.uint32(1)] - offsets[row]) if valid else np.int64(0)
            lengths[place], starts[place] = length, origin + width * offsets[row]
            total += length
            long += length > 1
        counts[column, 0], counts[column, 1] = total, long


def measure_lists(
    sources_L6: NDArray[np.int64],
    rows: NDArray[np.uint32],
    places: NDArray[np.uint32],
    lengths_L: NDArray[np.int64],
    starts_L: NDArray[np.int64],
) -> NDArray[np.int64]:
    counts_L2 = np.zeros((len(sources_L6), 2), np.int64)
    if len(rows) and len(sources_L6):
        _measure_lists(sources_L6, rows, places, lengths_L, starts_L, counts_L2)
    return counts_L2


@njit(inline="always")
def _copy(source, target):  # type: ignore[no-untyped-def]
    # Numba takes two seconds to compile an assignment of slices, which becomes no better code.
    for index in range(len(source)):
        target[index] = source[index]


@njit
def _gather_lists(values, source, rows, places, origin, target, starts, dim, default, limit):  # type: ignore[no-untyped-def]
    count, width = _behind_largest(rows), target.itemsize
    offsets, bits = _offsets_at(source[OFFSETS], count), _bits_at(source[BITS], count)
    value_bits = _bits_at(source[VALUE_BITS], source[COUNT])
    is_plain = limit is None and len(value_bits) == 0
    at, missing, unfit = np.int64(0), 0, 0
    for k in range(len(rows)):
        row = rows[k]
        start, stop = np.int64(offsets[row]), np.int64(offsets[row + np.uint32(1)])
        if len(bits) > 0 and not _bit(bits, row):
            stop = start
        length = stop - start
        if dim > 0:
            if length != dim:
                continue
            at = np.int64(places[k]) * dim
        else:
            starts[places[k]] = origin + at * width
        if is_plain:
            for index in range(np.uint64(length)):
                target[np.uint64(at) + index] = values[np.uint64(start) + index]
        else:
            for index in range(length):
                valid = len(value_bits) == 0 or _bit(value_bits, np.uint32(start + index)) != 0
                value = values[start + index] if valid else default
                missing += not valid
                if limit is not None:
                    unfit += _is_unfit(value, limit)
                target[at + index] = value
        at += length
    return missing, unfit, 0


@kernel
def _lists_alike(sources, rows, places, targets, starts_L, dims, defaults, scans):  # type: ignore[no-untyped-def]
    extent, room = _behind_last(places), 1 << 60
    for column in range(len(sources)):
        source, origin = sources[column], targets[column]
        values = numba.carray(values_at(source[VALUES], defaults), source[COUNT])
        target, starts = numba.carray(values_at(origin, defaults), room), _words(starts_L[column], extent)
        arguments = (rows, places, origin, target, starts, dims[column], defaults[column], None)
        _note(scans[column], _gather_lists(values, source, *arguments))


@kernel
def _lists_converted(sources, rows, places, targets, starts_L, dims, defaults, scans):  # type: ignore[no-untyped-def]
    extent, room = _behind_last(places), 1 << 60
    for column in range(len(sources)):
        source, origin, count = sources[column], targets[column], sources[column, COUNT]
        target, starts = numba.carray(values_at(origin, defaults), room), _words(starts_L[column], extent)
        arguments = (rows, places, origin, target, starts, dims[column], defaults[column])
        if source[KIND] == INT64:
            found = _gather_lists(_words(source[VALUES], count), source, *arguments, float(LARGEST_WHOLE))
        else:
            found = _gather_lists(numba.carray(float64_at(source[VALUES]), count), source, *arguments, _LARGEST_FLOAT)
        _note(scans[column], found)


def place_lists(
    sources_L6: NDArray[np.int64],
    rows: NDArray[np.uint32],
    places: NDArray[np.uint32],
    targets_L: NDArray[np.int64],
    starts_L: NDArray[np.int64],
    dims_L: NDArray[np.int64],
    defaults_L: NDArray[np.generic],
) -> NDArray[np.int64]:
    scans_L3 = np.zeros((len(sources_L6), 3), np.int64)
    is_alike_L = sources_L6[:, KIND] == KINDS.index(defaults_L.dtype)
    for place, chosen_L in ((_lists_alike, is_alike_L), (_lists_converted, ~is_alike_L)):
        if len(rows) and chosen_L.any():
            found = np.zeros((int(chosen_L.sum()), 3), np.int64)
            place(
                *(sources_L6[chosen_L], rows, places),
                *(targets_L[chosen_L], starts_L[chosen_L], dims_L[chosen_L], defaults_L[chosen_L], found),
            )
            scans_L3[chosen_L] = found
    return scans_L3


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
def count_lists(lengths_PL, spans_P2, counts_L):  # type: ignore[no-untyped-def]
    for column in range(len(counts_L)):
        for p in range(len(spans_P2)):
            lengths = _words(lengths_PL[p, column], spans_P2[p, 1])
            for row in range(spans_P2[p, 0], spans_P2[p, 1]):
                counts_L[column] += lengths[row]


@kernel
def append_lists(  # type: ignore[no-untyped-def]
    lengths_PL, starts_PL, spans_P2, words, typed, values_L, offsets_L
):
    # Not closures over a type each: Numba keeps none that closes over a function, and compiles it in every process.
    width = typed.itemsize
    for column in range(len(values_L)):
        at, offset, filled = values_L[column], offsets_L[column], np.int64(0)
        words[offset] = 0
        for p in range(len(spans_P2)):
            row, last = spans_P2[p, 0], spans_P2[p, 1]
            lengths, starts = _words(lengths_PL[p, column], last), _words(starts_PL[p, column], last)
            while row < last:
                # Rows that lie one behind the other are copied at once.
                start = stop = starts[row]
                while row < last and (starts[row] == stop or lengths[row] == 0):
                    stop += lengths[row] * width
                    filled += lengths[row]
                    offset += 1
                    words[offset] = filled
                    row += 1
                count = (stop - start) // width
                _copy(numba.carray(values_at(start, typed), count), typed[at : at + count])
                at += count
