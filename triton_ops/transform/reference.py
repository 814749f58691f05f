"""What the transforms mean, feature by feature, in plain torch.

N values of all features, K features; feature k owns values splits[k] to splits[k + 1].
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def modulo(values_N: Tensor, splits: Sequence[int], divisors_K: Tensor) -> Tensor:
    """Each value, read as unsigned, modulo its feature's divisor."""
    parts = [
        _modulo_one(values_N[start:stop], divisor)
        for start, stop, divisor in zip(splits, splits[1:], divisors_K.tolist(), strict=False)
    ]
    return torch.cat(parts) if parts else values_N.clone()


def _modulo_one(values: Tensor, divisor: int) -> Tensor:
    # A negative int64 stands for itself + 2^64. Both remainders are below the divisor, which is below 2^63: where their
    # sum is not, one divisor too many is taken off before adding, so that nothing overflows.
    remainders, wrap = values.remainder(divisor), 2**64 % divisor
    wrapped = torch.where(remainders >= divisor - wrap, remainders - (divisor - wrap), remainders + wrap)
    return torch.where(values < 0, wrapped, remainders)


def bucketize(values_N: Tensor, splits: Sequence[int], boundaries_M: Tensor, boundary_splits: Sequence[int]) -> Tensor:
    """How many of its feature's boundaries each value reaches."""
    parts = [
        torch.bucketize(values_N[start:stop], boundaries_M[first:last], right=True)
        for start, stop, first, last in zip(splits, splits[1:], boundary_splits, boundary_splits[1:], strict=False)
    ]
    return torch.cat(parts) if parts else values_N.new_empty(0, dtype=torch.int64)


def clip(values_N: Tensor, splits: Sequence[int], bounds: Sequence[tuple[float | None, float | None]]) -> Tensor:
    """Each value, no lower and no higher than its feature's bounds."""
    parts = [
        values_N[start:stop].clamp(low, high)
        for start, stop, (low, high) in zip(splits, splits[1:], bounds, strict=False)
    ]
    return torch.cat(parts) if parts else values_N.clone()
