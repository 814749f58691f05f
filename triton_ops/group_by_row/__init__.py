"""Which rows a batch touches, each once: see op.py."""

from triton_ops.group_by_row.op import LAST_TICK, group_by_row

__all__ = ["LAST_TICK", "group_by_row"]
