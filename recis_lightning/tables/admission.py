"""Which unknown ids of a group of tables get a row: all, the n-th time, by chance, or none.

Every decision is one for all occurrences of an id in a lookup, so that it does not depend on their order. Rules for
several tables run in one call, where the group's rows lie. On a GPU nobody waits to hear which ids are unknown: rules
get all of a lookup's, and a mask.

M unknown ids of a lookup with repetitions, or all of them with a mask, T tables of the group, S virtual shards.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import xxhash
from torch import Tensor

from recis_lightning.schema import Table
from recis_lightning.schema.policies import BLOOM_CELLS_MOST, Always, Bloom, Counter, Probability
from recis_lightning.tables.indices import make_index
from recis_lightning.tables.memory import reserve
from recis_lightning.tables.rows import RowStore, TableFullError
from triton_ops.group_by_row import LAST_TICK, group_by_row
from triton_ops.index import SHARDS, mix64, virtual_shard
from triton_ops.index.layout import NO_ROW
from triton_ops.row_layout import COUNT, GRANULE, ID, LAST_STEP


class Unknown(NamedTuple):
    """Ids of a lookup that ask for a row; ids may repeat."""

    ids: Tensor
    """int64 [M]."""
    tables: Tensor
    """int64 [M]: of which table each is."""
    counts: Tensor | None
    """int64 [M]: how often each occurs; None for once."""
    runs: tuple[Tensor, Tensor] | None = None
    """Splits and tables of the lookup, on the CPU, where ``asks`` is given."""
    asks: Tensor | None = None
    """bool [M]: which of them ask, the others have a row; None for all."""

    def of(self, chosen_M: Tensor) -> tuple["Unknown", Tensor | slice]:
        """Those that are chosen, bool [M], and where they are: on a GPU all, of which fewer ask."""
        if self.asks is not None:
            return self._replace(asks=self.asks & chosen_M), slice(None)
        places = chosen_M.nonzero().squeeze(1)
        counts = None if self.counts is None else self.counts[places]
        return Unknown(self.ids[places], self.tables[places], counts), places


class _Rule(Protocol):
    """One kind of admission, for the tables that declare it."""

    def admit(self, unknown: Unknown, step: int) -> Tensor:
        """Count what it has to count; bool [M], the same for all occurrences of an id, any value where none asks."""

    def forget(self, table: int, last_step_below: int | None) -> None:
        """Forget what it knows of a table: all, or of ids that were last met before a step."""

    def export(self, table: int, first_shard: int, last_shard: int) -> dict[str, Tensor]:
        """What it knows of a table's virtual shards [first_shard, last_shard), as copies on the CPU."""

    def load(self, table: int, first_shard: int, last_shard: int, state: Mapping[str, Tensor]) -> None:
        """Take over what `export` gave."""

    def end_step(self, step: int) -> None:
        """Forget what is to be forgotten after a step."""

    def raise_lost(self, wait: bool) -> None:
        """TableFullError where there was no room to count an id, as far as a GPU has told; ``wait`` asks it."""

    def stats(self, table: int, scan: bool) -> dict[str, float]:
        """waiting: ids it has met and not admitted, where it knows; admission_bytes; what ``scan`` finds."""


