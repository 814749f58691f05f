"""Which ids a table forgets: by age, time, recency, frequency, norm or a score of the user's; ties by id.

Records of a table's rows are read where they lie, one block behind the other, so that a pass over 10 M of them takes
some tens of milliseconds; eviction lru needs such a pass only now and then.

V rows that are chosen.
"""

import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from recis_lightning.schema.policies import Age, Eviction, L2Norm, Lfu, Lru, Score, Ttl
from triton_ops.row_layout import COUNT, ID, LAST_STEP, NOBODYS

if TYPE_CHECKING:
    from recis_lightning.tables.table import DynamicTable, TableSlice

MOST_SCORED = 1 << 16  # rows that a score function gets at once


@dataclass
class Queue:
    """Rows in the order in which eviction lru takes them, with the step at which each was last looked up."""

    rows: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    steps: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def take(self, count: int, last_steps: Callable[[Tensor], Tensor]) -> Tensor:
        """The first ``count`` rows that nothing has looked up since, or fewer; they leave the queue."""
        taken = [self.rows[:0]]
        while count > 0 and len(self.rows):
            size = 2 * count + 64
            is_untouched = last_steps(self.rows[:size]) == self.steps[:size]
            places = is_untouched.nonzero().squeeze(1)[:count]
            end = int(places[-1]) + 1 if len(places) == count else len(is_untouched)
            taken.append(self.rows[places])
            count -= len(places)
            self.rows, self.steps = self.rows[end:], self.steps[end:]
        return torch.cat(taken)


def choose(table: "DynamicTable", policy: Eviction, step: int, now: float) -> Tensor:
    """The rows, int64 [V], whose ids ``policy`` has the table forget after ``step``, ``now`` in Unix seconds."""
    if isinstance(policy, Age):
        return _unused_since(table, step - policy.steps)
    if isinstance(policy, Ttl):
        return _unused_since(table, first_step_after(table.times, step, now, policy.seconds))
    if isinstance(policy, L2Norm):
        return _short(table, policy.below)
    if isinstance(policy, Score) and policy.below is not None:
        rows, scores = _scores(table, policy, step)
        return rows[scores < policy.below]
    capacity = table.capacity or 0
    # What is known without asking a GPU first: mostly it says that nothing is to be done.
    is_past = table.group.index.count_at_most(table.number) > capacity
    if not is_past or (excess := len(table) - capacity) <= 0:
        return torch.empty(0, dtype=torch.int64)
    if isinstance(policy, Score):
        rows, scores = _scores(table, policy, step)
        return _lowest(excess, table, rows, scores, ID)
    if isinstance(policy, Lru):
        return _least_recent(excess, table)
    assert isinstance(policy, Lfu), f"no such eviction: {policy.kind}"
    rows = _rows(table)
    return _lowest(excess, table, rows, _records(table, rows, COUNT), LAST_STEP, ID)


def waits_until(table: "DynamicTable", policy: Eviction, step: int, now: float) -> int | None:
    """The step before which an id that waits for admission must have been met to be forgotten too; None for no step."""
    if isinstance(policy, Age):
        return step - policy.steps
    if isinstance(policy, Ttl):
        return first_step_after(table.times, step, now, policy.seconds)
    return None


def first_step_after(times: list[tuple[int, float]], step: int, now: float, seconds: float) -> int:
    """The first step that may be less than ``seconds`` ago, by times [(10, 100.0), (20, 160.0)]: 11 for now 170, 60 s.

    (20, 160.0) says that step 20 had ended at 160. Notes the time of ``step``, and drops what no later call needs.
    """
    if not times or times[-1][0] < step:
        times.append((step, now))
    old = [index for index, (_, time) in enumerate(times) if time < now - seconds]
    if not old:
        return 0
    del times[: old[-1]]
    return times[0][0] + 1


def _records(table: "DynamicTable", rows: Tensor | slice, column: int) -> Tensor:
    """A column of rows' records."""
    return table.group.meta[rows, column]


def _is_host(device: torch.device) -> bool:
    return device.type == "cpu"


def _pieces(table: "DynamicTable") -> Iterator[tuple[slice, Tensor]]:
    """Rows that were handed out, and the last step of each."""
    # On the CPU pieces that stay in its caches; elsewhere larger ones, since each costs the host some launches.
    most = 1 << 18 if _is_host(table.group.meta.device) else 1 << 22
    for piece in table.group.rows.handed_out(table.number, most):
        yield piece, _records(table, piece, LAST_STEP)


