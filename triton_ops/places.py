"""Where rows lie, as kernels on a GPU see it: one table of pointers, be it a tensor or blocks that grow.

Row r is the ``width`` elements that begin (r % 2^shift) * width behind pointers[r >> shift]. A contiguous tensor [R, D]
is one block of as many rows as there can be.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from triton_ops.blocks import Blocks

FLAT = 62
"""The shift of a single block, behind any row number."""


Rows = Tensor | Blocks


class Place(NamedTuple):
    """What a kernel is given to find rows."""

    pointers: Tensor
    """int64 [P]."""
    dtype: torch.dtype
    width: int
    shift: int
    align: int
    """Bytes, up to 16, that the blocks' addresses are multiples of."""

    def constants(self, prefix: str = "") -> dict[str, Any]:
        """The constants of a kernel that say how these rows lie, as triton_ops.shared.kernels.row_pointers takes them.

        Place(..., float32, 8, 62, 16).constants("STATE_") -> {"STATE_WIDTH": 8, "STATE_SHIFT": 62, "STATE_ALIGN": 16}.
        """
        return {prefix + "WIDTH": self.width, prefix + "SHIFT": self.shift, prefix + "ALIGN": self.align}


def place_of(rows: Rows) -> Place:
    """Where rows lie. Of a tensor the pointer is written by a kernel of its own: nothing is copied, nobody waits.

    Raises ValueError for a tensor that is not contiguous.
    """
    if not isinstance(rows, Tensor):
        align = math.gcd(16, rows.block_rows * rows.width * rows.dtype.itemsize) or 16
        return Place(rows.pointers, rows.dtype, rows.width, rows.block_rows.bit_length() - 1, align)
    if not rows.is_contiguous():
        raise ValueError(f"rows are a view of strides {list(rows.stride())}; give contiguous [R, D]")
    address = rows.data_ptr()
    pointers = torch.full((1,), address, dtype=torch.int64, device=rows.device)
    return Place(pointers, rows.dtype, rows.shape[1], FLAT, math.gcd(16, address) if address else 16)
