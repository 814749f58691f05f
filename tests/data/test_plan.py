"""The order of rows: golden values, and what every plan keeps to."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recis_lightning.data.plan import EpochPlan, Order, Window, shuffled


def test_shuffled_gives_the_same_numbers_for_ever() -> None:
    # Positions in checkpoints stand on these: a change of them is a change of every saved order.
    assert shuffled(12, 0, 1, 2).tolist() == [2, 4, 3, 11, 5, 8, 6, 1, 10, 9, 7, 0]
    assert shuffled(100_000, 7, 1, 1, 3, 9)[[0, 1, 2, -1]].tolist() == [43138, 26056, 31577, 70300]


@given(n=st.integers(0, 300), key=st.lists(st.integers(0, 9), max_size=4))
def test_shuffled_is_a_permutation(n: int, key: list[int]) -> None:
    assert sorted(shuffled(n, 3, *key).tolist()) == list(range(n))


def test_shuffled_depends_on_every_part_of_the_key() -> None:
    orders = {tuple(shuffled(50, *key)) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0), (0, 0, 0, 0)]}
    assert len(orders) == 6


def test_plan_of_a_small_example_can_be_followed_by_hand() -> None:
    plan = EpochPlan([4, 3, 3], Order(batch_size=4, streams=2, shuffle=False, window_rows=4), epoch=0)
    # Stripes a, b, c are one line a0 a1 a2 a3 b0 | b1 b2 c0 c1 c2: two streams of five rows.
    assert [plan.stream_rows(stream) for stream in (0, 1)] == [5, 5]
    assert plan.steps == 3
    assert plan.addresses(0, [0, 1]) == [(0, 0), (0, 1), (1, 1), (1, 2)]
    assert plan.addresses(1, [0, 1]) == [(0, 2), (0, 3), (2, 0), (2, 1)]
    assert plan.addresses(2, [0, 1]) == [(1, 0), (2, 2)]
    assert [window.rows for window in plan.windows(0)] == [4, 1]
    assert [window.rows for window in plan.windows(1)] == [2, 3]


@st.composite
def plans(draw: st.DrawFn) -> EpochPlan:
    stripes = draw(st.lists(st.integers(1, 60), min_size=1, max_size=12))
    streams = draw(st.sampled_from([1, 2, 3, 8, 12, 840]))
    order = Order(
        batch_size=streams * draw(st.integers(1, 5)),
        streams=streams,
        window_rows=draw(st.integers(1, 400)),
        seed=draw(st.integers(0, 3)),
        shuffle=draw(st.booleans()),
        drop_last=draw(st.booleans()),
    )
    return EpochPlan(stripes, order, draw(st.integers(0, 3)))


def all_windows(plan: EpochPlan) -> list[Window]:
    return [window for stream in range(plan.order.streams) for window in plan.windows(stream)]


@given(plan=plans())
def test_streams_differ_by_one_row_at_most_and_hold_every_row_once(plan: EpochPlan) -> None:
    lengths = [plan.stream_rows(stream) for stream in range(plan.order.streams)]
    assert max(lengths) - min(lengths) <= 1
    pieces = [piece for window in all_windows(plan) for piece in window.pieces]
    rows = [(piece.stripe, row) for piece in pieces for row in range(piece.first, piece.last)]
    assert len(set(rows)) == len(rows) == plan.rows == sum(lengths)


@given(plan=plans())
def test_steps_take_every_row_once_or_drop_less_than_two_batches(plan: EpochPlan) -> None:
    taken = 0
    for stream in range(plan.order.streams):
        spans = [plan.span(step, stream) for step in range(plan.steps)]
        assert all(last - first <= plan.order.share for first, last in spans)
        assert [first for first, _ in spans[1:]] == [last for _, last in spans[:-1]]
        taken += spans[-1][1] if spans else 0
    if plan.order.drop_last:
        assert taken == plan.steps * plan.order.batch_size
        assert plan.rows - taken < 2 * plan.order.batch_size
    else:
        assert taken == plan.rows


@given(plan=plans())
def test_windows_end_as_soon_as_they_are_full(plan: EpochPlan) -> None:
    enough = max(1, plan.order.window_rows // plan.order.streams)
    for stream in range(plan.order.streams):
        first = 0
        windows = list(plan.windows(stream))
        for number, window in enumerate(windows):
            assert (window.number, window.first) == (number, first)
            assert window.rows - window.pieces[-1].rows < enough
            assert window.rows >= enough or window is windows[-1]
            first += window.rows


@settings(deadline=None)
@given(plan=plans(), data=st.data())
def test_windows_are_read_in_the_order_of_their_first_use(plan: EpochPlan, data: st.DataObject) -> None:
    first_step = data.draw(st.integers(0, max(plan.steps - 1, 0)))
    world_size = data.draw(st.sampled_from([n for n in (1, 2, 4) if plan.order.streams % n == 0]))
    streams = plan.order.streams_of(0, world_size)
    needed = []
    for step in range(first_step, plan.steps):
        for stream in streams:
            first, last = plan.span(step, stream)
            for window in plan.windows(stream):
                if window.first < last and window.first + window.rows > first and window not in needed:
                    needed.append(window)
    assert list(plan.reading_order(streams, first_step)) == needed


@given(plan=plans())
def test_border_uses_count_the_streams_that_share_a_stripe(plan: EpochPlan) -> None:
    uses = plan.border_uses(range(plan.order.streams))
    pieces = [piece.stripe for window in all_windows(plan) for piece in window.pieces]
    for stripe in set(pieces):
        assert uses[stripe] == pieces.count(stripe) or (pieces.count(stripe) == 1 and uses[stripe] == 0)


def test_ranks_share_the_streams_in_order() -> None:
    order = Order(batch_size=16)
    assert [list(order.streams_of(rank, 4)) for rank in range(4)] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_a_world_that_does_not_divide_the_streams_is_told_a_fitting_number() -> None:
    with pytest.raises(ValueError, match="streams 8 can't be shared equally by 3 ranks; set streams=9"):
        Order(batch_size=16).streams_of(0, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 100}, r"batch_size 100 is not a multiple of streams 8.*batch_size=96 or 104, or streams=5"),
        ({"batch_size": 6}, r"set batch_size=8, or streams=6"),
        ({"batch_size": 0}, "batch_size is 0, need at least 1"),
        ({"batch_size": 8, "streams": 0}, "streams is 0, need at least 1"),
        ({"batch_size": 8, "window_rows": 0}, "window_rows is 0"),
        ({"batch_size": 8, "seed": -1}, "seed is -1, need at least 0"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_a_fitting_value(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Order(**settings)


def test_every_row_may_move_anywhere_in_its_window() -> None:
    order = Order(batch_size=8, streams=1, window_rows=1000)
    places = np.zeros(40)
    for epoch in range(200):
        plan = EpochPlan([40], order, epoch)
        (window,) = plan.windows(0)
        places += plan.row_order(window)
    # The mean place of each row over 200 epochs: 19.5 with a standard deviation of .82.
    assert np.abs(places / 200 - 19.5).max() < 5
