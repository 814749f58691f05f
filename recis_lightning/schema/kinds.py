"""Kinds of first values of rows, each a declaration of its own."""

from dataclasses import dataclass
from typing import ClassVar, get_args


@dataclass(frozen=True, kw_only=True)
class Constant:
    """Every first value is ``value``; `zeros` is its default."""

    kind: ClassVar[str] = "constant"
    value: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """First values uniform in [low, high)."""

    kind: ClassVar[str] = "uniform"
    low: float = -0.05
    high: float = 0.05


@dataclass(frozen=True, kw_only=True)
class Normal:
    """First values normal with ``mean`` and ``std``."""

    kind: ClassVar[str] = "normal"
    mean: float = 0.0
    std: float = 0.05


@dataclass(frozen=True, kw_only=True)
class TruncatedNormal:
    """Normal first values, conditioned on [mean + low * std, mean + high * std]."""

    kind: ClassVar[str] = "truncated_normal"
    mean: float = 0.0
    std: float = 0.05
    low: float = -2.0
    high: float = 2.0


Initializer = Constant | Uniform | Normal | TruncatedNormal


INITIALIZERS: dict[str, type] = {cls.kind: cls for cls in get_args(Initializer)} | {"zeros": Constant}
