"""Transforms of feature values, several features in one call.

N values of all features, K features, M boundaries of all features; feature k owns values splits[k] to splits[k + 1].
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from triton_ops.dispatch import choose
from triton_ops.transform import reference


def modulo(
    values_N: Tensor,  # int64 [N], any value
    splits: Sequence[int],  # K + 1 numbers from 0 to N
    divisors_K: Tensor,  # int64 [K], at least 1
) -> Tensor:
    """Values read as unsigned 64-bit, modulo a divisor: [12, -1] with splits [0, 2], divisors [10] -> [2, 5].

    -1 is 2^64 - 1 = 18446744073709551615, which ends in 5. Gives int64 [N]. Raises ValueError where dtypes or splits do
    not fit.
    """
    _check_splits(values_N, splits, len(divisors_K))
    if values_N.dtype != torch.int64 or divisors_K.dtype != torch.int64:
        raise ValueError(f"values are {values_N.dtype}, divisors {divisors_K.dtype}; both must be int64")
    if torch.compiler.is_compiling() or choose("transform", values_N.device) == "reference":
        return reference.modulo(values_N, splits, divisors_K)
    from triton_ops.transform import cpu

    remainders_N = torch.empty_like(values_N, memory_format=torch.contiguous_format)
    splits_K1 = np.asarray(splits, dtype=np.int64)
    cpu.modulo(values_N.numpy(), splits_K1, divisors_K.numpy(), remainders_N.numpy())
    return remainders_N


def bucketize(
    values_N: Tensor,  # float32, float64 or int64 [N]
    splits: Sequence[int],  # K + 1 numbers from 0 to N
    boundaries_M: Tensor,  # the same dtype [M], rising within a feature
    boundary_splits: Sequence[int],  # K + 1 numbers from 0 to M
) -> Tensor:
    """How many boundaries a value reaches: [5, 10, 99] with boundaries [0, 10] -> [1, 2, 2], int64 [N].

    A value equal to a boundary is above it; NaN is above all. Plain torch on every device. Raises ValueError where
    dtypes or splits do not fit.
    """
    _check_splits(values_N, splits, len(boundary_splits) - 1)
    _check_splits(boundaries_M, boundary_splits, len(boundary_splits) - 1)
    if values_N.dtype != boundaries_M.dtype:
        raise ValueError(f"values are {values_N.dtype}, boundaries {boundaries_M.dtype}; give both in one dtype")
    return reference.bucketize(values_N, splits, boundaries_M, boundary_splits)


def clip(
    values_N: Tensor,  # any number dtype [N]
    splits: Sequence[int],  # K + 1 numbers from 0 to N
    bounds: Sequence[tuple[float | None, float | None]],  # K pairs (low, high); None is no bound
) -> Tensor:
    """Values no lower and no higher than bounds: [-1, 5, 20] with splits [0, 2, 3], bounds [(0, 4), (None, 9)]
    -> [0, 4, 9], in the dtype of the values.

    NaN stays NaN. Integers want integer bounds: torch would make floats of them. Plain torch on every device. Raises
    ValueError where the splits do not fit.
    """
    _check_splits(values_N, splits, len(bounds))
    return reference.clip(values_N, splits, bounds)


def _check_splits(values_N: Tensor, splits: Sequence[int], features: int) -> None:
    rising = all(start <= stop for start, stop in zip(splits, splits[1:], strict=False))
    if (
        values_N.dim() != 1
        or len(splits) != features + 1
        or splits[0] != 0
        or splits[-1] != len(values_N)
        or not rising
    ):
        raise ValueError(
            f"splits {list(splits)} do not cut {list(values_N.shape)} values into {features} features; "
            "give one more than features, from 0 to the number of values"
        )
