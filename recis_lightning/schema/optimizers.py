"""Kinds of sparse optimizers, each a declaration of its own.

    tables:
      - {name: user, dim: 16, optimizer: {kind: adamw, lr: 1e-3, weight_decay: 1e-2}}
      - {name: item, dim: 16, optimizer: {kind: adagrad, lr: 0.05, schedule: {warmup_steps: 1000}}}
      - {name: tag, dim: 16, dtype: bfloat16, optimizer: {kind: adam, state_dtype: bfloat16}}

Only rows that a batch looks up change. `rule` is the arithmetic of `triton_ops.row_update` that a declaration asks for;
tables of one rule, width and dtypes are updated in one call.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from recis_lightning.schema.schedules import Schedule
from recis_lightning.schema.schedules import find_mistakes as find_schedule_mistakes

StateDtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Sgd:
    """weight -= lr * grad; with momentum, buffer = momentum * buffer + grad and weight -= lr * buffer, as torch's SGD.

    nesterov takes grad + momentum * buffer in the place of buffer.
    """

    kind: ClassVar[str] = "sgd"
    lr: float = 0.01
    momentum: float = 0.0
    nesterov: bool = False
    schedule: Schedule | None = None
    state_dtype: StateDtype | None = None

    @property
    def rule(self) -> str:
        return "momentum" if self.momentum else "sgd"


@dataclass(frozen=True, kw_only=True)
class Adagrad:
    """sum += grad^2; weight -= lr * grad / (sqrt(sum) + eps), as torch.optim.Adagrad."""

    kind: ClassVar[str] = "adagrad"
    rule: ClassVar[str] = "adagrad"
    lr: float = 0.01
    eps: float = 1e-10
    initial_accumulator_value: float = 0.0
    schedule: Schedule | None = None
    state_dtype: StateDtype | None = None


@dataclass(frozen=True, kw_only=True)
class RowwiseAdagrad:
    """Adagrad with one accumulator a row: sum += mean(grad^2)."""

    kind: ClassVar[str] = "rowwise_adagrad"
    rule: ClassVar[str] = "rowwise_adagrad"
    lr: float = 0.01
    eps: float = 1e-10
    initial_accumulator_value: float = 0.0
    schedule: Schedule | None = None
    state_dtype: StateDtype | None = None


@dataclass(frozen=True, kw_only=True)
class Adam:
    """weight -= lr / (1 - b1^t) * sqrt(1 - b2^t) * m / (sqrt(v) + eps) on touched rows, as torch.optim.SparseAdam.

    m = b1 * m + (1 - b1) * grad, v = b2 * v + (1 - b2) * grad^2.
    """

    kind: ClassVar[str] = "adam"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    eps_placement: Literal["raw", "corrected"] = "raw"
    """What eps is added to: sqrt(v), or sqrt(v / (1 - b2^t)) as in torch.optim.Adam."""
    step: Literal["table", "per_row"] = "table"
    """What t counts: steps in which the table was looked up, or those in which the row was."""
    schedule: Schedule | None = None
    state_dtype: StateDtype | None = None

    @property
    def rule(self) -> str:
        return "adam_per_row" if self.step == "per_row" else "adam"


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """`Adam` after weight *= 1 - lr * weight_decay, touched rows only."""

    kind: ClassVar[str] = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    decay_by_lr: bool = True
    """Whether weight_decay is multiplied by lr; where it is not, weight *= 1 - weight_decay."""
    eps_placement: Literal["raw", "corrected"] = "raw"
    """What eps is added to: sqrt(v), or sqrt(v / (1 - b2^t)) as in torch.optim.AdamW."""
    step: Literal["table", "per_row"] = "table"
    """What t counts: steps in which the table was looked up, or those in which the row was."""
    schedule: Schedule | None = None
    state_dtype: StateDtype | None = None

    @property
    def rule(self) -> str:
        return "adam_per_row" if self.step == "per_row" else "adam"


@dataclass(frozen=True, kw_only=True)
class Ftrl:
    """FTRL-proximal: sum += grad^2; linear += lr * grad - (growth of sqrt(sum)) * weight;

    weight = -sign(linear) * max(|linear| - lr * l1, 0) / (sqrt(sum) + beta + lr * l2).

    H. B. McMahan et al., "Ad Click Prediction: a View from the Trenches", KDD 2013, with linear multiplied by lr, so
    that a schedule may change lr: of l1 = l2 = beta = 0 it is Adagrad. Keras's l2_regularization_strength is l2 / 2. A
    weight is what linear and sum say from the row's first update on: its first value counts as far as sum has grown.
    """

    kind: ClassVar[str] = "ftrl"
    rule: ClassVar[str] = "ftrl"
    lr: float = 0.01
    beta: float = 0.0
    l1: float = 0.0
    l2: float = 0.0
    initial_accumulator_value: float = 0.1
    schedule: Schedule | None = None
    state_dtype: StateDtype | None = None


SparseOptimizer = Sgd | Adagrad | RowwiseAdagrad | Adam | AdamW | Ftrl

OPTIMIZERS: dict[str, type] = {cls.kind: cls for cls in get_args(SparseOptimizer)}

_NOT_NEGATIVE = ("lr", "eps", "initial_accumulator_value", "weight_decay", "beta", "l1", "l2")


def first_state(optimizer: SparseOptimizer) -> dict[str, float]:
    """What a new row's state begins with, by name, where it is not 0: Adagrad's {"sum": 0.1}."""
    value: float = getattr(optimizer, "initial_accumulator_value", 0.0)
    return {"sum": value} if value else {}


def find_mistakes(where: str, optimizer: SparseOptimizer, dtype: str) -> Iterator[str]:
    """What cannot be meant in the optimizer of a table of rows of ``dtype``, one line each."""
    for option in _NOT_NEGATIVE:
        if getattr(optimizer, option, 0) < 0:
            yield f"{where}: optimizer {option} is {getattr(optimizer, option)}, need at least 0"
    betas = getattr(optimizer, "betas", ())
    if not all(0 <= beta < 1 for beta in betas):
        yield f"{where}: optimizer betas are {betas}, need 0 <= beta < 1"
    if isinstance(optimizer, Sgd):
        if not 0 <= optimizer.momentum < 1:
            yield f"{where}: optimizer momentum is {optimizer.momentum}, need 0 <= momentum < 1"
        if optimizer.nesterov and not optimizer.momentum:
            yield f"{where}: optimizer sgd is nesterov, and has no momentum; give it momentum, or leave nesterov out"
        if optimizer.state_dtype is not None and not optimizer.momentum:
            yield f"{where}: optimizer sgd without momentum has no state; leave state_dtype out"
    if isinstance(optimizer, AdamW) and not optimizer.decay_by_lr and optimizer.weight_decay >= 1:
        yield (
            f"{where}: optimizer weight_decay is {optimizer.weight_decay}, and is not multiplied by lr; "
            "need less than 1, or decay_by_lr: true"
        )
    if isinstance(optimizer, Ftrl) and not optimizer.initial_accumulator_value and not optimizer.beta:
        yield (
            f"{where}: optimizer ftrl divides by sqrt(sum) + beta, and both begin at 0; "
            "give initial_accumulator_value or beta"
        )
    if optimizer.state_dtype is not None and dtype == "float64":
        yield f"{where}: optimizer state_dtype is {optimizer.state_dtype}, rows are float64; their state is float64 too"
    if optimizer.state_dtype == "bfloat16" and optimizer.rule == "adam_per_row":
        yield (
            f"{where}: optimizer step is per_row, and state_dtype bfloat16 counts to 256 only; take state_dtype: "
            "float32, or step: table"
        )
    if optimizer.schedule is not None:
        yield from find_schedule_mistakes(f"{where}: optimizer", optimizer.schedule)
