"""What the transforms mean, column by column, in plain torch.

N values of a column, M boundaries or knots of it, J hashes of it. Unsigned 64-bit arithmetic is written out on int64,
which wraps: torch computes little on uint64.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

K2 = 0x9AE16A3B2F90404F
MURMUR_M = 0xC6A4A7935BD1E995
XXH1, XXH2, XXH3, XXH4, XXH5 = (
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
    0x27D4EB2F165667C5,
)


def signed(value: int) -> int:
    """The int64 of the same 64 bits: 2^64 - 1 -> -1."""
    value &= (1 << 64) - 1
    return value - (value >> 63 << 64)


def shift_right(words: Tensor, bits: int) -> Tensor:
    """Shift right as unsigned numbers."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def rotate(words: Tensor, bits: int) -> Tensor:
    """Rotate right."""
    return shift_right(words, bits) | (words << (64 - bits))


def _fold(words: Tensor) -> Tensor:
    return words ^ shift_right(words, 47)


def murmur(words: Sequence[Tensor]) -> Tensor:
    """MurmurHash64A with seed 0 of the bytes of words, one behind the other."""
    value = torch.full_like(words[0], signed(8 * len(words) * MURMUR_M))
    for word in words:
        value = (value ^ (_fold(word * signed(MURMUR_M)) * signed(MURMUR_M))) * signed(MURMUR_M)
    return _fold(_fold(value) * signed(MURMUR_M))


def _farm(word: Tensor) -> Tensor:
    """FarmHash Fingerprint64 of 8 bytes."""
    multiplier = signed(K2 + 16)
    a, b = word + signed(K2), word
    c = rotate(b, 37) * multiplier + a
    d = (rotate(a, 25) + b) * multiplier
    first = _fold((c ^ d) * multiplier)
    return _fold((d ^ first) * multiplier) * multiplier


def _xxh64(word: Tensor) -> Tensor:
    """XXH64 with seed 0 of 8 bytes."""
    value = rotate(word * signed(XXH2), 64 - 31) * signed(XXH1) ^ signed(XXH5 + 8)
    value = rotate(value, 64 - 27) * signed(XXH1) + signed(XXH4)
    value = (value ^ shift_right(value, 33)) * signed(XXH2)
    value = (value ^ shift_right(value, 29)) * signed(XXH3)
    return value ^ shift_right(value, 32)


HASHES = {"farm": _farm, "murmur": lambda word: murmur([word]), "xxh64": _xxh64}


def hash_ids(ids: Tensor, kind: str) -> Tensor:
    """The hash of each id's 8 bytes."""
    return HASHES[kind](ids)


def modulo(values: Tensor, divisor: int) -> Tensor:
    """Each value, read as unsigned, modulo a divisor."""
    # A negative int64 stands for itself + 2^64. Both remainders are below the divisor, which is below 2^63: where their
    # sum is not, one divisor too many is taken off before adding, so that nothing overflows.
    remainders, wrap = values.remainder(divisor), 2**64 % divisor
    wrapped = torch.where(remainders >= divisor - wrap, remainders - (divisor - wrap), remainders + wrap)
    return torch.where(values < 0, wrapped, remainders)


def multi_hash(ids: Tensor, hashes: Sequence[tuple[int, int, int, int]]) -> Tensor:
    """J hashes of each id, one behind the other [N * J]: (id * multiplier mod prime) mod buckets + shift."""
    parts = [
        (ids * multiplier).remainder(prime).remainder(buckets) + shift for multiplier, prime, buckets, shift in hashes
    ]
    return torch.stack(parts, 1).flatten()


def vocabulary(ids: Tensor, sorted_ids: Tensor, places: Tensor, unknown: int) -> Tensor:
    """The place of each id in a list, given sorted with places; others by hash behind the list, or -1 where 0."""
    others = modulo(hash_ids(ids, "murmur"), unknown) + len(places) if unknown else torch.full_like(ids, -1)
    if not len(places):
        return others
    at = torch.searchsorted(sorted_ids, ids).clamp(max=len(places) - 1)
    return torch.where(sorted_ids[at] == ids, places[at], others)


def bucketize(values: Tensor, boundaries: Tensor) -> Tensor:
    """How many boundaries each value reaches."""
    return torch.bucketize(values, boundaries, right=True)


def clip(values: Tensor, low: float | None, high: float | None) -> Tensor:
    """Each value, no lower and no higher than bounds."""
    return values.clamp(low, high)


def standardize(values: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(value - shift) / scale, each step rounded to float32."""
    return (values - shift) / scale


def quantile(values: Tensor, knots: Tensor) -> Tensor:
    """The share of values below each, by straight lines between knots, computed in float64."""
    last = len(knots) - 1
    above = torch.bucketize(values, knots, right=True)
    below = torch.bucketize(values, knots, right=False)
    left = (above - 1).clamp(0, last - 1)
    low, high = knots[left].double(), knots[left + 1].double()
    between = left + (values.double() - low) / (high - low)
    # On a knot, or on several equal ones: the middle of their shares; outside all, the first or the last.
    on_knots = (below + above - 1) / 2
    inside = (above > 0) & (above <= last) & (above == below)
    outside = torch.where(above == 0, 0.0, float(last))
    places = torch.where(above != below, on_knots, torch.where(inside, between, outside))
    return torch.where(values.isnan(), values, (places / last).float())
