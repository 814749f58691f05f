"""First values in Triton: the CPU's generator, in float64 and without fused multiply-add, so that a row begins alike.

U new rows, D row width, W width of the state.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_ops import row_layout
from triton_ops.initialize import layout
from triton_ops.launches import Configuration, tile_of
from triton_ops.places import FLAT, Rows, place_of
from triton_ops.shared.kernels import DTYPES, random_start, random_words, row_pointers

ELEMENTS = 1024  # of a tile: float64 takes two registers
UNIFORM, NORMAL = tl.constexpr(layout.UNIFORM), tl.constexpr(layout.NORMAL)
MIDDLE_ABOVE, MIDDLE_BELOW = (tl.constexpr(each) for each in layout.MIDDLE)
TAIL_ABOVE, TAIL_BELOW = (tl.constexpr(each) for each in layout.TAIL)
FAR_ABOVE, FAR_BELOW = (tl.constexpr(each) for each in layout.FAR_TAIL)
PARAMETERS = tl.constexpr(7)
GRANULE, ID, RECORD = (tl.constexpr(each) for each in (row_layout.GRANULE, row_layout.ID, row_layout.RECORD))


@triton.jit
def _polynomial(x, COEFFICIENTS: tl.constexpr):
    """Horner's rule, the highest power first."""
    value = x * 0 + COEFFICIENTS[0]
    for power in tl.static_range(1, 8):
        value = value * x + COEFFICIENTS[power]
    return value


@triton.jit
def _normal_quantile(probability):
    """The normal quantile of float64: see reference.py."""
    centred = probability - 0.5
    r = 0.180625 - centred * centred
    middle = centred * _polynomial(r, MIDDLE_ABOVE) / _polynomial(r, MIDDLE_BELOW)
    r = tl.sqrt(-tl.log(tl.where(centred < 0, probability, 1.0 - probability)))
    tail = _polynomial(r - 1.6, TAIL_ABOVE) / _polynomial(r - 1.6, TAIL_BELOW)
    far = _polynomial(r - 5.0, FAR_ABOVE) / _polynomial(r - 5.0, FAR_BELOW)
    tail = tl.where(r <= 5.0, tail, far)
    return tl.where(tl.abs(centred) <= 0.425, middle, tl.where(centred < 0, -tail, tail))


@triton.jit
def _nearest(number, DTYPE: tl.constexpr):
    """A float64 in DTYPE, rounded to the nearest; to what is narrower than float32 by way of it."""
    if DTYPE == tl.bfloat16:
        bits = number.to(tl.float32).to(tl.uint32, bitcast=True)
        result = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    elif DTYPE == tl.float16:
        result = number.to(tl.float32).to(tl.float16)
    else:
        result = number.to(DTYPE)
    return result


