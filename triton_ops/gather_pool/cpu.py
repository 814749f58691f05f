"""Numba kernels of gather_pool: bags summed up into one output of all features, and their gradients added up by row.

B bags of a feature, D row width, K features.

Kernels are made for a fixed width D: loops of known length become straight vector code. Two things speed that up
which do not show: unsigned indices, since Numba asks of every signed one whether it counts from the end; and a first
value that is written as 0 + value, since LLVM makes a call of a loop that only copies, which takes twice as long.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from triton_ops.gather_pool.pooled_grad import PooledGrad
from triton_ops.jit import kernel
from triton_ops.narrow import as_array, widen
from triton_ops.prefetch import LINE, prefetch

ROWS_AHEAD = 2  # values of each feature whose rows are on their way: with many features, that is enough lines in flight
GRADS_AHEAD = 16  # gradients on their way while one is added: side by side with other features' they lie far apart


@kernel
def _shift_offsets(offsets: Any, offset_splits: Any, splits: Any) -> Any:
    for feature in range(len(splits) - 1):
        begin, end, shift = offset_splits[feature], offset_splits[feature + 1], splits[feature]
        if begin == end or offsets[begin] != 0 or offsets[end - 1] != splits[feature + 1] - shift:
            return feature
        previous, falls = np.int64(0), False
        for i in range(begin, end):
            falls |= offsets[i] < previous
            previous = offsets[i]
            offsets[i] = previous + shift
        if falls:
            return feature
    return -1


def shift_offsets(offsets: Tensor, offset_splits_K1: Tensor, splits_K1: Tensor) -> int:
    """See op.py's join_offsets."""
    return int(_shift_offsets(offsets.numpy(), offset_splits_K1.numpy(), splits_K1.numpy()))


@functools.cache
def _gather(D: int) -> Callable[..., None]:
    columns = np.uint64(D)

    @kernel
    def gather(weight: Any, rows: Any, offsets: Any, coefficients: Any, out: Any) -> None:
        """Write out[bag, feature], the features of a bag one after the other, as they lie in ``out``."""
        line, zero = D * weight.itemsize, out.dtype.type(0)
        begin = offsets[0, 0]
        for bag in range(offsets.shape[1] - 1):
            for feature in range(offsets.shape[0]):
                first, end = offsets[feature, bag], offsets[feature, bag + 1]
                if first == end:
                    for d in range(columns):
                        out[bag, feature, d] = zero
                for i in range(first, end):
                    if i + ROWS_AHEAD < len(rows):
                        for byte in range(0, line, LINE):
                            prefetch(weight, rows[i + ROWS_AHEAD] * line + byte)
                    row = np.uint64(rows[i])
                    counts = out.dtype.type(1) if coefficients is None else coefficients[i - begin]
                    if i == first:
                        for d in range(columns):
                            out[bag, feature, d] = zero + counts * widen(weight[row, d])
                    else:
                        for d in range(columns):
                            out[bag, feature, d] += counts * widen(weight[row, d])

    return gather


def gather_pool(
    weight: Tensor, rows_N: Tensor, offsets_KB1: Tensor, coefficients_M: Tensor | None, out_BKD: Tensor
) -> None:
    """See op.py."""
    coefficients = None if coefficients_M is None else coefficients_M.numpy()
    gather = _gather(weight.shape[1])
    gather(as_array(weight), rows_N.numpy(), offsets_KB1.numpy(), coefficients, out_BKD.numpy())


@functools.cache
def _scatter(D: int) -> Callable[..., int]:
    columns = np.uint64(D)

    @kernel
    def scatter(grads: Any, bag_step: Any, feature_step: Any, offsets: Any, coefficients: Any, inverse: Any,
                filled: Any, out: Any) -> Any:  # fmt: skip
        """Add grads[bag * bag_step + feature * feature_step :][:D] to out[inverse[i]] for each value i of each bag.

        Unique rows are numbered as they appear, so a number equal to ``filled`` is a row met for the first time: it is
        written, not added to, and ``out`` needs no zeros. Returns the new ``filled``.
        """
        begin, zero = offsets[0, 0], grads.dtype.type(0)
        bags = offsets.shape[1] - 1
        for feature in range(offsets.shape[0]):
            for bag in range(bags):
                at = bag * bag_step + feature * feature_step
                if bag + GRADS_AHEAD < bags:
                    ahead = (at + GRADS_AHEAD * bag_step) * grads.itemsize
                    for byte in range(0, D * grads.itemsize, LINE):
                        prefetch(grads, ahead + byte)
                grad = np.uint64(at)
                for i in range(offsets[feature, bag], offsets[feature, bag + 1]):
                    if inverse[i] < 0:
                        continue
                    local = np.uint64(inverse[i])
                    counts = grads.dtype.type(1) if coefficients is None else coefficients[i - begin]
                    if inverse[i] == filled:
                        filled += 1
                        for d in range(columns):
                            out[local, d] = zero + counts * grads[grad + d]
                    else:
                        for d in range(columns):
                            out[local, d] += counts * grads[grad + d]
        return filled

    return scatter


def pool_grads(parts: Sequence[PooledGrad], inverse_N: Tensor, grads_UD: Tensor) -> None:
    """See op.py."""
    scatter = _scatter(grads_UD.shape[1])
    inverse, out, filled = inverse_N.numpy(), grads_UD.numpy(), 0
    for grads_BKD, offsets_KB1, coefficients_M in parts:
        flat, bag_step, feature_step = _flatten(grads_BKD)
        coefficients = None if coefficients_M is None else coefficients_M.numpy()
        offsets = offsets_KB1.numpy()
        filled = scatter(flat.numpy(), bag_step, feature_step, offsets, coefficients, inverse, filled, out)
    assert filled == len(grads_UD), f"{filled} of {len(grads_UD)} rows have a value in the bags"


def _flatten(grads_BKD: Tensor) -> tuple[Tensor, int, int]:
    """The memory from the first to the last gradient as one contiguous tensor, and the steps to next bag and feature.

    A single feature's gradients may arrive as a slice of those of several; for the kernel to be vectorised, its array
    must be contiguous.
    """
    bags, features, width = grads_BKD.shape
    if grads_BKD.numel() == 0:
        return grads_BKD.new_empty(0), 0, 0
    if width > 1 and grads_BKD.stride(2) != 1:
        grads_BKD = grads_BKD.contiguous()
    bag_step, feature_step, _ = grads_BKD.stride()
    span = (bags - 1) * bag_step + (features - 1) * feature_step + width
    return torch.as_strided(grads_BKD, (span,), (1,)), bag_step, feature_step
