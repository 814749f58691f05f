"""Numba kernel of first values: one pass over the new rows of all tables of a group."""

import math
from typing import Any

import numpy as np

from triton_ops.index.cpu import mix64
from triton_ops.initialize.layout import CONSTANT, FAR_TAIL, GOLDEN, MIDDLE, NORMAL, TAIL, UNIFORM
from triton_ops.jit import kernel
from triton_ops.row_layout import GRANULE, ID


@kernel
def initialize(weight: Any, state: Any, meta: Any, rows: Any, granule_table: Any, kinds: Any, keys: Any,
               parameters: Any, states: Any) -> None:  # fmt: skip
    """Write weights, state and record of each row; its id is in the record already."""
    for i in range(len(rows)):
        row = rows[i]
        table = granule_table[row // GRANULE]
        start = mix64(mix64(meta[row, ID]) ^ keys[table])
        _draw(start, kinds[table], parameters[table], weight[row])
        for column in range(state.shape[1]):
            state[row, column] = states[table]
        for column in range(ID):
            meta[row, column] = 0


@kernel
def _draw(start: Any, kind: Any, parameters: Any, values: Any) -> None:
    """Fill a row of weights."""
    shift, scale = parameters[0], parameters[1]
    if kind == CONSTANT:
        for column in range(len(values)):
            values[column] = shift
    elif kind == UNIFORM:
        for column in range(len(values)):
            values[column] = shift + np.float64(_word(start, column) >> np.uint64(40)) * 2.0**-24 * scale
    elif kind == NORMAL:
        for column in range(len(values)):
            values[column] = shift + scale * normal_quantile(_probability(start, column))
    else:
        sign, first, span, low, high = parameters[2:7]
        for column in range(len(values)):
            drawn = normal_quantile(first + _probability(start, column) * span)
            values[column] = shift + scale * (min(max(drawn, low), high) * sign)


@kernel
def _word(start: Any, column: Any) -> Any:
    return mix64(start + np.uint64(column + 1) * np.uint64(GOLDEN))


@kernel
def _probability(start: Any, column: Any) -> Any:
    return (np.float64(_word(start, column) >> np.uint64(12)) + 0.5) * 2.0**-52


@kernel
def normal_quantile(probability: Any) -> Any:
    """See reference.py."""
    centred = probability - 0.5
    if abs(centred) <= 0.425:
        r = 0.180625 - centred * centred
        return centred * _polynomial(MIDDLE[0], r) / _polynomial(MIDDLE[1], r)
    r = math.sqrt(-math.log(probability if centred < 0 else 1.0 - probability))
    if r <= 5.0:
        magnitude = _polynomial(TAIL[0], r - 1.6) / _polynomial(TAIL[1], r - 1.6)
    else:
        magnitude = _polynomial(FAR_TAIL[0], r - 5.0) / _polynomial(FAR_TAIL[1], r - 5.0)
    return math.copysign(magnitude, centred)


@kernel
def _polynomial(coefficients: Any, x: Any) -> Any:
    """Horner's rule, the highest power first."""
    value = coefficients[0]
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value
