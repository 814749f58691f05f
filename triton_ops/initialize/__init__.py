"""First values of new rows: see op.py."""

from triton_ops.initialize.layout import FirstValue, FirstValues
from triton_ops.initialize.op import initialize

__all__ = ["FirstValue", "FirstValues", "initialize"]
