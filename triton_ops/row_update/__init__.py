"""Optimizer steps on touched rows."""

from triton_ops.row_update.state import state_slices

__all__ = ["state_slices"]
