"""Transforms that look at whole rows, several columns in one call: see op.py."""

from triton_ops.row_transform.op import RowError, count_common, cross, find_keys, reduce, take_ranges, time_gap
from triton_ops.row_transform.reference import Rows, rows_of, to_offsets

__all__ = [
    "RowError",
    "Rows",
    "count_common",
    "cross",
    "find_keys",
    "reduce",
    "rows_of",
    "take_ranges",
    "time_gap",
    "to_offsets",
]
