"""How far reading gets ahead of the batches that are cut."""

from collections.abc import Callable

import numpy as np

from recis_lightning.data.plan import EpochPlan, Order, Window
from recis_lightning.data.stream import _ReadAhead
from recis_lightning.data.window import Block

ROW_BYTES = 8


def block_of(window: Window) -> Block:
    return Block(window, np.zeros(0, np.int64), (), None, ROW_BYTES * window.rows, (), None)


def windows_asked_for(nbytes: int) -> int:
    """Once the first row of both of two streams was taken, of windows that are five times as large as asked for."""
    plan = EpochPlan([100] * 12, Order(batch_size=2, streams=2, window_rows=40), epoch=0)
    asked: list[Window] = []

    def submit(window: Window) -> Callable[[], Block]:
        asked.append(window)
        return lambda: block_of(window)

    blocks = _ReadAhead(plan, range(2), 0, submit, 1, nbytes)
    for stream in range(2):
        blocks.take(stream, 0, 1)
    return len(asked)


def test_as_many_rows_are_read_ahead_as_are_held_where_stripes_are_larger_than_windows() -> None:
    assert windows_asked_for(nbytes=1 << 20) == 2 + 2


def test_fewer_are_read_ahead_where_they_would_take_more_than_they_may() -> None:
    assert windows_asked_for(nbytes=3 * 100 * ROW_BYTES) == 2 + 1
