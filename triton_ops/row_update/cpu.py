"""Numba kernels of row_update: one pass over the touched rows, everything of a row at once.

Kernels are made for a fixed width D, since a loop of known length becomes straight vector code: twice as fast at D =
16. All arithmetic is in the gradients' dtype and in the order of reference.py, nothing contracted or reordered; the sum
of rowwise_adagrad's mean is the one exception. Rows are asked for AHEAD rows before their turn, which is worth 1.4x.
Rows and state of bfloat16 and float16 are widened and rounded as `triton_ops.narrow` says.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from triton_ops.jit import kernel
from triton_ops.narrow import noise, noise_start, prefetch_id, stochastic, widen
from triton_ops.prefetch import LINE, prefetch
from triton_ops.row_layout import GRANULE

AHEAD = 6


@kernel
def _prefetch_row(array: Any, row: Any) -> None:
    begin = row * array.strides[0]
    for byte in range(0, array.strides[0], LINE):
        prefetch(array, begin + byte)


@kernel
def _prefetch_ahead(weight: Any, state: Any, meta: Any, rows: Any, u: Any) -> None:
    """Ask for all that the update of the row AHEAD places on will read."""
    if u + AHEAD < len(rows):
        _prefetch_row(weight, rows[u + AHEAD])
        if state.shape[1]:
            _prefetch_row(state, rows[u + AHEAD])
        prefetch_id(weight, state, meta, rows[u + AHEAD])


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
    def update(weight: Any, state: Any, meta: Any, rows: Any, grads: Any, granule_table: Any, hyper: Any,
               keys: Any) -> None:  # fmt: skip
        number = grads.dtype.type
        for u in range(len(rows)):
            _prefetch_ahead(weight, state, meta, rows, u)
            row = rows[u]
            table = granule_table[row // GRANULE]
            lr = number(hyper[table, 0])
            start = noise_start(weight, state, meta, row, keys[table])
            for d in range(D):
                word = noise(weight, state, start, d)
                weight[row, d] = stochastic(weight, widen(weight[row, d]) - lr * grads[u, d], word, 0)

    return update


@functools.cache
def momentum(D: int) -> Callable[..., None]:
    @kernel
    def update(weight: Any, state: Any, meta: Any, rows: Any, grads: Any, granule_table: Any, hyper: Any,
               keys: Any) -> None:  # fmt: skip
        number = grads.dtype.type
        for u in range(len(rows)):
            _prefetch_ahead(weight, state, meta, rows, u)
            row = rows[u]
            table = granule_table[row // GRANULE]
            lr, keeps = number(hyper[table, 0]), number(hyper[table, 1])
            of_grad, of_buffer = number(hyper[table, 2]), number(hyper[table, 3])
            start = noise_start(weight, state, meta, row, keys[table])
            for d in range(D):
                word = noise(weight, state, start, d)
                buffer = keeps * widen(state[row, d]) + grads[u, d]
                change = of_grad * grads[u, d] + of_buffer * buffer
                state[row, d] = stochastic(state, buffer, word, 1)
                weight[row, d] = stochastic(weight, widen(weight[row, d]) - lr * change, word, 0)

    return update


@functools.cache
def adagrad(D: int) -> Callable[..., None]:
    @kernel
    def update(weight: Any, state: Any, meta: Any, rows: Any, grads: Any, granule_table: Any, hyper: Any,
               keys: Any) -> None:  # fmt: skip
        number = grads.dtype.type
        for u in range(len(rows)):
            _prefetch_ahead(weight, state, meta, rows, u)
            row = rows[u]
            table = granule_table[row // GRANULE]
            lr, eps = number(hyper[table, 0]), number(hyper[table, 1])
            start = noise_start(weight, state, meta, row, keys[table])
            for d in range(D):
                word = noise(weight, state, start, d)
                grad = grads[u, d]
                total = widen(state[row, d]) + grad * grad
                change = lr * (grad / (np.sqrt(total) + eps))
                state[row, d] = stochastic(state, total, word, 1)
                weight[row, d] = stochastic(weight, widen(weight[row, d]) - change, word, 0)

    return update


@functools.cache
def rowwise_adagrad(D: int) -> Callable[..., None]:
    @kernel
    def update(weight: Any, state: Any, meta: Any, rows: Any, grads: Any, granule_table: Any, hyper: Any,
               keys: Any) -> None:  # fmt: skip
        number = grads.dtype.type
        columns = number(D)
        for u in range(len(rows)):
            _prefetch_ahead(weight, state, meta, rows, u)
            row = rows[u]
            table = granule_table[row // GRANULE]
            lr, eps = number(hyper[table, 0]), number(hyper[table, 1])
            start = noise_start(weight, state, meta, row, keys[table])
            total = widen(state[row, 0]) + _sum_of_squares(grads[u]) / columns
            state[row, 0] = stochastic(state, total, noise(weight, state, start, 0), 1)
            denominator = np.sqrt(total) + eps
            for d in range(D):
                change = lr * (grads[u, d] / denominator)
                word = noise(weight, state, start, d)
                weight[row, d] = stochastic(weight, widen(weight[row, d]) - change, word, 0)

    return update


@functools.cache
def adam(D: int) -> Callable[..., None]:
    @kernel
    def update(weight: Any, state: Any, meta: Any, rows: Any, grads: Any, granule_table: Any, hyper: Any,
               keys: Any) -> None:  # fmt: skip
        number = grads.dtype.type
        for u in range(len(rows)):
            _prefetch_ahead(weight, state, meta, rows, u)
            row = rows[u]
            table = granule_table[row // GRANULE]
            step_size, eps, shrink = number(hyper[table, 0]), number(hyper[table, 1]), number(hyper[table, 2])
            beta1, one_minus_beta1 = number(hyper[table, 3]), number(hyper[table, 4])
            beta2, one_minus_beta2 = number(hyper[table, 5]), number(hyper[table, 6])
            start = noise_start(weight, state, meta, row, keys[table])
            for d in range(D):
                word = noise(weight, state, start, d)
                grad = grads[u, d]
                mean = widen(state[row, d]) * beta1 + grad * one_minus_beta1
                square = widen(state[row, D + d]) * beta2 + one_minus_beta2 * grad * grad
                change = step_size * (mean / (np.sqrt(square) + eps))
                state[row, d] = stochastic(state, mean, word, 1)
                state[row, D + d] = stochastic(state, square, word, 2)
                weight[row, d] = stochastic(weight, widen(weight[row, d]) * shrink - change, word, 0)

    return update


@functools.cache
def adam_per_row(D: int) -> Callable[..., None]:
    @kernel
    def update(weight: Any, state: Any, meta: Any, rows: Any, grads: Any, granule_table: Any, hyper: Any,
               keys: Any) -> None:  # fmt: skip
        number = grads.dtype.type
        for u in range(len(rows)):
            _prefetch_ahead(weight, state, meta, rows, u)
            row = rows[u]
            table = granule_table[row // GRANULE]
            steps = state[row, 2 * D] + number(1)
            state[row, 2 * D] = steps
            left1, left2 = 1.0 - hyper[table, 3] ** np.float64(steps), 1.0 - hyper[table, 5] ** np.float64(steps)
            step_size = number(hyper[table, 0] / left1 * math.sqrt(left2))
            eps = number(hyper[table, 1] * math.sqrt(left2) if hyper[table, 7] else hyper[table, 1])
            shrink = number(hyper[table, 2])
            beta1, one_minus_beta1 = number(hyper[table, 3]), number(hyper[table, 4])
            beta2, one_minus_beta2 = number(hyper[table, 5]), number(hyper[table, 6])
            start = noise_start(weight, state, meta, row, keys[table])
            for d in range(D):
                grad = grads[u, d]
                mean = state[row, d] * beta1 + grad * one_minus_beta1
                square = state[row, D + d] * beta2 + one_minus_beta2 * grad * grad
                change = step_size * (mean / (np.sqrt(square) + eps))
                state[row, d] = mean
                state[row, D + d] = square
                word = noise(weight, state, start, d)
                weight[row, d] = stochastic(weight, widen(weight[row, d]) * shrink - change, word, 0)

    return update


@functools.cache
def ftrl(D: int) -> Callable[..., None]:
    @kernel
    def update(weight: Any, state: Any, meta: Any, rows: Any, grads: Any, granule_table: Any, hyper: Any,
               keys: Any) -> None:  # fmt: skip
        number = grads.dtype.type
        for u in range(len(rows)):
            _prefetch_ahead(weight, state, meta, rows, u)
            row = rows[u]
            table = granule_table[row // GRANULE]
            lr, beta = number(hyper[table, 0]), number(hyper[table, 1])
            l1, l2 = number(hyper[table, 2]), number(hyper[table, 3])
            start = noise_start(weight, state, meta, row, keys[table])
            for d in range(D):
                word = noise(weight, state, start, d)
                grad, before = grads[u, d], widen(state[row, d])
                total = before + grad * grad
                root = np.sqrt(total)
                linear = widen(state[row, D + d]) + (lr * grad - (root - np.sqrt(before)) * widen(weight[row, d]))
                beyond = max(abs(linear) - l1, number(0))
                state[row, d] = stochastic(state, total, word, 1)
                state[row, D + d] = stochastic(state, linear, word, 2)
                weight[row, d] = stochastic(weight, -np.copysign(beyond, linear) / (root + beta + l2), word, 0)

    return update


KERNELS: dict[str, Callable[[int], Callable[..., None]]] = {
    "sgd": sgd,
    "momentum": momentum,
    "adagrad": adagrad,
    "rowwise_adagrad": rowwise_adagrad,
    "adam": adam,
    "adam_per_row": adam_per_row,
    "ftrl": ftrl,
}
