"""The definition of gather_pool and its gradient in plain torch.

N values, M values of some bags, B bags, D row width, U unique rows of the batch.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from triton_ops.gather_pool.pooled_grad import PooledGrad


def gather_pool(weight: Tensor, rows_N: Tensor, offsets_B1: Tensor, coefficients_N: Tensor | None) -> Tensor:
    """See op.py."""
    return F.embedding_bag(
        rows_N, weight, offsets_B1, mode="sum", include_last_offset=True, per_sample_weights=coefficients_N
    )


def bag_of_value(offsets_B1: Tensor) -> Tensor:
    """The bag each value belongs to: offsets [0, 2, 2, 3] -> [0, 0, 2]."""
    lengths = offsets_B1.diff()
    return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)


def pool_grads(parts: Sequence[PooledGrad], inverse_N: Tensor, grads_UD: Tensor) -> None:
    """See op.py."""
    grads_UD.zero_()
    for grads_BD, offsets_B1, coefficients_M in parts:
        grads_MD = grads_BD[bag_of_value(offsets_B1)]
        if coefficients_M is not None:
            grads_MD = grads_MD * coefficients_M[:, None]
        inverse_M = inverse_N[int(offsets_B1[0]) : int(offsets_B1[-1])]
        trained = inverse_M >= 0
        grads_UD.index_add_(0, inverse_M[trained], grads_MD[trained])
