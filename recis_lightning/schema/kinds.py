"""Kinds of first values of rows, each a declaration of its own."""

import math
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


@dataclass(frozen=True, kw_only=True)
class XavierUniform:
    """Uniform in [-b, b), b = gain * sqrt(3 / D), for rows of width D: b = .433 for D = 16.

    A row has the weights of one unit: its fan in and fan out both count as D, in the formula of
    torch.nn.init.xavier_uniform_ (Glorot and Bengio 2010). How many rows a table has does not matter, for it grows.
    """

    kind: ClassVar[str] = "xavier_uniform"
    gain: float = 1.0

    def drawn_as(self, dim: int) -> Uniform:
        return _uniform(self.gain, dim)


@dataclass(frozen=True, kw_only=True)
class XavierNormal:
    """Normal with mean 0 and std = gain / sqrt(D) for rows of width D, as `XavierUniform` counts fans: .25 for 16."""

    kind: ClassVar[str] = "xavier_normal"
    gain: float = 1.0

    def drawn_as(self, dim: int) -> Normal:
        return Normal(std=self.gain / math.sqrt(dim))


@dataclass(frozen=True, kw_only=True)
class KaimingUniform:
    """Uniform in [-b, b), b = gain * sqrt(3 / D), gain = sqrt(2 / (1 + negative_slope^2)): b = .612 for D = 16.

    The fan is the row width D, in the formula of torch.nn.init.kaiming_uniform_ for leaky ReLUs (He et al. 2015).
    """

    kind: ClassVar[str] = "kaiming_uniform"
    negative_slope: float = 0.0

    def drawn_as(self, dim: int) -> Uniform:
        return _uniform(_leaky_gain(self.negative_slope), dim)


@dataclass(frozen=True, kw_only=True)
class KaimingNormal:
    """Normal with mean 0 and std = gain / sqrt(D), gain and fan as for `KaimingUniform`: std = .354 for D = 16."""

    kind: ClassVar[str] = "kaiming_normal"
    negative_slope: float = 0.0

    def drawn_as(self, dim: int) -> Normal:
        return Normal(std=_leaky_gain(self.negative_slope) / math.sqrt(dim))


def _uniform(gain: float, dim: int) -> Uniform:
    bound = gain * math.sqrt(3 / dim)
    return Uniform(low=-bound, high=bound)


def _leaky_gain(negative_slope: float) -> float:
    return math.sqrt(2 / (1 + negative_slope**2))


Initializer = (
    Constant | Uniform | Normal | TruncatedNormal | XavierUniform | XavierNormal | KaimingUniform | KaimingNormal
)


INITIALIZERS: dict[str, type] = {cls.kind: cls for cls in get_args(Initializer)} | {"zeros": Constant}
