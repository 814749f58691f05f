"""The transforms as Triton kernels: one launch for all columns, a program for each block of one column's values.

A program reads its column's row of the table (address of values, how many, address of results) and loops over nothing
but its own search. Columns are never joined. Arithmetic equals the reference bit for bit; division of floats is the
correctly rounded one.

K columns, M boundaries, knots or listed ids of all columns, of which column k owns splits[k] : splits[k + 1].
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_ops.columns import describe
from triton_ops.launches import Configuration
from triton_ops.transform import reference

BLOCK = 512
K2 = tl.constexpr(reference.K2)
K2_16 = tl.constexpr(reference.K2 + 16)
MURMUR_M = tl.constexpr(reference.MURMUR_M)
MURMUR_8 = tl.constexpr(8 * reference.MURMUR_M & (1 << 64) - 1)
X1, X2, X3, X4 = (
    tl.constexpr(constant) for constant in (reference.XXH1, reference.XXH2, reference.XXH3, reference.XXH4)
)
X5_8 = tl.constexpr(reference.XXH5 + 8)


@triton.jit
def _places(table, BLOCK: tl.constexpr):
    """A program's places in its column, and which of them there are."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return places, places < tl.load(table + 3 * tl.program_id(1) + 1)


@triton.jit
def _load_ids(table, BLOCK: tl.constexpr):
    places, exists = _places(table, BLOCK)
    source = tl.load(table + 3 * tl.program_id(1)).to(tl.pointer_type(tl.int64))
    return tl.load(source + places, mask=exists, other=0)


@triton.jit
def _load_floats(table, BLOCK: tl.constexpr):
    places, exists = _places(table, BLOCK)
    source = tl.load(table + 3 * tl.program_id(1)).to(tl.pointer_type(tl.float32))
    return tl.load(source + places, mask=exists, other=0.0)


@triton.jit
def _store_ids(table, values, BLOCK: tl.constexpr):
    places, exists = _places(table, BLOCK)
    target = tl.load(table + 3 * tl.program_id(1) + 2).to(tl.pointer_type(tl.int64))
    tl.store(target + places, values, mask=exists)


@triton.jit
def _store_floats(table, values, BLOCK: tl.constexpr):
    places, exists = _places(table, BLOCK)
    target = tl.load(table + 3 * tl.program_id(1) + 2).to(tl.pointer_type(tl.float32))
    tl.store(target + places, values, mask=exists)


@triton.jit
def _fold(word):
    return word ^ (word >> 47)


@triton.jit
def _rotate(word, BITS: tl.constexpr):
    return (word >> BITS) | (word << (64 - BITS))


@triton.jit
def _murmur(word):
    value = (MURMUR_8 ^ (_fold(word * MURMUR_M) * MURMUR_M)) * MURMUR_M
    return _fold(_fold(value) * MURMUR_M)


@triton.jit
def _farm(word):
    a = word + K2
    c = _rotate(word, 37) * K2_16 + a
    d = (_rotate(a, 25) + word) * K2_16
    first = _fold((c ^ d) * K2_16)
    return _fold((d ^ first) * K2_16) * K2_16


@triton.jit
def _xxh64(word):
    value = _rotate(_rotate(word * X2, 33) * X1 ^ X5_8, 37) * X1 + X4
    value = (value ^ (value >> 33)) * X2
    value = (value ^ (value >> 29)) * X3
    return value ^ (value >> 32)


@triton.jit
def hash_ids(table, kinds, BLOCK: tl.constexpr):
    """See reference.py; kinds are 0 farm, 1 murmur, 2 xxh64."""
    word = _load_ids(table, BLOCK).to(tl.uint64, bitcast=True)
    kind = tl.load(kinds + tl.program_id(1))
    if kind == 0:
        hashed = _farm(word)
    elif kind == 1:
        hashed = _murmur(word)
    else:
        hashed = _xxh64(word)
    _store_ids(table, hashed.to(tl.int64, bitcast=True), BLOCK)


@triton.jit
def modulo(table, divisors, BLOCK: tl.constexpr):
    """See reference.py."""
    divisor = tl.load(divisors + tl.program_id(1)).to(tl.uint64, bitcast=True)
    remainder = _load_ids(table, BLOCK).to(tl.uint64, bitcast=True) % divisor
    _store_ids(table, remainder.to(tl.int64, bitcast=True), BLOCK)


