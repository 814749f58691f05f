"""Tables of one width, dtype and optimizer's arithmetic, looked up together.

N ids in a call, K runs of ids that belong to one table each, U rows, D row width, R rows reserved, W width of state.
"""

import copy
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from recis_lightning.schema import Table
from recis_lightning.schema.optimizers import first_state
from recis_lightning.schema.policies import Score, keeps_to_capacity
from recis_lightning.tables import eviction
from recis_lightning.tables.admission import Gate, Unknown
from recis_lightning.tables.buffers import BufferPool
from recis_lightning.tables.eviction import Queue
from recis_lightning.tables.indices import make_index
from recis_lightning.tables.layout import FROZEN, Layout
from recis_lightning.tables.pending import PendingGrad, sum_by_row
from recis_lightning.tables.rows import DEFAULT_ROW, RowStore, TableFullError
from recis_lightning.tables.table import ADMITTED, ERASED, EVICTED, REFUSED, DynamicTable
from recis_lightning.tables.watch import Watch
from triton_ops.blocks import Blocks
from triton_ops.gather_pool import gather_rows
from triton_ops.group_by_row import LAST_TICK, group_by_row
from triton_ops.index import Inserted, NoRoomError, mix64
from triton_ops.initialize import FirstValue, FirstValues, initialize
from triton_ops.row_layout import GRANULE, ID, LAST_STEP
from triton_ops.transfer import is_capturing, to_device

LENT_ROWS = 1 << 16  # what a table may have beyond a small capacity until the step's eviction
NOTED_ADMITTED, NOTED_REFUSED = 0, 1
MOST_PENDING = 8  # more would take memory for each accumulated batch, fewer would sum most gradients several times