def _rows(table: "DynamicTable", is_chosen: Callable[[slice, Tensor], Tensor] | None = None) -> Tensor:
    """The rows that ids have; or those of which ``is_chosen`` says so, given a piece and the last step of each row."""
    found = [torch.empty(0, dtype=torch.int64, device=table.group.meta.device)]
    for piece, last_step in _pieces(table):
        chosen = last_step != NOBODYS
        if is_chosen is not None:
            chosen &= is_chosen(piece, last_step)
        found.append(chosen.nonzero().squeeze(1).add_(piece.start))
    return torch.cat(found)


def _unused_since(table: "DynamicTable", step: int) -> Tensor:
    return _rows(table, lambda piece, last_step: last_step < step)


def _short(table: "DynamicTable", below: float) -> Tensor:
    weight = table.group.weight
    return _rows(table, lambda piece, _: torch.linalg.vector_norm(weight[piece].double(), dim=1) < below)


def _lowest(count: int, table: "DynamicTable", rows: Tensor, keys: Tensor, *columns: int) -> Tensor:
    """The ``count`` rows with the lowest keys; of equal ones the lowest in a column of their records, then the next."""
    chosen = []
    for column in columns:
        bound = _at_place(keys, count)
        chosen.append(rows[keys < bound])
        count -= len(chosen[-1])
        rows = rows[keys == bound]
        keys = _records(table, rows, column)
    chosen.append(rows[keys.argsort(stable=True)[:count]])
    return torch.cat(chosen)


def _at_place(keys: Tensor, count: int) -> Tensor:
    """The lowest number that ``count`` keys are at most."""
    if _is_host(keys.device):  # NumPy's is five times as fast
        return torch.from_numpy(np.partition(keys.numpy(), count - 1)[count - 1 : count])
    return keys.topk(count, largest=False, sorted=False).values.max()


def _order(keys: Tensor, ids: Tensor) -> Tensor:
    """Places in order of keys, of equal ones in that of ids."""
    if _is_host(keys.device):  # NumPy's is twice as fast
        return torch.from_numpy(np.lexsort((ids.numpy(), keys.numpy())))
    by_id = ids.argsort()
    return by_id[keys[by_id].argsort(stable=True)]


def _least_recent(count: int, table: "DynamicTable") -> Tensor:
    """The ``count`` rows looked up longest ago, of equal ones those of lower ids.

    A scan of all rows finds more of them than are asked for, in order. As long as a row's last step is still what it
    was, no other can have come before it, since steps only rise; so most calls look at a few rows.
    """
    queue = table.oldest
    chosen = queue.take(count, lambda rows: _records(table, rows, LAST_STEP))
    if len(chosen) < count:
        rows = _rows(table)
        ahead = min(len(rows), max(2 * count, (table.capacity or 0) // 4))
        rows = _lowest(ahead, table, rows, _records(table, rows, LAST_STEP), ID)
        steps = _records(table, rows, LAST_STEP)
        order = _order(steps, _records(table, rows, ID))
        chosen, rows, steps = rows[order[:count]], rows[order[count:]], steps[order[count:]]
        is_past = steps < table.group.clock  # rows of the step that runs may yet be joined by others
        queue.rows, queue.steps = rows[is_past], steps[is_past]
    return chosen


def _scores(table: "DynamicTable", policy: Score, step: int) -> tuple[Tensor, Tensor]:
    """All rows of a table, and their scores."""
    function, rows = score_function(table.name, policy), _rows(table)
    scores = [torch.empty(0, dtype=torch.float64)]
    for chosen in rows.split(MOST_SCORED):
        part = table.slice(chosen)
        score_N = torch.as_tensor(function(part, step))
        if score_N.shape != (len(part),) or not bool(score_N.double().isfinite().all()):
            raise ValueError(
                f"table '{table.name}': {policy.function} gives {score_N.dtype} {list(score_N.shape)} for {len(part)} "
                "ids; give a finite number for each"
            )
        scores.append(score_N.double().cpu())
    return rows, torch.cat(scores).to(rows.device)


def score_function(table: str, policy: Score) -> Callable[["TableSlice", int], Tensor]:
    """What ``policy`` names; ValueError where there is nothing of that name, or nothing to call."""
    try:
        found = pkgutil.resolve_name(policy.function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"table '{table}': eviction score finds no function '{policy.function}': {error}") from None
    if not callable(found):
        raise ValueError(f"table '{table}': eviction score names {policy.function}, which can't be called")
    return found