class Gate:
    """The admission rules of a group of tables."""

    def __init__(self, tables: Sequence[Table], seed: int, max_rows: int | None, device: torch.device) -> None:
        kinds = [table.admission.kind for table in tables]
        self.is_open = kinds == [Always.kind] * len(kinds)
        """Whether every id is admitted everywhere."""
        self._is_open_T = torch.tensor([kind == Always.kind for kind in kinds], device=device)
        self._rules: dict[str, _Rule] = {}
        if Counter.kind in kinds:
            self._rules[Counter.kind] = _CountingRule(tables, max_rows, device)
        if Bloom.kind in kinds:
            self._rules[Bloom.kind] = _BloomRule(tables, device)
        if Probability.kind in kinds:
            self._rules[Probability.kind] = _ChanceRule(tables, seed, device)
        self._covers_T = {kind: torch.tensor([kind == k for k in kinds], device=device) for kind in self._rules}
        self._kinds = kinds

    def admit(self, unknown: Unknown, step: int) -> Tensor:
        """Which of these unknown ids get a row: bool [M]."""
        admitted_M = self._is_open_T[unknown.tables]
        for kind, rule in self._rules.items():
            covered, places = unknown.of(covers_M := self._covers_T[kind][unknown.tables])
            if len(covered.ids):
                is_admitted = rule.admit(covered, step)
                admitted_M[places] = is_admitted if covered.asks is None else is_admitted & covers_M | admitted_M
        return admitted_M if unknown.asks is None else admitted_M & unknown.asks

    def raise_lost(self, wait: bool = False) -> None:
        """TableFullError where there was no room to count an id, as far as a GPU has told; ``wait`` asks it."""
        for rule in self._rules.values():
            rule.raise_lost(wait)

    def forget(self, table: int, last_step_below: int | None = None) -> None:
        if rule := self._rules.get(self._kinds[table]):
            rule.forget(table, last_step_below)

    def export(self, table: int, first_shard: int, last_shard: int) -> dict[str, Tensor]:
        rule = self._rules.get(self._kinds[table])
        return rule.export(table, first_shard, last_shard) if rule else {}

    def load(self, table: int, first_shard: int, last_shard: int, state: Mapping[str, Tensor]) -> None:
        if rule := self._rules.get(self._kinds[table]):
            rule.load(table, first_shard, last_shard, state)

    def end_step(self, step: int) -> None:
        """Forget what is to be forgotten after a step."""
        for rule in self._rules.values():
            rule.end_step(step)

    def stats(self, table: int, scan: bool) -> dict[str, float]:
        rule = self._rules.get(self._kinds[table])
        return rule.stats(table, scan) if rule else {}

    def snapshot(self) -> list[dict[str, Tensor]]:
        """What is known of each table, as copies."""
        return [self.export(table, 0, SHARDS) for table in range(len(self._kinds))]

    def restore(self, snapshot: Sequence[Mapping[str, Tensor]]) -> None:
        for table, state in enumerate(snapshot):
            self.load(table, 0, SHARDS, state)


