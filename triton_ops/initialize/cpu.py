"""Numba kernel of first values: one pass over the new rows of all tables of a group."""

import math
from typing import Any

import numpy as np

from triton_ops.index.cpu import mix64
from triton_ops.initialize.layout import CONSTANT, FAR_TAIL, GOLDEN, MIDDLE, TAIL, UNIFORM
from triton_ops.jit import kernel
from triton_ops.row_layout import GRANULE, ID


@kernel
def initialize(weight: Any, state: Any, meta: Any, rows: Any, granule_table: Any, kinds: Any, keys: Any,
               parameters: Any, states: Any) -> None:  # fmt: skip
    """Write weights, state and record of each row; its id is in the record already."""
    drawn, probabilities = np.empty(weight.shape[1]), np.empty(weight.shape[1])
    tails = np.empty(weight.shape[1] + 1, np.int64)
    for i in range(len(rows)):
        row = rows[i]
        table = granule_table[row // GRANULE]
        start = mix64(mix64(meta[row, ID]) ^ keys[table])
        _draw(start, kinds[table], parameters[table], drawn, probabilities, tails)
        shift, scale = parameters[table, 0], parameters[table, 1]
        for column in range(len(drawn)):
            weight[row, column] = shift + drawn[column] * scale
        for column in range(state.shape[1]):
            state[row, column] = states[table]
        for column in range(ID):
            meta[row, column] = 0


@kernel
def _draw(start: Any, kind: Any, parameters: Any, drawn: Any, probabilities: Any, tails: Any) -> None:
    """Fill a row with what is scaled and shifted to weights."""
    if kind == CONSTANT:
        drawn[:] = 0.0
    elif kind == UNIFORM:
        for column in range(len(drawn)):
            drawn[column] = np.float64(_word(start, column) >> np.uint64(40)) * 2.0**-24
    else:
        sign, first, span, low, high = parameters[2:7]
        for column in range(len(drawn)):
            probabilities[column] = first + (np.float64(_word(start, column) >> np.uint64(12)) + 0.5) * 2.0**-52 * span
        normal_quantiles(probabilities, drawn, tails)
        for column in range(len(drawn)):
            drawn[column] = min(max(drawn[column], low), high) * sign


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
    for column in tails[:count]:
        quantiles[column] = _tail_quantile(probabilities[column])


@kernel
def _word(start: Any, column: Any) -> Any:
    return mix64(start + np.uint64(column + 1) * np.uint64(GOLDEN))


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