@triton.jit
def multi_hash(table, hashes, splits, BLOCK: tl.constexpr):
    """See reference.py; `%` truncates here, so that negative remainders get the prime back."""
    ids = _load_ids(table, BLOCK)
    places, exists = _places(table, BLOCK)
    target = tl.load(table + 3 * tl.program_id(1) + 2).to(tl.pointer_type(tl.int64))
    first, last = tl.load(splits + tl.program_id(1)), tl.load(splits + tl.program_id(1) + 1)
    for h in range(first, last):
        prime = tl.load(hashes + 4 * h + 1)
        remainder = (ids * tl.load(hashes + 4 * h)) % prime
        remainder = tl.where(remainder < 0, remainder + prime, remainder)
        hashed = remainder % tl.load(hashes + 4 * h + 2) + tl.load(hashes + 4 * h + 3)
        tl.store(target + places * (last - first) + (h - first), hashed, mask=exists)


@triton.jit
def _count_below(sorted_values, first, size, values, STEPS: tl.constexpr, STRICT: tl.constexpr):
    """How many of sorted_values[first : first + size] are <= values, or < with STRICT. The halves are scalars."""
    base = tl.zeros_like(values).to(tl.int64)
    left = size
    for _ in tl.static_range(STEPS):
        half = left // 2
        probe = tl.load(sorted_values + first + base + half - 1, mask=(base >= 0) & (half > 0), other=0)
        below = probe < values if STRICT else probe <= values
        base = tl.where(below & (half > 0), base + half, base)
        left -= half
    probe = tl.load(sorted_values + first + base, mask=(base >= 0) & (size > 0), other=0)
    below = probe < values if STRICT else probe <= values
    return base + (below & (size > 0)).to(tl.int64)


