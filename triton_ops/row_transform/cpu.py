"""The transforms of rows in Numba: every column of a call in one loop, read where it lies.

The reference sorts all values of a batch several times; here a row's few values stay in the first cache.

K columns or sides; row k of a table [K, 5] is (address of values, of offsets, of weights or 0, of result values, of
result weights or 0).
"""

from typing import Any

import numba
import numpy as np

from triton_ops.columns import float32_at, int32_at, int64_at
from triton_ops.jit import kernel
from triton_ops.shared.reference import GOLDEN
from triton_ops.transform.cpu import inlined, murmur_end, murmur_step
from triton_ops.transform.reference import MURMUR_M

U = np.uint64
FEW = 24  # values of a row: up to so many it is faster to compare with all than to hash
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


@kernel
def take_ranges(columns_K2: Any, starts_K: Any, offsets_K: Any, wide_K: Any, rows: Any) -> None:
    """See reference.py; columns are (address of values, address of results), values 8 bytes wide or 4."""
    for k in range(len(columns_K2)):
        starts, offsets = numba.carray(int64_at(starts_K[k]), rows), numba.carray(int64_at(offsets_K[k]), rows + 1)
        count = offsets[rows]
        end = 0
        for b in range(rows):
            end = max(end, starts[b] + offsets[b + 1] - offsets[b])
        if wide_K[k]:
            wide, wide_out = (
                numba.carray(int64_at(columns_K2[k, 0]), end),
                numba.carray(int64_at(columns_K2[k, 1]), count),
            )
            for b in range(rows):
                for i in range(offsets[b + 1] - offsets[b]):
                    wide_out[offsets[b] + i] = wide[starts[b] + i]
        else:
            half, half_out = (
                numba.carray(int32_at(columns_K2[k, 0]), end),
                numba.carray(int32_at(columns_K2[k, 1]), count),
            )
            for b in range(rows):
                for i in range(offsets[b + 1] - offsets[b]):
                    half_out[offsets[b] + i] = half[starts[b] + i]


@inlined
def _slots_for(count: Any) -> Any:
    """A power of two of at least twice as many slots."""
    slots = 64
    while slots < 2 * count:
        slots *= 2
    return slots


@inlined
def _longest(offsets: Any) -> Any:
    longest = 0
    for b in range(len(offsets) - 1):
        longest = max(longest, offsets[b + 1] - offsets[b])
    return longest


@numba.njit
def _find(values: Any, kept: Any, slots: Any, mask: Any, value: Any) -> Any:
    """The slot that holds the place of a value among values[:kept], or the empty slot where it belongs."""
    at = np.int64(U(value) * U(GOLDEN) >> U(32)) & mask
    while slots[at] >= 0 and values[slots[at]] != value:
        at = (at + 1) & mask
    return at


@numba.njit
def _keep_unique(values: Any, source: Any, weights: Any, source_weights: Any, slots: Any) -> Any:
    """Copy each of source's values once to the front of values; how many there are."""
    kept = 0
    if len(source) <= FEW:
        for i in range(len(source)):
            known = False
            for j in range(kept):
                known |= values[j] == source[i]
            if not known:
                values[kept] = source[i]
                if len(weights):
                    weights[kept] = source_weights[i]
                kept += 1
        return kept
    mask = _slots_for(len(source)) - 1
    slots[: mask + 1] = -1
    for i in range(len(source)):
        at = _find(values, kept, slots, mask, source[i])
        if slots[at] < 0:
            slots[at] = kept
            values[kept] = source[i]
            if len(weights):
                weights[kept] = source_weights[i]
            kept += 1
    return kept


@numba.njit
def _count_combinations(lengths_SB: Any, splits_C1: Any, max_ids_C: Any, offsets_CB1: Any) -> Any:
    """Fill the offsets of each cross; the first cross and row with more than max_ids, (-1, -1) where none has."""
    for c in range(len(max_ids_C)):
        offsets_CB1[c, 0] = 0
        for b in range(lengths_SB.shape[1]):
            combinations = 1.0  # float64 saturates where integers would wrap
            for s in range(splits_C1[c], splits_C1[c + 1]):
                combinations *= lengths_SB[s, b]
            if combinations > max_ids_C[c]:
                return c, b
            offsets_CB1[c, b + 1] = offsets_CB1[c, b] + np.int64(combinations)
    return -1, -1


