"""Kinds of sparse optimizers and of first values of rows, each a declaration of its own."""

from dataclasses import dataclass
from typing import ClassVar, get_args


@dataclass(frozen=True, kw_only=True)
class Sgd:
    """weight -= lr * grad."""

    kind: ClassVar[str] = "sgd"
    lr: float = 0.01


@dataclass(frozen=True, kw_only=True)
class Adagrad:
    """sum += grad^2; weight -= lr * grad / (sqrt(sum) + eps), as torch.optim.Adagrad."""

    kind: ClassVar[str] = "adagrad"
    lr: float = 0.01
    eps: float = 1e-10
    initial_accumulator_value: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RowwiseAdagrad:
    """Adagrad with one accumulator a row: sum += mean(grad^2)."""

    kind: ClassVar[str] = "rowwise_adagrad"
    lr: float = 0.01
    eps: float = 1e-10
    initial_accumulator_value: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Adam:
    """weight -= lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps) on touched rows, as torch.optim.SparseAdam."""

    kind: ClassVar[str] = "adam"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """`Adam` after weight *= 1 - lr * weight_decay, touched rows only."""

    kind: ClassVar[str] = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2


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


SparseOptimizer = Sgd | Adagrad | RowwiseAdagrad | Adam | AdamW
Initializer = Constant | Uniform | Normal | TruncatedNormal


OPTIMIZERS: dict[str, type] = {cls.kind: cls for cls in get_args(SparseOptimizer)}
INITIALIZERS: dict[str, type] = {cls.kind: cls for cls in get_args(Initializer)} | {"zeros": Constant}