@triton.jit
def vocabulary(table, sorted_ids, places_of, splits, unknown, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    """See reference.py."""
    ids = _load_ids(table, BLOCK)
    first = tl.load(splits + tl.program_id(1))
    size = tl.load(splits + tl.program_id(1) + 1) - first
    at = _count_below(sorted_ids, first, size, ids, STEPS, False) - 1
    found = tl.load(sorted_ids + first + at, mask=at >= 0, other=0)
    place = tl.load(places_of + first + at, mask=at >= 0, other=0)
    others = tl.load(unknown + tl.program_id(1))
    # No division by 0, which is undefined: where there are no others, the result is -1 anyway.
    by_hash = _murmur(ids.to(tl.uint64, bitcast=True)) % tl.maximum(others, 1).to(tl.uint64, bitcast=True)
    missing = tl.where(others == 0, -1, size + by_hash.to(tl.int64, bitcast=True))
    _store_ids(table, tl.where((at >= 0) & (found == ids), place, missing), BLOCK)


@triton.jit
def bucketize_floats(table, boundaries, splits, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    """See reference.py."""
    values = _load_floats(table, BLOCK)
    first = tl.load(splits + tl.program_id(1))
    size = tl.load(splits + tl.program_id(1) + 1) - first
    below = _count_below(boundaries, first, size, values, STEPS, False)
    _store_ids(table, tl.where(values != values, size, below), BLOCK)


@triton.jit
def bucketize_integers(table, boundaries, splits, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    """See reference.py."""
    first = tl.load(splits + tl.program_id(1))
    size = tl.load(splits + tl.program_id(1) + 1) - first
    _store_ids(table, _count_below(boundaries, first, size, _load_ids(table, BLOCK), STEPS, False), BLOCK)


@triton.jit
def clip_floats(table, bounds, BLOCK: tl.constexpr):
    """See reference.py; NaN is neither below nor above, and stays."""
    values = _load_floats(table, BLOCK)
    low, high = tl.load(bounds + 2 * tl.program_id(1)), tl.load(bounds + 2 * tl.program_id(1) + 1)
    values = tl.where(values < low, low, values)
    _store_floats(table, tl.where(values > high, high, values), BLOCK)


@triton.jit
def clip_integers(table, bounds, BLOCK: tl.constexpr):
    """See reference.py."""
    values = _load_ids(table, BLOCK)
    low, high = tl.load(bounds + 2 * tl.program_id(1)), tl.load(bounds + 2 * tl.program_id(1) + 1)
    values = tl.where(values < low, low, values)
    _store_ids(table, tl.where(values > high, high, values), BLOCK)


@triton.jit
def standardize(table, shift_scale, BLOCK: tl.constexpr):
    """See reference.py."""
    shift, scale = tl.load(shift_scale + 2 * tl.program_id(1)), tl.load(shift_scale + 2 * tl.program_id(1) + 1)
    moved = _load_floats(table, BLOCK) - shift
    _store_floats(table, tl.div_rn(moved, tl.zeros_like(moved) + scale), BLOCK)


@triton.jit
def quantile(table, knots, splits, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    """See reference.py."""
    values = _load_floats(table, BLOCK)
    first = tl.load(splits + tl.program_id(1))
    size = tl.load(splits + tl.program_id(1) + 1) - first
    last = size - 1
    above = _count_below(knots, first, size, values, STEPS, False)
    below = _count_below(knots, first, size, values, STEPS, True)
    inside = (above == below) & (above > 0) & (above <= last)
    left = tl.where(inside, above - 1, 0)
    low = tl.load(knots + first + left, mask=inside, other=0.0).to(tl.float64)
    high = tl.load(knots + first + left + 1, mask=inside, other=1.0).to(tl.float64)
    between = left.to(tl.float64) + (values.to(tl.float64) - low) / (high - low)
    outside = tl.where(above == 0, 0, last).to(tl.float64)
    on_knots = (below + above - 1).to(tl.float64) / 2.0
    places = tl.where(above != below, on_knots, tl.where(inside, between, outside))
    shares = (places / last.to(tl.float64)).to(tl.float32)
    _store_floats(table, tl.where(values != values, values, shares), BLOCK)


SEARCHES = {"vocabulary": 2, "bucketize_floats": 1, "bucketize_integers": 1, "quantile": 1}  # where the splits are


def launch(name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], parameters: Sequence[Any]) -> None:
    """Run the kernel of this name once for all columns."""
    longest = max(values.numel() for values in inputs)
    if not longest:
        return
    device = inputs[0].device
    tensors = [_to_device(each, device) for each in (describe(inputs, outputs), *parameters)]
    options = {"BLOCK": BLOCK}
    if name in SEARCHES:
        options["STEPS"] = steps_for(parameters[SEARCHES[name]])
    globals()[name][(triton.cdiv(longest, BLOCK), len(inputs))](*tensors, **options)


def steps_for(splits: Any) -> int:
    """Halvings that narrow the longest list down to one: lists of 1, 2, 3, 8 -> 0, 1, 2, 3; rounded up to even."""
    longest = max(1, int(np.diff(splits).max()))
    steps = (longest - 1).bit_length()
    return steps + steps % 2  # fewer kernels to compile; a halving of one changes nothing


def _to_device(parameter: Any, device: torch.device) -> Tensor:
    if isinstance(parameter, Tensor):
        return parameter
    tensor = torch.from_numpy(parameter)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _listed(kernel: Any, **parameters: str) -> Configuration:
    constants = {"BLOCK": BLOCK} | ({"STEPS": 6} if kernel.__name__ in SEARCHES else {})
    return Configuration(kernel, {"table": "*i64", **parameters}, constants)


CONFIGURATIONS = (
    _listed(hash_ids, kinds="*i64"),
    _listed(modulo, divisors="*i64"),
    _listed(multi_hash, hashes="*i64", splits="*i64"),
    _listed(vocabulary, sorted_ids="*i64", places_of="*i64", splits="*i64", unknown="*i64"),
    _listed(bucketize_floats, boundaries="*fp32", splits="*i64"),
    _listed(bucketize_integers, boundaries="*i64", splits="*i64"),
    _listed(clip_floats, bounds="*fp32"),
    _listed(clip_integers, bounds="*i64"),
    _listed(standardize, shift_scale="*fp32"),
    _listed(quantile, knots="*fp32", splits="*i64"),
)
