"""The definition of group_by_row in plain torch. N values, U unique rows, R rows of the group."""

import torch
from torch import Tensor

from triton_ops.places import Rows
from triton_ops.row_layout import COUNT, GRANULE, LAST_STEP, UNTRAINED


def group_by_row(
    rows_N: Tensor, meta: Rows, granule_table: Tensor, step: int | Tensor | None, counts_N: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See op.py."""
    trained_N = granule_table[rows_N // GRANULE] != UNTRAINED
    trained_rows = rows_N[trained_N]
    sorted_U, inverse, count_U = torch.unique(trained_rows, return_inverse=True, return_counts=True)
    if counts_N is not None:
        count_U = torch.zeros_like(sorted_U).index_add_(0, inverse, counts_N[trained_N])
    position = torch.arange(len(trained_rows), device=rows_N.device)
    first_U = torch.full_like(sorted_U, len(trained_rows)).scatter_reduce(0, inverse, position, "amin")
    order_U = first_U.argsort()
    rank_U = torch.empty_like(order_U).scatter_(0, order_U, torch.arange(len(order_U), device=rows_N.device))
    inverse_N = torch.full_like(rows_N, -1)
    inverse_N[trained_N] = rank_U[inverse]
    if step is not None:
        meta[sorted_U, LAST_STEP] = step
        meta[sorted_U, COUNT] += count_U
    return sorted_U[order_U], inverse_N
