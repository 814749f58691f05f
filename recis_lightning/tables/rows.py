"""The row store of a group: weights, optimizer state and records, and which table owns which rows.

On the CPU rows lie in reserved memory, elsewhere in blocks that are added as tables grow (`tables.places`).

R rows there may be, D row width, W width of the optimizer's state, T tables.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recis_lightning.errors import UserError
from recis_lightning.tables.memory import reserve
from recis_lightning.tables.places import FILLED_AHEAD, MOST_ROWS, NoMemory, find_place, lies_on_device
from triton_ops.blocks import Blocks
from triton_ops.index import DevicePool, RowPool
from triton_ops.index.layout import END, NEXT, NO_ROW
from triton_ops.row_layout import GRANULE, ID, LAST_STEP, NOBODYS, STAMP, UNTRAINED

DEFAULT_ROW = 0
"""The row of zeros that unknown ids read."""

LARGEST_BLOCK = 1 << 12  # rows; small next to what grows at once, so that tables fill huge pages together


class TableFullError(UserError, RuntimeError):
    """A new id found no row, since its table is at its capacity or all reserved rows are taken."""


@dataclass
class _Blocks:
    """The runs of rows that one table owns: the first one small, so that small tables stay small."""

    bounds: list[tuple[int, int]] = field(default_factory=list)
    used: int = 0
    """How many of them have been handed to the pool; the rest were given back by `RowStore.clear`."""
    rows: int = 0
    """In all of them."""
    handed_out: int = 0
    """In those that are used. Counted as they go: a large table has tens of thousands."""

    @staticmethod
    def of(bounds: Sequence[tuple[int, int]], used: int) -> "_Blocks":
        sizes = [end - begin for begin, end in bounds]
        return _Blocks(list(bounds), used, sum(sizes), sum(sizes[:used]))

    def append(self, begin: int, end: int) -> None:
        self.bounds.append((begin, end))
        self.rows += end - begin

    def hand_out(self) -> tuple[int, int]:
        """The bounds of the next one."""
        begin, end = self.bounds[self.used]
        self.used += 1
        self.handed_out += end - begin
        return begin, end

    def take_back(self) -> None:
        self.used = self.handed_out = 0


class RowStore:
    """Rows of a group of tables: blocks never move, so a row number is good for the life of the group.

    ``weight`` [R, D], ``state`` [R, W], ``meta`` [R, 4] and ``granule_table`` [R / 64] are those of a `places.Place`,
    laid out as `triton_ops.row_layout` says. Rows 0 to 63 are untrained zeros; row 0 is what unknown ids read.

    ``max_rows`` is how many rows the group may ever have; None takes what `places.find_place` says. ``limits`` is how
    many rows each table may have, None where only the group's bound counts.
    """

    def __init__(
        self,
        tables: int,
        weight: tuple[int, torch.dtype],
        state: tuple[int, torch.dtype],
        max_rows: int | None,
        limits: Sequence[int | None] = (),
        device: torch.device | None = None,
    ) -> None:
        """``weight`` and ``state`` say how wide each is, and of which dtype; ``device`` is that of `find_place`."""
        self._place = find_place(tables, weight, state, max_rows, device)
        self.weight, self.state, self.meta = self._place.weight, self._place.state, self._place.meta
        self.granule_table, self.slots = self._place.granule_table, self._place.slots
        self.refused: dict[int, NoMemory] = {}
        """Why tables got no rows when they last asked for some, where it was for want of memory."""
        self._cursors = RowPool.empty_cursors(tables)
        self.is_ahead = lies_on_device(self.meta)
        """Whether new ids get their rows on the device, from those that `supply` has given out before."""
        self.pool: Any = (
            DevicePool(self.meta, self.supply, DEFAULT_ROW)
            if self.is_ahead
            else RowPool(self._cursors, self._row_ids(), self._refill)
        )
        """Gives an index the rows of new ids."""
        self._blocks = [_Blocks() for _ in range(tables)]
        self._limits = [MOST_ROWS if limit is None else limit for limit in limits or [None] * tables]
        self._end = GRANULE  # rows behind this one belong to nobody
        self._filled = 0
        self._place.commit(GRANULE)
        self._mark(0, GRANULE, UNTRAINED)

    def _row_ids(self) -> np.ndarray:
        """int64 [R] on the CPU: the ids of rows for an index that lies there."""
        if isinstance(self.meta, Tensor):
            return self.meta[:, ID].numpy()
        return reserve((self.capacity,), torch.int64).numpy()

    def limit(self, table: int, rows: int | None) -> None:
        """Let a table have at most so many rows from now on; it keeps those that it has."""
        self._limits[table] = MOST_ROWS if rows is None else rows

    @property
    def capacity(self) -> int:
        """How many rows there may be."""
        return self._place.capacity

    @property
    def room(self) -> int:
        """How many rows tables can have together."""
        return self.capacity - GRANULE

    def _refill(self, table: int) -> bool:
        """Point the pool to the next block of a table; False at its limit, or where no more rows are to be had."""
        blocks = self._blocks[table]
        left = self._limits[table] - blocks.handed_out
        self.refused.pop(table, None)
        if left <= 0:
            return False
        if blocks.used == len(blocks.bounds):
            size = min(max(blocks.rows, GRANULE), LARGEST_BLOCK, self.capacity - self._end)
            if size == 0:
                return False
            try:
                self._place.commit(self._end + size)
            except NoMemory as refused:
                self.refused[table] = refused
                return False
            self._mark(self._end, self._end + size, table)  # first, for it may fail
            blocks.append(self._end, self._end + size)
            self._end += size
        begin, end = blocks.hand_out()
        self._cursors[table, NEXT], self._cursors[table, END] = begin, min(end, begin + left)
        return True

    def supply(self, table: int, rows: int) -> list[tuple[int, int]]:
        """Runs of so many rows or more that are a table's from now on; fewer at its limit, or without room for more."""
        runs: list[tuple[int, int]] = []
        blocks = self._blocks[table]
        before, cursor = (blocks.used, blocks.handed_out), self._cursors[table].copy()
        try:
            while rows > 0 and self._refill(table):
                begin, end = self._cursors[table, [NEXT, END]].tolist()
                self._cursors[table, NEXT] = end
                if runs and runs[-1][1] == begin:
                    runs[-1] = runs[-1][0], end
                else:
                    runs.append((begin, end))
                rows -= end - begin
        except BaseException:
            (blocks.used, blocks.handed_out), self._cursors[table] = before, cursor  # nobody has heard of these runs
            raise
        return runs

    def _mark(self, begin: int, end: int, table: int) -> None:
        """Say whose the granules of these rows are, and that those behind are nobody's yet."""
        if end // GRANULE > self._filled:
            ahead = end // GRANULE + FILLED_AHEAD
            self.granule_table[self._filled : ahead] = UNTRAINED
            self._filled = ahead
        self.granule_table[begin // GRANULE : end // GRANULE] = table

    def clear(self, table: int) -> None:
        """Take all rows of a table back; it keeps its blocks and starts anew with the first."""
        if isinstance(self.meta, Blocks):
            for piece in self.handed_out(table):
                self.meta[piece, LAST_STEP] = NOBODYS
        if self.is_ahead:  # its index has them
            return
        self._cursors[table] = 0, 0, NO_ROW
        self._blocks[table].take_back()

    def read_state(self, rows_N: Tensor, columns: slice) -> Tensor:
        """A copy of some columns of rows' state."""
        if isinstance(self.state, Blocks):
            return self.state[rows_N, columns]
        return self.state[:, columns].index_select(0, rows_N)

    def take_back(self, rows_N: Tensor) -> None:
        """Note that no id has these rows any more; the index has given them back to the pool."""
        self.meta[rows_N, LAST_STEP] = NOBODYS

    def handed_out(self, table: int, most: int = 1 << 18) -> Iterator[slice]:
        """The rows a table has given to ids so far, in pieces; those whose ids are erased since are among them.

        Where rows are supplied ahead, those that wait for ids are too; LAST_STEP of all of them is NOBODYS.
        """
        blocks, joined = self._blocks[table], list[tuple[int, int]]()
        for begin, end in blocks.bounds[: blocks.used]:
            if joined and joined[-1][1] == begin:
                joined[-1] = joined[-1][0], end
            else:
                joined.append((begin, end))
        if joined:
            joined[-1] = joined[-1][0], int(self._cursors[table, NEXT])
        for begin, end in joined:
            yield from (slice(first, min(first + most, end)) for first in range(begin, end, most))

    def clear_stamps(self) -> None:
        """Make the ticks of group_by_row begin anew."""
        self.meta[: self._end, STAMP] = 0

    def stats(self, table: int, ids: int) -> dict[str, int]:
        """Of a table that holds so many ids: rows owned, rows erased and waiting for new ids, bytes of those owned."""
        blocks = self._blocks[table]
        handed_out = min(blocks.handed_out, self._limits[table])
        fresh = int(self._cursors[table, END] - self._cursors[table, NEXT])
        bytes_per_row = sum(array.shape[1] * array.dtype.itemsize for array in (self.weight, self.state, self.meta))
        found = {"rows": blocks.rows, "row_bytes": blocks.rows * bytes_per_row}
        # Of rows that are supplied ahead the index knows which were erased.
        return found if self.is_ahead else found | {"erased_rows": handed_out - fresh - ids}

    def snapshot(self) -> dict[str, Any]:
        """All it holds, as copies that end where its rows end."""
        arrays = {name: array[: self._end].to("cpu", copy=True) for name, array in self._arrays()}
        arrays["granule_table"] = self.granule_table[: self._end // GRANULE].to("cpu", copy=True)
        blocks = [(list(blocks.bounds), blocks.used) for blocks in self._blocks]
        row_ids = None if self.is_ahead else self.pool.row_ids[: self._end].copy()
        pool = {"cursors": self._cursors.copy(), "row_ids": row_ids}
        return {"arrays": arrays, "blocks": blocks, "end": self._end, **pool}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Become what a snapshot holds; MemoryError where fewer rows are reserved."""
        if snapshot["end"] > self.capacity:
            raise MemoryError(
                f"the copied group has {snapshot['end']} rows, {self.capacity} are reserved; raise max_rows"
            )
        self._place.commit(snapshot["end"])
        for name, array in self._arrays():
            array[: snapshot["end"]] = snapshot["arrays"][name]
        self._mark(0, snapshot["end"], UNTRAINED)
        own = self.granule_table[: snapshot["end"] // GRANULE]
        own.copy_(snapshot["arrays"]["granule_table"])
        self._blocks = [_Blocks.of(bounds, used) for bounds, used in snapshot["blocks"]]
        self._end = snapshot["end"]
        self._cursors[:] = snapshot["cursors"]
        if not self.is_ahead:
            self.pool.row_ids[: self._end] = snapshot["row_ids"]

    def _arrays(self) -> Iterator[tuple[str, Tensor | Blocks]]:
        return iter((("weight", self.weight), ("state", self.state), ("meta", self.meta)))
