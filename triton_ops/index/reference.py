"""The definition of the id index: virtual shards, and one Python dict a table.

N ids in a call, K runs of ids that belong to one table each, T tables, U new ids.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from triton_ops.index.layout import Inserted, RowPool
from triton_ops.shared.reference import mix64, shift_right


def virtual_shard(ids: Tensor) -> Tensor:
    """The virtual shard of each id, the top 12 bits of its mix64: virtual_shard([0, 1]) -> [0, 2885] (0xb45)."""
    return shift_right(mix64(ids), 52)


class ReferenceIndex:
    """Id -> row for several tables, each a dict. `triton_ops.index.op.Index` says what the methods mean."""

    def __init__(self, tables: int) -> None:
        self._rows_of: list[dict[int, int]] = [{} for _ in range(tables)]

    def find(self, ids_N: Tensor, splits_K1: Tensor, tables_K: Tensor, missing: int) -> Tensor:
        rows = [self._rows_of[table].get(id_, missing) for table, id_ in _pairs(ids_N, splits_K1, tables_K)]
        return torch.tensor(rows, dtype=torch.int64)

    def find_or_insert(self, ids_N: Tensor, splits_K1: Tensor, tables_K: Tensor, pool: RowPool) -> Inserted:
        rows_N = torch.full((len(ids_N),), -1, dtype=torch.int64)
        new_rows: list[int] = []
        full_table = None
        for position, (table, id_) in enumerate(_pairs(ids_N, splits_K1, tables_K)):
            row = self._rows_of[table].get(id_)
            if row is None:
                row = pool.take(table)
                if row is None:
                    full_table = table
                    break
                pool.row_ids[row] = id_
                self._rows_of[table][id_] = row
                new_rows.append(row)
            rows_N[position] = row
        return Inserted(rows_N, torch.tensor(new_rows, dtype=torch.int64), full_table)

    def reserve(self, table: int, ids: int, first_shard: int, last_shard: int) -> None:
        """Dicts grow by themselves."""

    def erase(self, ids_N: Tensor, splits_K1: Tensor, tables_K: Tensor, pool: RowPool) -> int:
        count = 0
        for table, id_ in _pairs(ids_N, splits_K1, tables_K):
            if (row := self._rows_of[table].pop(id_, None)) is not None:
                pool.give_back(table, row)
                count += 1
        return count

    def items(self, table: int, first_shard: int, last_shard: int) -> tuple[Tensor, Tensor]:
        ids = torch.tensor(list(self._rows_of[table].keys()), dtype=torch.int64)
        rows = torch.tensor(list(self._rows_of[table].values()), dtype=torch.int64)
        shards = virtual_shard(ids)
        kept = (shards >= first_shard) & (shards < last_shard)
        ids, rows = ids[kept], rows[kept]
        order = torch.argsort(mix64(ids) ^ -(2**63))  # flipping the top bit orders int64 as unsigned
        return ids[order], rows[order]

    def clear(self, table: int) -> None:
        self._rows_of[table].clear()

    def count(self, table: int) -> int:
        return len(self._rows_of[table])

    def stats(self, table: int) -> dict[str, int]:
        return {"ids": self.count(table), "slots": 0, "segments": 0, "index_bytes": 0}

    def probe_lengths(self, table: int) -> tuple[float, int]:
        return 1.0, 1

    def snapshot(self) -> dict[str, Any]:
        return {"rows_of": copy.deepcopy(self._rows_of)}

    def restore(self, snapshot: dict[str, Any]) -> None:
        self._rows_of = copy.deepcopy(snapshot["rows_of"])


def _pairs(ids_N: Tensor, splits_K1: Tensor, tables_K: Tensor) -> Iterator[tuple[int, int]]:
    """(table, id) of each position: ids [5, 6, 7] with splits [0, 2, 3] and tables [4, 9] -> (4, 5), (4, 6), (9, 7)."""
    tables_N = torch.repeat_interleave(tables_K.to(torch.int64), splits_K1.diff())
    return zip(tables_N.tolist(), ids_N.tolist(), strict=True)
