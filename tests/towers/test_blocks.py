import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from recis_lightning.ragged import Ragged
from recis_lightning.towers.blocks import FixedBlocks, bucket, encode_blocks, pad_rows, plan_blocks


@pytest.mark.parametrize(
    ("length", "padded"), [(1, 8), (8, 8), (17, 24), (33, 48), (512, 512), (513, 768), (769, 1024), (1025, 1536)]
)
def test_bucket_pads_to_the_next_step(length: int, padded: int) -> None:
    assert bucket(length) == padded
    assert bucket(length, longest=length) == length


@given(st.integers(17, 100_000))
def test_at_most_a_third_of_a_row_is_padding(length: int) -> None:
    assert length <= bucket(length) < 1.5 * length


@given(st.lists(st.integers(1, 100), max_size=50), st.integers(1, 8))
def test_every_row_is_in_one_block_of_its_bucket(lengths: list[int], capacity: int) -> None:
    blocks = list(plan_blocks(lengths, lambda _: capacity))
    assert sorted(row for block in blocks for row in block.rows) == list(range(len(lengths)))
    assert all(bucket(lengths[row]) == block.length for block in blocks for row in block.rows)
    assert all(1 <= len(block.rows) <= capacity for block in blocks)


def test_pad_rows_puts_padding_behind_the_rows_asked_for() -> None:
    ids, mask = pad_rows(Ragged.from_lists([[1, 2], [3], [4, 5, 6]]), torch.tensor([2, 1]), 4, padding=9)
    assert ids.tolist() == [[4, 5, 6, 9], [3, 9, 9, 9]]
    assert mask.tolist() == [[True, True, True, False], [True, False, False, False]]


def sum_of_tokens(ids: Tensor, mask: Tensor) -> Tensor:
    return (ids * mask).sum(1, keepdim=True).double()


@pytest.mark.parametrize("fill", [False, True])
def test_vectors_come_back_in_the_order_of_the_rows(fill: bool) -> None:
    shapes = []

    def encode(ids: Tensor, mask: Tensor) -> Tensor:
        shapes.append(tuple(ids.shape))
        return sum_of_tokens(ids, mask)

    rows = Ragged.from_lists([[1] * 20, [2, 3], [4] * 10, [5], [6, 7]])
    vectors = encode_blocks(rows, rows.lengths.tolist(), encode, lambda _: 2, padding=0, longest=22, fill=fill)
    assert vectors[:, 0].tolist() == [20, 5, 40, 5, 13]
    assert shapes == ([(2, 8), (2, 8), (2, 16), (2, 22)] if fill else [(2, 8), (1, 8), (1, 16), (1, 22)])


def test_a_fixed_block_shrinks_until_a_rows_place_in_it_does_not_matter() -> None:
    seen = []

    def encode(ids: Tensor, mask: Tensor) -> Tensor:
        seen.append(len(ids))
        # rows from the third on are rounded otherwise, as at the edge of a kernel's tile
        place = torch.arange(len(ids))[:, None]
        return torch.where(place < 2, sum_of_tokens(ids, mask), sum_of_tokens(ids, mask) + 1e-9)

    blocks = FixedBlocks(block_tokens=100)
    for rows in (Ragged.from_lists([[1], [2], [3], [4], [5]]), Ragged.from_lists([[5], [4]])):
        vectors = blocks.encode(rows, rows.lengths.tolist(), encode, padding=0, longest=None, vocabulary=9)
        assert vectors[:, 0].tolist() == rows.values.tolist()
    assert seen == [8, 4, 2, 2, 2, 2, 2]  # three trials, three blocks, and one of the second call
