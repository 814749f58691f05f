"""Bags of rows summed up, and the gradients of the sums brought back to the rows.

N values, M values of some bags, B bags, R rows of the group, D row width, U unique rows of the batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from triton_ops.dispatch import choose
from triton_ops.gather_pool import reference
from triton_ops.gather_pool.pooled_grad import PooledGrad

POOLINGS = ("sum", "mean", "sqrtn")


def gather_pool(weight: Tensor, rows_N: Tensor, offsets_B1: Tensor, coefficients_N: Tensor | None = None) -> Tensor:
    """Sum each bag's rows: weight [[1], [2], [3]], rows [2, 1, 2], offsets [0, 2, 2, 3] -> [[5], [0], [3]].

    ``weight`` is [R, D], ``rows_N`` int64 in [0, R), ``offsets_B1`` int64 from 0 to N. ``coefficients_N``, of the
    weight's dtype, says what each row counts in its bag, as `pool_coefficients` works out. Returns [B, D], zeros for an
    empty bag. Torch differentiates it by ``weight`` as it stands, which gives a gradient as large as the weight; for a
    table, gather without autograd and bring the gradients to the rows with `group_by_row` and `pool_grads`. Raises
    ValueError where dtypes or shapes do not fit; values are not looked at.
    """
    if rows_N.dtype != torch.int64 or offsets_B1.dtype != torch.int64 or rows_N.dim() != 1 or offsets_B1.dim() != 1:
        raise ValueError(
            f"rows are {rows_N.dtype} {list(rows_N.shape)}, offsets {offsets_B1.dtype} {list(offsets_B1.shape)}; "
            "give int64 [N] and int64 [B + 1]"
        )
    if coefficients_N is not None and (coefficients_N.dtype != weight.dtype or coefficients_N.shape != rows_N.shape):
        raise ValueError(
            f"coefficients are {coefficients_N.dtype} {list(coefficients_N.shape)}; "
            f"give {weight.dtype} {list(rows_N.shape)}, one for each row"
        )
    choose("gather_pool", weight.device)  # an error where there is no kernel for the device
    return reference.gather_pool(weight, rows_N, offsets_B1, coefficients_N)


def pool_coefficients(offsets_B1: Tensor, pooling: str, weights_N: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What each value counts in its bag: mean of bags with offsets [0, 2, 2, 3] -> [0.5, 0.5, 1]; None for all 1.

    With weights w, sum counts w, mean w / sum(w), sqrtn w / sqrt(sum(w^2)); without, all w are 1. A bag whose weights sum
    up to 0 counts nothing. ``offsets_B1`` is int64, ``weights_N`` floating or None. Returns [N] of ``dtype``. Raises
    ValueError for another pooling.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"there is no pooling '{pooling}'; there are: {', '.join(POOLINGS)}")
    if pooling == "sum":
        return None if weights_N is None else weights_N.to(dtype)
    bag_N = reference.bag_of_value(offsets_B1)
    if weights_N is None:
        total_B = offsets_B1.diff().to(dtype)
        weights = torch.ones((), dtype=dtype, device=offsets_B1.device)
    else:
        weights = weights_N.to(dtype)
        terms = weights if pooling == "mean" else weights * weights
        total_B = terms.new_zeros(len(offsets_B1) - 1).index_add_(0, bag_N, terms)
    divisor_N = (total_B if pooling == "mean" else total_B.sqrt())[bag_N]
    return torch.where(divisor_N == 0, 0, weights / divisor_N)


def pool_grads(parts: Sequence[PooledGrad], inverse_N: Tensor, grads_UD: Tensor) -> Tensor:
    """Write each unique row's gradient: grads [[1], [2]] of bags [0, 2, 3] with inverse [0, 1, 0] -> [[3], [1]].

    ``inverse_N``, from `group_by_row`, says which unique row each value is; -1 is left out. ``parts`` follow the order of
    the values and cover all that are not left out. Writes all of ``grads_UD``, contiguous and of the gradients' dtype,
    and returns it. Sums run in the order of the values, so that they are the same each time. Raises ValueError for
    another dtype.
    """
    for part in parts:
        if part.grads_BD.dtype != grads_UD.dtype:
            raise ValueError(f"gradients are {part.grads_BD.dtype}, the rows' are {grads_UD.dtype}; give one dtype")
    if choose("gather_pool", grads_UD.device) == "reference":
        reference.pool_grads(parts, inverse_N, grads_UD)
    else:
        from triton_ops.gather_pool import cpu

        cpu.pool_grads(parts, inverse_N, grads_UD)
    return grads_UD
