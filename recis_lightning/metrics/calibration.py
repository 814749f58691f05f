"""Whether predicted clicks add up to the clicks there were."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from recis_lightning.metrics.inputs import keep_dtype, read_inputs


class Calibration(Metric):
    """Sum of predicted probabilities over sum of targets: logits [0, 0] for targets [0, 1] -> 1; 2 predicts double.

    Targets are probabilities from 0 to 1. nan where there is nothing to divide by: no positive target.
    """

    is_differentiable = False
    higher_is_better = None  # 1 is best
    full_state_update = False
    prediction_sum: Tensor
    target_sum: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("prediction_sum", "target_sum"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
        """Add rows: logits, targets and weights of one shape."""
        logits_N, target_N, weight_N = read_inputs(logits, target, weight)
        self.prediction_sum = self.prediction_sum + (weight_N * logits_N.sigmoid()).sum()
        self.target_sum = self.target_sum + (weight_N * target_N).sum()

    def compute(self) -> Tensor:
        """The ratio over all rows, float64 []."""
        return torch.where(self.target_sum > 0, self.prediction_sum / self.target_sum, torch.nan)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> torch.nn.Module:
        return super()._apply(keep_dtype(fn), exclude_state)