@kernel
def unique(
    sides_K5: Any,
    splits_C1: Any,  # the sides of each cross
    max_ids_C: Any,
    lengths_KB: Any,  # row b keeps its place, and fills so much of it
    offsets_CB1: Any,  # of the combinations
) -> Any:
    """See reference.py; the first cross and row with too many combinations, (-1, -1) where none has."""
    rows = lengths_KB.shape[1]
    for k in range(len(sides_K5)):
        offsets = numba.carray(int64_at(sides_K5[k, 1]), rows + 1)
        count = offsets[rows]
        source, values = numba.carray(int64_at(sides_K5[k, 0]), count), numba.carray(int64_at(sides_K5[k, 3]), count)
        weighted = count if sides_K5[k, 2] else 0
        source_weights = numba.carray(float32_at(sides_K5[k, 2]), weighted)
        weights = numba.carray(float32_at(sides_K5[k, 4]), weighted)
        slots = np.empty(_slots_for(_longest(offsets)), np.int64)
        for b in range(rows):
            first, last = offsets[b], offsets[b + 1]
            if last - first == 1:
                values[first] = source[first]
                if weighted:
                    weights[first] = source_weights[first]
                lengths_KB[k, b] = 1
                continue
            own, own_weights = (first, last) if weighted else (0, 0)
            lengths_KB[k, b] = _keep_unique(
                values[first:last], source[first:last], weights[own:own_weights], source_weights[own:own_weights], slots
            )
    return _count_combinations(lengths_KB, splits_C1, max_ids_C, offsets_CB1)


@kernel
def cross(
    sides_S5: Any,  # behind `unique`: of a row the first lengths[s, b] values there are
    lengths_SB: Any,
    splits_C1: Any,  # the sides of each cross
    results_C3: Any,  # (address of values, of offsets, of weights or 0)
) -> None:
    """See reference.py."""
    rows = lengths_SB.shape[1]
    for c in range(len(results_C3)):
        first, last = splits_C1[c], splits_C1[c + 1]
        offsets = numba.carray(int64_at(results_C3[c, 1]), rows + 1)
        count = offsets[rows]
        values = numba.carray(int64_at(results_C3[c, 0]), count)
        weights = numba.carray(float32_at(results_C3[c, 2]), count if results_C3[c, 2] else 0)
        start = U(8 * (last - first)) * U(MURMUR_M)
        for b in range(rows):
            combinations = offsets[b + 1] - offsets[b]
            for place in range(combinations):
                value, left, weight = start, place, np.float32(1)
                stride = combinations
                for s in range(first, last):
                    at = 0
                    if combinations > 1:  # most rows have one id on each side, and divisions are slow
                        stride //= lengths_SB[s, b]
                        at = left // stride
                        left -= at * stride
                    at += numba.carray(int64_at(sides_S5[s, 1]), rows + 1)[b]
                    value = murmur_step(value, U(numba.carray(int64_at(sides_S5[s, 3]), at + 1)[at]))
                    if sides_S5[s, 4]:
                        weight *= numba.carray(float32_at(sides_S5[s, 4]), at + 1)[at]
                values[offsets[b] + place] = np.int64(murmur_end(value))
                if len(weights):
                    weights[offsets[b] + place] = weight


