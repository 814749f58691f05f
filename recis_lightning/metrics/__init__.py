"""Metrics of click models, from logits, exact in float64 and mergeable over ranks in any order."""

from recis_lightning.metrics.auc import AUC
from recis_lightning.metrics.calibration import Calibration
from recis_lightning.metrics.entropy import LogLoss, NormalizedEntropy
from recis_lightning.metrics.grouped import GroupedAUC

__all__ = ["AUC", "Calibration", "GroupedAUC", "LogLoss", "NormalizedEntropy"]
