"""gather_pool in Triton: bags of rows summed up, and their gradients added up by row, by the same kernels.

Both are sums over bags of a list. Forward, the list is of row numbers and a bag is a feature's of a batch row.
Backward, it is of addresses of gradients, sorted by unique row, and a bag is what belongs to one of them: the [N, D]
gradients of the rows looked up are never written. A program sums a tile of bags value by value, in their order and
without fused multiply-add, so that the bits are those of the CPU. Bags of more than LONG values, hot rows among them,
would keep their program busy when all others are done. Of those `sum_chunks` sums each LONG values by a program of its
own, which leaves at most two pieces a chunk, and `join_chunks` adds up the pieces of each bag. Sums run in a fixed
order: they are the same each time.

N values, B bags of a feature, K features, U unique rows, D row width, P parts.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_ops.gather_pool.pooled_grad import PooledGrad
from triton_ops.gather_pool.reference import read_dtype
from triton_ops.launches import Configuration, tile_of
from triton_ops.places import FLAT, Rows, place_of
from triton_ops.shared.kernels import DTYPES, device_words, last_at_most, load_values, sum_bags

LONG = 128  # values of a bag that one program sums up
ELEMENTS = 2048  # of a tile, 16 a thread
MOST_COLUMNS = 512  # of a tile; wider rows are taken in pieces
BLOCK = 1024  # values of a program that places them
UNROLL = 4  # values of a bag whose rows are on their way together
PROBES = 32

# A line of the table of parts: address of the gradients, bytes to the next bag's and to the next feature's, address of
# the offsets, features, bags, address of the coefficients or 0.
GRADS, BAG_STEP, FEATURE_STEP, OFFSETS, FEATURES, BAGS, COEFFICIENTS = map(tl.constexpr, range(7))
PART = tl.constexpr(8)


@triton.jit(do_not_specialize=("bags",))
def pool_bags(out, offsets, sources, coefficients, partials, pointers, features, bags, DTYPE: tl.constexpr,
              SUM: tl.constexpr, WIDTH: tl.constexpr, SHIFT: tl.constexpr, ALIGN: tl.constexpr, LONG: tl.constexpr,
              UNROLL: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Write out[bag, feature]. Without offsets each bag is one value. Without pointers, sources are addresses."""
    number = tl.program_id(0) * TILE + tl.arange(0, TILE)  # 32 bits, whose division costs a tenth of 64
    exists, place = number < bags * features, number.to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = columns < WIDTH
    if offsets is None:
        total = load_values(place, exists, sources, coefficients, pointers, 0, columns, is_column, DTYPE, SUM, WIDTH,
                             SHIFT, ALIGN)  # fmt: skip
    else:
        bound = (number % features).to(tl.int64) * (bags + 1) + number // features
        begin = tl.load(offsets + bound, mask=exists, other=0)
        length = tl.load(offsets + bound + 1, mask=exists, other=0) - begin
        total = sum_bags(begin, length, sources, coefficients, partials, pointers, tl.load(offsets), columns,
                         is_column, DTYPE, SUM, WIDTH, SHIFT, ALIGN, LONG, UNROLL)  # fmt: skip
    target = out + place[:, None] * WIDTH + columns[None, :]
    tl.store(target, total, mask=exists[:, None] & is_column[None, :])


@triton.jit
def _long_bag(offsets, bounds, value, LONG: tl.constexpr, PROBES: tl.constexpr):
    """Begin and end of the bag that a value lies in; twice 0 where it has no more than LONG."""
    bag = last_at_most(offsets, bounds, value, PROBES)
    is_bag = (bag >= 0) & (bag + 1 < bounds)
    begin, end = tl.load(offsets + bag, mask=is_bag, other=0), tl.load(offsets + bag + 1, mask=is_bag, other=0)
    is_long = end - begin > LONG
    return tl.where(is_long, begin, 0), tl.where(is_long, end, 0)


