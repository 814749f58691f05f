"""The definition of a row's first value: a function of (seed, table, id, column) alone, in plain torch.

R rows of a group, U new rows, D row width, W width of the optimizer's state, T tables.
"""

import torch
from torch import Tensor

from triton_ops.initialize.layout import CONSTANT, FAR_TAIL, MIDDLE, TAIL, UNIFORM, FirstValues
from triton_ops.places import Rows
from triton_ops.row_layout import GRANULE, ID
from triton_ops.shared.reference import GOLDEN, mix64


def initialize(
    weight_RD: Rows, state_RW: Rows, meta_R4: Rows, rows_U: Tensor, granule_table: Tensor, tables: FirstValues
) -> None:
    """Write the first weights, optimizer state and record of rows, in place. See op.py."""
    table_U = granule_table[rows_U // GRANULE]
    for table in table_U.unique().tolist():
        rows = rows_U[table_U == table]
        weight_RD[rows] = first_weights(meta_R4[rows, ID], weight_RD.shape[1], table, tables).to(weight_RD.dtype)
        state_RW[rows] = torch.from_numpy(tables.states[table]).to(rows_U.device, state_RW.dtype)
        meta_R4[rows, :ID] = 0


def first_weights(ids_U: Tensor, dim: int, table: int, tables: FirstValues) -> Tensor:
    """The first weights of ids of one table: float64 [U, dim]."""
    words_UD = random_words(ids_U, dim, int(tables.keys[table].view("int64")))
    shift, scale, sign, first, span, low, high = tables.parameters[table].tolist()
    kind = int(tables.kinds[table])
    if kind == CONSTANT:
        return torch.full_like(words_UD, shift, dtype=torch.float64)
    if kind == UNIFORM:
        return shift + _unsigned_top(words_UD, 24) * 2.0**-24 * scale
    # Halves of 2^-52, so that neither 0 nor 1 comes up, whose normal quantile is infinite.
    probabilities_UD = (_unsigned_top(words_UD, 52) + 0.5) * 2.0**-52
    return shift + scale * (normal_quantile(first + probabilities_UD * span).clamp(low, high) * sign)


def _unsigned_top(words: Tensor, bits: int) -> Tensor:
    """The top bits of unsigned words as float64, exact up to 53 bits."""
    return ((words >> (64 - bits)) & (2**bits - 1)).to(torch.float64)


def random_words(ids_U: Tensor, dim: int, table_key: int) -> Tensor:
    """64 random bits for each id and column: int64 [U, dim]. The SplitMix64 generator, started anew for each id."""
    starts_U = mix64(mix64(ids_U) ^ table_key)
    steps_D = torch.arange(1, dim + 1, device=ids_U.device) * (GOLDEN - 2**64)
    return mix64(starts_U[:, None] + steps_D)


def normal_quantile(probability: Tensor) -> Tensor:
    """The x below which a standard normal variable lies with this probability: 0.975 -> 1.96, float64, to about 1e-16.

    Written out, since torch.special.ndtri is a little coarser (6 units in the last place near .65).
    """
    centred = probability - 0.5
    r = 0.180625 - centred * centred
    middle = centred * _polynomial(MIDDLE[0], r) / _polynomial(MIDDLE[1], r)
    r = torch.where(centred < 0, probability, 1.0 - probability).log().neg().sqrt()
    tail = _polynomial(TAIL[0], r - 1.6) / _polynomial(TAIL[1], r - 1.6)
    far_tail = _polynomial(FAR_TAIL[0], r - 5.0) / _polynomial(FAR_TAIL[1], r - 5.0)
    outside = torch.copysign(torch.where(r <= 5.0, tail, far_tail), centred)
    return torch.where(centred.abs() <= 0.425, middle, outside)


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """Horner's rule, the highest power first."""
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value
