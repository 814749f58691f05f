"""Optimizers of rows, alone and together with those of dense parameters."""

from recis_lightning.optim.clip import clip_grad_norm, clip_grad_value
from recis_lightning.optim.composite import CompositeOptimizer
from recis_lightning.optim.scaler import unscale_rows
from recis_lightning.optim.sparse import SparseOptimizer

__all__ = ["CompositeOptimizer", "SparseOptimizer", "clip_grad_norm", "clip_grad_value", "unscale_rows"]
