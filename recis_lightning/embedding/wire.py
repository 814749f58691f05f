"""What ranks send each other: tensors of known shapes, packed into one buffer of bytes for one all-to-all.

W ranks, N rows on the way to a rank, D row width.
"""

import math
from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from recis_lightning.tables.buffers import BufferPool

Precision = Literal["full", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("full", "bf16", "fp16")
Section = tuple[torch.dtype, tuple[int, ...]]
"""A tensor's dtype and shape."""

ALIGNMENT = 16  # of each section, in bytes: a view of bytes as another dtype wants its size at least


class Parcels:
    """Room for what goes to each rank, or comes from it: ``sections[w][k]`` is a view into one ``buffer``.

    Parcels([[(torch.int64, (3,))], []]).splits == [32, 0]: three ids for rank 0, padded, and nothing for rank 1.
    """

    def __init__(self, shapes_of_ranks: Sequence[Sequence[Section]], memory: BufferPool | None = None) -> None:
        """``memory`` is where the buffer comes from, and goes back to."""
        sizes = [[_padded(dtype.itemsize * math.prod(shape)) for dtype, shape in shapes] for shapes in shapes_of_ranks]
        self.splits = [sum(own) for own in sizes]
        """Bytes of each rank's."""
        self.buffer = (memory or BufferPool()).take((sum(self.splits),), torch.uint8)
        self.sections: list[list[Tensor]] = []
        begin = 0
        for shapes, own in zip(shapes_of_ranks, sizes, strict=True):
            views = []
            for (dtype, shape), size in zip(shapes, own, strict=True):
                used = dtype.itemsize * math.prod(shape)
                views.append(self.buffer[begin : begin + used].view(dtype).view(shape))
                begin += size
            self.sections.append(views)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def copy_each(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each tensor to that of its place, in the dtype of this; on a GPU by one launch for all."""
    torch._foreach_copy_(list(targets), list(sources))


class Codec(Protocol):
    """How rows [N, D] become sections of a parcel and rows again; those of all ranks by one call."""

    def sections(self, rows: int, dim: int, dtype: torch.dtype) -> list[Section]:
        """What so many rows take."""

    def encode(self, rows_of_ranks: Sequence[Tensor], sections_of_ranks: Sequence[Sequence[Tensor]]) -> None:
        """Write each rank's rows into their sections."""

    def decode(self, sections_of_ranks: Sequence[Sequence[Tensor]], rows_of_ranks: Sequence[Tensor]) -> None:
        """Write what each rank's sections hold into rows."""


class Cast:
    """Rows as numbers of a narrower dtype, rounded to the nearest; or as they are."""

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self._dtype = dtype

    def sections(self, rows: int, dim: int, dtype: torch.dtype) -> list[Section]:
        narrower = self._dtype is not None and dtype.is_floating_point and self._dtype.itemsize < dtype.itemsize
        return [(self._dtype if narrower and self._dtype is not None else dtype, (rows, dim))]

    def encode(self, rows_of_ranks: Sequence[Tensor], sections_of_ranks: Sequence[Sequence[Tensor]]) -> None:
        copy_each([sections[0] for sections in sections_of_ranks], rows_of_ranks)

    def decode(self, sections_of_ranks: Sequence[Sequence[Tensor]], rows_of_ranks: Sequence[Tensor]) -> None:
        copy_each(rows_of_ranks, [sections[0] for sections in sections_of_ranks])


def codec_of(precision: Precision) -> Codec:
    """The codec of a name: "full" sends rows as they are, "bf16" and "fp16" round them; ValueError for another."""
    dtypes = {"full": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision not in dtypes:
        raise ValueError(f"rows travel as {', '.join(PRECISIONS)}, not as {precision!r}")
    return Cast(dtypes[precision])
