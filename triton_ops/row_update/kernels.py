"""row_update in Triton: one program steps a tile of rows, everything of a row at once.

Gradients are read as they are, or summed up here from those of the bags their rows were in (`GradSums`), so that no
[U, D] gradient is written either. Arithmetic is in the gradients' dtype, in the order of reference.py, with division
and root rounded to the nearest and no fused multiply-add: the bits of the CPU. rowwise_adagrad's one sum runs in
another order, and adam_per_row's powers are worked out as exp(t * log(beta)). Bits to round narrow rows by are the
CPU's as well.

U touched rows, D row width, W width of the state, T tables.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_ops import row_layout
from triton_ops.gather_pool.kernels import LONG, UNROLL, group_values
from triton_ops.gather_pool.pooled_grad import GradSums
from triton_ops.launches import Configuration, tile_of
from triton_ops.places import FLAT, Rows, place_of
from triton_ops.row_update.hyper import HYPER_COLUMNS
from triton_ops.row_update.state import state_slices
from triton_ops.shared.kernels import (
    DTYPES,
    quotient,
    random_start,
    random_words,
    root,
    row_pointers,
    stochastic,
    sum_bags,
)

ELEMENTS = 2048  # of a tile
MANY = 1 << 17  # rows from which on a program takes several tiles: most may hold none of the rows there are room for
TILES = 4
GRANULE, ID = tl.constexpr(row_layout.GRANULE), tl.constexpr(row_layout.ID)
RECORD, FLAT_ROWS, INFINITY = (tl.constexpr(each) for each in (row_layout.RECORD, FLAT, float("inf")))

# Each rule takes a tile's weights, first and second parts of the state, gradients, where the hyper-parameters of each
# row's table lie, and the number of each row's step, [T, 1] float64. It returns the new weights and parts; a part that
# the rule does not have comes back as it came.


@triton.jit
def _number(hyper, COLUMN: tl.constexpr, like):
    return tl.load(hyper + COLUMN).to(like.dtype)[:, None]


@triton.jit
def _sgd(weight, first, second, grad, hyper, steps, WIDTH: tl.constexpr):
    return weight - _number(hyper, 0, grad) * grad, first, second


@triton.jit
def _momentum(weight, first, second, grad, hyper, steps, WIDTH: tl.constexpr):
    buffer = _number(hyper, 1, grad) * first + grad
    change = _number(hyper, 2, grad) * grad + _number(hyper, 3, grad) * buffer
    return weight - _number(hyper, 0, grad) * change, buffer, second


@triton.jit
def _adagrad(weight, first, second, grad, hyper, steps, WIDTH: tl.constexpr):
    total = first + grad * grad
    change = _number(hyper, 0, grad) * quotient(grad, root(total) + _number(hyper, 1, grad))
    return weight - change, total, second


@triton.jit
def _rowwise_adagrad(weight, first, second, grad, hyper, steps, WIDTH: tl.constexpr):
    squares = tl.sum(grad * grad, axis=1)[:, None]
    total = first + quotient(squares, squares * 0 + WIDTH)
    change = _number(hyper, 0, grad) * quotient(grad, root(total) + _number(hyper, 1, grad))
    return weight - change, total, second


@triton.jit
def _moments(weight, first, second, grad, hyper, step_size, eps):
    mean = first * _number(hyper, 3, grad) + grad * _number(hyper, 4, grad)
    square = second * _number(hyper, 5, grad) + _number(hyper, 6, grad) * grad * grad
    change = step_size * quotient(mean, root(square) + eps)
    return weight * _number(hyper, 2, grad) - change, mean, square


@triton.jit
def _adam(weight, first, second, grad, hyper, steps, WIDTH: tl.constexpr):
    return _moments(weight, first, second, grad, hyper, _number(hyper, 0, grad), _number(hyper, 1, grad))


@triton.jit
def _adam_per_row(weight, first, second, grad, hyper, steps, WIDTH: tl.constexpr):
    left1 = 1.0 - tl.exp(steps * tl.log(_number(hyper, 3, steps)))
    left2 = 1.0 - tl.exp(steps * tl.log(_number(hyper, 5, steps)))
    step_size = (_number(hyper, 0, steps) / left1 * tl.sqrt(left2)).to(grad.dtype)
    eps = _number(hyper, 1, steps)
    eps = tl.where(_number(hyper, 7, steps) > 0, eps * tl.sqrt(left2), eps).to(grad.dtype)
    return _moments(weight, first, second, grad, hyper, step_size, eps)


@triton.jit
def _minus_with_sign_of(magnitude, signed):
    """-copysign(magnitude, signed) of numbers that are not negative, zeros with their signs included."""
    if magnitude.dtype == tl.float64:
        sign = (signed.to(tl.uint64, bitcast=True) & 0x8000000000000000) ^ 0x8000000000000000
        result = (magnitude.to(tl.uint64, bitcast=True) | sign).to(tl.float64, bitcast=True)
    else:
        sign = (signed.to(tl.uint32, bitcast=True) & 0x80000000) ^ 0x80000000
        result = (magnitude.to(tl.uint32, bitcast=True) | sign).to(tl.float32, bitcast=True)
    return result


@triton.jit
def _ftrl(weight, first, second, grad, hyper, steps, WIDTH: tl.constexpr):
    total = first + grad * grad
    roots = root(total)
    linear = second + (_number(hyper, 0, grad) * grad - (roots - root(first)) * weight)
    beyond = tl.maximum(tl.abs(linear) - _number(hyper, 2, grad), 0.0)
    divisor = roots + _number(hyper, 1, grad) + _number(hyper, 3, grad)
    return quotient(_minus_with_sign_of(beyond, linear), divisor), total, linear


RULES = {
    "sgd": _sgd,
    "momentum": _momentum,
    "adagrad": _adagrad,
    "rowwise_adagrad": _rowwise_adagrad,
    "adam": _adam,
    "adam_per_row": _adam_per_row,
    "ftrl": _ftrl,
}


@triton.jit
def _load_grads(u, is_row, mask, grads, offsets, coefficients, partials, columns, is_column, SUM: tl.constexpr,
                WIDTH: tl.constexpr, GRADS_ALIGN: tl.constexpr, LONG: tl.constexpr, UNROLL: tl.constexpr):  # fmt: skip
    """Gradients of rows; with offsets sums of those whose addresses are grads[offsets[u] : offsets[u + 1]]."""
    if offsets is None:
        grad = tl.load(grads + u[:, None] * WIDTH + columns[None, :], mask=mask, other=0)
    else:
        begin = tl.load(offsets + u, mask=is_row, other=0)
        length = tl.load(offsets + u + 1, mask=is_row, other=0) - begin
        grad = sum_bags(begin, length, grads, coefficients, partials, None, 0, columns, is_column, SUM, SUM, WIDTH,
                        FLAT_ROWS, GRADS_ALIGN, LONG, UNROLL)  # fmt: skip
    return grad


@triton.jit(do_not_specialize=("count",))
def find_infinite(found, rows, grads, offsets, coefficients, partials, count, SUM: tl.constexpr, WIDTH: tl.constexpr,
                  GRADS_ALIGN: tl.constexpr, LONG: tl.constexpr, UNROLL: tl.constexpr, TILES: tl.constexpr,
                  TILE: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Lower ``found`` to the place of the first row whose gradient is infinite or not a number."""
    columns = tl.arange(0, COLUMNS)
    is_column = columns < WIDTH
    for tile in range(TILES):
        u = (tl.program_id(0).to(tl.int64) * TILES + tile) * TILE + tl.arange(0, TILE)
        is_row = tl.load(rows + u, mask=u < count, other=-1) >= 0
        if tl.max(is_row.to(tl.int32)) > 0:
            mask = is_row[:, None] & is_column[None, :]
            grad = _load_grads(u, is_row, mask, grads, offsets, coefficients, partials, columns, is_column, SUM, WIDTH,
                               GRADS_ALIGN, LONG, UNROLL)  # fmt: skip
            is_finite = tl.min((tl.abs(grad) < INFINITY).to(tl.int32), axis=1) > 0
            first = tl.min(tl.where(is_finite | (u >= count), count, u))
            if first < count:
                tl.atomic_min(found, first, sem="relaxed")


