"""Where the rows of a group lie: in reserved memory on the CPU, in blocks cut from slabs on any other device.

R rows there may be, D row width, W width of the optimizer's state, T tables.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recis_lightning.tables.memory import physical_memory, reserve
from triton_ops import dispatch
from triton_ops.blocks import Blocks
from triton_ops.row_layout import GRANULE, LAST_STEP, NOBODYS, RECORD

MOST_ROWS = 1 << 31
FEWEST_ROWS = 1 << 16  # what a refused reservation is halved down to
FILLED_AHEAD = 1 << 12  # granules behind the last that `RowStore` may mark
SLOTS_PER_ROW = 8  # a segment is at least 1/8 full after it has grown, bar small ones and gaps between them

BLOCK_ROWS = 1 << 12  # of the smallest blocks; more where a table of pointers would be long
MOST_BLOCKS = 1 << 16
SLAB_BYTES = 1 << 30  # a slab is no larger than this, or than what is needed at once

Column = tuple[int, torch.dtype]
"""How wide rows are, and of which dtype."""


class NoMemory(Exception):
    """A device has no memory for more rows."""

    def __init__(self, device: torch.device, rows: int, nbytes: int) -> None:
        super().__init__(f"no memory on {device} for {rows:,} more rows ({nbytes:,} bytes)")
        self.device, self.rows, self.nbytes = device, rows, nbytes


@dataclass(eq=False)
class Place:
    """Arrays of rows that `triton_ops.row_layout` describes, indexed as tensors are."""

    weight: Any  # Tensor, or Blocks, which is indexed as one
    """[R, D]"""
    state: Any
    """[R, W]"""
    meta: Any
    """int64 [R, 4]"""
    granule_table: Tensor
    """int32 [R / 64]"""
    slots: Tensor
    """int64 [S, 2], on the CPU: memory for an index that lies there."""
    capacity: int
    """R."""

    def commit(self, rows: int) -> None:
        """See to it that there is memory for rows [0, rows); NoMemory leaves everything as it was."""


class Blocked(Place):
    """Rows that are blocks of slabs."""

    def commit(self, rows: int) -> None:
        arrays: list[Blocks] = [self.weight, self.state, self.meta]
        missing = -(-rows // arrays[0].block_rows) - arrays[0].rows // arrays[0].block_rows
        if missing > 0:
            self._append(arrays, missing)

    def _append(self, arrays: list[Blocks], blocks: int) -> None:
        """Add so many blocks; half as many again as there are, if there is memory for them."""
        first, row_bytes = arrays[0], sum(array.width * array.itemsize for array in arrays)
        most = min(SLAB_BYTES // (row_bytes * first.block_rows), len(first.pointers) - first.rows // first.block_rows)
        ahead = max(blocks, min(first.rows // first.block_rows // 2, most))
        for count in dict.fromkeys((ahead, blocks)):
            try:
                slabs = [array.new_slab(count) for array in arrays]
            except (torch.OutOfMemoryError, MemoryError):
                continue
            slabs[-1][0 if first.rows else GRANULE :, LAST_STEP] = NOBODYS  # until an id has them
            for array, slab in zip(arrays, slabs, strict=True):
                array.point_to(slab)
            for array, slab in zip(arrays, slabs, strict=True):  # all, or none: they are one another's rows
                array.add(slab)
            return
        rows = blocks * first.block_rows
        raise NoMemory(first.device, rows, rows * row_bytes)


def lies_in_blocks(device: torch.device) -> bool:
    """Whether rows on a device lie in blocks; on the CPU where Triton's interpreter runs the kernels."""
    return device.type != "cpu" or dispatch.choose("index", device) == "triton"


def lies_on_device(meta: Tensor | Blocks) -> bool:
    """Whether an index of rows with these records lies where they are: where that has kernels for it."""
    return isinstance(meta, Blocks) and dispatch.choose("index", meta.device) == "triton"


def find_place(
    tables: int, weight: Column, state: Column, max_rows: int | None, device: torch.device | None = None
) -> Place:
    """Memory for ``max_rows`` rows at most; without a ``device`` reserved on the CPU, whatever runs the kernels.

    None takes as many rows as would fill this machine's memory twice, on a device its memory once, at most 2^31.
    Raises MemoryError where the system refuses so much address space.
    """
    if device is not None and lies_in_blocks(device):
        return _make_blocks(tables, weight, state, max_rows, device)
    rows = _most_rows(2 * physical_memory(), weight, state) if max_rows is None else max_rows
    while True:
        capacity = _round_up(rows)
        try:
            return Place(
                reserve((capacity, weight[0]), weight[1]),
                reserve((capacity, state[0]), state[1]),
                reserve((capacity, RECORD), torch.int64),
                reserve((capacity // GRANULE + FILLED_AHEAD,), torch.int32)[: capacity // GRANULE],
                reserve((SLOTS_PER_ROW * capacity + 2 * GRANULE * tables, 2), torch.int64),
                capacity,
            )
        except MemoryError:
            if max_rows is not None or rows <= FEWEST_ROWS:
                raise
            rows //= 2


def _make_blocks(tables: int, weight: Column, state: Column, max_rows: int | None, device: torch.device) -> Place:
    rows = _most_rows(_memory_of(device), weight, state) if max_rows is None else max_rows
    capacity = _round_up(rows)
    block_rows = BLOCK_ROWS
    while capacity > block_rows * MOST_BLOCKS:
        block_rows *= 2
    columns = weight, state, (RECORD, torch.int64)
    arrays = [Blocks(capacity, width, dtype, block_rows, device) for width, dtype in columns]
    with torch.inference_mode(False):
        granules = -(-len(arrays[0]) // GRANULE)
        granule_table = torch.zeros(granules + FILLED_AHEAD, dtype=torch.int32, device=device)
    slots = reserve((SLOTS_PER_ROW * capacity + 2 * GRANULE * tables, 2), torch.int64)
    return Blocked(arrays[0], arrays[1], arrays[2], granule_table[:granules], slots, capacity)


def _round_up(rows: int) -> int:
    """Whole granules, and one more in front, which is nobody's."""
    return (-(-rows // GRANULE) + 1) * GRANULE


def _most_rows(nbytes: int, weight: Column, state: Column) -> int:
    row_bytes = sum(width * dtype.itemsize for width, dtype in (weight, state)) + RECORD * 8
    return min(MOST_ROWS, max(FEWEST_ROWS, nbytes // row_bytes))


def _memory_of(device: torch.device) -> int:
    """Bytes of a device's memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return physical_memory()
