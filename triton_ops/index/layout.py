"""What the implementations of the id index share: the row numbers they hand out, and what an insertion returns.

T tables, R rows, N ids in a call, U new ids.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from triton_ops.places import Rows

SHARDS = 4096  # virtual shards: the values of the top 12 bits of mix64(id)

# Columns of RowPool.cursors: the next fresh row, the end of the fresh rows, the first erased row.
NEXT, END, FREE = 0, 1, 2
NO_ROW = -1


@dataclass(eq=False)
class RowPool:
    """Row numbers for new ids: erased rows of the table first, the last erased one foremost, then fresh ones in order.

    A table with cursors (next 64, end 128, first erased -1) gives 64, 65, ...; at 128 it asks ``refill`` for more.
    """

    cursors: np.ndarray
    """int64 [T, 3]: NEXT, END and FREE (NO_ROW where no row is erased) of each table."""
    row_ids: np.ndarray
    """int64 [R]: the id of a row in use; of an erased row the one erased before it, NO_ROW behind the last."""
    refill: Callable[[int], bool]
    """Called with a table that has no row left; sets its NEXT and END, or gives False where nothing is left."""

    @staticmethod
    def empty_cursors(tables: int) -> np.ndarray:
        """Cursors of tables that have no rows yet."""
        cursors = np.zeros((tables, 3), dtype=np.int64)
        cursors[:, FREE] = NO_ROW
        return cursors

    def take(self, table: int) -> int | None:
        """The row for the next new id of a table, or None where all rows are taken."""
        cursor = self.cursors[table]
        if cursor[FREE] != NO_ROW:
            row = int(cursor[FREE])
            cursor[FREE] = self.row_ids[row]
            return row
        if cursor[NEXT] == cursor[END] and not self.refill(table):
            return None
        row = int(cursor[NEXT])
        cursor[NEXT] += 1
        return row

    def give_back(self, table: int, row: int) -> None:
        """Take back an erased id's row; it is the next to be handed out."""
        self.row_ids[row] = self.cursors[table, FREE]
        self.cursors[table, FREE] = row


@dataclass(eq=False)
class DevicePool:
    """Row numbers for new ids where the index is on a GPU: erased rows as in `RowPool`, then fresh ones in order.

    Fresh rows are asked for before a lookup, as many as it could need, so that nobody waits for the GPU to say.
    """

    meta: Rows
    """int64 [R, 4], a tensor or blocks: new ids are written to the records of their rows, column ID of row_layout."""
    refill: Callable[[int, int], Sequence[tuple[int, int]]]
    """Called with a table and how many rows it lacks; gives runs of rows [begin, end) that are its own from then on, of
    whole granules. Fewer rows than asked for say that it gets no more: only then may a run end within a granule."""
    lost_row: int = NO_ROW
    """What ids read that get no row."""


class NoRoomError(MemoryError):
    """The index of a table, by its number, finds no memory to grow."""

    def __init__(self, table: int, message: str) -> None:
        super().__init__(message)
        self.table = table


class Inserted(NamedTuple):
    """What find_or_insert did."""

    rows: Tensor
    """int64 [N]: the row of each id; -1 from the first id on that found its table full. On a GPU ``lost_row`` for each
    id that got none."""
    new_rows: Tensor
    """int64 [U]: the rows that were handed out, in the order their ids were first seen. On a GPU [N], table by table in
    this order, with -1 where there are fewer."""
    full_table: int | None
    """The table that was full, if one was; on a GPU None, see `Index.lost`."""
