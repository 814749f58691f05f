"""Which ids a table forgets: by age, time, recency, frequency, norm or a score of the user's; ties by id.

Records of a table's rows are read one block behind the other, so that a pass over 10 M of them takes some tens of
milliseconds; eviction lru needs such a pass only now and then.
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

    rows: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    steps: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def take(self, count: int, last_steps: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """The first ``count`` rows that nothing has looked up since, or fewer; they leave the queue."""
        taken: list[np.ndarray] = []
        while count > 0 and len(self.rows):
            size = 2 * count + 64
            is_untouched = last_steps(self.rows[:size]) == self.steps[:size]
            last = np.flatnonzero(is_untouched)[:count][-1:] if is_untouched.sum() >= count else [len(is_untouched) - 1]
            end = int(last[0]) + 1
            taken.append(self.rows[:end][is_untouched[:end]])
            count -= len(taken[-1])
            self.rows, self.steps = self.rows[end:], self.steps[end:]
        return _join(taken)


def choose(table: "DynamicTable", policy: Eviction, step: int, now: float) -> Tensor:
    """The rows, int64 [V], whose ids ``policy`` has the table forget after ``step``, ``now`` in Unix seconds."""
    if isinstance(policy, Age):
        return _unused_since(table, step - policy.steps)
    if isinstance(policy, Ttl):
        return _unused_since(table, first_step_after(table.times, step, now, policy.seconds))
    if isinstance(policy, L2Norm):
        return _short(table, policy.below)
    excess = len(table) - (table.declaration.capacity or 0)
    if isinstance(policy, Score) and policy.below is not None:
        rows, scores = _scores(table, policy, step)
        return torch.from_numpy(rows[scores < policy.below])
    if excess <= 0:
        return torch.empty(0, dtype=torch.int64)
    if isinstance(policy, Score):
        rows, scores = _scores(table, policy, step)
        return torch.from_numpy(_lowest(excess, table, rows, scores, ID))
    if isinstance(policy, Lru):
        return torch.from_numpy(_least_recent(excess, table))
    assert isinstance(policy, Lfu), f"no such eviction: {policy.kind}"
    rows = _rows(table)
    return torch.from_numpy(_lowest(excess, table, rows, _records(table, rows, COUNT), LAST_STEP, ID))


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


def _records(table: "DynamicTable", rows: np.ndarray | slice, column: int) -> np.ndarray:
    """A column of rows' records: on the CPU without a copy where rows are a run, else as a copy."""
    meta = table.group.meta
    if isinstance(meta, Tensor) and meta.device.type == "cpu":
        return meta.numpy()[rows, column]
    places = rows if isinstance(rows, slice) else torch.from_numpy(rows).to(meta.device)
    return meta[places, column].cpu().numpy()


def _pieces(table: "DynamicTable") -> Iterator[tuple[slice, np.ndarray]]:
    """Rows that were handed out, and which of them an id has."""
    for piece in table.group.rows.handed_out(table.number):
        yield piece, _records(table, piece, LAST_STEP) != NOBODYS


def _rows(table: "DynamicTable") -> np.ndarray:
    return _join([piece.start + np.flatnonzero(used) for piece, used in _pieces(table)])


def _join(rows: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)


def _unused_since(table: "DynamicTable", step: int) -> Tensor:
    found = []
    for piece, used in _pieces(table):
        found.append(piece.start + np.flatnonzero(used & (_records(table, piece, LAST_STEP) < step)))
    return torch.from_numpy(_join(found))


def _short(table: "DynamicTable", below: float) -> Tensor:
    found = []
    for piece, used in _pieces(table):
        norms = torch.linalg.vector_norm(table.group.weight[piece].double(), dim=1).cpu().numpy()
        found.append(piece.start + np.flatnonzero(used & (norms < below)))
    return torch.from_numpy(_join(found))


def _lowest(count: int, table: "DynamicTable", rows: np.ndarray, keys: np.ndarray, *columns: int) -> np.ndarray:
    """The ``count`` rows with the lowest keys; of equal ones the lowest in a column of their records, then the next."""
    chosen = []
    for column in columns:
        bound = np.partition(keys, count - 1)[count - 1]
        chosen.append(rows[keys < bound])
        count -= len(chosen[-1])
        rows = rows[keys == bound]
        keys = _records(table, rows, column)
    chosen.append(rows[np.argsort(keys, kind="stable")[:count]])
    return _join(chosen)


def _least_recent(count: int, table: "DynamicTable") -> np.ndarray:
    """The ``count`` rows looked up longest ago, of equal ones those of lower ids.

    A scan of all rows finds more of them than are asked for, in order. As long as a row's last step is still what it
    was, no other can have come before it, since steps only rise; so most calls look at a few rows.
    """
    queue = table.oldest
    chosen = queue.take(count, lambda rows: _records(table, rows, LAST_STEP))
    if len(chosen) < count:
        rows = _rows(table)
        ahead = min(len(rows), max(2 * count, (table.declaration.capacity or 0) // 4))
        rows = _lowest(ahead, table, rows, _records(table, rows, LAST_STEP), ID)
        steps = _records(table, rows, LAST_STEP)
        order = np.lexsort((_records(table, rows, ID), steps))
        chosen, rows, steps = rows[order[:count]], rows[order[count:]], steps[order[count:]]
        is_past = steps < table.group.clock  # rows of the step that runs may yet be joined by others
        queue.rows, queue.steps = rows[is_past], steps[is_past]
    return chosen


def _scores(table: "DynamicTable", policy: Score, step: int) -> tuple[np.ndarray, np.ndarray]:
    """All rows of a table, and their scores."""
    function, rows = score_function(table.name, policy), _rows(table)
    scores = []
    for begin in range(0, len(rows), MOST_SCORED):
        part = table.slice(torch.from_numpy(rows[begin : begin + MOST_SCORED]))
        score_N = torch.as_tensor(function(part, step))
        if score_N.shape != (len(part),) or not bool(score_N.double().isfinite().all()):
            raise ValueError(
                f"table '{table.name}': {policy.function} gives {score_N.dtype} {list(score_N.shape)} for {len(part)} "
                "ids; give a finite number for each"
            )
        scores.append(score_N.double().numpy())
    return rows, np.concatenate(scores) if scores else np.empty(0)


def score_function(table: str, policy: Score) -> Callable[["TableSlice", int], Tensor]:
    """What ``policy`` names; ValueError where there is nothing of that name, or nothing to call."""
    try:
        found = pkgutil.resolve_name(policy.function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"table '{table}': eviction score finds no function '{policy.function}': {error}") from None
    if not callable(found):
        raise ValueError(f"table '{table}': eviction score names {policy.function}, which can't be called")
    return found
