"""How the first values of rows are told to the op: a line of numbers for each table.

T tables.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from triton_ops.shared.reference import mix64
from triton_ops.transfer import to_device

CONSTANT, UNIFORM, NORMAL = range(3)

# The normal quantile as quotients of polynomials, the highest power first: M. J. Wichura, "Algorithm AS 241: The
# Percentage Points of the Normal Distribution", Applied Statistics 37 (1988), PPND16.
MIDDLE = (
    (2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4,
     1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080e0),
    (5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4,
     5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0),
)  # fmt: skip
TAIL = (
    (7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258e0,
     3.64784832476320460504e0, 5.76949722146069140550e0, 4.63033784615654529590e0, 1.42343711074968357734e0),
    (1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
     6.89767334985100004550e-1, 1.67638483018380384940e0, 2.05319162663775882187e0, 1.0),
)  # fmt: skip
FAR_TAIL = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3, 2.65321895265761230930e-2,
     2.96560571828504891230e-1, 1.78482653991729133580e0, 5.46378491116411436990e0, 6.65790464350110377720e0),
    (2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4,
     1.48753612908506148525e-2, 1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0),
)  # fmt: skip

_KINDS = {"constant": CONSTANT, "uniform": UNIFORM, "normal": NORMAL, "truncated_normal": NORMAL}

_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "constant": ("value",),
    "uniform": ("low", "high"),
    "normal": ("mean", "std"),
    "truncated_normal": ("mean", "std", "low", "high"),
}


@dataclass(frozen=True, kw_only=True)
class FirstValue:
    """How the rows of one table begin."""

    kind: str
    """constant, uniform, normal or truncated_normal."""
    arguments: Mapping[str, float] = field(default_factory=dict)
    """constant: value. uniform: low, high. normal: mean, std. truncated_normal: mean, std, and low, high in stds."""
    seed: int
    table_hash: int
    """Tells tables of one seed apart: any 64-bit number that depends on the table's name alone."""
    state: Sequence[float] = ()
    """The first value of each column of optimizer state."""


@dataclass(frozen=True, eq=False)
class FirstValues:
    """How the rows of each table of a group begin, as arrays for the kernels."""

    kinds: np.ndarray
    """int64 [T]: CONSTANT, UNIFORM or NORMAL, truncated or not."""
    keys: np.ndarray
    """uint64 [T]: what a table's random words depend on besides id and column."""
    parameters: np.ndarray
    """float64 [T, 7]: shift and scale of what is drawn. For NORMAL what is drawn is a quantile: its sign, the lowest
    probability and the width of their range, and the bounds of quantiles before the sign."""
    states: np.ndarray
    """float64 [T, W]: the first values of optimizer state."""
    _copies: dict[torch.device, tuple[Tensor, ...]] = field(default_factory=dict, repr=False)

    def on(self, device: torch.device) -> tuple[Tensor, ...]:
        """The four arrays on a device, keys as int64; copied at the first call."""
        if device not in self._copies:
            arrays = self.kinds, self.keys.view(np.int64), self.parameters, self.states
            self._copies[device] = tuple(to_device(torch.from_numpy(array), device) for array in arrays)
        return self._copies[device]

    @staticmethod
    def of(tables: Sequence[FirstValue]) -> "FirstValues":
        """Raises ValueError for an unknown kind, or arguments that do not fit it."""
        keys = [_table_key(table) for table in tables]
        return FirstValues(
            np.array([_KINDS[_check(table).kind] for table in tables], dtype=np.int64),
            np.array(keys, dtype=np.uint64),
            np.array([_parameters(table) for table in tables], dtype=np.float64).reshape(len(tables), 7),
            np.array([list(table.state) for table in tables], dtype=np.float64).reshape(len(tables), -1),
        )


def _check(table: FirstValue) -> FirstValue:
    if table.kind not in _ARGUMENTS:
        raise ValueError(f"there is no initialiser kind '{table.kind}'; there are: {', '.join(_ARGUMENTS)}")
    if set(table.arguments) != set(_ARGUMENTS[table.kind]):
        wanted = ", ".join(_ARGUMENTS[table.kind])
        raise ValueError(f"initialiser {table.kind} takes {wanted}; given are {', '.join(table.arguments) or 'none'}")
    return table


def _table_key(table: FirstValue) -> int:
    """mix64(mix64(seed) + table hash), as unsigned."""
    seed = torch.tensor(_signed(table.seed))
    return int(mix64(mix64(seed) + _signed(table.table_hash))) % 2**64


def _signed(word: int) -> int:
    """The int64 with the low 64 bits of a number: 2**64 - 1 -> -1."""
    return (word + 2**63) % 2**64 - 2**63


def _parameters(table: FirstValue) -> tuple[float, ...]:
    arguments = table.arguments
    if table.kind == "constant":
        return arguments["value"], 0, 0, 0, 0, 0, 0
    if table.kind == "uniform":
        return arguments["low"], arguments["high"] - arguments["low"], 0, 0, 0, 0, 0
    if table.kind == "normal":
        return arguments["mean"], arguments["std"], 1, 0, 1, -math.inf, math.inf
    low, high, sign = arguments["low"], arguments["high"], 1.0
    if low > 0:  # mirrored, since probabilities near 1 are too coarse to tell apart
        low, high, sign = -high, -low, -1.0
    first, last = (math.erfc(-bound / math.sqrt(2)) / 2 for bound in (low, high))
    return arguments["mean"], arguments["std"], sign, first, last - first, low, high
