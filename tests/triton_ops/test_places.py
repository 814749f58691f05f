"""Where rows lie: one block for a tensor, many for a table that grows."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from triton_ops.places import FLAT, place_of


class Pieces(NamedTuple):
    """Blocks without an order in memory, as a table's that grows."""

    pointers: Tensor
    block_rows: int
    width: int
    dtype: torch.dtype
    memory: list[Tensor]

    @staticmethod
    def of(rows: Tensor, block_rows: int = 64) -> "Pieces":
        """A copy of rows [R, D] in blocks that follow each other backwards."""
        memory = [block.clone() for block in reversed(rows.split(block_rows))]
        pointers = torch.tensor([block.data_ptr() for block in reversed(memory)], device=rows.device)
        return Pieces(pointers, block_rows, rows.shape[1], rows.dtype, memory)

    def joined(self) -> Tensor:
        return torch.cat([*reversed(self.memory)])


def test_a_tensor_is_one_block() -> None:
    rows = torch.zeros(5, 3)
    place = place_of(rows)
    assert place.pointers.tolist() == [rows.data_ptr()]
    assert place.constants("STATE_") == {"STATE_WIDTH": 3, "STATE_SHIFT": FLAT, "STATE_ALIGN": 16}
    assert place_of(rows[1:]).align == 4
    assert place_of(rows[:0, :0]).align == 16


def test_blocks_are_found_by_the_upper_bits_of_a_row() -> None:
    pieces = Pieces.of(torch.zeros(256, 3))
    place = place_of(pieces)
    assert place.pointers is pieces.pointers
    assert (place.width, place.shift, place.align) == (3, 6, 16)
    assert place_of(Pieces.of(torch.zeros(2, 3), block_rows=1)).align == 4


def test_rows_with_gaps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"strides \[6, 1\]; give contiguous"):
        place_of(torch.zeros(4, 6)[:, :3])