@kernel
def count_common(pairs_K4: Any, common_KB: Any, distinct_KB: Any) -> None:
    """See reference.py; pairs are the addresses of (values, offsets) of the first and of the second."""
    rows = common_KB.shape[1]
    for k in range(len(pairs_K4)):
        first_offsets = numba.carray(int64_at(pairs_K4[k, 1]), rows + 1)
        second_offsets = numba.carray(int64_at(pairs_K4[k, 3]), rows + 1)
        first = numba.carray(int64_at(pairs_K4[k, 0]), first_offsets[rows])
        second = numba.carray(int64_at(pairs_K4[k, 2]), second_offsets[rows])
        longest = max(_longest(first_offsets), _longest(second_offsets))
        own, others = np.empty(longest, np.int64), np.empty(longest, np.int64)
        slots, none = np.empty(_slots_for(longest), np.int64), np.empty(0, np.float32)
        for b in range(rows):
            mine = first[first_offsets[b] : first_offsets[b + 1]]
            theirs = second[second_offsets[b] : second_offsets[b + 1]]
            kept = _keep_unique(own, mine, none, none, slots)
            distinct_KB[k, b], common = kept, 0
            if len(theirs) <= FEW:
                for i in range(kept):
                    known = False
                    for j in range(len(theirs)):
                        known |= theirs[j] == own[i]
                    common += known
            else:
                kept_others = _keep_unique(others, theirs, none, none, slots)
                mask = _slots_for(len(theirs)) - 1
                for i in range(kept):
                    common += slots[_find(others, kept_others, slots, mask, own[i])] >= 0
            common_KB[k, b] = common


@kernel
def find_keys(pairs_K5: Any, rows: Any) -> None:
    """See reference.py; pairs are the addresses of (ids, offsets, keys, offsets, results)."""
    for k in range(len(pairs_K5)):
        id_offsets = numba.carray(int64_at(pairs_K5[k, 1]), rows + 1)
        key_offsets = numba.carray(int64_at(pairs_K5[k, 3]), rows + 1)
        ids = numba.carray(int64_at(pairs_K5[k, 0]), id_offsets[rows])
        keys = numba.carray(int64_at(pairs_K5[k, 2]), key_offsets[rows])
        places = numba.carray(int64_at(pairs_K5[k, 4]), id_offsets[rows])
        for b in range(rows):
            for i in range(id_offsets[b], id_offsets[b + 1]):
                place = -1
                for j in range(key_offsets[b], key_offsets[b + 1]):
                    if keys[j] == ids[i]:
                        place = j
                        break
                places[i] = place


@kernel
def time_gap(columns_K4: Any, units_K: Any, rows: Any) -> None:
    """See reference.py; columns are the addresses of (times, offsets, now, results)."""
    for k in range(len(columns_K4)):
        offsets, unit = numba.carray(int64_at(columns_K4[k, 1]), rows + 1), units_K[k]
        times = numba.carray(int64_at(columns_K4[k, 0]), offsets[rows])
        now = numba.carray(int64_at(columns_K4[k, 2]), rows)
        gaps = numba.carray(int64_at(columns_K4[k, 3]), offsets[rows])
        for b in range(rows):
            for i in range(offsets[b], offsets[b + 1]):
                gap = now[b] - times[i]
                if ((now[b] ^ times[i]) & (now[b] ^ gap)) < 0:
                    gap = INT64_MIN if now[b] < 0 else INT64_MAX
                gaps[i] = gap // unit


HOWS = ("sum", "mean", "min", "max", "count", "first", "last")
SUM, MEAN, MIN, MAX, COUNT, FIRST, LAST = range(7)


@kernel
def reduce(columns_K3: Any, hows_K: Any, empties_K: Any, rows: Any) -> None:
    """See reference.py; columns are the addresses of (values, offsets, results)."""
    for k in range(len(columns_K3)):
        offsets, how = numba.carray(int64_at(columns_K3[k, 1]), rows + 1), hows_K[k]
        values = numba.carray(float32_at(columns_K3[k, 0]), offsets[rows])
        results = numba.carray(float32_at(columns_K3[k, 2]), rows)
        for b in range(rows):
            first, last = offsets[b], offsets[b + 1]
            if first == last:
                results[b] = empties_K[k]
            elif how == COUNT:
                results[b] = np.float32(last - first)
            elif how in (FIRST, LAST):
                results[b] = values[first] if how == FIRST else values[last - 1]
            elif how in (SUM, MEAN):
                total = 0.0
                for i in range(first, last):
                    total += values[i]
                results[b] = np.float32(total / (last - first) if how == MEAN else total)
            else:
                best = values[first]
                for i in range(first + 1, last):
                    if values[i] != values[i] or (values[i] < best if how == MIN else values[i] > best):
                        best = values[i]
                results[b] = best
