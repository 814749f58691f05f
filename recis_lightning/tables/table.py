"""One table of embeddings as its users see it, and a part of its content on the way to or from a checkpoint.

N ids or rows in a call, D row width.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from recis_lightning.schema import SparseOptimizer, Table
from triton_ops.index import SHARDS
from triton_ops.row_layout import COUNT, LAST_STEP

if TYPE_CHECKING:
    from recis_lightning.tables.group import TableGroup


@dataclass(frozen=True, eq=False)
class TableSlice:
    """Ids of one table with all that is known of each, ordered by mix64(id) as unsigned where they were exported."""

    ids: Tensor
    """int64 [N]."""
    weight: Tensor
    """[N, D], the table's dtype."""
    slots: Mapping[str, Tensor]
    """Optimizer state by name, [N, width]: exp_avg and exp_avg_sq, or sum."""
    last_step: Tensor
    """int64 [N]: the last training step that looked the id up."""
    count: Tensor
    """int64 [N]: how often training looked the id up."""

    def __len__(self) -> int:
        return len(self.ids)


class DynamicTable:
    """Embeddings of unbounded ids: a row for each id that training has seen, in memory it shares with its group.

    Any int64 is an id. Rows are numbers within the group; a row stays its id's until the id is erased. Made by
    `TableGroup`, which serves all its tables in one call; copying a table copies its group.
    """

    def __init__(self, group: "TableGroup", number: int, declaration: Table) -> None:
        self.group = group
        self.number = number
        """Its place among the tables of its group."""
        self.declaration = declaration
        self.step = 0
        """Optimizer steps in which it was looked up."""

    @property
    def name(self) -> str:
        return self.declaration.name

    @property
    def dim(self) -> int:
        return self.declaration.dim

    @property
    def dtype(self) -> torch.dtype:
        return self.group.dtype

    @property
    def optimizer(self) -> SparseOptimizer:
        """The declaration of the optimizer that updates its rows."""
        return self.declaration.optimizer

    @property
    def default_row(self) -> int:
        """The row that unknown ids read: zeros."""
        return self.group.default_row

    def __len__(self) -> int:
        """How many ids it holds."""
        return self.group.index.count(self.number)

    def __repr__(self) -> str:
        return f"DynamicTable('{self.name}', {len(self)} ids, dim {self.dim}, {self.dtype}, {self.optimizer.kind})"

    def find(self, ids_N: Tensor) -> Tensor:
        """The row of each id, -1 for ids it does not hold: int64 [N] -> int64 [N]. Changes nothing."""
        return self.group.index.find(ids_N, *self._as_one_run(ids_N))

    def find_or_insert(self, ids_N: Tensor) -> Tensor:
        """The row of each id; new ids get rows with their first values. Ids may repeat. Raises TableFullError."""
        return self.group.lookup(ids_N, *self._as_one_run(ids_N), insert=True)

    def erase(self, ids_N: Tensor) -> int:
        """Forget ids; their rows go to ids that are new later. Returns how many of them it held.

        Rows looked up before, pending gradients among them, must not be used afterwards.
        """
        return self.group.index.erase(ids_N, self.number, self.group.rows.pool)

    def weight(self, rows_N: Tensor) -> Tensor:
        """A copy of rows, [N, D]; IndexError for a row that is none, such as the -1 of `find`."""
        return self.group.weight.index_select(0, rows_N)

    def export(self, first_shard: int = 0, last_shard: int = SHARDS) -> TableSlice:
        """A copy of what it holds in virtual shards [first_shard, last_shard), ordered by mix64(id) as unsigned."""
        ids, rows = self.group.index.items(self.number, first_shard, last_shard)
        slots = {
            name: self.group.state[:, columns].index_select(0, rows)
            for name, columns in self.group.state_slices.items()
        }
        record = self.group.meta.index_select(0, rows)
        return TableSlice(ids, self.weight(rows), slots, record[:, LAST_STEP].clone(), record[:, COUNT].clone())

    def load(self, part: TableSlice) -> None:
        """Insert or overwrite ids with all that a slice says about them.

        Raises ValueError where the slice does not fit the table or names an id twice, TableFullError if rows run out.
        """
        self._check(part)
        rows = self.find_or_insert(part.ids)
        self.group.weight[rows] = part.weight
        for name, columns in self.group.state_slices.items():
            self.group.state[rows, columns] = part.slots[name]
        self.group.meta[rows, LAST_STEP] = part.last_step
        self.group.meta[rows, COUNT] = part.count

    def _check(self, part: TableSlice) -> None:
        where, count = f"table '{self.name}'", len(part)
        wanted = {"weight": (count, self.dim), "last_step": (count,), "count": (count,)}
        found = {"weight": part.weight, "last_step": part.last_step, "count": part.count}
        for name, columns in self.group.state_slices.items():
            if name not in part.slots:
                raise ValueError(
                    f"{where} is updated by {self.optimizer.kind}, with the state "
                    f"{', '.join(self.group.state_slices)}; the slice has {', '.join(part.slots) or 'none'}"
                )
            wanted[name], found[name] = (count, columns.stop - columns.start), part.slots[name]
        for name, shape in wanted.items():
            dtype = torch.int64 if name in ("last_step", "count") else self.dtype
            if tuple(found[name].shape) != shape or found[name].dtype != dtype:
                raise ValueError(
                    f"{where}: {name} of the slice is {found[name].dtype} {list(found[name].shape)}, "
                    f"need {dtype} {list(shape)}"
                )
        if len(part.ids.unique()) != count:
            raise ValueError(f"{where}: {count - len(part.ids.unique())} of {count} ids in the slice repeat others")

    def clear(self) -> None:
        """Forget everything; its rows wait for new ids."""
        self.group.index.clear(self.number)
        self.group.rows.clear(self.number)
        self.step = 0

    def stats(self) -> dict[str, int | float]:
        """Its ids, rows owned, rows erased and waiting, bytes of rows and index, segments, slots and their load."""
        index = self.group.index.stats(self.number)
        load = index["ids"] / index["slots"] if index["slots"] else 0.0
        return index | {"load": load} | self.group.rows.stats(self.number, index["ids"])

    def _as_one_run(self, ids_N: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tensor([0, len(ids_N)]), torch.tensor([self.number])

    def __reduce__(self) -> tuple[Any, ...]:
        # A table is nothing without its group: copy and pickle go by way of it.
        return operator.getitem, (self.group, self.number)
