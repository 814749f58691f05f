"""The definition of gather_pool and its gradient in plain torch.

N values, M values of some bags, B bags, D row width, U unique rows of the batch.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from triton_ops.gather_pool.pooled_grad import PooledGrad
from triton_ops.places import Rows

_READ_AS = {
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.int8: torch.float32,
    torch.int32: torch.int64,
}


def read_dtype(dtype: torch.dtype) -> torch.dtype:
    """What rows are read as, and summed in: float32 of bfloat16, float16, int8; int64 of int32; else what they are."""
    return _READ_AS.get(dtype, dtype)


def gather_pool(weight: Rows, rows_N: Tensor, offsets_KB1: Tensor, coefficients_M: Tensor | None) -> Tensor:
    """See op.py."""
    pooled, dtype = [], read_dtype(weight.dtype)
    if weight.dtype != dtype or not isinstance(weight, Tensor):
        weight, rows_N = weight[rows_N].to(dtype), torch.arange(len(rows_N), device=rows_N.device)
    for offsets_B1 in offsets_KB1:
        begin, end = int(offsets_B1[0]), int(offsets_B1[-1])
        shift = int(offsets_KB1[0, 0])
        coefficients = None if coefficients_M is None else coefficients_M[begin - shift : end - shift]
        pooled.append(sum_bags(weight, rows_N[begin:end], offsets_B1 - begin, coefficients))
    return torch.stack(pooled, dim=1)


def sum_bags(weight: Tensor, rows_N: Tensor, offsets_B1: Tensor, coefficients_N: Tensor | None) -> Tensor:
    """The sums [B, D] of one feature's bags; unlike the others here it can be traced, for it looks at no number."""
    if not weight.is_floating_point():  # of which torch has no bags
        bag_N = bag_of_value(offsets_B1, rows_N.shape[0])
        return weight.new_zeros(offsets_B1.shape[0] - 1, weight.shape[1]).index_add(0, bag_N, weight[rows_N])
    return F.embedding_bag(
        rows_N, weight, offsets_B1, mode="sum", include_last_offset=True, per_sample_weights=coefficients_N
    )


def shift_offsets(offsets: Tensor, offset_splits_K1: Tensor, splits_K1: Tensor) -> int:
    """See op.py's join_offsets."""
    bounds = zip(offset_splits_K1.tolist(), offset_splits_K1[1:].tolist(), splits_K1.diff().tolist(), strict=False)
    for feature, (begin, end, values) in enumerate(bounds):
        mine = offsets[begin:end]
        if end == begin or int(mine[0]) != 0 or int(mine[-1]) != values or bool((mine.diff() < 0).any()):
            return feature
        mine += splits_K1[feature]
    return -1


def bag_of_value(offsets_B1: Tensor, count: int | None = None) -> Tensor:
    """The bag each value belongs to: offsets [0, 2, 2, 3] -> [0, 0, 2]; a graph needs their ``count`` as well."""
    lengths = offsets_B1.diff()
    bags = torch.arange(lengths.shape[0], device=lengths.device)
    return torch.repeat_interleave(bags, lengths, output_size=count)


def pool_grads(parts: Sequence[PooledGrad], inverse_N: Tensor, grads_UD: Tensor) -> None:
    """See op.py."""
    grads_UD.zero_()
    for grads_BKD, offsets_KB1, coefficients_M in parts:
        begin, end = int(offsets_KB1[0, 0]), int(offsets_KB1[-1, -1])
        features = zip(grads_BKD.unbind(1), offsets_KB1, strict=True)
        grads_MD = torch.cat([grads_BD[bag_of_value(offsets_B1)] for grads_BD, offsets_B1 in features])
        if coefficients_M is not None:
            grads_MD = grads_MD * coefficients_M[:, None]
        inverse_M = inverse_N[begin:end]
        trained = inverse_M >= 0
        grads_UD.index_add_(0, inverse_M[trained], grads_MD[trained])
