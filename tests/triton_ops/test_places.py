"""Where rows lie: one block for a tensor, many for a table that grows."""

import pytest
import torch
from torch import Tensor

from triton_ops.blocks import Blocks
from triton_ops.places import FLAT, place_of


def in_blocks(rows: Tensor, block_rows: int = 64) -> Blocks:
    """A copy of rows [R, D], R a multiple of the block's, in slabs of one and two blocks by turns."""
    blocks = Blocks(len(rows), rows.shape[1], rows.dtype, block_rows, rows.device)
    while blocks.rows < len(rows):
        first, more = blocks.rows, min(1 + len(blocks.slabs) % 2, (len(rows) - blocks.rows) // block_rows)
        slab = blocks.new_slab(more)
        slab[:-1] = rows[first : first + more * block_rows]
        blocks.append(slab)
    return blocks


def test_a_tensor_is_one_block() -> None:
    rows = torch.zeros(5, 3)
    place = place_of(rows)
    assert place.pointers.tolist() == [rows.data_ptr()]
    assert place.constants("STATE_") == {"STATE_WIDTH": 3, "STATE_SHIFT": FLAT, "STATE_ALIGN": 16}
    assert place_of(rows[1:]).align == 4
    assert place_of(rows[:0, :0]).align == 16


def test_blocks_are_found_by_the_upper_bits_of_a_row() -> None:
    blocks = in_blocks(torch.zeros(256, 3))
    place = place_of(blocks)
    assert place.pointers is blocks.pointers
    assert (place.width, place.shift, place.align) == (3, 6, 16)
    assert place_of(in_blocks(torch.zeros(2, 3), block_rows=1)).align == 4


def test_rows_with_gaps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"strides \[6, 1\]; give contiguous"):
        place_of(torch.zeros(4, 6)[:, :3])
