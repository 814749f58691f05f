"""Rows on a device: blocks of equal size, cut from slabs, that never move and are reached through a table of pointers.

Row r lies at ``pointers[r // block_rows]`` plus ``r % block_rows`` times the width. The table of pointers is as long as
there may ever be blocks, so that kernels, and graphs that have captured them, stay valid while rows are added.

R rows that there may be, P blocks that there may be, N rows of a call, W width.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


class Blocks:
    """Rows [R, W] that are indexed as those of a tensor: blocks[rows_N] -> [N, W], blocks[rows_N, 2] = 7.

    Rows come as int64 [N], as a number or as a slice, a column as a number or a slice behind them. A row of -1, and one
    that no slab holds yet, reads zeros and is not written. Nothing here waits for the device.
    """

    def __init__(self, most_rows: int, width: int, dtype: torch.dtype, block_rows: int, device: torch.device) -> None:
        """``block_rows`` is a power of two; ``most_rows`` is rounded up to whole blocks."""
        if block_rows < 1 or block_rows & (block_rows - 1):
            raise ValueError(f"block_rows is {block_rows}, need a power of two")
        self.block_rows = block_rows
        self.width, self.dtype, self.device = width, dtype, device
        with torch.inference_mode(False):  # as slabs
            self.pointers = torch.zeros(-(-most_rows // block_rows), dtype=torch.int64, device=device)
        """int64 [P]: where each block begins, 0 for those that are not there yet."""
        self.slabs: list[Tensor] = []
        """Each [blocks * block_rows + 1, W]: its blocks, and a row behind them that takes what belongs to no row."""
        self.rows = 0
        """How many rows there are."""

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), self.width))

    def __len__(self) -> int:
        """How many rows there may ever be."""
        return len(self.pointers) * self.block_rows

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    def dim(self) -> int:
        return 2

    def new_slab(self, blocks: int) -> Tensor:
        """Zeros for so many blocks more; `append` makes them rows. Raises what the device's allocator raises."""
        rows = blocks * self.block_rows + 1
        with torch.inference_mode(False):  # an inference tensor could never take part in training
            return torch.zeros(rows, self.width, dtype=self.dtype, device=self.device)

    def append(self, slab: Tensor) -> None:
        """Take the blocks of a slab for the next rows."""
        self.point_to(slab)
        self.add(slab)

    def point_to(self, slab: Tensor) -> None:
        """What `append` does on the device, and what may fail; nothing comes of it before `add`, which can't."""
        first, count = self.rows // self.block_rows, (len(slab) - 1) // self.block_rows
        stride = self.block_rows * self.width * self.itemsize
        with torch.inference_mode(False):
            begin, own = slab.data_ptr(), self.pointers[first : first + count]
            torch.arange(begin, begin + count * max(stride, 1), max(stride, 1), out=own)

    def add(self, slab: Tensor) -> None:
        """Count the rows of a slab that `point_to` has been given."""
        self.slabs.append(slab)
        self.rows += len(slab) - 1

    # ------------------------------------------------------------------------------------------------ as of a tensor

    def __getitem__(self, place: Any) -> Tensor:
        rows, columns = place if isinstance(place, tuple) else (place, slice(None))
        if isinstance(rows, slice):
            pieces = [slab[mine, columns] for slab, mine, _ in self._slabs_of(rows)]
            return torch.cat(pieces or [self._no_rows(columns)])
        if not isinstance(rows, Tensor):
            return self[torch.tensor([rows], device=self.device), columns][0]
        found = self._no_rows(columns).new_zeros(rows.shape + self._no_rows(columns).shape[1:])
        for slab, first in self._starts():
            local_N = self._places(slab, first, rows)
            is_here = (local_N < len(slab) - 1).view(-1, *[1] * (found.dim() - 1))
            found = torch.where(is_here, slab[local_N, columns], found)
        return found

    def __setitem__(self, place: Any, values: Any) -> None:
        rows, columns = place if isinstance(place, tuple) else (place, slice(None))
        if isinstance(rows, slice):
            for slab, mine, given in self._slabs_of(rows):
                is_each = isinstance(values, Tensor) and values.dim() > 0
                slab[mine, columns] = values[given] if is_each else values
            return
        if not isinstance(rows, Tensor):
            rows = torch.tensor([rows], device=self.device)
        if isinstance(values, Tensor):
            values = values.to(self.device, self.dtype)
        for slab, first in self._starts():
            slab[self._places(slab, first, rows), columns] = values

    def index_select(self, dim: int, rows_N: Tensor) -> Tensor:
        """The rows; IndexError for one that is none, on the CPU alone, since a look would wait for another device."""
        assert dim == 0
        if self.device.type == "cpu" and len(rows_N) and not 0 <= int(rows_N.min()) <= int(rows_N.max()) < self.rows:
            raise IndexError(f"rows reach from {int(rows_N.min())} to {int(rows_N.max())}, there are {self.rows}")
        return self[rows_N]

    def _no_rows(self, columns: int | slice) -> Tensor:
        return torch.empty(0, self.width, dtype=self.dtype, device=self.device)[:, columns]

    def _starts(self) -> Iterator[tuple[Tensor, int]]:
        """Slabs with the first row of each."""
        first = 0
        for slab in self.slabs:
            yield slab, first
            first += len(slab) - 1

    @staticmethod
    def _places(slab: Tensor, first: int, rows_N: Tensor) -> Tensor:
        """Where rows lie in a slab; the row behind its last where they do not."""
        local_N = rows_N - first
        return torch.where((local_N >= 0) & (local_N < len(slab) - 1), local_N, len(slab) - 1)

    def _slabs_of(self, rows: slice) -> Iterator[tuple[Tensor, slice, slice]]:
        """Slabs that hold rows of a run, where these lie in them, and which of the run they are."""
        begin, end, step = rows.indices(self.rows)
        assert step == 1
        for slab, first in self._starts():
            mine = slice(max(begin - first, 0), min(end - first, len(slab) - 1))
            if mine.start < mine.stop:
                yield slab, mine, slice(first + mine.start - begin, first + mine.stop - begin)
