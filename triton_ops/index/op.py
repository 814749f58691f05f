"""The id index: the row of each id, for all tables of a group in one call.

N ids in a call, K runs of ids that belong to one table each, T tables, U new ids, S slots.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from triton_ops.dispatch import choose
from triton_ops.index.layout import NO_ROW, SHARDS, DevicePool, Inserted, RowPool
from triton_ops.index.reference import ReferenceIndex

Pool = RowPool | DevicePool


class Index:
    """Id -> row for T tables: find never changes anything, find_or_insert gives new ids the next row of their table.

    A call serves any number of tables: ids [5, 7, 5] with splits [0, 2, 3] and tables [0, 1] are ids 5 and 7 of table 0
    and id 5 of table 1, three different entries. Any int64 is an id. Ids may repeat within a call. Which row a new id
    gets depends on the order of ids alone, not on the implementation. One thread at a time may use an index.

    ``slots`` is where the CPU's index lies: int64 [S, 2], C-contiguous, its content without meaning; 8 slots a row and
    128 a table are always enough. An index on a GPU has none. Raises MemoryError where there is no room for the first
    segment of each table.

    On a GPU, `find`, `find_or_insert` and `erase` launch a number of kernels that does not depend on tables or runs,
    and do not wait for them; ids, rows and ``missing`` are on the device, splits and tables on the CPU. Take a
    `DevicePool` there. More than 2^17 ids of one table in a call are taken to be spread over virtual shards by chance.
    """

    def __init__(self, tables: int, slots: np.ndarray | None, device: torch.device | None = None) -> None:
        self.tables = tables
        self.device = device or torch.device("cpu")
        self._implementation: Any
        chosen = choose("index", self.device)
        if chosen == "reference":
            self._implementation = ReferenceIndex(tables)
        elif chosen == "triton" and slots is None:
            from triton_ops.index.device import DeviceIndex

            self._implementation = DeviceIndex(tables, self.device)
        else:
            from triton_ops.index.segmented import SegmentedIndex

            if (
                slots is None
                or slots.dtype != np.int64
                or slots.ndim != 2
                or slots.shape[1] != 2
                or not slots.flags.c_contiguous
            ):
                found = "missing" if slots is None else f"{slots.dtype} {list(slots.shape)}"
                raise ValueError(f"slots are {found}; give a C-contiguous int64 [S, 2]")
            self._implementation = SegmentedIndex(tables, slots)

    def find(self, ids_N: Tensor, splits_K1: Tensor, tables_K: Tensor, missing: int = NO_ROW) -> Tensor:
        """The row of each id, int64 [N], ``missing`` for ids that have none.

        ``ids_N`` is int64 [N]; ``splits_K1`` int64 [K + 1] from 0 to N; ``tables_K`` int64 [K]. Raises ValueError where
        they do not fit.
        """
        self._check(ids_N, splits_K1, tables_K)
        return self._implementation.find(ids_N.contiguous(), splits_K1, tables_K, missing)

    def find_or_insert(
        self, ids_N: Tensor, splits_K1: Tensor, tables_K: Tensor, pool: Pool, *wanted_N: Tensor
    ) -> Inserted:
        """The row of each id; new ids get rows from ``pool``, in the order they are first seen.

        Stops at the first id that gets no row: then ``full_table`` names its table, and rows from that id on are -1. On
        a GPU it goes on with the other ids, and `lost` tells later; there ``wanted_N``, bool [N], may say which new ids
        get rows: the others read -1. Arguments and errors as for `find`; MemoryError where a GPU has no memory to grow,
        before anything is changed.
        """
        self._check(ids_N, splits_K1, tables_K)
        return self._implementation.find_or_insert(ids_N.contiguous(), splits_K1, tables_K, pool, *wanted_N)

    def prepare(self, splits_K1: Tensor, tables_K: Tensor, pool: DevicePool) -> None:
        """On a GPU, do what `find_or_insert` does on the host: ask for rows, and grow where room may run out.

        `find_or_insert` does so itself, but not while a graph is captured: call it before each replay of the graph, and
        `follow` after it. Raises MemoryError where there is no memory to grow.
        """
        self._implementation.prepare(splits_K1, tables_K, pool)

    def follow(self) -> None:
        """On a GPU, begin to copy the counters to the host, behind all that was launched: see `prepare`."""
        self._implementation.follow()

    def lost(self, wait: bool = False) -> np.ndarray:
        """On a GPU, how many ids of each table got no row so far, int64 [T], by the last counters that have come.

        With ``wait``, of all calls so far. Anything but zeros says that a table was full.
        """
        return self._implementation.lost(wait)

    def erase(self, ids_N: Tensor, splits_K1: Tensor, tables_K: Tensor, pool: Pool, *wanted_N: Tensor) -> int | Tensor:
        """Forget ids of any tables and give their rows back to ``pool``, a table's last one first to be used again.

        Ids that are not there, or were named before in the same call, are passed over. Returns how many were erased, on
        a GPU as a tensor: int() waits for it; there ``wanted_N``, bool [N], may say which. Arguments and errors as for
        `find`.
        """
        self._check(ids_N, splits_K1, tables_K)
        return self._implementation.erase(ids_N.contiguous(), splits_K1, tables_K, pool, *wanted_N)

    def changing(self, pool: Pool) -> AbstractContextManager[None]:
        """What a caller does within belongs to an insertion or an erasure: all of it or nothing, also where it raises.

        Matters on a GPU, where both are several launches: after an error between them the next call, whichever it is,
        finds the ids whose rows' records say that they are somebody's (LAST_STEP of row_layout), and no others. So have
        a new id's row say so last, and a row that is taken back first. The next call raises where it has no memory for
        that, and the one behind it tries again.
        """
        changing = getattr(self._implementation, "changing", None)
        return nullcontext() if changing is None else changing(pool)

    def items(self, table: int, first_shard: int = 0, last_shard: int = SHARDS) -> tuple[Tensor, Tensor]:
        """Ids and rows of a table in virtual shards [first_shard, last_shard), ordered by mix64(id) as unsigned."""
        if not 0 <= first_shard <= last_shard <= SHARDS:
            raise ValueError(f"shards {first_shard} to {last_shard} are no range within 0 to {SHARDS}")
        return self._implementation.items(self._check_table(table), first_shard, last_shard)

    def reserve(self, table: int, ids: int, first_shard: int = 0, last_shard: int = SHARDS) -> None:
        """Make room for so many ids of an empty table in virtual shards [first_shard, last_shard), about to come.

        Nothing but speed depends on it: growing to that size moves each id about twice.
        """
        if self.count(table) == 0 and 0 <= first_shard < last_shard <= SHARDS:
            self._implementation.reserve(table, ids, first_shard, last_shard)

    def clear(self, table: int) -> None:
        """Forget all ids of a table. Its rows are the caller's to take back: their pool is not told."""
        self._implementation.clear(self._check_table(table))

    def count(self, table: int) -> int:
        """How many ids a table holds."""
        return self._implementation.count(self._check_table(table))

    def count_at_most(self, table: int) -> int:
        """A number that a table's ids do not exceed, for which nobody waits; on the CPU how many there are."""
        known = getattr(self._implementation, "count_at_most", self._implementation.count)
        return known(self._check_table(table))

    def stats(self, table: int) -> dict[str, int]:
        """Sizes of a table's index: ids, slots, segments, index_bytes; on a GPU erased_rows, which wait for new ids."""
        return self._implementation.stats(self._check_table(table))

    def probe_lengths(self, table: int) -> tuple[float, int]:
        """How many slots are read to find an id of a table, on average and at most: (1.0, 1) where none collide."""
        return self._implementation.probe_lengths(self._check_table(table))

    def snapshot(self) -> dict[str, Any]:
        """Everything the index holds, as copies: arrays and plain values."""
        return self._implementation.snapshot()

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Become what a snapshot of the same implementation holds; MemoryError where the slots do not hold it."""
        self._implementation.restore(snapshot)

    def _check(self, ids_N: Tensor, splits_K1: Tensor, tables_K: Tensor) -> None:
        self._check_ids(ids_N)
        if splits_K1.dtype != torch.int64 or tables_K.dtype != torch.int64:
            raise ValueError(f"splits are {splits_K1.dtype} and tables {tables_K.dtype}; give int64")
        splits, tables = splits_K1.numpy(), tables_K.numpy()
        if len(splits) != len(tables) + 1:
            raise ValueError(f"{len(splits)} splits for {len(tables)} runs of ids; give one more than there are runs")
        if splits[0] != 0 or splits[-1] != len(ids_N) or (np.diff(splits) < 0).any():
            raise ValueError(f"splits {splits.tolist()} must rise from 0 to the number of ids, {len(ids_N)}")
        if len(tables) and not (tables.min() >= 0 and tables.max() < self.tables):
            raise ValueError(f"tables {tables.tolist()} must be numbers within 0 to {self.tables - 1}")

    def _check_ids(self, ids_N: Tensor) -> None:
        if ids_N.dtype != torch.int64 or ids_N.dim() != 1:
            raise ValueError(f"ids are {ids_N.dtype} {list(ids_N.shape)}; give int64 [N]")
        if ids_N.device != self.device:
            raise ValueError(f"ids are on {ids_N.device}, this index is on {self.device}; move the ids there")

    def _check_table(self, table: int) -> int:
        if not 0 <= table < self.tables:
            raise ValueError(f"there is no table {table}; there are {self.tables}")
        return table