@triton.jit(do_not_specialize=("bags",))
def sum_chunks(partials, offsets, sources, coefficients, pointers, features, bags, DTYPE: tl.constexpr,
               SUM: tl.constexpr, WIDTH: tl.constexpr, SHIFT: tl.constexpr, ALIGN: tl.constexpr, LONG: tl.constexpr,
               PROBES: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Sum what of long bags lies in a chunk of values: of one that began before in partials[2 * chunk], of one that
    begins here in partials[2 * chunk + 1]. What belongs to no long bag is not written."""
    chunk = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = columns < WIDTH
    chunk_begin, chunk_end, first = chunk * LONG, chunk * LONG + LONG, tl.load(offsets)
    bounds = (tl.cast(bags, tl.int64) + 1) * features
    for piece in tl.static_range(2):
        bag_begin, bag_end = _long_bag(offsets, bounds, chunk_begin + piece * (LONG - 1), LONG, PROBES)
        began_before = bag_begin < chunk_begin
        if (bag_end > 0) & (began_before == (piece == 0)):
            done, end = tl.maximum(bag_begin, chunk_begin), tl.minimum(bag_end, chunk_end)
            total = tl.zeros([COLUMNS], SUM)
            while done < end:
                i = done + tl.arange(0, TILE)
                total += tl.sum(load_values(i, i < end, sources, coefficients, pointers, first, columns, is_column,
                                             DTYPE, SUM, WIDTH, SHIFT, ALIGN), axis=0)  # fmt: skip
                done += TILE
            tl.store(partials + (2 * chunk + piece) * WIDTH + columns, total, mask=is_column)


@triton.jit(do_not_specialize=("bags",))
def join_chunks(partials, offsets, features, bags, SUM: tl.constexpr, WIDTH: tl.constexpr, LONG: tl.constexpr,
                PROBES: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Add all pieces of the long bag that begins in a chunk to the first of them."""
    chunk = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = columns < WIDTH
    bounds = (tl.cast(bags, tl.int64) + 1) * features
    bag_begin, bag_end = _long_bag(offsets, bounds, chunk * LONG + (LONG - 1), LONG, PROBES)
    if (bag_end > 0) & (bag_begin >= chunk * LONG):
        target = partials + (2 * chunk + 1) * WIDTH + columns
        total = tl.load(target, mask=is_column, other=0)
        done, last = chunk + 1, (bag_end - 1) // LONG
        while done <= last:
            pieces = done + tl.arange(0, TILE)
            mask = (pieces <= last)[:, None] & is_column[None, :]
            total += tl.sum(tl.load(partials + (2 * pieces)[:, None] * WIDTH + columns, mask=mask, other=0), axis=0)
            done += TILE
        tl.store(target, total, mask=is_column)


@triton.jit(do_not_specialize=("count",))
def rank_values(inverse, counts, ranks, count, BLOCK: tl.constexpr):
    """Count each unique row's values in counts[unique row + 1]; a value's rank among them is how many came before."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    unique = tl.load(inverse + i, mask=i < count, other=-1)
    is_value = unique >= 0
    one = tl.full([BLOCK], 1, tl.int32)
    rank = tl.atomic_add(counts + tl.where(is_value, unique + 1, 0), one, mask=is_value, sem="relaxed")
    if ranks is not None:
        tl.store(ranks + i, rank, mask=is_value)


@triton.jit(do_not_specialize=("count", "part_count"))
def place_values(parts, part_count, inverse, starts, ranks, sources, coefficients, count, SUM: tl.constexpr,
                 BLOCK: tl.constexpr):  # fmt: skip
    """Write, sorted by unique row, where each value's gradient lies and what it counts.

    A value's place is starts[unique row] + ranks[value]. Without starts, ``ranks`` are the values in their order.
    """
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = place < count
    if starts is None:
        i = tl.load(ranks + place, mask=exists, other=0)
        unique = tl.load(inverse + i, mask=exists, other=-1)
    else:
        i = place
        unique = tl.load(inverse + i, mask=exists, other=-1)
        place = tl.load(ranks + i, mask=unique >= 0, other=0) + tl.load(starts + unique, mask=unique >= 0, other=0)
    part = tl.cast(0, tl.int64)
    while part < part_count:
        line = parts + part * PART
        offsets = tl.load(line + OFFSETS).to(tl.pointer_type(tl.int64))
        bags = tl.load(line + BAGS)
        bounds = tl.load(line + FEATURES) * (bags + 1)
        first, end = tl.load(offsets), tl.load(offsets + bounds - 1)
        is_value = (unique >= 0) & (i >= first) & (i < end)
        if tl.max(is_value.to(tl.int32)) > 0:
            # The last bound that is at most i: of bags that are empty, and of a feature's end, the next has the same.
            at, left = i * 0, bounds
            while left > 1:
                half = left // 2
                probe = tl.load(offsets + at + half, mask=is_value, other=0)
                at = tl.where(probe <= i, at + half, at)
                left -= half
            feature, bag = at // (bags + 1), at % (bags + 1)
            source = tl.load(line + GRADS) + bag * tl.load(line + BAG_STEP) + feature * tl.load(line + FEATURE_STEP)
            tl.store(sources + place, source, mask=is_value)
            if coefficients is not None:
                given = tl.load(line + COEFFICIENTS)
                own = tl.load(given.to(tl.pointer_type(SUM)) + (i - first), mask=is_value & (given != 0), other=1)
                tl.store(coefficients + place, own, mask=is_value)
        part += 1


class Bags(NamedTuple):
    """Bags of values, in the terms of the kernels."""

    offsets: Tensor | None
    """int64 [K, B + 1]; None for one value each."""
    sources: Tensor
    """int64 [N]: rows, or addresses."""
    coefficients: Tensor | None
    partials: Tensor | None
    """Of long bags; None where there cannot be any."""
    features: int
    bags: int
    pointers: Tensor | None
    constants: Mapping[str, Any]
    """DTYPE, SUM, WIDTH, SHIFT and ALIGN."""
    kept: Sequence[Any] = ()
    """What must not be freed before the sums are done."""


def gather_pool(
    weight: Rows, rows_N: Tensor, offsets_KB1: Tensor | None, coefficients_M: Tensor | None, out_BKD: Tensor
) -> None:
    """See op.py; without offsets, out [N, 1, D] gets the rows as they are."""
    place, (bags, features, width) = place_of(weight), out_BKD.shape
    sum_dtype = read_dtype(place.dtype)
    constants = {"DTYPE": DTYPES[place.dtype], "SUM": DTYPES[sum_dtype], **place.constants()}
    long = None if offsets_KB1 is None else _new_partials(len(rows_N), width, sum_dtype, rows_N.device)
    found = Bags(offsets_KB1, rows_N, coefficients_M, long, features, bags, place.pointers, constants)
    _sum_long(found)
    _pool(found, out_BKD)


def pool_grads(parts: Sequence[PooledGrad], inverse_N: Tensor, grads_UD: Tensor) -> None:
    """See op.py."""
    unique, width = grads_UD.shape
    found = group_values(parts, inverse_N, unique, width, grads_UD.dtype)
    _pool(found, grads_UD)


def group_values(parts: Sequence[PooledGrad], inverse_N: Tensor, unique: int, width: int, dtype: torch.dtype) -> Bags:
    """Bags of gradients, one for each unique row; of long ones the sums are there already."""
    device, count = inverse_N.device, len(inverse_N)
    counts_U1 = torch.zeros(unique + 1, dtype=torch.int32, device=device)
    grid = (max(triton.cdiv(count, BLOCK), 1),)
    if torch.are_deterministic_algorithms_enabled():
        rank_values[grid](inverse_N, counts_U1, None, count, BLOCK=BLOCK)
        # As int32, which are sorted in half the time of int64.
        ranks_N = torch.where(inverse_N < 0, unique, inverse_N).to(torch.int32).sort(stable=True).indices
        starts, starts_U1 = None, counts_U1.cumsum(0)
    else:
        ranks_N = torch.empty(count, dtype=torch.int32, device=device)
        rank_values[grid](inverse_N, counts_U1, ranks_N, count, BLOCK=BLOCK)
        starts = starts_U1 = counts_U1.cumsum(0)
    kept = [_lay_out(part) for part in parts]
    lines = [word for part in kept for word in _line(part)]
    sources_N = torch.empty(count, dtype=torch.int64, device=device)
    is_weighted = any(part.coefficients_M is not None for part in kept)
    coefficients_N = torch.empty(count, dtype=dtype, device=device) if is_weighted else None
    table = device_words(tuple(lines), device)
    arrays = table, len(kept), inverse_N, starts, ranks_N, sources_N, coefficients_N, count
    place_values[grid](*arrays, SUM=DTYPES[dtype], BLOCK=BLOCK)
    align = math.gcd(16, *(word for at in range(3) for word in lines[at :: PART.value])) or 16
    constants = {"DTYPE": DTYPES[dtype], "SUM": DTYPES[dtype], "WIDTH": width, "SHIFT": FLAT, "ALIGN": align}
    long = _new_partials(count, width, dtype, device)
    found = Bags(starts_U1[None], sources_N, coefficients_N, long, 1, unique, None, constants, kept)
    _sum_long(found)
    return found


def _lay_out(part: PooledGrad) -> PooledGrad:
    """With gradients whose columns follow each other."""
    grads, offsets, coefficients = part
    grads = grads if grads.shape[2] == 1 or grads.stride(2) == 1 else grads.contiguous()
    return PooledGrad(grads, offsets.contiguous(), None if coefficients is None else coefficients.contiguous())


def _line(part: PooledGrad) -> tuple[int, ...]:
    grads, offsets, coefficients = part
    size = grads.element_size()
    bag_step, feature_step = (grads.stride(axis) * size if grads.shape[axis] > 1 else 0 for axis in (0, 1))
    features, bounds = offsets.shape
    given = 0 if coefficients is None else coefficients.data_ptr()
    return grads.data_ptr(), bag_step, feature_step, offsets.data_ptr(), features, bounds - 1, given, 0


def _new_partials(values: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    if values <= LONG:
        return None
    return torch.empty(2 * triton.cdiv(values, LONG), width, dtype=dtype, device=device)


def _sum_long(found: Bags) -> None:
    """Sum up the bags that are longer than LONG."""
    if found.partials is None:
        return
    width = found.constants["WIDTH"]
    rows, columns = tile_of(width, ELEMENTS, MOST_COLUMNS)
    tile = {"LONG": LONG, "PROBES": PROBES, "TILE": rows, "COLUMNS": columns}
    grid = len(found.partials) // 2, triton.cdiv(width, columns)
    where = found.features, found.bags
    sum_chunks[grid](found.partials, found.offsets, found.sources, found.coefficients, found.pointers, *where,
                     **found.constants, **tile, **_OPTIONS)  # fmt: skip
    join_chunks[grid](found.partials, found.offsets, *where, SUM=found.constants["SUM"], WIDTH=width, **tile)


def _pool(found: Bags, out: Tensor) -> None:
    if out.numel() == 0:
        return
    width = found.constants["WIDTH"]
    rows, columns = tile_of(width, ELEMENTS, MOST_COLUMNS)
    assert found.features * found.bags < 2**31, "more bags than a kernel counts"
    grid = triton.cdiv(found.features * found.bags, rows), triton.cdiv(width, columns)
    arrays = found.offsets, found.sources, found.coefficients, found.partials, found.pointers
    pool_bags[grid](out, *arrays, found.features, found.bags, **found.constants, LONG=LONG, UNROLL=UNROLL, TILE=rows,
                    COLUMNS=columns, **_OPTIONS)  # fmt: skip


_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


def _listed() -> Iterator[Configuration]:
    names = {torch.float32: "fp32", torch.float64: "fp64", torch.int64: "i64"}
    shapes = [(torch.float32, 128, 12), (torch.bfloat16, 64, 12), (torch.float64, 10, FLAT), (torch.float16, 1000, 12),
              (torch.int32, 16, FLAT)]  # fmt: skip
    ints = {"features": "i32", "bags": "i32"}
    for dtype, width, shift in shapes:
        sum_dtype = read_dtype(dtype)
        total, wide = names[sum_dtype], width * dtype.itemsize % 16 == 0
        rows, columns = tile_of(width, ELEMENTS, MOST_COLUMNS)
        chunk = {"LONG": LONG, "PROBES": PROBES, "TILE": rows, "COLUMNS": columns}
        bag = {"LONG": LONG, "UNROLL": UNROLL, "TILE": rows, "COLUMNS": columns}
        of_rows = {"DTYPE": DTYPES[dtype], "SUM": DTYPES[sum_dtype], "WIDTH": width, "SHIFT": shift, "ALIGN": 16}
        of_grads = of_rows | {"DTYPE": DTYPES[sum_dtype], "SHIFT": FLAT, "pointers": None}
        lists = {"offsets": "*i64", "sources": "*i64", "partials": f"*{total}", **ints}
        weighted = {"coefficients": f"*{total}"} if sum_dtype.is_floating_point else {}
        unweighted = {} if weighted else {"coefficients": None}
        forward, out = lists | weighted | {"pointers": "*i64"}, {"out": f"*{total}"}
        yield Configuration(pool_bags, forward | out, of_rows | bag | unweighted, _OPTIONS, wide)
        yield Configuration(sum_chunks, forward, of_rows | chunk | unweighted, _OPTIONS, wide)
        one_each = {"out": f"*{total}", "sources": "*i64", "pointers": "*i64", **ints}
        missing = {"offsets": None, "coefficients": None, "partials": None}
        yield Configuration(pool_bags, one_each, of_rows | bag | missing, _OPTIONS, wide)
        if sum_dtype.is_floating_point:
            backward = {"out": f"*{total}", **lists}
            yield Configuration(pool_bags, backward, of_grads | bag | {"coefficients": None}, _OPTIONS, wide)
            yield Configuration(sum_chunks, lists, of_grads | chunk | {"coefficients": None}, _OPTIONS, wide)
        joins = {"SUM": DTYPES[sum_dtype], "WIDTH": width, **chunk}
        yield Configuration(join_chunks, {"partials": f"*{total}", "offsets": "*i64", **ints}, joins, {}, wide)
    ranked = {"inverse": "*i64", "counts": "*i32", "count": "i32"}
    yield Configuration(rank_values, ranked | {"ranks": "*i32"}, {"BLOCK": BLOCK})
    yield Configuration(rank_values, ranked, {"BLOCK": BLOCK, "ranks": None})
    placed = {"parts": "*i64", "part_count": "i32", "inverse": "*i64", "sources": "*i64", "count": "i32"}
    ways: list[tuple[dict[str, str], dict[str, None]]] = [
        ({"starts": "*i64", "ranks": "*i32"}, {}), ({"ranks": "*i64"}, {"starts": None})
    ]  # fmt: skip
    for way, without in ways:
        for dtype in (torch.float32, torch.float64):
            constants = {"SUM": DTYPES[dtype], "BLOCK": BLOCK, **without}
            given = {"coefficients": f"*{names[dtype]}"}
            yield Configuration(place_values, placed | way | given, constants)
            yield Configuration(place_values, placed | way, constants | {"coefficients": None})


CONFIGURATIONS = tuple(_listed())
