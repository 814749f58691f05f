"""Mixing of 64-bit words in plain torch: the definition of how ids spread, and of random bits that depend on them."""

from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: steps of it spread evenly over the 64-bit words
_MULTIPLIERS = (0xFF51AFD7ED558CCD - 2**64, 0xC4CEB9FE1A85EC53 - 2**64)  # as int64, whose product wraps alike


def mix64(ids: Tensor) -> Tensor:
    """Spread ids over all 64 bits: mix64([0, 1]) -> [0, -5451962507482445012], as unsigned 0xb456bcfc34c2cb2c.

    A bijection on 64-bit words: the finaliser of MurmurHash3 (fmix64). ``ids`` is int64 of any shape; the result holds
    the bits of the unsigned word as int64.
    """
    mixed = ids
    for multiplier in _MULTIPLIERS:
        mixed = (mixed ^ shift_right(mixed, 33)) * multiplier
    return mixed ^ shift_right(mixed, 33)


def unmix64(mixed: Tensor) -> Tensor:
    """The ids that mix64 mixed: unmix64(mix64(ids)) == ids. Same dtype and shape."""
    ids = mixed ^ shift_right(mixed, 33)  # shifting by more than 32 bits is its own inverse
    for multiplier in reversed(_MULTIPLIERS):
        inverse = pow(multiplier, -1, 2**64)
        ids = ids * (inverse - 2**64 if inverse >= 2**63 else inverse)
        ids = ids ^ shift_right(ids, 33)
    return ids


def shift_right(words: Tensor, bits: int) -> Tensor:
    """Shift as unsigned: torch's >> copies the sign into the top bits, which are masked away."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)
