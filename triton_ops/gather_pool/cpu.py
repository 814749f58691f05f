"""Numba kernel of pool_grads: the gradient of each bag is added to the rows of its values. D row width."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from triton_ops.gather_pool.pooled_grad import PooledGrad
from triton_ops.jit import kernel
from triton_ops.prefetch import LINE, prefetch

AHEAD = 16  # gradients on their way while one is added: they lie far apart in the gradient of a concatenation


@functools.cache
def _scatter(D: int) -> Callable[..., int]:
    # Unsigned, since Numba asks of every signed index whether it counts from the end: a quarter of the time.
    columns = np.uint64(D)

    @kernel
    def scatter(grads: Any, stride: Any, offsets: Any, coefficients: Any, inverse: Any, filled: Any, out: Any) -> Any:
        """Add grads[bag * stride :][:D] to out[inverse[i]] for each value i of each bag.

        Unique rows are numbered as they appear, so a number equal to ``filled`` is a row met for the first time: it is
        written, not added to, and ``out`` needs no zeros. Returns the new ``filled``.
        """
        begin, bags = offsets[0], len(offsets) - 1
        for bag in range(bags):
            if bag + AHEAD < bags:
                ahead = (bag + AHEAD) * stride * grads.itemsize
                for byte in range(0, D * grads.itemsize, LINE):
                    prefetch(grads, ahead + byte)
            grad = np.uint64(bag * stride)
            for i in range(offsets[bag], offsets[bag + 1]):
                if inverse[i] < 0:
                    continue
                local = np.uint64(inverse[i])
                counts = grads.dtype.type(1) if coefficients is None else coefficients[i - begin]
                if inverse[i] == filled:
                    filled += 1
                    for d in range(columns):
                        out[local, d] = counts * grads[grad + d]
                else:
                    for d in range(columns):
                        out[local, d] += counts * grads[grad + d]
        return filled

    return scatter


def pool_grads(parts: Sequence[PooledGrad], inverse_N: Tensor, grads_UD: Tensor) -> None:
    """See op.py."""
    scatter = _scatter(grads_UD.shape[1])
    inverse, out, filled = inverse_N.numpy(), grads_UD.numpy(), 0
    for grads_BD, offsets_B1, coefficients_M in parts:
        flat, stride = _flatten(grads_BD)
        coefficients = None if coefficients_M is None else coefficients_M.numpy()
        filled = scatter(flat.numpy(), stride, offsets_B1.numpy(), coefficients, inverse, filled, out)
    assert filled == len(grads_UD), f"{filled} of {len(grads_UD)} rows have a value in the bags"


def _flatten(grads_BD: Tensor) -> tuple[Tensor, int]:
    """The memory from the first to the last gradient as one contiguous tensor, and the step from one to the next.

    Gradients mostly arrive as a slice of those of a concatenation; for the kernel to be vectorised, its array must be
    contiguous.
    """
    bags, width = grads_BD.shape
    if bags == 0 or width == 0:
        return grads_BD.new_empty(0), 0
    if width > 1 and grads_BD.stride(1) != 1:
        grads_BD = grads_BD.contiguous()
    stride = grads_BD.stride(0)
    return torch.as_strided(grads_BD, ((bags - 1) * stride + width,), (1,)), stride
