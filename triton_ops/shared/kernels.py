"""Parts of kernels: where rows lie, random bits, arithmetic that is rounded as on the CPU, searches.

None but the last is launched by itself. Random bits are those that `triton_ops.shared.reference.mix64`
and `triton_ops.row_update.rounding` define, so that a row has the same values on every device.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_ops.launches import Configuration
from triton_ops.places import FLAT as _FLAT
from triton_ops.shared.reference import GOLDEN as _GOLDEN

FLAT = tl.constexpr(_FLAT)
GOLDEN = tl.constexpr(_GOLDEN)

DTYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.int8: tl.int8,
    torch.int32: tl.int32,
    torch.int64: tl.int64,
}
"""How kernels name what torch names."""


@triton.jit
def row_pointers(pointers, rows, DTYPE: tl.constexpr, WIDTH: tl.constexpr, SHIFT: tl.constexpr, ALIGN: tl.constexpr):
    """Where rows begin. ``rows`` is int64 and not negative, 0 where nothing will be loaded."""
    if SHIFT == FLAT:
        blocks = tl.load(pointers) + rows * 0
    else:
        blocks = tl.load(pointers + (rows >> SHIFT))
    # The hint must be on pointers: one on the int64 is lost, and loads fall to 4 bytes.
    begins = tl.multiple_of(blocks.to(tl.pointer_type(DTYPE)), ALIGN)
    return begins + (rows & ((1 << SHIFT) - 1)) * WIDTH


@triton.jit
def mix64(word):
    """`triton_ops.shared.reference.mix64` of uint64."""
    word = (word ^ (word >> 33)) * 0xFF51AFD7ED558CCD
    word = (word ^ (word >> 33)) * 0xC4CEB9FE1A85EC53
    return word ^ (word >> 33)


@triton.jit
def random_start(ids, keys):
    """What an id's random bits begin with; both are int64, ``keys`` for seed, table and what else tells them apart."""
    return mix64(mix64(ids.to(tl.uint64, bitcast=True)) ^ keys.to(tl.uint64, bitcast=True))


@triton.jit
def random_words(starts, columns):
    """64 random bits for each id [T, 1] and column [1, D], uint64."""
    return mix64(starts + (columns + 1).to(tl.uint64) * GOLDEN)


@triton.jit
def root(number):
    """The square root, rounded to the nearest."""
    if number.dtype == tl.float64:
        result = tl.sqrt(number)
    else:
        result = tl.sqrt_rn(number)
    return result


@triton.jit
def quotient(number, divisor):
    """number / divisor, rounded to the nearest."""
    if number.dtype == tl.float64:
        result = number / divisor
    else:
        result = tl.div_rn(number, divisor)
    return result


@triton.jit
def stochastic(number, words, PART: tl.constexpr, DTYPE: tl.constexpr):
    """A float32 in DTYPE, rounded up or down by 16 bits of ``words``: see triton_ops.row_update.rounding."""
    if DTYPE == tl.bfloat16:
        added = ((words >> (16 * PART)) & 0xFFFF).to(tl.uint32)
        rounded = (number.to(tl.uint32, bitcast=True) + added) >> 16
        rounded = tl.where(number == number, rounded, 0x7FC0)
        result = rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    elif DTYPE == tl.float16:
        added = ((words >> (16 * PART)) & 0xFFFF).to(tl.uint32)
        pattern = number.to(tl.uint32, bitcast=True)
        magnitude = tl.abs(number)
        above = (pattern & 0x7FFFFFFF) + (added & 0x1FFF)
        small = tl.where(magnitude < 1.0, magnitude, 0.0).to(tl.float64)
        scaled = (small * 16777216.0 + added.to(tl.float64) * 0.0000152587890625).to(tl.uint32)
        found = tl.where(magnitude < 0.00006103515625, scaled, (above >> 13) - 114688)
        found = tl.where(above >= 0x47800000, 0x7C00, found)
        found = tl.where(number == number, found, 0x7E00) | ((pattern >> 16) & 0x8000)
        result = found.to(tl.uint16).to(tl.float16, bitcast=True)
    else:
        result = number.to(DTYPE)
    return result


@triton.jit
def last_at_most(rising, count, value, PROBES: tl.constexpr):
    """The place of the last of ``count`` numbers that is at most ``value``, -1 where all are above it; scalars.

    Asks for PROBES numbers at a time: a fifth of the steps of a search by halves, each of which waits for memory.
    """
    lane = tl.arange(0, PROBES).to(tl.int64)
    left = count.to(tl.int64)
    at = left * 0 - 1
    while left > 0:
        step = (left + PROBES - 1) // PROBES
        is_there = lane * step < left
        probes = tl.load(rising + at + 1 + lane * step, mask=is_there, other=0)
        hits = tl.sum((is_there & (probes <= value)).to(tl.int64))
        passed = (hits - 1) * step
        left = tl.where(hits == 0, 0, tl.minimum(step - 1, left - passed - 1))
        at = tl.where(hits == 0, at, at + 1 + passed)
    return at


