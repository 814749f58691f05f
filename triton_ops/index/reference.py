"""The definition of the id index: 64-bit mixing in plain torch, and an index that is one Python dict a table.

N ids in a call, K runs of ids that belong to one table each, T tables, U new ids.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from triton_ops.index.layout import Inserted, RowPool

_MULTIPLIERS = (0xFF51AFD7ED558CCD - 2**64, 0xC4CEB9FE1A85EC53 - 2**64)  # as int64, whose product wraps alike


def mix64(ids: Tensor) -> Tensor:
    """Spread ids over all 64 bits: mix64([0, 1]) -> [0, -5451962507482445012], as unsigned 0xb456bcfc34c2cb2c.

    A bijection on 64-bit words: the finaliser of MurmurHash3 (fmix64). ``ids`` is int64 of any shape; the result holds
    the bits of the unsigned word as int64.
    """
    mixed = ids
    for multiplier in _MULTIPLIERS:
        mixed = (mixed ^ _shift_right(mixed, 33)) * multiplier
    return mixed ^ _shift_right(mixed, 33)


def unmix64(mixed: Tensor) -> Tensor:
    """The ids that mix64 mixed: unmix64(mix64(ids)) == ids. Same dtype and shape."""
    ids = mixed ^ _shift_right(mixed, 33)  # shifting by more than 32 bits is its own inverse
    for multiplier in reversed(_MULTIPLIERS):
        inverse = pow(multiplier, -1, 2**64)
        ids = ids * (inverse - 2**64 if inverse >= 2**63 else inverse)
        ids = ids ^ _shift_right(ids, 33)
    return ids


def virtual_shard(ids: Tensor) -> Tensor:
    """The virtual shard of each id, the top 12 bits of its mix64: virtual_shard([0, 1]) -> [0, 2885] (0xb45)."""
    return _shift_right(mix64(ids), 52)


def _shift_right(words: Tensor, bits: int) -> Tensor:
    """Shift as unsigned: torch's >> copies the sign into the top bits, which are masked away."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


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