@dataclass
class Captured:
    """What the host does for a group before and after a captured step is replayed."""

    lookups: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Splits and tables of each, on the CPU."""
    ticks: int = 0
    """How often rows are grouped."""
    frozen_lookups: set[int] = field(default_factory=set)
    """Tables that are looked up and not trained."""
    updates: tuple[Sequence[dict[str, Any]], frozenset[int]] | None = None
    """Settings of the optimizer for each table, and the tables whose steps are counted; None without updates."""


def build_groups(
    tables: Sequence[Table], *, seed: int = 0, max_rows: int | None = None, device: torch.device | None = None
) -> list["TableGroup"]:
    """Group tables that one lookup can serve, and one update, in the order declared: see `Layout`."""
    alike: defaultdict[Layout, list[Table]] = defaultdict(list)
    for table in tables:
        alike[Layout.of(table)].append(table)
    return [TableGroup(members, seed=seed, max_rows=max_rows, device=device) for members in alike.values()]


class TableGroup:
    """The tables `group[0]`, `group[1]`, ... over one index and one store of rows; row numbers are the group's.

    ``max_rows`` is how many rows its tables may have together; None takes what the machine's memory could hold twice
    (see `RowStore`). Memory is used only for rows that ids have. A first value depends on seed, table name, id and
    column alone. One thread at a time may use a group. Copies and pickles hold the rows in use, not the reservation.

    All that has to do with rows lies on ``device``, the CPU where none is given, and so do ids and rows of its calls;
    so does what is known of ids that wait for admission.

    Raises ValueError where the tables differ in layout.
    """

    default_row = DEFAULT_ROW

    def __init__(
        self,
        tables: Sequence[Table],
        *,
        seed: int = 0,
        max_rows: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        layouts = set(map(Layout.of, tables))
        if len(layouts) != 1:
            raise ValueError(
                f"tables {', '.join(table.name for table in tables) or '(none)'} are of {len(layouts)} kinds; a group "
                "takes tables of one width, of one dtype for rows and for their state, and of one kind of optimizer, "
                "as build_groups makes them"
            )
        self.layout = next(iter(layouts))
        """Width, dtypes, and the arithmetic of updates."""
        self.seed = seed
        self.max_rows = max_rows
        self.tables = tuple(DynamicTable(self, number, table) for number, table in enumerate(tables))
        self.state_slices = self.layout.state_slices
        """Where in a row's state each part of it lies, by name."""
        limits = [self.most_rows(table) for table in self.tables]
        weight, state = (self.dim, self.dtype), (self.layout.state_width, self.layout.state_dtype)
        self.rows = RowStore(len(tables), weight, state, max_rows, limits, device or torch.device("cpu"))
        self.index = make_index(len(tables), self.rows)
        self.pending: list[PendingGrad] = []
        """What backward has left for the optimizer's next step."""
        self.is_deferred = isinstance(self.rows.meta, Blocks)
        """Whether what must not be is found on its device, and told by a later call."""
        self.watch = Watch(self.device)
        """Where that is noted."""
        self.buffers = BufferPool(self.device)
        """Memory for the outputs and gradients of lookups."""
        self.gate = Gate(tables, seed, max_rows, self.device)
        """Decides which unknown ids get a row."""
        self._events = np.zeros((len(tables), 4), dtype=np.int64)
        with torch.inference_mode(False):
            self._noted_2T = torch.zeros(2, len(tables), dtype=torch.int64, device=self.device)
        """What admission has noted where its tables lie, and nobody has asked for yet."""
        self._lost_T = np.zeros(len(tables), dtype=np.int64)
        self.erasures = 0
        """How often ids were erased: rows looked up before the last time may be others' by now."""
        self.frozen_lookups: set[int] = set()
        """Tables that training has looked up since the last step, by their number, where they are not trained."""
        self.numbers_of_step: tuple[Tensor, Tensor] | None = None
        """Hyper-parameters and noise keys of the step that runs, on its device."""
        self._tick = 0
        with torch.inference_mode(False):
            self._tick_1 = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.captured = Captured()
        """What a graph that is to be replayed asks of the host before each time."""
        self._first_values = FirstValues.of([_first_value(table, self.state_slices, seed) for table in tables])
        self.averages = any(table.grad_reduce == "mean" for table in tables)
        """Whether a table of it takes the mean over an id's occurrences, and `leave` needs to know how many."""
        self._averages_T = torch.tensor([table.grad_reduce == "mean" for table in tables]).to(self.device)
        self._evicts = any(table.eviction for table in tables)
        for table in tables:
            for policy in table.eviction:
                if isinstance(policy, Score):
                    eviction.score_function(table.name, policy)  # a name that leads nowhere is told now

    def __len__(self) -> int:
        return len(self.tables)

    def __getitem__(self, number: int) -> DynamicTable:
        return self.tables[number]

    def __iter__(self) -> Iterator[DynamicTable]:
        return iter(self.tables)

    @property
    def dim(self) -> int:
        return self.layout.dim

    @property
    def dtype(self) -> torch.dtype:
        return self.layout.dtype

    @property
    def device(self) -> torch.device:
        return self.rows.granule_table.device

    @property
    def events(self) -> np.ndarray:
        """int64 [tables, 4]: what has happened to ids, by the columns that table.py names. A GPU is waited for."""
        if not self.gate.is_open:
            self._events[:, [ADMITTED, REFUSED]] += self._noted_2T.T.cpu().numpy()
            self._noted_2T.zero_()
        return self._events

    @property
    def is_frozen(self) -> bool:
        """Whether its rows are looked up, and never updated."""
        return self.layout.rule == FROZEN

    @property
    def weight(self) -> Tensor:
        """[R, D] over reserved memory: for ops that read rows. Never copy or save it, or a view of it, as a whole."""
        return self.rows.weight

    @property
    def state(self) -> Tensor:
        """[R, W] over reserved memory, as `weight`: optimizer state."""
        return self.rows.state

    @property
    def meta(self) -> Tensor:
        """int64 [R, 4] over reserved memory, as `weight`: the records that `triton_ops.row_layout` describes."""
        return self.rows.meta

    @property
    def granule_table(self) -> Tensor:
        """int32 [R / 64] over reserved memory: the table of each 64 rows, -1 where they are not trained."""
        return self.rows.granule_table

    def copy_rows(self, rows_N: Tensor) -> Tensor:
        """[N, D] of these rows, for what does not outlive the step; from blocks by a kernel, as lookups read them."""
        if not isinstance(self.weight, Tensor):
            return gather_rows(self.weight, rows_N)
        out_ND = self.buffers.take((len(rows_N), self.dim), self.dtype)
        return torch.index_select(self.weight, 0, rows_N, out=out_ND)

    def move_to(self, device: torch.device) -> None:
        """Have all it holds on another device; row numbers are others afterwards. Memory is used on both meanwhile.

        Raises RuntimeError while gradients wait for the optimizer, and as `lookup` where the other device has no room,
        with everything as it was.
        """
        if device.type != self.device.type or device.index not in (None, self.device.index):
            self.build_anew(device)

    def build_anew(self, device: torch.device) -> None:
        """`move_to`, be it to where it is."""
        self._check_no_pending("moving tables")
        moved = TableGroup([t.declaration for t in self.tables], seed=self.seed, max_rows=self.max_rows, device=device)
        for table, other in zip(self.tables, moved.tables, strict=True):
            other.own(*table.shards)
            other.take_over(table)
            table.oldest = Queue()  # which speaks of rows
        moved.gate.restore(self.gate.snapshot())
        moved._events = self.events
        kept = "tables", "frozen_lookups", "erasures"
        vars(self).update({name: value for name, value in vars(moved).items() if name not in kept})
        self.erasures += 1  # rows that were looked up before are no longer theirs

    def lookup(
        self,
        ids_N: Tensor,
        splits_K1: Tensor,
        table_index_K: Tensor,
        insert: bool,
        counts_N: Tensor | None = None,
    ) -> Tensor:
        """The row of each id: ids [5, 7, 5], splits [0, 2, 3], tables [0, 1] look up 5 and 7 in table 0, 5 in table 1.

        ``ids_N`` is int64 [N]; ``splits_K1`` int64 [K + 1] and ``table_index_K`` int32 or int64 [K] are on the CPU; a
        table may come up in several runs. ``counts_N`` says how often each id occurs to an admission that counts, once
        where it is not given. Returns int64 [N]. With ``insert``, new ids that their table admits get rows
        with their first values, and the others read ``default_row``; without, nothing changes and unknown ids read
        ``default_row``. Raises TableFullError where rows run out; ids before the one that found none keep theirs.
        """
        table_index_K = table_index_K.to(torch.int64)
        if not insert:
            return self.index.find(ids_N, splits_K1, table_index_K, DEFAULT_ROW)
        if self.gate.is_open:
            rows_N = self._insert(ids_N, splits_K1, table_index_K).rows
        else:
            rows_N = self._lookup_through_gate(ids_N, splits_K1, table_index_K, counts_N)
        if self.is_frozen:  # others note lookups when backward brings their gradients
            self.unique_rows(rows_N, True, counts_N)
            lookups = self.captured.frozen_lookups if self.is_deferred and is_capturing() else self.frozen_lookups
            lookups.update(table_index_K.tolist())
        return rows_N

    def begin_step(self) -> None:
        """Raise what an earlier step has found on the device, and tell the device which step runs; waits for nothing.

        To be called before a step's lookups, as `EmbeddingCollection` does. Does nothing on the CPU, and while a step
        is captured: see `begin_replay`.
        """
        if not self.is_deferred or is_capturing():
            return
        self.watch.raise_found()
        self.raise_lost()
        self.gate.raise_lost()
        self.watch.begin_step(self.clock)

    def begin_replay(self) -> None:
        """`begin_step` for a step that a graph has captured, with room for all its ids, were they all new.

        Raises TableFullError where there is no memory for them.
        """
        self.begin_step()
        self._count_ticks(self.captured.ticks)
        for splits_K1, tables_K in self.captured.lookups:
            with self._naming_tables():
                self.index.prepare(splits_K1, tables_K, self.rows.pool)

    def end_replay(self) -> None:
        """Have the device tell, once it comes to it, how many rows the step has taken."""
        if self.captured.lookups:
            self.index.follow()

    @contextmanager
    def _naming_tables(self) -> Iterator[None]:
        """Errors of an index, which knows no names, with those of its tables."""
        try:
            yield
        except NoRoomError as error:
            raise TableFullError(f"table '{self.tables[error.table].name}' can't grow: {error}") from error
        except MemoryError as error:
            raise TableFullError(f"tables {', '.join(table.name for table in self.tables[:5])}: {error}") from error

    def raise_lost(self, wait: bool = False) -> None:
        """TableFullError where ids were found to have got no row on the device; with ``wait``, by all calls so far."""
        if not self.rows.is_ahead:
            return
        lost_T = self.index.lost(wait)
        new_T = lost_T - self._lost_T
        if new_T.any():
            self._lost_T, number = lost_T, int(new_T.argmax())
            raise TableFullError(
                f"{self._describe_full(self.tables[number])} (by step {max(self.clock - 1, 1)} {int(new_T[number]):,} "
                "occurrences of ids had found no row)"
            )

    def _lookup_through_gate(
        self, ids_N: Tensor, splits_K1: Tensor, table_index_K: Tensor, counts_N: Tensor | None
    ) -> Tensor:
        rows_N = self.index.find(ids_N, splits_K1, table_index_K, DEFAULT_ROW)
        take_up = self._take_up_by_mask if self.rows.is_ahead else self._take_up
        return take_up(rows_N, ids_N, splits_K1, table_index_K, counts_N)

    def _take_up(
        self, rows_N: Tensor, ids_N: Tensor, splits_K1: Tensor, table_index_K: Tensor, counts_N: Tensor | None
    ) -> Tensor:
        """Give rows to those ids without one that are admitted; the row of each id."""
        unknown_M = (rows_N == DEFAULT_ROW).nonzero().squeeze(1)
        if len(unknown_M) == 0:
            return rows_N
        device_splits_K1 = to_device(splits_K1, self.device)
        run_sizes_K = torch.searchsorted(unknown_M, device_splits_K1).diff()
        tables_M = to_device(table_index_K, self.device).repeat_interleave(run_sizes_K, output_size=len(unknown_M))
        admitted_M = self._admit(Unknown(ids_N[unknown_M], tables_M, None if counts_N is None else counts_N[unknown_M]))
        admitted = unknown_M[admitted_M]
        if len(admitted):
            before = [len(table) for table in self.tables]
            splits = torch.searchsorted(admitted, device_splits_K1).cpu()
            rows_N[admitted] = self._insert(ids_N[admitted], splits, table_index_K).rows
            self._events[:, ADMITTED] += [len(table) - count for table, count in zip(self.tables, before, strict=True)]
        return rows_N

    def _take_up_by_mask(
        self, rows_N: Tensor, ids_N: Tensor, splits_K1: Tensor, table_index_K: Tensor, counts_N: Tensor | None
    ) -> Tensor:
        """`_take_up` where nobody waits for how many ids have no row."""
        if is_capturing():
            names = ", ".join(table.name for table in self.tables[:5])
            raise RuntimeError(f"tables {names}: what an admission counts can't be captured in a graph; leave it out")
        sizes_K, tables_K = to_device(splits_K1.diff(), self.device), to_device(table_index_K, self.device)
        tables_N = tables_K.repeat_interleave(sizes_K, output_size=len(ids_N))
        runs, is_unknown_N = (splits_K1, table_index_K), rows_N == DEFAULT_ROW
        admitted_N = self._admit(Unknown(ids_N, tables_N, counts_N, runs, is_unknown_N))
        inserted = self._insert(ids_N, *runs, wanted_N=admitted_N)
        new_tables_N = self.granule_table[inserted.new_rows // GRANULE].long().clamp_(min=0)
        self._noted_2T[NOTED_ADMITTED].index_add_(0, new_tables_N, (inserted.new_rows >= 0).long())
        return torch.where(admitted_N, inserted.rows, rows_N)

    def _admit(self, unknown: Unknown) -> Tensor:
        """Which of them get a row, bool [M]; the others are noted."""
        admitted_M = self.gate.admit(unknown, self.clock)
        is_refused_M = ~admitted_M if unknown.asks is None else unknown.asks & ~admitted_M
        refused_M = is_refused_M.long() if unknown.counts is None else torch.where(is_refused_M, unknown.counts, 0)
        self._noted_2T[NOTED_REFUSED].index_add_(0, unknown.tables, refused_M)
        return admitted_M

    def insert(self, ids_N: Tensor, splits_K1: Tensor, table_index_K: Tensor) -> Tensor:
        """`lookup` that gives every new id a row, whatever the admission of its table says; waits until it is sure."""
        return self.place(ids_N, splits_K1, table_index_K).rows

    def place(self, ids_N: Tensor, splits_K1: Tensor, table_index_K: Tensor, fill: bool = True) -> Inserted:
        """As `insert`, and which rows are new. Without ``fill`` these hold anything, and are about to be written."""
        inserted = self._insert(ids_N, splits_K1, table_index_K, fill)
        self.raise_lost(wait=True)
        return inserted

    def _insert(
        self,
        ids_N: Tensor,
        splits_K1: Tensor,
        table_index_K: Tensor,
        fill: bool = True,
        wanted_N: Tensor | None = None,
    ) -> Inserted:
        if self.is_deferred and is_capturing():
            self.captured.lookups.append((splits_K1, table_index_K))
        with self._naming_tables():
            wanted = () if wanted_N is None else (wanted_N,)
            inserted = self.index.find_or_insert(ids_N, splits_K1, table_index_K, self.rows.pool, *wanted)
        if len(inserted.new_rows) and (fill or self.is_deferred or inserted.full_table is not None):
            arrays = self.weight, self.state, self.meta, inserted.new_rows, self.granule_table
            with self.index.changing(self.rows.pool):
                initialize(*arrays, self._first_values)
                if self._evicts:
                    self.meta[inserted.new_rows, LAST_STEP] = self.clock  # not yet trained on, and yet not old
        if inserted.full_table is not None:
            raise TableFullError(self._describe_full(self.tables[inserted.full_table]))
        return inserted

    @property
    def noise_keys(self) -> Tensor:
        """int64 [tables]: what tells random bits of tables, seeds and steps apart, for `row_update`."""
        if not self.layout.rounds:
            return torch.zeros(len(self), dtype=torch.int64)
        steps_T = torch.tensor([table.step for table in self.tables])
        return mix64(torch.from_numpy(self._first_values.keys.view(np.int64)) + steps_T)

    def set_numbers_of_step(self, hyper_TH: Tensor) -> None:
        """Keep what `row_update` needs of this step: hyper-parameters, float64 [T, H] on the CPU, and noise keys."""
        numbers = to_device(hyper_TH, self.device), to_device(self.noise_keys, self.device)
        if self.numbers_of_step is None or not self.is_deferred:
            self.numbers_of_step = numbers
            return
        for kept, new in zip(self.numbers_of_step, numbers, strict=True):
            kept.copy_(new)  # in their place, where a captured graph reads them

    def evict(self, now: float | None = None) -> dict[str, int]:
        """Forget the ids that the tables' evictions name after this step: how many, for each table that forgot some.

        What admission has counted ages with them. To be called between two steps; an eviction acts where the number of
        steps is a multiple of its ``every``. ``now`` is in Unix seconds, the system's time where it is not given.
        Raises RuntimeError where gradients wait for the optimizer: they may be those of a row that would be forgotten.
        """
        self._check_no_pending("evict")
        step, now = self.clock - 1, time.time() if now is None else now
        evicted: dict[str, int] = {}
        for table in self.tables:
            for policy in table.declaration.eviction:
                if step % policy.every == 0:
                    try:
                        count = self._forget(table, eviction.choose(table, policy, step, now))
                    except BaseException:
                        table.oldest = Queue()  # which has let go of rows that were to be forgotten
                        raise
                    if count:
                        evicted[table.name] = evicted.get(table.name, 0) + count
                    if (before := eviction.waits_until(table, policy, step, now)) is not None:
                        self.gate.forget(table.number, before)
        self.gate.end_step(step)
        return evicted

    def _forget(self, table: DynamicTable, rows_V: Tensor) -> int:
        if len(rows_V) == 0:
            return 0
        # By id: which row a new id gets must not depend on where those of forgotten ids happened to lie.
        ids_V = self.meta[rows_V.to(self.device), ID].sort().values
        count = self.drop(ids_V, torch.tensor([0, len(ids_V)]), torch.tensor([table.number]))[table.number]
        self.events[table.number, EVICTED] += count
        return count

    def erase(self, ids_N: Tensor, splits_K1: Tensor, table_index_K: Tensor) -> list[int]:
        """Forget ids of any tables, told as in `lookup`; how many each table of the group held.

        Their rows go to ids that are new later; rows looked up before must not be used afterwards. Raises RuntimeError
        while gradients wait for the optimizer.
        """
        self._check_no_pending("erase")
        counts = self.drop(ids_N, splits_K1, table_index_K.to(torch.int64))
        self.events[:, ERASED] += counts
        return counts

    def drop(self, ids_N: Tensor, splits_K1: Tensor, tables_K: Tensor) -> list[int]:
        """`erase` that does not count among the events of tables: for rows that others hold from now on."""
        before = {table: len(self.tables[table]) for table in tables_K.tolist()}
        rows_N = self.index.find(ids_N, splits_K1, tables_K)
        with self.index.changing(self.rows.pool):
            self.rows.take_back(rows_N[rows_N >= 0])
            self.index.erase(ids_N, splits_K1, tables_K, self.rows.pool)
        counts = [0] * len(self.tables)
        for table, count in before.items():
            counts[table] = count - len(self.tables[table])
        self.erasures += any(counts)
        return counts

    def _check_no_pending(self, call: str) -> None:
        if self.pending:
            raise RuntimeError(
                f"{call} was called while gradients of tables {', '.join(t.name for t in self.tables[:5])} wait for "
                "the optimizer, as between the batches that are accumulated to one step; call it after the optimizer's "
                "step, or zero_grad first"
            )

    @staticmethod
    def most_rows(table: DynamicTable) -> int | None:
        """The rows a table may have: its capacity, and as many again where an eviction will make room after the step.

        A small table is lent more, so that the new ids of one step find room. Where others hold virtual shards of it
        and nothing makes room, it may have what chance gives it more than its part: six standard deviations.
        """
        capacity = table.capacity
        if capacity is None:
            return None
        if any(map(keeps_to_capacity, table.declaration.eviction)):
            return capacity + max(capacity, LENT_ROWS)
        whole = table.declaration.capacity
        assert whole is not None
        return min(whole, capacity + math.ceil(6 * math.sqrt(capacity * (1 - capacity / whole))))

    def _describe_full(self, table: DynamicTable) -> str:
        capacity = table.capacity
        if capacity is not None and len(table) >= capacity:
            if any(map(keeps_to_capacity, table.declaration.eviction)):
                return (
                    f"table '{table.name}' is full: it holds {len(table):,} ids, its capacity is {capacity:,}, and no "
                    "eviction came to pass; call EmbeddingCollection.evict after each optimizer step (RecModule does), "
                    "let it come more often with a smaller every, or raise capacity"
                )
            return (
                f"table '{table.name}' is full: it holds {len(table):,} ids, its capacity; raise capacity, let it "
                "forget with eviction lru, or let it take up fewer ids with admission counter"
            )
        if (refused := self.rows.refused.get(table.number)) is not None:
            return (
                f"table '{table.name}' can't grow: {refused}, beside the {len(table):,} ids it holds; what it holds "
                "is as it was. Declare a capacity with an eviction, take smaller rows (dim, dtype, state_dtype), or "
                "share the tables among more devices"
            )
        sizes = ", ".join(f"{table.name} {len(table):,}" for table in sorted(self.tables, key=len, reverse=True)[:5])
        return (
            f"table '{table.name}' is full: its group of {len(self.tables)} tables has room for "
            f"{self.rows.room:,} rows, and they are taken (largest: {sizes}); give more with max_rows, or erase ids"
        )

    def unique_rows(
        self, rows_N: Tensor, record: bool = False, counts_N: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Each trained row once, as they first appear, and where each value's row is among them, -1 for untrained ones.

        ``record`` notes in the rows that a training step has looked them up, each value ``counts_N`` times, or once.
        See `triton_ops.group_by_row`.
        """
        if not self.is_deferred:
            self._count_ticks(1)
            step = self.clock if record else None
            return group_by_row(rows_N, self.meta, self.granule_table, self._tick, step, counts_N)
        # On the device, where a graph that is replayed has a tick of its own each time.
        if is_capturing():
            self.captured.ticks += 1
        else:
            self._count_ticks(1)
            self.watch.begin_step(self.clock)  # for those who look up without `begin_step`
        self._tick_1.add_(1)
        arrays = rows_N, self.meta, self.granule_table, self._tick_1
        return group_by_row(*arrays, self.watch.step if record else None, counts_N)

    def _count_ticks(self, count: int) -> None:
        """Have so many ticks pass; all begin anew where they would be too many."""
        if self._tick + count > LAST_TICK:
            self.rows.clear_stamps()
            self._tick_1.zero_()
            self._tick = 0
        self._tick += count

    @property
    def clock(self) -> int:
        """The number of the training step that runs, from 1 on: one more than any of its tables has completed."""
        return 1 + max(table.step for table in self.tables)

    def pass_steps(self, steps: int) -> None:
        """Tell the last steps of all rows so many later: where the clock goes on by them, ages stay as they are."""
        for table in self.tables if steps > 0 else ():
            _, rows = self.index.items(table.number)
            self.meta[rows, LAST_STEP] += steps
            table.oldest = Queue()

    def leave(self, sums: PendingGrad) -> None:
        """Keep gradients for the optimizer's next step, summing up earlier ones where many wait.

        They are sums over as many occurrences of each row as ``counts`` say, and become means where a table asks for
        it; counts may be None where `averages` is False.
        """
        counts_U = self._weights(sums)
        if counts_U is not None:
            sums = sums.summed(self.buffers)
            assert isinstance(sums.grads, Tensor)
            sums.grads.div_(counts_U[:, None])
        self.pending.append(sums._replace(counts=counts_U))
        if len(self.pending) == MOST_PENDING:
            self.coalesce()

    def _weights(self, sums: PendingGrad) -> Tensor | None:
        """How often each row occurred, 1 in tables that take the sum."""
        if not self.averages:
            return None
        assert sums.counts is not None, f"table '{self.tables[0].name}': means were asked for, and counts are not there"
        is_mean_U = self._averages_T[self.granule_table[sums.rows // GRANULE].long()]
        return torch.where(is_mean_U, sums.counts, 1).to(sums.grads.dtype)

    def coalesce(self, summed: bool = True) -> PendingGrad | None:
        """All pending gradients as one, summed where they name the same row; None where there are none.

        Without ``summed`` those of a single lookup are left as they came: an update may sum them up itself.
        """
        if len(self.pending) > 1:
            waiting, self.pending = self.pending, []
            self.leave(sum_by_row(waiting, self.unique_rows, self.buffers))
        if summed:
            self.pending = [pending.summed(self.buffers) for pending in self.pending]
        return self.pending[0] if self.pending else None

    def __getstate__(self) -> dict[str, Any]:
        return {
            "declarations": [table.declaration for table in self.tables],
            "steps": [table.step for table in self.tables],
            "shards": [table.shards for table in self.tables],
            "seed": self.seed,
            "max_rows": self.max_rows,
            "device": self.device,
            "rows": self.rows.snapshot(),
            "index": self.index.snapshot(),
            "pending": [pending.summed(self.buffers).clone() for pending in self.pending],
            "times": [list(table.times) for table in self.tables],
            "events": self.events.copy(),
            "gate": self.gate.snapshot(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        like = {name: state[name] for name in ("seed", "max_rows", "device")}
        TableGroup.__init__(self, state["declarations"], **like)
        for table, step in zip(self.tables, state["steps"], strict=True):
            table.step = step
        for table, shards in zip(self.tables, state["shards"], strict=True):
            table.own(*shards)
        self.rows.restore(state["rows"])
        self.rows.clear_stamps()
        self.index.restore(state["index"])
        self.pending = state["pending"]
        for table, times in zip(self.tables, state["times"], strict=True):
            table.times = times
        self.events[:] = state["events"]
        self.gate.restore(state["gate"])

    def __deepcopy__(self, memo: dict[int, Any]) -> "TableGroup":
        copied = copy.copy(self)  # its state is a copy already
        memo[id(self)] = copied
        return copied


def _first_value(table: Table, slices: Mapping[str, slice], seed: int) -> FirstValue:
    initializer, state = table.initializer, [0.0] * max((columns.stop for columns in slices.values()), default=0)
    for name, value in first_state(table.optimizer).items():
        if name in slices:
            state[slices[name]] = [value] * (slices[name].stop - slices[name].start)
    if hasattr(initializer, "drawn_as"):  # those that depend on the width of a row
        initializer = initializer.drawn_as(table.dim)
    return FirstValue(
        kind=initializer.kind,
        arguments=asdict(initializer),
        seed=seed,
        table_hash=xxhash.xxh3_64_intdigest(table.name.encode()),
        state=state,
    )