class _CountingRule:
    """Counts exactly, in tables of their own: an index, and rows that are only their records."""

    def __init__(self, tables: Sequence[Table], max_rows: int | None, device: torch.device) -> None:
        self._names = [table.name for table in tables]
        thresholds = [getattr(table.admission, "threshold", 1) for table in tables]
        self._threshold_T = torch.tensor(thresholds, device=device)
        self._rows = RowStore(len(tables), (0, torch.float32), (0, torch.float32), max_rows, device=device)
        self._index = make_index(len(tables), self._rows)
        self._tick = 0
        self._lost_T = np.zeros(len(tables), dtype=np.int64)

    def admit(self, unknown: Unknown, step: int) -> Tensor:
        rows_M = self._rows_of(unknown)
        if self._tick == LAST_TICK:
            self._rows.clear_stamps()
            self._tick = 0
        self._tick += 1
        arrays = rows_M, self._rows.meta, self._rows.granule_table
        rows_U, inverse_M = group_by_row(*arrays, self._tick, step, unknown.counts)
        tables_U = self._rows.granule_table[rows_U // GRANULE].long()
        is_there_U = rows_U >= 0  # on a GPU there are as many places as values
        admitted_U = is_there_U & (self._rows.meta[rows_U, COUNT] >= self._threshold_T[tables_U])
        admitted_M = admitted_U[inverse_M] & (inverse_M >= 0)
        if unknown.runs is None:
            self._erase(rows_U[admitted_U], tables_U[admitted_U])
        else:
            with self._index.changing(self._rows.pool):
                self._rows.take_back(torch.where(admitted_U, rows_U, NO_ROW))
                self._index.erase(unknown.ids, *unknown.runs, self._rows.pool, admitted_M)
        return admitted_M

    def _rows_of(self, unknown: Unknown) -> Tensor:
        """The row of each id's record, a new one at 0; none for ids that do not ask."""
        runs = _runs(unknown.tables) if unknown.runs is None else unknown.runs
        wanted = () if unknown.asks is None else (unknown.asks,)
        inserted = self._index.find_or_insert(unknown.ids, *runs, self._rows.pool, *wanted)
        with self._index.changing(self._rows.pool):
            self._rows.meta[inserted.new_rows, COUNT] = 0
            self._rows.meta[inserted.new_rows, LAST_STEP] = 0
        if inserted.full_table is not None:
            raise self._full(inserted.full_table)
        return inserted.rows if unknown.asks is None else torch.where(unknown.asks, inserted.rows, NO_ROW)

    def raise_lost(self, wait: bool) -> None:
        if self._rows.is_ahead:
            lost_T, before_T = self._index.lost(wait), self._lost_T
            self._lost_T = lost_T
            if (lost_T > before_T).any():
                raise self._full(int((lost_T - before_T).argmax()))

    def _full(self, table: int) -> TableFullError:
        return TableFullError(
            f"table '{self._names[table]}': its admission has room to count {self._rows.room:,} ids "
            "that wait, and it is taken; take admission bloom, or an eviction by age, which forgets them too"
        )

    def _erase(self, rows_U: Tensor, tables_U: Tensor) -> None:
        erased = self._rows.meta[rows_U, ID], *_runs(tables_U), self._rows.pool
        with self._index.changing(self._rows.pool):
            self._rows.take_back(rows_U)
            self._index.erase(*erased)

    def forget(self, table: int, last_step_below: int | None) -> None:
        if last_step_below is None:
            with self._index.changing(self._rows.pool):
                self._rows.clear(table)
                self._index.clear(table)
            return
        _, rows = self._index.items(table)
        old = rows[self._rows.meta[rows, LAST_STEP] < last_step_below]
        self._erase(old, torch.full_like(old, table))

    def export(self, table: int, first_shard: int, last_shard: int) -> dict[str, Tensor]:
        ids, rows = self._index.items(table, first_shard, last_shard)
        counts, last_steps = (self._rows.meta[rows, column].cpu() for column in (COUNT, LAST_STEP))
        return {"ids": ids.cpu(), "count": counts, "last_step": last_steps}

    def load(self, table: int, first_shard: int, last_shard: int, state: Mapping[str, Tensor]) -> None:
        if "ids" not in state:
            return
        shards = virtual_shard(state["ids"])
        kept = (shards >= first_shard) & (shards < last_shard)
        device = self._threshold_T.device
        ids, counts, last_steps = (state[name][kept].to(device) for name in ("ids", "count", "last_step"))
        rows = self._rows_of(Unknown(ids, torch.full_like(ids, table), None))
        self.raise_lost(wait=True)
        self._rows.meta[rows, COUNT] = counts
        self._rows.meta[rows, LAST_STEP] = last_steps

    def end_step(self, step: int) -> None:
        """Counts stay, until an eviction by age says otherwise."""

    def stats(self, table: int, scan: bool) -> dict[str, float]:
        index = self._index.stats(table)
        bytes_ = index["index_bytes"] + self._rows.stats(table, index["ids"])["row_bytes"]
        return {"waiting": index["ids"], "admission_bytes": bytes_}


def _runs(tables_M: Tensor) -> tuple[Tensor, Tensor]:
    """Splits and tables, on the CPU, of the runs that ids of these tables make: [0, 0, 1] -> [0, 2, 3] and [0, 1]."""
    tables_K, sizes_K = (each.cpu() for each in torch.unique_consecutive(tables_M, return_counts=True))
    splits_K1 = torch.zeros(len(tables_K) + 1, dtype=torch.int64)
    torch.cumsum(sizes_K, 0, out=splits_K1[1:])
    return splits_K1, tables_K


class _BloomRule:
    """Counting Bloom filters: each id has some cells among those of its virtual shard, and counts as their least one.

    Counts grow up to 255, in whatever order ids come, and are halved by the step's number, if at all. So a rank that
    owns some virtual shards owns their cells.
    """

    def __init__(self, tables: Sequence[Table], device: torch.device) -> None:
        self._names = [table.name for table in tables]
        bytes_ = [table.admission.bytes if isinstance(table.admission, Bloom) else 0 for table in tables]
        self._widths = [count // SHARDS for count in bytes_]
        """Cells of a virtual shard, 0 in tables without a filter."""
        self._firsts = list(itertools.accumulate((width * SHARDS for width in self._widths), initial=0))
        self._thresholds = [getattr(table.admission, "threshold", 1) for table in tables]
        self._hashes = [getattr(table.admission, "hashes", 0) for table in tables]
        self._width_T, self._first_T, self._threshold_T, self._hashes_T = (
            torch.tensor(numbers, device=device)
            for numbers in (
                [max(width, 1) for width in self._widths],
                self._firsts[:-1],
                self._thresholds,
                self._hashes,
            )
        )
        self._cells = _cells(self._firsts[-1] + 1, device)  # the last one is nobody's
        self._halve_every = [getattr(table.admission, "halve_every", None) for table in tables]
        self._halved_at = [0] * len(tables)
        """The step after which cells were last halved, for a step may end twice: where none of the group took part."""

    def admit(self, unknown: Unknown, step: int) -> Tensor:
        cells_MH, is_cell_MH = self._cells_of(unknown.ids, unknown.tables)
        cells_C, added_C = self._additions(unknown, cells_MH, is_cell_MH)
        self._cells[cells_C] = (self._cells[cells_C] + added_C).clamp_(max=BLOOM_CELLS_MOST).to(torch.uint8)
        counts_MH = self._cells[cells_MH].masked_fill(~is_cell_MH, BLOOM_CELLS_MOST)
        return counts_MH.amin(dim=1) >= self._threshold_T[unknown.tables]

    def _additions(self, unknown: Unknown, cells_MH: Tensor, is_cell_MH: Tensor) -> tuple[Tensor, Tensor]:
        """Cells that are to grow, and by how much; one that comes up several times has the same number each time."""
        if unknown.asks is None and unknown.counts is None:
            return torch.unique(cells_MH[is_cell_MH], return_counts=True)
        counts_M = torch.ones_like(unknown.ids) if unknown.counts is None else unknown.counts
        counts_MH = counts_M[:, None].expand(cells_MH.shape)
        if unknown.asks is None:
            cells_C, inverse_C = torch.unique(cells_MH[is_cell_MH], return_inverse=True)
            return cells_C, torch.zeros_like(cells_C).index_add_(0, inverse_C, counts_MH[is_cell_MH])
        # How many different ones there are nobody waits for: all are in order, and those that do not ask behind.
        meant_MH = torch.where(is_cell_MH & unknown.asks[:, None], cells_MH, len(self._cells) - 1)
        cells_C, order_C = meant_MH.flatten().sort()
        sums_C1 = torch.cat([cells_C.new_zeros(1), counts_MH.flatten()[order_C].cumsum(0)])
        ends_C, begins_C = (torch.searchsorted(cells_C, cells_C, right=right) for right in (True, False))
        return cells_C, sums_C1[ends_C] - sums_C1[begins_C]

    def _cells_of(self, ids_M: Tensor, tables_M: Tensor) -> tuple[Tensor, Tensor]:
        """The cells of each id, [M, H], and which of them are meant: tables may have fewer hashes than others."""
        mixed_M = mix64(ids_M)
        start_M, stride_M = mixed_M & 0xFFFFFFFF, (mix64(mixed_M) & 0xFFFFFFFF) | 1
        number_H = torch.arange(max(self._hashes), device=ids_M.device)
        width_M1 = self._width_T[tables_M, None]
        place_MH = (start_M[:, None] + stride_M[:, None] * number_H) % width_M1
        first_M1 = self._first_T[tables_M, None] + virtual_shard(ids_M)[:, None] * width_M1
        is_cell_MH = number_H < self._hashes_T[tables_M, None]
        return torch.where(is_cell_MH, first_M1 + place_MH, len(self._cells) - 1), is_cell_MH

    def _part(self, table: int, first_shard: int, last_shard: int) -> Tensor:
        cells_SW = self._cells[self._firsts[table] : self._firsts[table + 1]].view(SHARDS, -1)
        return cells_SW[first_shard:last_shard]

    def forget(self, table: int, last_step_below: int | None) -> None:
        if last_step_below is None:  # a cell does not know when it was last met
            self._part(table, 0, SHARDS).zero_()
            self._halved_at[table] = 0

    def export(self, table: int, first_shard: int, last_shard: int) -> dict[str, Tensor]:
        shards = torch.tensor([first_shard, last_shard])
        halved_at = torch.tensor(self._halved_at[table])
        cells = self._part(table, first_shard, last_shard).to("cpu", copy=True)
        return {"cells": cells, "shards": shards, "halved_at": halved_at}

    def load(self, table: int, first_shard: int, last_shard: int, state: Mapping[str, Tensor]) -> None:
        if "cells" not in state:
            return
        begin, end = state["shards"].tolist()
        first, last = max(begin, first_shard), min(end, last_shard)
        if state["cells"].shape[1] != self._widths[table]:
            raise ValueError(
                f"table '{self._names[table]}': a filter of {state['cells'].shape[1] * SHARDS:,} bytes was saved, "
                f"{self._widths[table] * SHARDS:,} are declared; declare what was saved"
            )
        self._part(table, first, last).copy_(state["cells"][first - begin : last - begin])
        self._halved_at[table] = int(state["halved_at"])

    def end_step(self, step: int) -> None:
        for table, every in enumerate(self._halve_every):
            if every is not None and step % every == 0 and step > self._halved_at[table]:
                self._part(table, 0, SHARDS).bitwise_right_shift_(1)
                self._halved_at[table] = step

    def raise_lost(self, wait: bool) -> None:
        """There is room for all."""

    def stats(self, table: int, scan: bool) -> dict[str, float]:
        found: dict[str, float] = {"admission_bytes": self._widths[table] * SHARDS}
        if scan:
            # The occurrence that asks counts as well: cells that lack one of the threshold let it pass.
            full_S = (self._part(table, 0, SHARDS) >= self._thresholds[table] - 1).double().mean(dim=1)
            found["bloom_passes"] = float((full_S ** self._hashes[table]).mean())
        return found


def _cells(count: int, device: torch.device) -> Tensor:
    """So many zeros, uint8; on the CPU memory that is used where it is first written."""
    if device.type == "cpu":
        return reserve((count,), torch.uint8)
    with torch.inference_mode(False):  # as those of reserve
        return torch.zeros(count, dtype=torch.uint8, device=device)


class _ChanceRule:
    """Draws for each unknown id of a lookup, from (seed, table, id, step): nothing to keep, whatever comes again."""

    def __init__(self, tables: Sequence[Table], seed: int, device: torch.device) -> None:
        hashes = [xxhash.xxh3_64_intdigest(table.name.encode(), seed=seed % 2**64) for table in tables]
        keys = [value - 2**64 if value >= 2**63 else value for value in hashes]
        self._key_T = torch.tensor(keys, device=device)
        chances = [getattr(table.admission, "probability", 0.0) for table in tables]
        self._below_T = torch.tensor([int(chance * 2**53) for chance in chances], device=device)

    def admit(self, unknown: Unknown, step: int) -> Tensor:
        drawn_M = mix64(mix64(unknown.ids ^ self._key_T[unknown.tables]) + step)
        return ((drawn_M >> 11) & (2**53 - 1)) < self._below_T[unknown.tables]

    def forget(self, table: int, last_step_below: int | None) -> None:
        """Nothing is known."""

    def export(self, table: int, first_shard: int, last_shard: int) -> dict[str, Tensor]:
        return {}

    def load(self, table: int, first_shard: int, last_shard: int, state: Mapping[str, Any]) -> None:
        """Nothing is known."""

    def end_step(self, step: int) -> None:
        """Nothing is known."""

    def raise_lost(self, wait: bool) -> None:
        """Nothing is kept."""

    def stats(self, table: int, scan: bool) -> dict[str, float]:
        return {}