@triton.jit
def load_values(i, is_value, sources, coefficients, pointers, first, columns, is_column, DTYPE: tl.constexpr,
                 SUM: tl.constexpr, WIDTH: tl.constexpr, SHIFT: tl.constexpr, ALIGN: tl.constexpr):  # fmt: skip
    """What the values numbered i add to their bags, [I, COLUMNS]."""
    source = tl.load(sources + i, mask=is_value, other=0)
    if pointers is None:
        begins = tl.multiple_of(source.to(tl.pointer_type(DTYPE)), ALIGN)
    else:
        begins = row_pointers(pointers, source, DTYPE, WIDTH, SHIFT, ALIGN)
    mask = is_value[:, None] & is_column[None, :]
    numbers = tl.load(begins[:, None] + columns[None, :], mask=mask, other=0).to(SUM)
    if coefficients is not None:
        numbers = numbers * tl.load(coefficients + (i - first), mask=is_value, other=0)[:, None]
    return numbers


@triton.jit
def sum_bags(begin, length, sources, coefficients, partials, pointers, first, columns, is_column, DTYPE: tl.constexpr,
             SUM: tl.constexpr, WIDTH: tl.constexpr, SHIFT: tl.constexpr, ALIGN: tl.constexpr, LONG: tl.constexpr,
             UNROLL: tl.constexpr):  # fmt: skip
    """The sums of bags that begin at values ``begin`` and have ``length``, [T, COLUMNS]."""
    is_long = (length > LONG) & (partials is not None)
    short = tl.where(is_long, 0, length)
    longest = tl.max(short)
    total = tl.zeros([begin.shape[0], columns.shape[0]], SUM)
    done = longest * 0
    while done < longest:
        for ahead in tl.static_range(UNROLL):
            is_value = done + ahead < short
            total += load_values(begin + done + ahead, is_value, sources, coefficients, pointers, first, columns,
                                  is_column, DTYPE, SUM, WIDTH, SHIFT, ALIGN)  # fmt: skip
        done += UNROLL
    if partials is not None:
        if tl.max(is_long.to(tl.int32)) > 0:
            places = (2 * (begin // LONG) + 1)[:, None] * WIDTH + columns[None, :]
            total += tl.load(partials + places, mask=is_long[:, None] & is_column[None, :], other=0)
    return total


@triton.jit(do_not_specialize=("w0", "w1", "w2", "w3", "w4", "w5", "w6", "w7"))
def write_words(out, w0: tl.int64, w1: tl.int64, w2: tl.int64, w3: tl.int64, w4: tl.int64, w5: tl.int64, w6: tl.int64,
                w7: tl.int64):  # fmt: skip
    """Write 8 numbers that are arguments, and so part of a graph that has captured the launch."""
    tl.store(out + 0, w0)
    tl.store(out + 1, w1)
    tl.store(out + 2, w2)
    tl.store(out + 3, w3)
    tl.store(out + 4, w4)
    tl.store(out + 5, w5)
    tl.store(out + 6, w6)
    tl.store(out + 7, w7)


def device_words(words: tuple[int, ...], device: torch.device) -> Tensor:
    """int64 numbers, a multiple of 8, on a device: written by kernels, since a copy from memory that nobody keeps could
    not be captured in a graph. The same numbers are written once, for the addresses of one step are often the last's.
    """
    if device.type != "cuda":
        return _kept_words(words, device, 0)
    if torch.cuda.is_current_stream_capturing():
        return _write_words(words, device)  # a graph's memory holds them only after it has run
    return _kept_words(words, device, torch.cuda.current_stream(device).cuda_stream)


@functools.lru_cache(256)
def _kept_words(words: tuple[int, ...], device: torch.device, stream: int) -> Tensor:
    # For a stream of their own: another one might read them before they are written.
    return _write_words(words, device)


def _write_words(words: tuple[int, ...], device: torch.device) -> Tensor:
    if device.type == "cpu":
        return torch.tensor(words, dtype=torch.int64)
    out = torch.empty(len(words), dtype=torch.int64, device=device)
    for begin in range(0, len(words), 8):
        write_words[(1,)](out[begin:], *words[begin : begin + 8])
    return out


CONFIGURATIONS = (Configuration(write_words, {"out": "*i64"} | {f"w{place}": "i64" for place in range(8)}, {}),)
