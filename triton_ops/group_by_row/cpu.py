"""Numba kernel of group_by_row: one pass, no sorting, no hashing.

A row's stamp says whether this call has met it, and as which of its unique rows: tick * 2^32 + local number. Since each
call has a tick of its own, stamps of earlier calls are simply not this call's, and nothing has to be reset.
"""

from typing import Any

from triton_ops.jit import kernel
from triton_ops.prefetch import prefetch
from triton_ops.row_layout import COUNT, GRANULE, LAST_STEP, RECORD, STAMP, UNTRAINED

AHEAD = 32  # records on their way while one is read
RECORD_BYTES = 8 * RECORD


@kernel
def group_by_row(
    rows: Any, meta: Any, granule_table: Any, tick: Any, step: Any, counts: Any, unique: Any, inverse: Any
) -> Any:
    """Write unique rows and each value's place among them; returns their number. A step below 0 records nothing.

    Without ``counts`` each value counts 1.
    """
    count = 0
    for i in range(len(rows)):
        if i + AHEAD < len(rows):
            prefetch(meta, rows[i + AHEAD] * RECORD_BYTES)
        row = rows[i]
        if granule_table[row // GRANULE] == UNTRAINED:
            inverse[i] = -1
            continue
        stamp = meta[row, STAMP]
        if stamp >> 32 == tick:
            local = stamp & 0xFFFFFFFF
        else:
            local = count
            count += 1
            unique[local] = row
            meta[row, STAMP] = (tick << 32) | local
            if step >= 0:
                meta[row, LAST_STEP] = step
        inverse[i] = local
        if step >= 0:
            meta[row, COUNT] += counts[i] if len(counts) else 1
    return count
