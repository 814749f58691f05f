"""Numba kernels of row_update: one pass over the touched rows, everything of a row at once.

Kernels are made for a fixed width D, since a loop of known length becomes straight vector code: twice as fast at D =
16. All arithmetic is in the table's dtype and in the order of torch's own optimizers, nothing contracted or
reordered; the sum of rowwise_adagrad's mean is the one exception. Rows are asked for AHEAD rows before their turn,
which is worth 1.4x.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from triton_ops.jit import kernel
from triton_ops.prefetch import LINE, prefetch
from triton_ops.row_layout import GRANULE

AHEAD = 6


@kernel
def _prefetch_row(array: Any, row: Any) -> None:
    begin = row * array.strides[0]
    for byte in range(0, array.strides[0], LINE):
        prefetch(array, begin + byte)


@functools.partial(kernel, fastmath=frozenset({"reassoc"}))
def _sum_of_squares(row: Any) -> Any:
    # reassoc: summing in order takes four cycles a column, more than all the rest of the row.
    total = row[0] * row[0]
    for d in range(1, len(row)):
        total += row[d] * row[d]
    return total


@functools.cache
def sgd(D: int) -> Callable[..., None]:
    @kernel
    def update(weight: Any, state: Any, rows: Any, grads: Any, granule_table: Any, hyper: Any) -> None:
        for u in range(len(rows)):
            if u + AHEAD < len(rows):
                _prefetch_row(weight, rows[u + AHEAD])
            row = rows[u]
            lr = hyper[granule_table[row // GRANULE], 0]
            for d in range(D):
                weight[row, d] -= lr * grads[u, d]

    return update


@functools.cache
def adagrad(D: int) -> Callable[..., None]:
    @kernel
    def update(weight: Any, state: Any, rows: Any, grads: Any, granule_table: Any, hyper: Any) -> None:
        for u in range(len(rows)):
            if u + AHEAD < len(rows):
                _prefetch_row(weight, rows[u + AHEAD])
                _prefetch_row(state, rows[u + AHEAD])
            row = rows[u]
            table = granule_table[row // GRANULE]
            lr, eps = hyper[table, 0], hyper[table, 1]
            for d in range(D):
                grad = grads[u, d]
                total = state[row, d] + grad * grad
                state[row, d] = total
                weight[row, d] -= lr * (grad / (np.sqrt(total) + eps))

    return update


@functools.cache
def rowwise_adagrad(D: int) -> Callable[..., None]:
    @kernel
    def update(weight: Any, state: Any, rows: Any, grads: Any, granule_table: Any, hyper: Any) -> None:
        columns = grads.dtype.type(D)
        for u in range(len(rows)):
            if u + AHEAD < len(rows):
                _prefetch_row(weight, rows[u + AHEAD])
                _prefetch_row(state, rows[u + AHEAD])
            row = rows[u]
            table = granule_table[row // GRANULE]
            lr, eps = hyper[table, 0], hyper[table, 1]
            total = state[row, 0] + _sum_of_squares(grads[u]) / columns
            state[row, 0] = total
            denominator = np.sqrt(total) + eps
            for d in range(D):
                weight[row, d] -= lr * (grads[u, d] / denominator)

    return update


@functools.cache
def adam(D: int) -> Callable[..., None]:
    @kernel
    def update(weight: Any, state: Any, rows: Any, grads: Any, granule_table: Any, hyper: Any) -> None:
        for u in range(len(rows)):
            if u + AHEAD < len(rows):
                _prefetch_row(weight, rows[u + AHEAD])
                _prefetch_row(state, rows[u + AHEAD])
            row = rows[u]
            table = granule_table[row // GRANULE]
            step_size, one_minus_beta1, one_minus_beta2 = hyper[table, 0], hyper[table, 1], hyper[table, 2]
            eps, shrink = hyper[table, 3], hyper[table, 4]
            for d in range(D):
                grad = grads[u, d]
                mean = state[row, d] + (grad - state[row, d]) * one_minus_beta1
                square = state[row, D + d] + (grad * grad - state[row, D + d]) * one_minus_beta2
                state[row, d] = mean
                state[row, D + d] = square
                weight[row, d] = weight[row, d] * shrink - step_size * (mean / (np.sqrt(square) + eps))

    return update


KERNELS: dict[str, Callable[[int], Callable[..., None]]] = {
    "sgd": sgd,
    "adagrad": adagrad,
    "rowwise_adagrad": rowwise_adagrad,
    "adam": adam,
    "adamw": adam,
}
