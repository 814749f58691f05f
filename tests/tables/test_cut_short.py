"""Errors between the launches and operations of one call: the call fails, and the tables go on.

Each call is made again and again, and cut short a little later each time, with --full by one step: by memory that runs
out, before or behind a launch, or by Ctrl-C. After each time all ids that were there before have what they had, new
ones are not there or have their first values, and the call made once more does what it should have done.
"""

import copy
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from recis_lightning.schema import RowwiseAdagrad, Table, Uniform
from recis_lightning.schema.policies import Counter, Lru
from recis_lightning.tables import TableFullError, TableGroup
from tests.tables.blocks import sized
from triton_ops.row_layout import GRANULE, LAST_STEP

ON_DEVICES = pytest.mark.parametrize("implementation", ["blocks", "triton"], indirect=True)
Call = Callable[[TableGroup], object]


class _Steps(TorchDispatchMode):
    """Counts operations and launches, and raises at one of them."""

    def __init__(self, last: int, error: BaseException) -> None:
        super().__init__()
        self.left, self.error = last, error

    def pass_one(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.pass_one()
        return operation(*args, **(kwargs or {}))


@contextmanager
def cut_short(last: int, error: BaseException) -> Iterator[_Steps]:
    """Raise at the operation or launch of this number, from 1 on; a launch is two, one before it and one behind."""
    from triton.runtime.interpreter import InterpretedFunction

    run = InterpretedFunction.run

    def run_between(self: Any, *arguments: Any, **named: Any) -> None:
        steps.pass_one()
        with _disable_current_modes():
            run(self, *arguments, **named)
        steps.pass_one()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpretedFunction, "run", run_between)
        with _Steps(last, error) as steps:
            yield steps


@functools.cache
def make_group(implementation: str) -> TableGroup:
    """To be copied: a table of many ids, some of them erased, one of few, and one that counts before it admits."""
    like: dict[str, Any] = {"dim": 2, "initializer": Uniform(low=1.0, high=2.0), "optimizer": RowwiseAdagrad()}
    tables = [
        Table(name="large", capacity=150, eviction=(Lru(),), **like),
        Table(name="small", **like),
        Table(name="counting", admission=Counter(threshold=2), **like),
    ]
    group = TableGroup(tables, max_rows=1 << 10)
    train(group, range(100), range(5), range(3))
    train(group, range(50, 110), range(0), [0, 1, 1, 7])
    group.weight[:GRANULE] = 0.0
    for table in group:
        rows = table.find(table.export().ids)
        group.weight[rows] = group.weight[rows] + 1.0
    group[0].erase(torch.arange(0, 40))
    return group


def train(group: TableGroup, *runs: Any) -> torch.Tensor:
    ids = torch.tensor([id_ for run in runs for id_ in run])
    splits = torch.tensor([0, *(len(run) for run in runs)]).cumsum(0)
    rows = group.lookup(ids, splits, torch.arange(len(runs)), True)
    group.unique_rows(rows, record=True)
    for table in group:
        table.step = group.clock
    return rows


Row = tuple[list[float], list[float]]


def held(group: TableGroup) -> list[dict[int, Row]]:
    """Weight and state of each id, of each table; and that rows and counts are those of these ids alone."""
    found, used = [], []
    for table in group:
        ids, rows = group.index.items(table.number)
        content = table.slice(rows)
        assert content.ids.tolist() == ids.tolist()
        assert len(table) == len(ids) == len(set(ids.tolist()))
        used += rows.tolist()
        found.append(dict(zip(ids.tolist(), zip(content.weight.tolist(), content.slots["sum"].tolist()), strict=True)))  # noqa: B905
        assert set((group.granule_table[rows // GRANULE]).tolist()) <= {table.number}
        pieces = group.rows.handed_out(table.number)
        assert sum(int((group.meta[piece, LAST_STEP] >= 0).sum()) for piece in pieces) == len(ids)
    assert len(set(used)) == len(used)
    return found


def insert(group: TableGroup) -> None:
    train(group, range(90, 140), range(3, 9), [])


def insert_many(group: TableGroup) -> None:
    group[1].find_or_insert(torch.arange(200))  # index and rows grow


def count(group: TableGroup) -> None:
    train(group, [], [], [0, 2, 2, 7, 8])


def erase(group: TableGroup) -> None:
    group.erase(torch.tensor([41, 42, 43, 44, 44, 1, 999]), torch.tensor([0, 5, 7]), torch.tensor([0, 1]))


def evict(group: TableGroup) -> None:
    group.tables[0].own(0, 1024)  # a quarter of the capacity
    group.evict()


def clear(group: TableGroup) -> None:
    group[0].clear()


CALLS: list[Call] = [insert, insert_many, count, erase, evict, clear]
EXPECTED = torch.OutOfMemoryError, MemoryError, KeyboardInterrupt, TableFullError
ERRORS = [torch.OutOfMemoryError("injected"), KeyboardInterrupt("injected")]


@ON_DEVICES
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_a_call_that_is_cut_short_anywhere_leaves_tables_that_go_on(
    call: Call, implementation: str, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("triton")
    group = make_group(implementation)
    before, finished = held(group), copy.deepcopy(group)
    with cut_short(0, MemoryError()) as steps:  # nowhere
        call(finished)
    after, count_of_steps = held(finished), -steps.left
    stride = 1 if request.config.getoption("--full") else math.ceil(count_of_steps / sized(12, 4))
    for last in range(1, count_of_steps + 1, stride):
        subject, error = copy.deepcopy(group), ERRORS[last % 2]
        with suppress(*EXPECTED), cut_short(last, error) as steps:
            call(subject)
        for was, will_be, now in zip(before, after, held(subject), strict=True):
            for id_, row in now.items():
                assert row in (was.get(id_), will_be.get(id_)), f"id {id_}, cut short at {last} of {call.__name__}"
            assert was.keys() & will_be.keys() <= now.keys(), f"cut short at {last} of {call.__name__}"
        assert steps.left <= 0, "it came to its end"
        call(subject)
        if call is not count:  # which may have counted before it was cut short
            assert [each.keys() for each in held(subject)] == [each.keys() for each in after]
