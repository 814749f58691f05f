"""Which index a group of tables has: one that lies where its rows lie, or else one on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from recis_lightning.tables.rows import RowStore
from triton_ops.blocks import Blocks
from triton_ops.index import SHARDS, Index, Inserted, RowPool
from triton_ops.index.layout import NO_ROW
from triton_ops.row_layout import ID, LAST_STEP, NOBODYS


def make_index(tables: int, rows: RowStore) -> Any:
    """The index of a group's tables, for rows of ``rows``."""
    if rows.is_ahead:
        return Index(tables, None, rows.meta.device)
    index = Index(tables, rows.slots.numpy())
    return HostIndex(index, rows.meta) if isinstance(rows.meta, Blocks) else index


class HostIndex:
    """An index on the CPU of rows on another device: each call waits for that device. See `triton_ops.index.Index`.

    Serves where a device has no kernels for an index, and to rule kernels out.
    """

    def __init__(self, index: Index, meta: Blocks) -> None:
        self._index, self._meta = index, meta
        self._torn: RowPool | None = None

    @contextmanager
    def changing(self, pool: RowPool) -> Iterator[None]:
        """As `Index.changing`."""
        try:
            yield
        except BaseException:
            self._torn = pool
            raise

    def _repair(self) -> None:
        """Forget the ids whose rows' records say that they are nobody's, where an error has cut something short."""
        pool, self._torn = self._torn, None
        if pool is None:
            return
        with self.changing(pool):
            for table in range(self._index.tables):
                ids, rows = self._index.items(table)
                ids = ids[(self._meta[rows.to(self._meta.device), LAST_STEP] == NOBODYS).cpu()]
                self._index.erase(ids, torch.tensor([0, len(ids)]), torch.tensor([table]), pool)

    def find(self, ids_N: Tensor, splits_K1: Tensor, tables_K: Tensor, missing: int = NO_ROW) -> Tensor:
        self._repair()
        return self._index.find(ids_N.cpu(), splits_K1, tables_K, missing).to(self._meta.device)

    def find_or_insert(self, ids_N: Tensor, splits_K1: Tensor, tables_K: Tensor, pool: RowPool) -> Inserted:
        self._repair()
        with self.changing(pool):
            inserted = self._index.find_or_insert(ids_N.cpu(), splits_K1, tables_K, pool)
            ids_U = torch.from_numpy(pool.row_ids[inserted.new_rows.numpy()])
            rows_N, new_rows_U = inserted.rows.to(self._meta.device), inserted.new_rows.to(self._meta.device)
            self._meta[new_rows_U, ID] = ids_U
        return Inserted(rows_N, new_rows_U, inserted.full_table)

    def erase(self, ids_N: Tensor, splits_K1: Tensor, tables_K: Tensor, pool: RowPool) -> int:
        self._repair()
        return int(self._index.erase(ids_N.cpu(), splits_K1, tables_K, pool))

    def items(self, table: int, first_shard: int = 0, last_shard: int = SHARDS) -> tuple[Tensor, Tensor]:
        """As `Index.items`, both on the device."""
        self._repair()
        ids, rows = self._index.items(table, first_shard, last_shard)
        return ids.to(self._meta.device), rows.to(self._meta.device)

    def __getattr__(self, name: str) -> Any:
        # clear, count, stats, probe_lengths, snapshot and restore speak of no rows' place.
        self._repair()
        return getattr(self._index, name)
