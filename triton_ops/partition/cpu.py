"""Numba kernel of partition_ids: one pass through a hash table of the batch's own, then ids to their places."""

from typing import Any

import numpy as np

from triton_ops.jit import kernel
from triton_ops.shared.cpu import mix64
from triton_ops.shared.reference import GOLDEN

SHARD_SHIFT = 52  # the virtual shard of a mixed id is its top 12 bits
TABLE_MIX = GOLDEN  # an id is another key in another table


@kernel
def partition_ids(
    ids: Any, splits: Any, tables: Any, owner_of_shard: Any, slots: Any, first: Any, place_of: Any, count_of: Any,
    sizes: Any, unique: Any, counts: Any, inverse: Any,
) -> Any:  # fmt: skip
    """Write the unique ids by owner and table, how often each occurs, and each value's place; returns their number.

    ``slots`` are zeros, a power of two and at least twice as many as ids; ``sizes`` [owners, tables] are zeros too.
    ``first``, ``place_of`` and ``count_of`` are as long as ``ids``, for what is known of each unique id on the way.
    """
    mask = np.uint64(len(slots) - 1)
    number_of_tables = sizes.shape[1]
    found = 0
    for run in range(len(tables)):
        table = tables[run]
        salt = np.uint64(table) * np.uint64(TABLE_MIX)
        for i in range(splits[run], splits[run + 1]):
            mixed = mix64(ids[i])
            slot = (mixed ^ salt ^ (salt >> np.uint64(29))) & mask
            while True:
                local = slots[slot] - 1
                if local < 0:
                    owner = owner_of_shard[mixed >> np.uint64(SHARD_SHIFT)]
                    slots[slot] = found + 1
                    first[found] = i
                    place_of[found] = owner * number_of_tables + table
                    count_of[found] = 1
                    sizes[owner, table] += 1
                    inverse[i] = found
                    found += 1
                    break
                if ids[first[local]] == ids[i] and place_of[local] % number_of_tables == table:
                    count_of[local] += 1
                    inverse[i] = local
                    break
                slot = (slot + np.uint64(1)) & mask
    _to_places(ids, first, place_of, count_of, sizes, unique, counts, inverse, found)
    return found


@kernel
def _to_places(
    ids: Any, first: Any, place_of: Any, count_of: Any, sizes: Any, unique: Any, counts: Any, inverse: Any, found: Any
) -> None:
    """A counting sort by owner and table that keeps the order of first occurrence."""
    number_of_tables = sizes.shape[1]
    next_of = np.empty(sizes.size, dtype=np.int64)
    begin = 0
    for place in range(sizes.size):
        next_of[place] = begin
        begin += sizes[place // number_of_tables, place % number_of_tables]
    for local in range(found):
        place = place_of[local]
        at = next_of[place]
        next_of[place] = at + 1
        unique[at] = ids[first[local]]
        counts[at] = count_of[local]
        place_of[local] = at
    for i in range(len(inverse)):
        inverse[i] = place_of[inverse[i]]
