"""Run rows of unequal length through a model in padded blocks.

A row is padded to the bucket of its own length, whatever its neighbours are: padding depends on the row alone. A block
of fixed capacity goes further: it always has the same shape, so the same kernels run in the same order over it, and
what comes out for a row depends neither on how many rows there are nor on which. That is what lets a cache give back
the very bits that computing again would give: see `FixedBlocks`.

R rows, C capacity of a block, L padded length, H width of the vectors.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from recis_lightning.ragged import Ragged

Encode = Callable[[Tensor, Tensor], Tensor]
"""ids int64 [C, L], mask bool [C, L], True for tokens -> vectors [C, H]."""

_STEPS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def bucket(length: int, longest: int | None = None) -> int:
    """The length a row is padded to: 5 -> 8, 17 -> 24, 33 -> 48, 600 -> 768; never past ``longest``, which it fits.

    From 16 on at most a third of a row is padding; few buckets keep the number of shapes low.
    """
    if length <= _STEPS[-1]:
        padded = _STEPS[bisect_left(_STEPS, length)]
    else:
        half = 1 << (length - 1).bit_length() - 2
        padded = 3 * half if length <= 3 * half else 4 * half
    return padded if longest is None else min(padded, longest)


@dataclass(frozen=True, eq=False)
class Block:
    """Rows that go through the model together, at most ``capacity`` of them, padded to ``length``."""

    rows: list[int]
    length: int
    capacity: int


def plan_blocks(lengths: list[int], capacity_of: Callable[[int], int], longest: int | None = None) -> Iterator[Block]:
    """Put rows of one bucket together: lengths [3, 20, 5], capacity 8 -> rows [0, 2] of length 8, row [1] of 24."""
    members: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        members.setdefault(bucket(length, longest), []).append(row)
    for length, rows in sorted(members.items()):
        capacity = capacity_of(length)
        for start in range(0, len(rows), capacity):
            yield Block(rows[start : start + capacity], length, capacity)


def pad_rows(tokens: Ragged, rows_C: Tensor, length: int, padding: int) -> tuple[Tensor, Tensor]:
    """Rows of ``tokens`` as ids [C, L], ``padding`` behind each, and a mask that is True where a token is."""
    start_C, stop_C = tokens.offsets[rows_C], tokens.offsets[rows_C + 1]
    place_CL = start_C[:, None] + torch.arange(length, device=tokens.device)
    mask_CL = place_CL < stop_C[:, None]
    ids_CL = tokens.values[place_CL.clamp(max=len(tokens.values) - 1)]
    return torch.where(mask_CL, ids_CL, padding), mask_CL


def encode_blocks(
    tokens: Ragged,  # R rows, none of them empty
    lengths: list[int],
    encode: Encode,
    capacity_of: Callable[[int], int],
    *,
    padding: int,
    longest: int | None,
    fill: bool,
) -> Tensor:
    """The vectors [R, H] of all rows; with ``fill``, a block that is not full is filled up with its first row."""
    order: list[int] = []
    vectors = []
    for block in plan_blocks(lengths, capacity_of, longest):
        rows = block.rows + block.rows[:1] * (block.capacity - len(block.rows) if fill else 0)
        ids_CL, mask_CL = pad_rows(tokens, torch.tensor(rows, device=tokens.device), block.length, padding)
        vectors.append(encode(ids_CL, mask_CL)[: len(block.rows)])
        order += block.rows
    return torch.cat(vectors)[torch.tensor(order, device=tokens.device).argsort()]


class FixedBlocks:
    """Vectors that depend on a row alone, to the bit: all blocks of a length have one shape.

    In a fixed shape a row meets the same kernels in the same order, and rows do not mix; what is left is that its place
    in the block may matter (a vector loop's tail, a tile's edge). So each shape is tried once: a block of copies of one
    random row must give that many equal vectors. Where it does not, the capacity is halved and tried again; a block of
    one row has one place. All this holds on one machine, with one build of torch and one number of threads.
    """

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self._capacities: dict[int, int] = {}

    def encode(
        self, tokens: Ragged, lengths: list[int], encode: Encode, *, padding: int, longest: int | None, vocabulary: int
    ) -> Tensor:
        """The vectors [R, H] of rows that are not empty."""

        def capacity_of(length: int) -> int:
            if length not in self._capacities:
                self._capacities[length] = self._find_capacity(length, encode, vocabulary, tokens.device)
            return self._capacities[length]

        return encode_blocks(tokens, lengths, encode, capacity_of, padding=padding, longest=longest, fill=True)

    def _find_capacity(self, length: int, encode: Encode, vocabulary: int, device: torch.device) -> int:
        # A power of two, so that halving it leaves no remainder.
        capacity = 1 << max(self.block_tokens // length, 1).bit_length() - 1
        while capacity > 1 and not _is_placeless(capacity, length, encode, vocabulary, device):
            capacity //= 2
        return capacity


def _is_placeless(capacity: int, length: int, encode: Encode, vocabulary: int, device: torch.device) -> bool:
    """Whether a row's vector is the same to the bit wherever in the block the row is."""
    generator = torch.Generator().manual_seed(length)
    row_L = torch.randint(vocabulary, (length,), generator=generator).to(device)
    mask_CL = (torch.arange(length, device=device) < max(1, length - 1)).expand(capacity, length).contiguous()
    vectors_CH = encode(row_L.expand(capacity, length).contiguous(), mask_CL)
    return bool((vectors_CH == vectors_CH[0]).all())
