"""One table of embeddings as its users see it, and a part of its content on the way to or from a checkpoint.

N ids or rows in a call, D row width.
"""

import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from recis_lightning.schema import SparseOptimizer, Table
from recis_lightning.schema.optimizers import first_state
from recis_lightning.schema.policies import Always
from recis_lightning.tables.eviction import Queue
from recis_lightning.tables.filling import fill_rows
from triton_ops.index import SHARDS
from triton_ops.row_layout import COUNT, ID, LAST_STEP

ADMITTED, REFUSED, EVICTED, ERASED = 0, 1, 2, 3
"""Columns of `TableGroup.events`, totals of a table since it was last cleared; REFUSED counts occurrences of ids."""

NORM_PERCENTILES = (5, 50, 95)
MOVED_BYTES = 64 << 20  # of rows that are in memory once more while a table is moved

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
    """Optimizer state by name, [N, width], of the dtype that the table keeps it in: exp_avg and exp_avg_sq, or sum."""
    last_step: Tensor
    """int64 [N]: the last training step that looked the id up."""
    count: Tensor
    """int64 [N]: how often training looked the id up."""

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, chosen: Tensor) -> "TableSlice":
        """Some of its ids, by bool [N] or by their places, int64."""
        slots = {name: slot[chosen] for name, slot in self.slots.items()}
        return TableSlice(self.ids[chosen], self.weight[chosen], slots, self.last_step[chosen], self.count[chosen])


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
        self.shards = 0, SHARDS
        """The virtual shards [first, last) that it owns; other ranks hold the others."""
        self.step = 0
        """Optimizer steps in which it was looked up."""
        self.times: list[tuple[int, float]] = []
        """For eviction ttl: steps, and by which Unix time they had ended."""
        self.oldest = Queue()
        """For eviction lru: rows that it has found and not yet taken."""

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
        """The declaration of the optimizer that updates its rows, where it is trained."""
        return self.declaration.optimizer

    @property
    def trainable(self) -> bool:
        """Whether its rows are updated."""
        return self.declaration.trainable

    @property
    def default_row(self) -> int:
        """The row that unknown ids read: zeros."""
        return self.group.default_row

    @property
    def capacity(self) -> int | None:
        """How many ids it may hold: as declared, or as large a part as that of the virtual shards that it owns."""
        declared = self.declaration.capacity
        return None if declared is None else -(-declared * (self.shards[1] - self.shards[0]) // SHARDS)

    def own(self, first_shard: int, last_shard: int) -> None:
        """Take note that other ranks hold all but virtual shards [first_shard, last_shard)."""
        self.shards = first_shard, last_shard
        self.group.rows.limit(self.number, self.group.most_rows(self))

    def __len__(self) -> int:
        """How many ids it holds."""
        return self.group.index.count(self.number)

    def __repr__(self) -> str:
        how = self.optimizer.kind if self.trainable else "not trained"
        return f"DynamicTable('{self.name}', {len(self)} ids, dim {self.dim}, {self.dtype}, {how})"

    @property
    def device(self) -> torch.device:
        """Where its rows lie."""
        return self.group.device

    def find(self, ids_N: Tensor) -> Tensor:
        """The row of each id, -1 for ids it does not hold: int64 [N] -> int64 [N] on its device. Changes nothing."""
        return self.group.index.find(ids_N.to(self.device), *self._as_one_run(ids_N))

    def find_or_insert(self, ids_N: Tensor) -> Tensor:
        """The row of each id; new ids get rows with their first values, past any admission. Ids may repeat.

        Raises TableFullError.
        """
        return self.group.insert(ids_N.to(self.device), *self._as_one_run(ids_N))

    def erase(self, ids_N: Tensor) -> int:
        """Forget ids; their rows go to ids that are new later. Returns how many of them it held.

        Rows looked up before must not be used afterwards. Raises RuntimeError while gradients wait for the optimizer.
        """
        return self.group.erase(ids_N.to(self.device), *self._as_one_run(ids_N))[self.number]

    def weight(self, rows_N: Tensor) -> Tensor:
        """A copy of rows, [N, D], on its device; on the CPU IndexError for a row that is none, as the -1 of `find`."""
        return self.group.weight.index_select(0, rows_N)

    def export(self, first_shard: int = 0, last_shard: int = SHARDS) -> TableSlice:
        """A copy of what it holds in virtual shards [first_shard, last_shard), ordered by mix64(id) as unsigned.

        It is on the CPU, wherever the table is.
        """
        _, rows = self.group.index.items(self.number, first_shard, last_shard)
        return self.slice(rows)

    def shard_ranges(
        self, most_bytes: int, first_shard: int = 0, last_shard: int = SHARDS
    ) -> Iterator[tuple[int, int]]:
        """Cut virtual shards [first_shard, last_shard) into equal ranges of about ``most_bytes`` of rows.

        Gives (0, 2048), (2048, 4096). Ids spread evenly over virtual shards, so that `export` of one range after the
        other takes bounded memory.
        """
        empty = self.export(0, 0)
        tensors = (empty.ids, empty.weight, *empty.slots.values(), empty.last_step, empty.count)
        row_bytes = sum(tensor.itemsize * math.prod(tensor.shape[1:]) for tensor in tensors)
        parts = 1
        while parts < last_shard - first_shard and len(self) * row_bytes > most_bytes * parts:
            parts *= 2
        size = max((last_shard - first_shard) // parts, 1)
        for first in range(first_shard, last_shard, size):
            yield first, min(first + size, last_shard)

    def slice(self, rows: Tensor) -> TableSlice:
        """A copy of all that these rows hold, on the CPU."""
        rows = rows.to(self.device)
        slots = {name: self.group.rows.read_state(rows, part).cpu() for name, part in self.group.state_slices.items()}
        record = self.group.meta.index_select(0, rows).cpu()
        ids, last_step, count = (record[:, column].clone() for column in (ID, LAST_STEP, COUNT))
        return TableSlice(ids, self.weight(rows).cpu(), slots, last_step, count)

    def complete(
        self,
        ids: Tensor,
        weight: Tensor,
        slots: Mapping[str, Tensor] | None = None,
        last_step: Tensor | None = None,
        count: Tensor | None = None,
    ) -> TableSlice:
        """A slice of these ids and embeddings; what is not given is that of a new row: [0.1] for Adagrad that says so.

        last_step is then the table's last step, so that an eviction by age counts from now.
        """
        like, first = self.export(0, 0), first_state(self.optimizer)
        sizes = {name: (len(ids), *slot.shape[1:]) for name, slot in like.slots.items()}
        new = {name: slot.new_full(sizes[name], first.get(name, 0.0)) for name, slot in like.slots.items()}
        now = torch.full((len(ids),), self.group.clock - 1)
        return TableSlice(
            ids,
            weight,
            new if slots is None else slots,
            now if last_step is None else last_step,
            torch.zeros(len(ids), dtype=torch.int64) if count is None else count,
        )

    def load(self, part: TableSlice) -> Tensor:
        """Insert or overwrite ids with all that a slice on the CPU says about them; their rows, int64 [N].

        Raises ValueError where the slice does not fit the table or names an id twice, TableFullError if rows run out.
        """
        self._check(part)
        self.oldest = Queue()  # what is loaded may be older
        placed = self.group.place(part.ids.to(self.device), *self._as_one_run(part.ids), fill=False)
        rows_N = placed.rows
        # Ids that are all new are all different, which is the common case.
        is_new = placed.new_rows >= 0
        if int(is_new.sum()) < len(part) and (repeated := len(part) - len(rows_N.unique())):
            new_ids = self.group.meta[placed.new_rows[is_new], ID]
            self.group.drop(new_ids, *self._as_one_run(new_ids))
            raise ValueError(f"table '{self.name}': {repeated} of {len(part)} ids in the slice repeat others")
        fill_rows(self.group, rows_N, part)
        return rows_N

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
            of_state = torch.int64 if name in ("last_step", "count") else self.group.layout.state_dtype
            dtype = self.dtype if name == "weight" else of_state
            if tuple(found[name].shape) != shape or found[name].dtype != dtype:
                raise ValueError(
                    f"{where}: {name} of the slice is {found[name].dtype} {list(found[name].shape)}, "
                    f"need {dtype} {list(shape)}"
                )

    def reserve(self, ids: int, first_shard: int = 0, last_shard: int = SHARDS) -> None:
        """Make room in an empty table's index for so many ids of virtual shards [first_shard, last_shard)."""
        self.group.index.reserve(self.number, ids, first_shard, last_shard)

    def take_over(self, other: "DynamicTable") -> None:
        """Hold all that another table of the same declaration holds, be it on another device, and what is known of it.

        A piece of bounded size goes after the other.
        """
        for first, last in other.shard_ranges(MOVED_BYTES):
            self.load(other.export(first, last))

    def keep(self, first_shard: int, last_shard: int) -> None:
        """Forget all but virtual shards [first_shard, last_shard), and what admission knows of the others.

        Its capacity is from then on its part of the declared one.
        """
        self.own(first_shard, last_shard)
        counted = self.export_admission(first_shard, last_shard)
        for begin, end in ((0, first_shard), (last_shard, SHARDS)):
            ids, _ = self.group.index.items(self.number, begin, end)
            self.group.drop(ids, *self._as_one_run(ids))
        self.group.gate.forget(self.number)
        self.load_admission(counted, first_shard, last_shard)

    def clear(self) -> None:
        """Forget everything; its rows wait for new ids."""
        with self.group.index.changing(self.group.rows.pool):
            self.group.rows.clear(self.number)
            self.group.index.clear(self.number)
        self.group.gate.forget(self.number)
        self.group.events[self.number] = 0
        self.group.erasures += 1
        self.step = 0
        self.times = []
        for table in self.group:
            table.oldest = Queue()  # the group's clock may go back, and with it what comes before what

    @property
    def has_policies(self) -> bool:
        """Whether anything is declared of what it takes up, forgets, or holds at most."""
        declared = self.declaration
        return declared.admission != Always() or bool(declared.eviction) or declared.capacity is not None

    def policy_state(self) -> dict[str, Any]:
        """Plain values that its policies need to go on after a checkpoint: totals, and when steps were."""
        return {"events": self.group.events[self.number].tolist(), "times": [list(time) for time in self.times]}

    def load_policy_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `policy_state` gave."""
        self.group.events[self.number] = state["events"]
        self.times = [(int(step), float(time)) for step, time in state["times"]]

    def export_admission(self, first_shard: int = 0, last_shard: int = SHARDS) -> dict[str, Tensor]:
        """What its admission has counted in virtual shards [first_shard, last_shard), as tensors; {} for nothing."""
        return self.group.gate.export(self.number, first_shard, last_shard)

    def load_admission(self, state: Mapping[str, Tensor], first_shard: int = 0, last_shard: int = SHARDS) -> None:
        """Take over what `export_admission` gave, as far as it is of these virtual shards."""
        self.group.gate.load(self.number, first_shard, last_shard, state)

    def stats(self, scan: bool = False) -> dict[str, int | float]:
        """Its ids, rows owned, rows erased and waiting, segments and slots of its index and their load, and memory.

        Memory is bytes, of which row_bytes, index_bytes and admission_bytes. Since it was cleared: ids inserted
        (loading included) and admitted, occurrences of ids refused, ids evicted. With ``scan``, which reads the whole
        table: how many slots a lookup reads to find an id, on average and at most, and of the Euclidean norms of its
        embeddings the least, the greatest, the mean, and the percentiles norm_p5, norm_p50 and norm_p95.
        """
        index = self.group.index.stats(self.number)
        load = index["ids"] / index["slots"] if index["slots"] else 0.0
        admitted, refused, evicted, erased = self.group.events[self.number].tolist()
        inserted = index["ids"] + evicted + erased
        open_ = self.declaration.admission == Always()
        events = {"inserted": inserted, "admitted": inserted if open_ else admitted, "refused": refused}
        found = index | {"load": load} | self.group.rows.stats(self.number, index["ids"]) | events
        found |= {"evicted": evicted} | self.group.gate.stats(self.number, scan)
        found["bytes"] = sum(int(found.get(part, 0)) for part in ("row_bytes", "index_bytes", "admission_bytes"))
        return found | self._scan() if scan else found

    def _scan(self) -> dict[str, float]:
        mean, most = self.group.index.probe_lengths(self.number)
        _, rows = self.group.index.items(self.number)
        norms = [torch.linalg.vector_norm(self.weight(part).double(), dim=1).cpu() for part in rows.split(1 << 18)]
        norm_N = torch.cat(norms).numpy() if len(rows) else np.zeros(1)
        found = {"norm_min": norm_N.min(), "norm_mean": norm_N.mean(), "norm_max": norm_N.max()}
        percentiles = dict(zip(NORM_PERCENTILES, np.percentile(norm_N, NORM_PERCENTILES), strict=True))
        found |= {f"norm_p{percent}": value for percent, value in percentiles.items()}
        return {"probe_mean": mean, "probe_max": most} | {name: float(value) for name, value in found.items()}

    def _as_one_run(self, ids_N: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tensor([0, len(ids_N)]), torch.tensor([self.number])

    def __reduce__(self) -> tuple[Any, ...]:
        # A table is nothing without its group: copy and pickle go by way of it.
        return operator.getitem, (self.group, self.number)
