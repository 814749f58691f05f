"""Numba kernel of first values: one pass over the new rows of all tables of a group."""

import math
from typing import Any

import numpy as np

from triton_ops.initialize.layout import CONSTANT, FAR_TAIL, MIDDLE, TAIL, UNIFORM
from triton_ops.jit import kernel
from triton_ops.narrow import nearest
from triton_ops.row_layout import GRANULE, ID
from triton_ops.shared.cpu import mix64
from triton_ops.shared.reference import GOLDEN


@kernel
def initialize(weight: Any, state: Any, meta: Any, rows: Any, granule_table: Any, kinds: Any, keys: Any,
               parameters: Any, states: Any) -> None:  # fmt: skip
    """Write weights, state and record of each row; its id is in the record already."""
    quantiles, probabilities = np.empty(weight.shape[1]), np.empty(weight.shape[1])
    tails = np.empty(weight.shape[1] + 1, np.int64)
    for i in range(len(rows)):
        row = rows[i]
        table = granule_table[row // GRANULE]
        shift, scale = parameters[table, 0], parameters[table, 1]
        start = mix64(mix64(meta[row, ID]) ^ keys[table])
        if kinds[table] == CONSTANT:
            for column in range(weight.shape[1]):
                weight[row, column] = nearest(weight, shift)
        elif kinds[table] == UNIFORM:
            for column in range(weight.shape[1]):
                drawn = np.float64(_word(start, column) >> np.uint64(40)) * 2.0**-24
                weight[row, column] = nearest(weight, shift + drawn * scale)
        else:
            _draw_normal(start, table, parameters, quantiles, probabilities, tails)
            for column in range(weight.shape[1]):
                weight[row, column] = nearest(weight, shift + quantiles[column] * scale)
        for column in range(state.shape[1]):
            state[row, column] = nearest(state, states[table, column])
        for column in range(ID):
            meta[row, column] = 0


@kernel
def _word(start: Any, column: Any) -> Any:
    return mix64(start + np.uint64(column + 1) * np.uint64(GOLDEN))


@kernel
def _draw_normal(start: Any, table: Any, parameters: Any, quantiles: Any, probabilities: Any, tails: Any) -> None:
    """Fill a row with quantiles of random probabilities, mirrored and kept in bounds as the table says."""
    # Not parameters[table], here or for a row: Numba counts references to such a view, which costs 20 ns.
    sign, first, span = parameters[table, 2], parameters[table, 3], parameters[table, 4]
    low, high = parameters[table, 5], parameters[table, 6]
    for column in range(len(quantiles)):
        probabilities[column] = first + (np.float64(_word(start, column) >> np.uint64(12)) + 0.5) * 2.0**-52 * span
    normal_quantiles(probabilities, quantiles, tails)
    for column in range(len(quantiles)):
        quantiles[column] = min(max(quantiles[column], low), high) * sign


@kernel
def normal_quantiles(probabilities: Any, quantiles: Any, tails: Any) -> None:
    """Write the normal quantile of each probability. ``tails`` is scratch, int64, one longer.

    All are computed as if they lay in the middle, in a loop without branches that becomes vector instructions. The 15 %
    that lie in the tails are listed, without branches as well since these could not be predicted, and computed again.
    """
    count = 0
    for column in range(len(quantiles)):
        quantiles[column] = _middle_quantile(probabilities[column])
    for column in range(len(quantiles)):
        tails[count] = column
        count += abs(probabilities[column] - 0.5) > 0.425
    for tail in range(count):
        quantiles[tails[tail]] = _tail_quantile(probabilities[tails[tail]])


@kernel
def _middle_quantile(probability: Any) -> Any:
    """The normal quantile of probabilities from .075 to .925: see reference.py."""
    centred = probability - 0.5
    r = 0.180625 - centred * centred
    return centred * _polynomial(MIDDLE[0], r) / _polynomial(MIDDLE[1], r)


@kernel
def _tail_quantile(probability: Any) -> Any:
    """The normal quantile of probabilities below .075 or above .925."""
    r = math.sqrt(-math.log(probability if probability < 0.5 else 1.0 - probability))
    if r <= 5.0:
        magnitude = _polynomial(TAIL[0], r - 1.6) / _polynomial(TAIL[1], r - 1.6)
    else:
        magnitude = _polynomial(FAR_TAIL[0], r - 5.0) / _polynomial(FAR_TAIL[1], r - 5.0)
    return math.copysign(magnitude, probability - 0.5)


@kernel
def _polynomial(coefficients: Any, x: Any) -> Any:
    """Horner's rule, the highest power first."""
    value = coefficients[0]
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value
