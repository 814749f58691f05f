"""Optimizer steps on touched rows: see op.py."""

from triton_ops.row_update.hyper import HYPER_COLUMNS, hyper_row
from triton_ops.row_update.op import first_infinite, row_update
from triton_ops.row_update.state import state_slices

__all__ = ["HYPER_COLUMNS", "first_infinite", "hyper_row", "row_update", "state_slices"]
