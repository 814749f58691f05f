"""What pool_grads takes for features that follow each other, and row_update for gradients not summed up yet.

K features of B bags each, D row width, M their values, N all values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor


class PooledGrad(NamedTuple):
    """The gradient of what gather_pool gave for some features, or for one."""

    grads_BKD: Tensor
    """Of any strides."""
    offsets_KB1: Tensor
    """int64: where each bag's values begin among all values of the call, and where the last one's of a feature end."""
    coefficients_M: Tensor | None
    """What each value of these bags counted in its sum; None for 1."""


@dataclass(frozen=True, eq=False)
class GradSums:
    """Gradients by row that are not summed up yet: what `pool_grads` would be given."""

    parts: Sequence[PooledGrad]
    """One or more, of one dtype."""
    inverse_N: Tensor
    """int64 [N]: which unique row each value is, -1 for none."""
    _grouped: list[Any] = field(default_factory=list, repr=False)

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].grads_BKD.dtype

    @property
    def width(self) -> int:
        return self.parts[0].grads_BKD.shape[2]

    def grouped(self, group: Callable[[], Any]) -> Any:
        """What ``group`` gives, which sorts the values by row: worked out once, though gradients are read twice."""
        if not self._grouped:
            self._grouped.append(group())
        return self._grouped[0]