@triton.jit(do_not_specialize=("count",))
def initialize_rows(weight, state, meta, rows, granule_table, kinds, keys, parameters, first_states, count,
                    DTYPE: tl.constexpr, WIDTH: tl.constexpr, SHIFT: tl.constexpr, ALIGN: tl.constexpr,
                    STATE_DTYPE: tl.constexpr, STATE_WIDTH: tl.constexpr, STATE_SHIFT: tl.constexpr,
                    STATE_ALIGN: tl.constexpr, META_SHIFT: tl.constexpr, META_ALIGN: tl.constexpr,
                    TILE: tl.constexpr, COLUMNS: tl.constexpr, STATE_COLUMNS: tl.constexpr):  # fmt: skip
    """Write weights, state and record of a tile of rows; their ids are in their records already."""
    u = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    row = tl.load(rows + u, mask=u < count, other=-1)
    is_row = row >= 0
    if tl.max(is_row.to(tl.int32)) > 0:
        row = tl.where(is_row, row, 0)
        table = tl.maximum(tl.load(granule_table + row // GRANULE, mask=is_row, other=0), 0).to(tl.int64)
        record = row_pointers(meta, row, tl.int64, RECORD, META_SHIFT, META_ALIGN)
        starts = random_start(tl.load(record + ID, mask=is_row, other=0), tl.load(keys + table))
        columns = tl.arange(0, COLUMNS)
        words = random_words(starts[:, None], columns[None, :])
        kind = tl.load(kinds + table)[:, None]
        line = (parameters + table * PARAMETERS)[:, None]
        drawn = (words >> 40).to(tl.int64).to(tl.float64) * 5.9604644775390625e-08  # 2^-24
        drawn = tl.where(kind == UNIFORM, drawn, 0.0)
        if tl.max(((kind == NORMAL) & is_row[:, None]).to(tl.int32)) > 0:
            shares = ((words >> 12).to(tl.int64).to(tl.float64) + 0.5) * 2.220446049250313e-16  # 2^-52
            first, span = tl.load(line + 3), tl.load(line + 4)
            # Of others than normal ones the parameters are no probabilities, whose logarithm would not be a number.
            probabilities = tl.where(kind == NORMAL, first + shares * span, 0.5)
            quantiles = tl.minimum(tl.maximum(_normal_quantile(probabilities), tl.load(line + 5)), tl.load(line + 6))
            drawn = tl.where(kind == NORMAL, quantiles * tl.load(line + 2), drawn)
        numbers = tl.load(line) + drawn * tl.load(line + 1)
        weights = row_pointers(weight, row, DTYPE, WIDTH, SHIFT, ALIGN)[:, None] + columns[None, :]
        tl.store(weights, _nearest(numbers, DTYPE), mask=is_row[:, None] & (columns < WIDTH)[None, :])
        if STATE_WIDTH > 0:
            parts = tl.arange(0, STATE_COLUMNS)
            mask = is_row[:, None] & (parts < STATE_WIDTH)[None, :]
            values = tl.load(first_states + table[:, None] * STATE_WIDTH + parts[None, :], mask=mask, other=0)
            states = row_pointers(state, row, STATE_DTYPE, STATE_WIDTH, STATE_SHIFT, STATE_ALIGN)
            tl.store(states[:, None] + parts[None, :], _nearest(values, STATE_DTYPE), mask=mask)
        zero = tl.full([TILE], 0, tl.int64)
        for column in tl.static_range(ID):
            tl.store(record + column, zero, mask=is_row)


def initialize(
    weight: Rows, state: Rows, meta: Rows, rows_U: Tensor, granule_table: Tensor, tables: layout.FirstValues
) -> None:
    """See op.py."""
    if len(rows_U) == 0:
        return
    places = [place_of(rows) for rows in (weight, state, meta)]
    constants = _constants(*((place.dtype, place.width, place.shift, place.align) for place in places))
    arrays = *(place.pointers for place in places), rows_U, granule_table, *tables.on(rows_U.device)
    grid = (triton.cdiv(len(rows_U), constants["TILE"]),)
    initialize_rows[grid](*arrays, len(rows_U), **constants, **_OPTIONS)


def _constants(
    weight: tuple[torch.dtype, int, int, int],
    state: tuple[torch.dtype, int, int, int],
    meta: tuple[torch.dtype, int, int, int],
) -> dict[str, object]:
    """Of the dtype, width, shift and alignment of each."""
    tile, _ = tile_of(max(weight[1], state[1]), ELEMENTS)
    names = ("WIDTH", "SHIFT", "ALIGN")
    return {
        "DTYPE": DTYPES[weight[0]], **dict(zip(names, weight[1:], strict=True)),
        "STATE_DTYPE": DTYPES[state[0]], **{f"STATE_{name}": v for name, v in zip(names, state[1:], strict=True)},
        "META_SHIFT": meta[2], "META_ALIGN": meta[3],
        "TILE": tile, "COLUMNS": tile_of(weight[1], 1)[1], "STATE_COLUMNS": tile_of(state[1], 1)[1],
    }  # fmt: skip


_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


def _listed() -> Iterator[Configuration]:
    arrays = dict.fromkeys(("weight", "state", "meta", "rows", "kinds", "keys"), "*i64") | {
        "granule_table": "*i32", "parameters": "*fp64", "first_states": "*fp64", "count": "i32",
    }  # fmt: skip
    single, double, bf16, half = torch.float32, torch.float64, torch.bfloat16, torch.float16
    meta = (torch.int64, row_layout.RECORD, 12, 16)
    shapes = [(single, 128, single, 256, 12), (bf16, 64, bf16, 1, 12), (half, 10, single, 10, 12),
              (double, 3, double, 7, FLAT), (torch.int8, 8, single, 0, FLAT)]  # fmt: skip
    for dtype, width, state_dtype, state_width, shift in shapes:
        constants = _constants((dtype, width, shift, 16), (state_dtype, state_width, shift, 16), meta)
        yield Configuration(initialize_rows, arrays, constants, _OPTIONS, width * dtype.itemsize % 16 == 0)


CONFIGURATIONS = tuple(_listed())
