"""Kinds of transforms of a feature's values."""

from dataclasses import dataclass
from typing import ClassVar, get_args


@dataclass(frozen=True, kw_only=True)
class Log1p:
    """log(1 + x); negative x below -1 is an error at the batch that holds it."""

    kind: ClassVar[str] = "log1p"


@dataclass(frozen=True, kw_only=True)
class Clip:
    """min(max(x, low), high); one bound may be left out."""

    kind: ClassVar[str] = "clip"
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Modulo:
    """id mod divisor, the id read as unsigned 64-bit: -1 mod 10 is 5, since 2^64 - 1 ends in 5."""

    kind: ClassVar[str] = "modulo"
    divisor: int


@dataclass(frozen=True, kw_only=True)
class Bucketize:
    """How many boundaries are <= x, as torch.bucketize(right=True): boundaries [0, 10], x = 10 -> 2. Gives ids."""

    kind: ClassVar[str] = "bucketize"
    boundaries: tuple[float, ...]


Transform = Log1p | Clip | Modulo | Bucketize


TRANSFORMS: dict[str, type] = {cls.kind: cls for cls in get_args(Transform)}
