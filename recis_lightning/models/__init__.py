"""Models: from features by name to one logit per row and task. They hold no tables."""

from recis_lightning.models.deepfm import DeepFM
from recis_lightning.models.dense_only import DenseOnly
from recis_lightning.models.dlrm import DLRM

__all__ = ["DLRM", "DeepFM", "DenseOnly"]
