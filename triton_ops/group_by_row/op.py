"""The unique rows of a batch, in the order they first appear. N values, U unique rows, R rows of the group."""

import torch
from torch import Tensor

from triton_ops.dispatch import choose
from triton_ops.group_by_row import reference
from triton_ops.library import register
from triton_ops.places import Rows
from triton_ops.row_layout import RECORD

LAST_TICK = 2**31 - 1  # behind it a stamp would not hold in an int64


def group_by_row(
    rows_N: Tensor,
    meta: Rows,
    granule_table: Tensor,
    tick: int | Tensor,
    step: int | Tensor | None = None,
    counts_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Each row once, and where each value's row is among them: rows [70, 3, 70, 64] -> [70, 64], [0, -1, 0, 1].

    Row 3 there lies in an untrained granule, so it is no row of the result and its place is -1. ``rows_N`` is int64
    [N]; ``meta`` int64 [R, 4] and ``granule_table`` int32 [R / 64] as `triton_ops.row_layout` says. ``tick`` is a
    number in [1, LAST_TICK] larger than that of any earlier call on this ``meta``. Given a ``step``, the record of each
    row gets it as last step, and its count grows by how often it appears, or by the sum of its ``counts_N``, int64 [N].
    Returns rows_U and inverse_N, int64. Raises ValueError.

    On a GPU, where nobody may wait for how many rows there are, rows_U is of length N, -1 behind the last row: [70, 64,
    -1, -1]. There ``meta`` may be in blocks, and tick and step int64 [1] on the device, for graphs that are replayed.
    """
    if rows_N.dtype != torch.int64 or rows_N.dim() != 1:
        raise ValueError(f"rows are {rows_N.dtype} {list(rows_N.shape)}; give int64 [N]")
    if meta.dtype != torch.int64 or meta.shape[1] != RECORD:
        raise ValueError(f"meta is {meta.dtype} of {meta.shape[1]} columns; give int64 [R, {RECORD}]")
    if isinstance(tick, int) and not 0 < tick <= LAST_TICK:
        raise ValueError(f"tick is {tick}, need 1 to {LAST_TICK}; clear the stamps and begin again at 1")
    if counts_N is not None and (counts_N.dtype != torch.int64 or counts_N.shape != rows_N.shape):
        raise ValueError(f"counts are {counts_N.dtype} {list(counts_N.shape)} for {len(rows_N)} rows; give int64 [N]")
    if isinstance(meta, Tensor) and isinstance(tick, int) and not isinstance(step, Tensor):
        return _group_by_row(rows_N.contiguous(), meta, granule_table, tick, step, counts_N)
    if choose("group_by_row", rows_N.device) == "triton":
        from triton_ops.group_by_row import kernels

        return kernels.group_by_row(rows_N.contiguous(), meta, granule_table, tick, step, counts_N)
    return reference.group_by_row(rows_N, meta, granule_table, step, counts_N)


def _fake(
    rows_N: Tensor,
    meta: Tensor,
    granule_table: Tensor,
    tick: int,
    step: int | None = None,
    counts_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    unique = torch.library.get_ctx().new_dynamic_size()
    return rows_N.new_empty(unique), torch.empty_like(rows_N)


@register(
    "group_by_row(Tensor rows, Tensor(a!) meta, Tensor granule_table, int tick, int? step=None, Tensor? counts=None)"
    " -> (Tensor, Tensor)",
    _fake,
)
def _group_by_row(
    rows_N: Tensor,
    meta: Tensor,
    granule_table: Tensor,
    tick: int,
    step: int | None = None,
    counts_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    implementation = choose("group_by_row", rows_N.device)
    if implementation == "reference":
        return reference.group_by_row(rows_N, meta, granule_table, step, counts_N)
    if implementation == "triton":
        from triton_ops.group_by_row import kernels

        return kernels.group_by_row(rows_N, meta, granule_table, tick, step, counts_N)
    from triton_ops.group_by_row import cpu

    unique_N, inverse_N = torch.empty_like(rows_N), torch.empty_like(rows_N)
    count = cpu.group_by_row(
        rows_N.numpy(),
        meta.numpy(),
        granule_table.numpy(),
        tick,
        -1 if step is None else step,
        (rows_N[:0] if counts_N is None else counts_N.contiguous()).numpy(),
        unique_N.numpy(),
        inverse_N.numpy(),
    )
    return unique_N[:count], inverse_N
