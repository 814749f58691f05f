"""Logarithmic loss, and the same relative to what the mean label alone would reach."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchmetrics import Metric

from recis_lightning.metrics.inputs import keep_dtype, read_inputs


class LogLoss(Metric):
    """Mean binary cross-entropy in nats: logits [0, 0] for targets [0, 1] -> log 2 = 0.693.

    Taken from the logits, so that it stays finite and exact where a probability would round to 0 or 1. Targets are
    probabilities from 0 to 1. nan before the first row, or where all weights are 0.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    loss_sum: Tensor
    weight_sum: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("loss_sum", "weight_sum"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
        """Add rows: logits, targets and weights of one shape."""
        logits_N, target_N, weight_N = read_inputs(logits, target, weight)
        self.loss_sum = self.loss_sum + binary_cross_entropy_with_logits(logits_N, target_N, weight_N, reduction="sum")
        self.weight_sum = self.weight_sum + weight_N.sum()

    def compute(self) -> Tensor:
        """The mean over all rows, float64 []."""
        return self.loss_sum / self.weight_sum

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> torch.nn.Module:
        return super()._apply(keep_dtype(fn), exclude_state)


class NormalizedEntropy(Metric):
    """`LogLoss` over the entropy of the mean label: 1 for a model that knows only the click rate, 0 for a perfect one.

    From "Practical Lessons from Predicting Clicks on Ads at Facebook" (He et al., ADKDD 2014). nan where all targets
    are 0 or all are 1, since the entropy is 0 then.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    loss_sum: Tensor
    target_sum: Tensor
    weight_sum: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("loss_sum", "target_sum", "weight_sum"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
        """Add rows: logits, targets and weights of one shape."""
        logits_N, target_N, weight_N = read_inputs(logits, target, weight)
        self.loss_sum = self.loss_sum + binary_cross_entropy_with_logits(logits_N, target_N, weight_N, reduction="sum")
        self.target_sum = self.target_sum + (weight_N * target_N).sum()
        self.weight_sum = self.weight_sum + weight_N.sum()

    def compute(self) -> Tensor:
        """The ratio over all rows, float64 []."""
        rate = self.target_sum / self.weight_sum
        entropy = -torch.xlogy(rate, rate) - torch.xlogy(1 - rate, 1 - rate)
        ratio = self.loss_sum / self.weight_sum / entropy
        return torch.where(entropy > 0, ratio, torch.nan)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> torch.nn.Module:
        return super()._apply(keep_dtype(fn), exclude_state)
