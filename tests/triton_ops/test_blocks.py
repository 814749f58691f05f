"""Blocks: rows that are read and written as those of a tensor, reached by pointers that never change place."""

import ctypes

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triton_ops.blocks import Blocks

ROWS = 64  # in slabs of 1, 2 and 1 blocks of 16


def make_blocks(width: int = 3, dtype: torch.dtype = torch.float32) -> Blocks:
    blocks = Blocks(1000, width, dtype, 16, torch.device("cpu"))
    for count in (1, 2, 1):
        blocks.append(blocks.new_slab(count))
    return blocks


def test_pointers_lead_to_the_rows() -> None:
    blocks = make_blocks()
    assert (len(blocks), blocks.rows, len(blocks.pointers)) == (1008, ROWS, 63)
    before = blocks.pointers.data_ptr()
    blocks[torch.tensor([15, 16, 63])] = torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])
    for row, expected in ((15, [1, 2, 3]), (16, [4, 5, 6]), (63, [7, 8, 9])):
        address = int(blocks.pointers[row // 16]) + row % 16 * 3 * 4
        assert list((ctypes.c_float * 3).from_address(address)) == expected
    assert not blocks.pointers[4:].any(), "there are no more blocks yet"
    blocks.append(blocks.new_slab(1))
    assert blocks.pointers.data_ptr() == before, "a captured graph reads this table"


rows_of = st.lists(st.integers(0, ROWS - 1), max_size=20, unique=True)
columns_of = st.one_of(st.integers(0, 2), st.sampled_from([slice(None), slice(0, 1), slice(1, 3)]))


@settings(max_examples=50)
@given(st.lists(st.tuples(rows_of, columns_of), max_size=6), st.integers(0, ROWS), st.integers(0, ROWS))
def test_indexing_equals_that_of_a_tensor(writes, begin, end) -> None:
    blocks, tensor = make_blocks(), torch.zeros(ROWS, 3)
    for number, (rows, columns) in enumerate(writes):
        place = torch.tensor(rows, dtype=torch.int64), columns
        values = torch.randn(tensor[place].shape) if number % 2 else float(number)
        blocks[place], tensor[place] = values, values
        assert torch.equal(blocks[place], tensor[place])
    run = slice(begin, end)
    assert torch.equal(blocks[run], tensor[run])
    assert torch.equal(blocks[run, 2], tensor[run, 2])
    assert torch.equal(blocks[5], tensor[5])
    assert torch.equal(blocks[40, 1], tensor[40, 1])
    blocks[run, 1] = tensor[run, 1] = 7.0
    blocks[run] = tensor[run] = tensor[run] + 1
    assert torch.equal(blocks[:], tensor)


def test_row_that_is_none_reads_zeros_and_is_not_written() -> None:
    blocks = make_blocks(dtype=torch.int64)
    blocks[torch.tensor([-1, 3, 900])] = torch.tensor([[1] * 3, [2] * 3, [3] * 3])
    assert blocks[torch.tensor([-1, 3, 900])].tolist() == [[0] * 3, [2] * 3, [0] * 3]
    assert blocks[:].sum() == 6
    with pytest.raises(IndexError, match="reach from -1 to 3, there are 64"):
        blocks.index_select(0, torch.tensor([3, -1]))


def test_rows_without_width_are_rows_all_the_same() -> None:
    blocks = make_blocks(width=0)
    assert blocks[torch.tensor([1, 40])].shape == (2, 0)
    blocks[torch.tensor([1])] = torch.empty(1, 0)


def test_block_size_that_is_no_power_of_two_is_refused() -> None:
    with pytest.raises(ValueError, match="block_rows is 48"):
        Blocks(100, 1, torch.float32, 48, torch.device("cpu"))