@triton.jit(do_not_specialize=("count",))
def update_rows(weight, state, meta, rows, grads, offsets, coefficients, partials, granule_table, hyper, keys, skip,
                count, RULE: tl.constexpr, SUM: tl.constexpr, DTYPE: tl.constexpr, WIDTH: tl.constexpr,
                SHIFT: tl.constexpr, ALIGN: tl.constexpr, STATE_DTYPE: tl.constexpr, STATE_WIDTH: tl.constexpr,
                STATE_SHIFT: tl.constexpr, STATE_ALIGN: tl.constexpr, META_SHIFT: tl.constexpr,
                META_ALIGN: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, STEPS: tl.constexpr,
                HYPER: tl.constexpr, NOISY: tl.constexpr, GRADS_ALIGN: tl.constexpr, LONG: tl.constexpr,
                UNROLL: tl.constexpr, TILES: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Step rows; FIRST and SECOND are the columns of the parts of state, STEPS is whether each row counts its own."""
    columns = tl.arange(0, COLUMNS)
    is_column = columns < WIDTH
    for tile in range(TILES):
        u = (tl.program_id(0).to(tl.int64) * TILES + tile) * TILE + tl.arange(0, TILE)
        row = tl.load(rows + u, mask=u < count, other=-1)
        if skip is not None:
            row = tl.where(tl.load(skip + u * 0) == 0, row, -1)
        is_row = row >= 0
        if tl.max(is_row.to(tl.int32)) > 0:
            row = tl.where(is_row, row, 0)
            mask = is_row[:, None] & is_column[None, :]
            table = tl.load(granule_table + row // GRANULE, mask=is_row, other=0)
            table = tl.maximum(table, 0).to(tl.int64)
            grad = _load_grads(u, is_row, mask, grads, offsets, coefficients, partials, columns, is_column, SUM, WIDTH,
                               GRADS_ALIGN, LONG, UNROLL)  # fmt: skip
            weights = row_pointers(weight, row, DTYPE, WIDTH, SHIFT, ALIGN)[:, None] + columns[None, :]
            numbers = tl.load(weights, mask=mask, other=0).to(SUM)
            first, second, steps = grad, grad, tl.full([TILE, 1], 1, tl.float64)
            if FIRST > 0:
                states = row_pointers(state, row, STATE_DTYPE, STATE_WIDTH, STATE_SHIFT, STATE_ALIGN)
                # A part of one column is read by all columns, and written by the first.
                firsts = states[:, None] + (columns if FIRST == WIDTH else columns * 0)[None, :]
                first = tl.load(firsts, mask=mask, other=0).to(SUM)
            if SECOND > 0:
                seconds = states[:, None] + FIRST + columns[None, :]
                second = tl.load(seconds, mask=mask, other=0).to(SUM)
            if STEPS:
                counters = states + FIRST + SECOND
                counted = tl.load(counters, mask=is_row, other=0) + 1
                tl.store(counters, counted, mask=is_row)
                steps = counted.to(tl.float64)[:, None]
            numbers, first, second = RULE(numbers, first, second, grad, hyper + table * HYPER, steps, WIDTH)
            words = tl.full([TILE, COLUMNS], 0, tl.uint64)
            if NOISY:
                record = row_pointers(meta, row, tl.int64, RECORD, META_SHIFT, META_ALIGN)
                ids = tl.load(record + ID, mask=is_row, other=0)
                starts = random_start(ids, tl.load(keys + table))
                words = random_words(starts[:, None], columns[None, :])
            tl.store(weights, stochastic(numbers, words, 0, DTYPE), mask=mask)
            if FIRST > 0:
                written = mask & (columns < FIRST)[None, :]
                tl.store(firsts, stochastic(first, words, 1, STATE_DTYPE), mask=written)
            if SECOND > 0:
                tl.store(seconds, stochastic(second, words, 2, STATE_DTYPE), mask=mask)


def row_update(
    rule: str,
    weight: Rows,
    state: Rows,
    meta: Rows,
    rows_U: Tensor,
    grads_UD: Tensor | GradSums,
    granule_table: Tensor,
    hyper_TH: Tensor,
    keys_T: Tensor,
    skip: Tensor | None,
) -> None:
    """See op.py."""
    if len(rows_U) == 0:
        return
    places = place_of(weight), place_of(state), place_of(meta)
    dtype, width = grads_UD.dtype, places[0].width
    constants = _constants(rule, dtype, *places)
    gradients, align = _read(rows_U, grads_UD, width)
    tiles = TILES if len(rows_U) >= MANY else 1
    tile, columns = tile_of(width, ELEMENTS)
    arrays = *(place.pointers for place in places), rows_U, *gradients
    update_rows[(triton.cdiv(len(rows_U), tile * tiles),)](
        *arrays, granule_table, hyper_TH, keys_T, skip, len(rows_U), **constants, GRADS_ALIGN=align, TILES=tiles,
        TILE=tile, COLUMNS=columns, **_OPTIONS,
    )  # fmt: skip


def first_infinite(rows_U: Tensor, grads_UD: Tensor | GradSums, width: int) -> Tensor:
    """See op.py."""
    count = len(rows_U)
    found = torch.full((1,), count, dtype=torch.int64, device=rows_U.device)
    if count:
        gradients, align = _read(rows_U, grads_UD, width)
        tiles = TILES if count >= MANY else 1
        tile, columns = tile_of(width, ELEMENTS)
        sizes = {"LONG": LONG, "UNROLL": UNROLL, "TILES": tiles, "TILE": tile, "COLUMNS": columns}
        find_infinite[(triton.cdiv(count, tile * tiles),)](
            found, rows_U, *gradients, count, SUM=DTYPES[grads_UD.dtype], WIDTH=width, GRADS_ALIGN=align, **sizes,
            **_OPTIONS,
        )  # fmt: skip
    return found


def _read(rows_U: Tensor, grads_UD: Tensor | GradSums, width: int) -> tuple[tuple[Tensor | None, ...], int]:
    """Gradients as `_load_grads` takes them, and what their addresses are multiples of."""
    if isinstance(grads_UD, Tensor):
        return (grads_UD, None, None, None), 16
    bags = grads_UD.grouped(
        lambda: group_values(grads_UD.parts, grads_UD.inverse_N, len(rows_U), width, grads_UD.dtype)
    )
    return (bags.sources, bags.offsets, bags.coefficients, bags.partials), bags.constants["ALIGN"]


def _constants(rule: str, dtype: torch.dtype, weight: Any, state: Any, meta: Any) -> dict[str, Any]:
    slices = [part for name, part in state_slices(rule, weight.width).items() if name != "step"]
    first, second = ([part.stop - part.start for part in slices] + [0, 0])[:2]
    is_noisy = any(place.dtype.itemsize == 2 for place in (weight, state) if place.width > 0)
    of_meta = {"META_SHIFT": meta.shift, "META_ALIGN": meta.align}
    kinds = {"RULE": RULES[rule], "SUM": DTYPES[dtype], "DTYPE": DTYPES[weight.dtype]}
    state_dtype = DTYPES[state.dtype if first else dtype]
    return {
        **kinds, **weight.constants(), "STATE_DTYPE": state_dtype, **state.constants("STATE_"), **of_meta,
        "FIRST": first, "SECOND": second, "STEPS": rule == "adam_per_row", "HYPER": HYPER_COLUMNS[rule],
        "NOISY": is_noisy, "LONG": LONG, "UNROLL": UNROLL,
    }  # fmt: skip


_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


def _listed() -> Iterator[Configuration]:
    from triton_ops.places import Place

    none = torch.empty(0)
    meta = Place(none, torch.int64, row_layout.RECORD, 12, 16)
    single, bf16 = torch.float32, torch.bfloat16
    listed = [("adam", 128, single, single, single), ("adam", 128, bf16, bf16, single)]
    listed += [(rule, 64, single, single, single) for rule in RULES if rule != "adam"]
    listed += [("ftrl", 16, torch.float16, bf16, single), ("rowwise_adagrad", 300, bf16, bf16, single)]
    listed += [("adam_per_row", 10, torch.float64, torch.float64, torch.float64)]
    for rule, width, weight_dtype, state_dtype, dtype in listed:
        state_width = max((part.stop for part in state_slices(rule, width).values()), default=0)
        places = Place(none, weight_dtype, width, 12, 16), Place(none, state_dtype, state_width, 12, 16), meta
        tile, columns = tile_of(width, ELEMENTS)
        sizes = {"GRADS_ALIGN": 16, "TILES": TILES, "TILE": tile, "COLUMNS": columns}
        constants = _constants(rule, dtype, *places) | sizes
        name = "fp32" if dtype == single else "fp64"
        arrays = {"weight": "*i64", "state": "*i64", "meta": "*i64", "rows": "*i64", "granule_table": "*i32",
                  "hyper": "*fp64", "keys": "*i64", "count": "i32"}  # fmt: skip
        plain = {"offsets": None, "coefficients": None, "partials": None, "skip": None}
        yield Configuration(
            update_rows, arrays | {"grads": f"*{name}"}, constants | plain, _OPTIONS, width * dtype.itemsize % 16 == 0
        )
        if width == 128:
            summed = {"grads": "*i64", "offsets": "*i64", "coefficients": f"*{name}", "partials": f"*{name}"}
            yield Configuration(update_rows, arrays | summed | {"skip": "*i64"}, constants, _OPTIONS, True)
    looked = {name: constants[name] for name in ("SUM", "WIDTH", "LONG", "UNROLL", *sizes)}
    lists = {"found": "*i64", "rows": "*i64", "count": "i32"}
    missing = dict.fromkeys(("offsets", "coefficients", "partials"))
    yield Configuration(find_infinite, lists | {"grads": "*fp64"}, looked | missing, _OPTIONS)
    tile, columns = tile_of(128, ELEMENTS)
    looked = {"SUM": DTYPES[single], "WIDTH": 128, "LONG": LONG, "UNROLL": UNROLL, "GRADS_ALIGN": 16, "TILES": TILES,
              "TILE": tile, "COLUMNS": columns}  # fmt: skip
    yield Configuration(find_infinite, lists | summed, looked, _OPTIONS, True)
    flat = {"SHIFT": FLAT, "STATE_SHIFT": FLAT, "META_SHIFT": FLAT, "TILES": 1}
    yield Configuration(update_rows, arrays | {"grads": "*fp64"}, constants | plain | flat, _OPTIONS)


CONFIGURATIONS = tuple(_listed())
