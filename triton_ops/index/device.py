"""The id index on a GPU: the directories of directory.py over tensors, around the kernels of kernels.py.

N ids in a call, K runs of ids that belong to one table each, T tables, G segments, E directory entries.

The host launches, and never waits to hear what came of it. After each insertion it has the counters copied to itself
(`follow`), and works with what the last copy said: a table cannot hold more ids than it held then, and as many again as
it was asked for since. Before an insertion (`prepare`) there must be rows and slots for all ids of the batch, were they
all new; where that is not certain it waits for the copy behind the last insertion, which the GPU has long passed unless
the host is ahead of it, and then asks for rows and grows segments. Segments that are past their limit grow a few at a
time. One stream at a time may use an index.

Errors may come between any two launches, as where a kernel can't be compiled, or Ctrl-C is pressed. Growth that was cut
short is finished by the next call. After an insertion or an erasure that was, the next call builds the index anew from
the records of rows (`changing`).
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from triton_ops.index.device_layout import (
    COUNT,
    COUNTER_COLUMNS,
    FREE,
    GRANULES,
    HELD,
    LOST,
    NOTHING,
    PLACES,
    SHIFT,
    SLOTS,
    SPECIALS,
    STACK,
    SUPPLY,
    TABLE_COLUMNS,
    TAKEN,
)
from triton_ops.index.layout import SHARDS, DevicePool, Inserted, NoRoomError
from triton_ops.index.mirror import Mirror
from triton_ops.index.numbering import Numbered, Runs, find, launch_for_each, make_runs, number, room_for
from triton_ops.index.reference import virtual_shard
from triton_ops.index.segments import copy, lasting, send
from triton_ops.places import place_of
from triton_ops.row_layout import GRANULE, ID, LAST_STEP, NOBODYS
from triton_ops.shared.reference import mix64
from triton_ops.transfer import Arriving

MOST_REPORTS = 8  # on their way; later ones tell all that earlier ones do
MOST_RUNS = 64  # layouts of ids that are kept on the device
READ_AT_ONCE = 1 << 11  # granules whose records are read together when an index is built anew


class _Report(NamedTuple):
    """The counters on their way to the host."""

    counters: Arriving
    """int64 [T, 4]."""
    held: Arriving
    """int64 [G, 2]; the last to come."""
    submitted: np.ndarray
    """int64 [T]: how many ids each table had been asked for until then."""
    calls: int


class DeviceIndex:
    """Id -> row for several tables. `triton_ops.index.op.Index` says what the methods mean."""

    def __init__(self, tables: int, device: torch.device) -> None:
        self._device = device
        self._mirror = Mirror(tables, device)
        self._described = np.zeros((tables, TABLE_COLUMNS), dtype=np.int64)
        self._tables = lasting(self._described.shape, device)
        self._counters = lasting((tables, COUNTER_COLUMNS), device)
        self._granules: dict[int, Tensor] = {}
        """Of each table int64: the numbers of its granules, in the order that their rows are handed out."""
        self._stacks: dict[int, Tensor] = {}
        """Of each table int64: erased rows, of which its counter FREE says how many there are."""
        self._runs: OrderedDict[tuple[bytes, bytes], Runs] = OrderedDict()
        self._captured_runs: list[Runs] = []
        self._reports: list[_Report] = []
        self._known = np.zeros((tables, COUNTER_COLUMNS), dtype=np.int64)
        self._submitted, self._known_submitted = np.zeros(tables, np.int64), np.zeros(tables, np.int64)
        self._calls = self._known_calls = 0
        self._is_exhausted_T = np.zeros(tables, dtype=bool)
        self._given: list[tuple[int, Sequence[tuple[int, int]]]] = []
        """Tables and rows that they were given, and do not have yet."""
        self._is_growing = False
        """Whether growth was begun and is not finished."""
        self._torn: DevicePool | None = None
        """The rows of an insertion or erasure that an error has cut short."""
        self._describe()

    # ------------------------------------------------------------------------------------------------ the operations

    def find(self, ids_N: Tensor, splits_K1: Tensor, tables_K: Tensor, missing: int) -> Tensor:
        self._repair()
        rows_N = torch.empty_like(ids_N)
        if len(ids_N):
            find(ids_N, rows_N, self._runs_of(splits_K1, tables_K), self._tables, missing, NOTHING)
        return rows_N

    def find_or_insert(
        self, ids_N: Tensor, splits_K1: Tensor, tables_K: Tensor, pool: DevicePool, wanted_N: Tensor | None = None
    ) -> Inserted:
        if not len(ids_N):
            return Inserted(torch.empty_like(ids_N), torch.empty_like(ids_N), None)
        if self._is_captured():
            return self._insert(ids_N, self._runs_of(splits_K1, tables_K), pool, wanted_N)
        self.prepare(splits_K1, tables_K, pool)
        runs = self._runs_of(splits_K1, tables_K)
        with self.changing(pool):
            inserted = self._insert(ids_N, runs, pool, wanted_N)
            self.follow()
        return inserted

    def _insert(self, ids_N: Tensor, runs: Runs, pool: DevicePool, wanted_N: Tensor | None) -> Inserted:
        rows_N, listed, place = torch.empty_like(ids_N), room_for(ids_N, runs), place_of(pool.meta)
        number(ids_N, rows_N, runs, self._tables, listed, wanted_N=wanted_N)
        launch_for_each(
            "publish", len(ids_N), *self._arrays(ids_N, rows_N, runs, listed), place.pointers, listed.new_rows,
            pool.lost_row, SHIFT_OF_BLOCKS=place.shift, ALIGN=place.align,
        )  # fmt: skip
        self._finish(runs, listed, erase=0)
        return Inserted(rows_N, listed.new_rows, None)

    def _arrays(self, ids_N: Tensor, rows_N: Tensor, runs: Runs, listed: Numbered) -> tuple[Any, ...]:
        of_tables = runs.array, runs.number, self._tables, self._counters
        return ids_N, rows_N, *of_tables, listed.ends, runs.blocks, listed.positions, listed.spots, listed.sums

    def _finish(self, runs: Runs, listed: Numbered, erase: int) -> None:
        arrays = runs.array, runs.number, self._tables, self._counters, listed.ends, listed.sums
        launch_for_each("finish", runs.number, *arrays, ERASE=erase)

    def erase(
        self, ids_N: Tensor, splits_K1: Tensor, tables_K: Tensor, pool: DevicePool, wanted_N: Tensor | None = None
    ) -> Tensor:
        if not len(ids_N):
            return torch.zeros((), dtype=torch.int64, device=self._device)
        self._repair()
        self._make_stacks(np.unique(tables_K.numpy()).tolist())
        rows_N, runs = torch.empty_like(ids_N), self._runs_of(splits_K1, tables_K)
        listed = room_for(ids_N, runs)
        with self.changing(pool):
            number(ids_N, rows_N, runs, self._tables, listed, 1, wanted_N)
            launch_for_each("bury", len(ids_N), *self._arrays(ids_N, rows_N, runs, listed))
            self._finish(runs, listed, erase=1)
            self.follow()
        return listed.sums[-1].long()

    def _is_captured(self) -> bool:
        """Whether what is launched is recorded for a graph, instead of run."""
        return self._device.type == "cuda" and torch.cuda.is_current_stream_capturing()

    def _runs_of(self, splits_K1: Tensor, tables_K: Tensor) -> Runs:
        """The runs on the device, without those that are empty, ordered by table."""
        arrays = splits_K1.numpy(), tables_K.numpy()
        key = arrays[0].tobytes(), arrays[1].tobytes()
        runs = self._runs.get(key)
        if runs is None:
            if self._is_captured():
                raise RuntimeError("ids are laid out as never before; look them up once before a graph is captured")
            runs = self._runs[key] = make_runs(*arrays, len(self._described), self._device)
            if len(self._runs) > MOST_RUNS:
                self._runs.popitem(last=False)
        self._runs.move_to_end(key)
        if self._is_captured():
            self._captured_runs.append(runs)  # a graph knows where it lies
        return runs

    # ------------------------------------------------------------------------------------------- room ahead of need

    def prepare(self, splits_K1: Tensor, tables_K: Tensor, pool: DevicePool) -> None:
        self._repair()
        need_T = np.zeros(len(self._described), dtype=np.int64)
        np.add.at(need_T, tables_K.numpy(), splits_K1.diff().numpy())
        is_news = self._take_reports()
        try:
            if self._is_short(need_T):
                self._take_reports(wait=True)
                self._grow(need_T)
            elif is_news:
                self._is_growing = True
                if self._mirror.relieve():
                    self._finish_growth()
                self._is_growing = False
            self._supply(need_T, pool)
        except torch.OutOfMemoryError as error:
            raise self._no_memory(int(need_T.argmax()), need_T) from error
        self._submitted += need_T
        self._calls += 1

    def _is_short(self, need_T: np.ndarray) -> bool:
        lacks_rows_T = (self._available_T() < need_T) & ~self._is_exhausted_T
        return bool(lacks_rows_T.any()) or len(self._mirror.short(*self._bounds(need_T))) > 0

    def _bounds(self, need_T: np.ndarray) -> tuple[np.ndarray, int]:
        """How many ids each table will have been asked for since the counters that are known, in how many calls."""
        ids_T = np.where(need_T > 0, need_T + self._submitted - self._known_submitted, 0)
        return ids_T, self._calls - self._known_calls + 1

    def _available_T(self) -> np.ndarray:
        """How many rows each table has for new ids at least."""
        known, pending_T = self._known, self._submitted - self._known_submitted
        return known[:, FREE] + self._described[:, SUPPLY] - known[:, TAKEN] - pending_T

    def _grow(self, need_T: np.ndarray) -> None:
        bounds = self._bounds(need_T)
        if not len(self._mirror.short(*bounds)):
            return
        self._is_growing = True
        table = self._mirror.make_room(*bounds)
        self._finish_growth()
        if table is not None:
            raise self._no_memory(table, need_T)

    def _no_memory(self, table: int, need_T: np.ndarray) -> MemoryError:
        stats = self._stats(table)
        return NoRoomError(
            table,
            f"{self._device} has no memory for the index of table {table} to grow: it holds {stats['ids']:,} ids in "
            f"{stats['slots']:,} slots, {stats['index_bytes']:,} bytes, and {int(need_T[table]):,} ids of a batch may "
            "be new; nothing was lost: erase ids, or give the tables fewer rows",
        )

    def _finish_growth(self) -> None:
        """Make known on the device what the host has begun: again, where an error came in between."""
        self._is_growing = True
        self._mirror.catch_up()
        self._append_given()
        self._reports.clear()  # they count the segments that were
        self._describe()
        self.follow()
        self._is_growing = False

    def _supply(self, need_T: np.ndarray, pool: DevicePool) -> None:
        lacking_T = need_T - self._available_T()
        for table in np.flatnonzero((lacking_T > 0) & (need_T > 0)).tolist():
            self._is_growing = True
            runs = pool.refill(table, int(lacking_T[table]))
            self._is_exhausted_T[table] = sum(end - begin for begin, end in runs) < lacking_T[table]
            if runs:
                self._given.append((table, runs))
        if self._is_growing:
            self._append_given()
            self._describe()
            self._is_growing = False

    def _append_given(self) -> None:
        while self._given:
            self._append(*self._given[0])
            self._given.pop(0)

    def _append(self, table: int, runs: Sequence[tuple[int, int]]) -> None:
        supply = int(self._described[table, SUPPLY])
        if supply % GRANULE or any(begin % GRANULE for begin, _ in runs):
            raise ValueError(f"table {table} gets rows {list(runs)} behind {supply}; give whole granules of {GRANULE}")
        new = np.concatenate([np.arange(begin // GRANULE, -(-end // GRANULE)) for begin, end in runs])
        used, kept = supply // GRANULE, self._granules.get(table)
        if kept is None or used + len(new) > len(kept):
            grown = lasting((max(2 * (used + len(new)), 16),), self._device)
            if kept is not None:
                grown[:used] = kept[:used]
            self._granules[table] = grown
        send(new, self._granules[table][used : used + len(new)])
        self._described[table, SUPPLY] += sum(end - begin for begin, end in runs)

    def _make_stacks(self, tables: Sequence[int]) -> None:
        """Make sure that all rows of some tables find room on their stacks."""
        self._is_growing = True
        for table in tables:
            stack, supply = self._stacks.get(table), int(self._described[table, SUPPLY])
            if stack is None or len(stack) < supply:
                grown = lasting((2 * supply,), self._device)
                if stack is not None:
                    grown[: len(stack)] = stack
                self._stacks[table] = grown
        self._describe()
        self._is_growing = False

    def _describe(self) -> None:
        """Tell the device where all there is of each table lies."""
        described = self._described.copy()
        described[:, HELD] = self._mirror.held.data_ptr()
        for table in range(len(described)):
            described[table, [PLACES, SHIFT]] = self._mirror.describe(table)
        for column, tensors in ((STACK, self._stacks), (GRANULES, self._granules)):
            for table, tensor in tensors.items():
                described[table, column] = tensor.data_ptr()
        self._described = described
        send(described, self._tables)

    # ----------------------------------------------------------------------------------------- where errors come in

    @contextmanager
    def changing(self, pool: DevicePool) -> Iterator[None]:
        try:
            yield
        except BaseException:
            if not self._is_captured():  # then nothing has run
                self._torn = pool
            raise

    def _repair(self) -> None:
        """Put right what an error has cut short; raises what the attempt does, and then tries again the next time."""
        if self._torn is not None:
            self._build_anew(self._torn)
        elif self._is_growing:
            self._finish_growth()

    def _build_anew(self, pool: DevicePool) -> None:
        """Hold the ids that the records of rows say, each in the row it had."""
        self._torn = None
        with self.changing(pool):
            self._mirror = Mirror(len(self._described), self._device)
            self._counters[:, :LOST] = 0
            self._is_exhausted_T[:] = False
            self._append_given()
            supplied = np.flatnonzero(self._described[:, SUPPLY]).tolist()
            self._make_stacks(supplied)
            self._finish_growth()
            for table in supplied:
                self._insert_held(table, pool)

    def _insert_held(self, table: int, pool: DevicePool) -> None:
        """Insert the ids of a table's rows, each of which gets the row it had, since no other one waits for an id."""
        supply, unused = int(self._described[table, SUPPLY]), list[Tensor]()
        granules = self._granules[table][: -(-supply // GRANULE)]
        within = torch.arange(GRANULE, device=self._device)
        for part, numbers in enumerate(granules.split(READ_AT_ONCE)):
            rows = (numbers[:, None] * GRANULE + within).flatten()[: supply - part * READ_AT_ONCE * GRANULE]
            is_held = pool.meta[rows, LAST_STEP] != NOBODYS
            held = rows[is_held]
            self._put_on_stack(table, held)
            one_run = torch.tensor([0, len(held)]), torch.tensor([table])
            self.find_or_insert(pool.meta[held, ID], *one_run, pool)
            unused.append(rows[~is_held])
        self._put_on_stack(table, torch.cat(unused))

    def _put_on_stack(self, table: int, rows: Tensor) -> None:
        """Have these rows, and no others, wait for new ids: the first of them foremost."""
        self._stacks[table][: len(rows)] = rows.flip(0)
        self._counters[table, FREE] = len(rows)
        self._counters[table, TAKEN] = int(self._described[table, SUPPLY])
        self.follow()
        self._take_reports(wait=True)

    # ------------------------------------------------------------------------------------- what the host knows

    def follow(self) -> None:
        arrays = Arriving(self._counters), Arriving(self._mirror.held)
        self._reports.append(_Report(*arrays, self._submitted.copy(), self._calls))
        del self._reports[:-MOST_REPORTS]

    def _take_reports(self, wait: bool = False) -> bool:
        """Learn from the last copy of the counters that has come; with ``wait``, from the last that was begun."""
        taken = None
        while self._reports and (wait or self._reports[0].held.has_come()):
            taken = self._reports.pop(0)
        if taken is None:
            return False
        self._known = taken.counters.read().numpy().copy()
        self._mirror.learn(taken.held.read())
        self._known_submitted, self._known_calls = taken.submitted, taken.calls
        return True

    def lost(self, wait: bool) -> np.ndarray:
        self._repair()
        if wait:
            self.follow()
        self._take_reports(wait)
        return self._known[:, LOST].copy()

    # ------------------------------------------------------------------------------------------- that may wait for it

    def items(self, table: int, first_shard: int, last_shard: int) -> tuple[Tensor, Tensor]:
        self._repair()
        parts = [used for used, _ in self._used_slots(table, first_shard, last_shard)]
        ids, rows = torch.cat(parts).unbind(1)
        mixed, shards = mix64(ids), virtual_shard(ids)
        chosen = ((shards >= first_shard) & (shards < last_shard)).nonzero().squeeze(1)
        # Flipping the top bit orders int64 as unsigned.
        chosen = chosen[(mixed[chosen] ^ -(2**63)).argsort()]
        return ids[chosen], rows[chosen]

    def _used_slots(
        self, table: int, first_shard: int = 0, last_shard: int = SHARDS
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each segment ids and rows, int64 [U, 2], and how many buckets are read to find each."""
        for slots, is_side in self._mirror.slots(table, first_shard, last_shard):
            places = (slots[:, 1] >= 0).nonzero().squeeze(1)
            used, buckets = slots[places], len(slots) // SLOTS
            lengths = ((places // SLOTS - mix64(used[:, 0])) & (buckets - 1)) + 1
            used[:, 0] -= SPECIALS if is_side else 0
            yield used, lengths

    def count_at_most(self, table: int) -> int:
        return int(self._known[table, COUNT] + self._submitted[table] - self._known_submitted[table])

    def count(self, table: int) -> int:
        self._repair()
        return int(self._counters[table, COUNT])

    def stats(self, table: int) -> dict[str, int]:
        self._repair()
        return self._stats(table)

    def _stats(self, table: int) -> dict[str, int]:
        sizes = [len(slots) for slots, is_side in self._mirror.slots(table) if not is_side]
        counters, slots = self._counters[table].tolist(), sum(sizes)
        sizes_of_index = {"slots": slots, "segments": len(sizes), "index_bytes": slots * 16}
        return {"ids": counters[COUNT], **sizes_of_index, "erased_rows": counters[FREE]}

    def probe_lengths(self, table: int) -> tuple[float, int]:
        self._repair()
        lengths = torch.cat([lengths for _, lengths in self._used_slots(table)])
        return (float(lengths.double().mean()), int(lengths.max())) if len(lengths) else (1.0, 1)

    def reserve(self, table: int, ids: int, first_shard: int, last_shard: int) -> None:
        """Segments grow before each launch, to all that it may need."""

    def clear(self, table: int) -> None:
        self._repair()
        self._is_growing = True
        self._mirror.clear(table)
        self._counters[table, [COUNT, FREE, TAKEN]] = 0
        self._take_reports(wait=True)
        self._known[table, [COUNT, FREE, TAKEN]] = 0
        self._is_exhausted_T[table] = False
        self._finish_growth()

    # ------------------------------------------------------------------------------------------------------- copying

    def snapshot(self) -> dict[str, Any]:
        self.lost(wait=True)
        return {
            "mirror": self._mirror.snapshot(),
            "counters": self._counters.clone(),
            "supply": self._described[:, SUPPLY].copy(),
            "granules": {table: granules.clone() for table, granules in self._granules.items()},
            "stacks": {table: stack.clone() for table, stack in self._stacks.items()},
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        self._mirror.restore(snapshot["mirror"])
        self._counters.copy_(snapshot["counters"])
        self._described[:, SUPPLY] = snapshot["supply"]
        for name, tensors in (("granules", self._granules), ("stacks", self._stacks)):
            tensors.clear()
            tensors |= {table: copy(tensor, self._device) for table, tensor in snapshot[name].items()}
        self._is_exhausted_T[:] = False
        self._torn = None
        self._given.clear()
        self._finish_growth()
        self._take_reports(wait=True)
