"""Packing: hand-checkable examples for every implementation, and the kernels against the reference."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from triton_ops.pack import cpu, reference
from triton_ops.pack.op import Kernels, kernels
from triton_ops.pack.types import Column, ListColumn, Scan

NO_BITS = np.empty(0, np.uint8)


@pytest.fixture(params=["reference", "cpu"])
def pack(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    monkeypatch.setenv("TRITON_OPS", request.param)
    return kernels()


def bits(values: list[Any]) -> NDArray[np.uint8]:
    return np.packbits([value is not None for value in values], bitorder="little") if None in values else NO_BITS


def column(values: list[Any], dtype: Any = np.int64, garbage: float = 99) -> Column:
    """A column under whose nulls lies garbage."""
    return Column(np.array([garbage if value is None else value for value in values], dtype), bits(values))


def list_column(rows: list[list[Any] | None], dtype: Any = np.int64, under_null: int = 0) -> ListColumn:
    """A column of lists; under a null list may lie values, which Arrow allows."""
    filled = [[7] * under_null if row is None else row for row in rows]
    values = column([value for row in filled for value in row], dtype)
    offsets = np.cumsum([0, *map(len, filled)], dtype=np.int32)
    return ListColumn(values.values, values.validity, offsets, bits(rows))


def indices(values: list[int]) -> NDArray[np.uint32]:
    return np.array(values, np.uint32)


def place(
    pack: Kernels, source: Column | ListColumn, rows: list[int], dtype: Any = np.int64, default: float | None = None
) -> tuple[list[Any], list[int], Scan]:
    """Place rows at 0, 1, 2, ...; gives the target, the flags and what was met."""
    target, present = np.full(len(rows), -5, dtype), np.ones(len(rows), np.uint8)
    scan = pack.place_singles(source, indices(rows), indices(list(range(len(rows)))), target, present, default)
    return target.tolist(), present.tolist(), scan


def test_place_singles_marks_what_is_missing(pack: Kernels) -> None:
    target, present, scan = place(pack, column([7, None, 9]), [2, 0, 1])
    assert (target, present, scan) == ([9, 7, 0], [1, 1, 0], Scan(missing=1, unfit=0))


def test_place_singles_gives_the_default_for_what_is_missing(pack: Kernels) -> None:
    target, present, scan = place(pack, column([7, None, 9]), [2, 0, 1], default=3)
    assert (target, present, scan) == ([9, 7, 3], [1, 1, 1], Scan(missing=1, unfit=0))


def test_place_singles_puts_rows_where_they_belong(pack: Kernels) -> None:
    target = np.full(5, -5, np.int64)
    pack.place_singles(column([7, 8, 9]), indices([2, 0]), indices([1, 4]), target, NO_BITS, None)
    assert target.tolist() == [-5, 9, -5, -5, 7]


@pytest.mark.parametrize("garbage", [99, float("nan"), float("inf"), 1e300])
def test_place_singles_lets_nothing_through_from_under_a_null(pack: Kernels, garbage: float) -> None:
    target, _, scan = place(pack, column([1.5, None], np.float64, garbage), [0, 1], np.float32, default=2.5)
    assert (target, scan) == ([1.5, 2.5], Scan(missing=1, unfit=0))


def test_place_singles_keeps_every_bit_of_an_id(pack: Kernels) -> None:
    ids = [2**63 - 1, -(2**63), -1, 0, 2**53 + 1]
    assert place(pack, column(ids), [0, 1, 2, 3, 4])[0] == ids


@pytest.mark.parametrize(
    ("values", "dtype", "unfit"),
    [
        ([2**24, -(2**24), 2**24 + 1, -(2**24) - 1, -(2**63)], np.int64, 3),
        ([1e38, -3e38, 4e38, -4e38, float("inf"), float("-inf"), float("nan")], np.float64, 2),
        ([3e38, float("inf"), float("nan")], np.float32, 0),
    ],
)
def test_place_singles_counts_numbers_that_float32_cannot_stand_for(
    pack: Kernels, values: list[float], dtype: Any, unfit: int
) -> None:
    source = column([*values, None], dtype, garbage=3)
    _, _, scan = place(pack, source, list(range(len(values) + 1)), np.float32, default=0)
    assert scan == Scan(missing=1, unfit=unfit)


def test_place_singles_takes_lists_of_at_most_one(pack: Kernels) -> None:
    source = list_column([[7], [], None, [None], [9]], under_null=2)
    target, present, scan = place(pack, source, [4, 3, 2, 1, 0])
    assert (target, present, scan) == ([9, 0, 0, 0, 7], [1, 0, 0, 0, 1], Scan(missing=3, unfit=0))


def test_place_singles_counts_longer_lists(pack: Kernels) -> None:
    target, _, scan = place(pack, list_column([[7, 8], [9]]), [0, 1])
    assert (target, scan) == ([7, 9], Scan(missing=0, unfit=0, long=1))


def test_place_starts_says_how_long_rows_are_and_where_they_lie(pack: Kernels) -> None:
    source = list_column([[5, 6], None, [7], []], under_null=3)
    lengths, starts = np.full(4, -5, np.int64), np.full(4, -5, np.int64)
    pack.place_starts(source, indices([2, 1, 0, 3]), indices([0, 1, 2, 3]), lengths, starts)
    assert lengths.tolist() == [1, 0, 2, 0]
    assert (starts[[0, 2]] - source.values.ctypes.data).tolist() == [5 * 8, 0]


def test_place_lists_puts_values_where_they_belong(pack: Kernels) -> None:
    source = list_column([[5, 6], None, [7], []], under_null=3)
    rows, places = indices([2, 1, 0, 3]), indices([0, 1, 2, 3])
    target = np.full(3, -5, np.int64)
    assert pack.place_lists(source, rows, places, np.array([0, 1, 1, 3]), target, None) == Scan(missing=0, unfit=0)
    assert target.tolist() == [7, 5, 6]


def test_place_lists_fills_nulls_inside_and_counts_them(pack: Kernels) -> None:
    source, target = list_column([[5, None, 6]]), np.full(3, -5, np.int64)
    scan = pack.place_lists(source, indices([0]), indices([0]), np.array([0, 3]), target, 4)
    assert (target.tolist(), scan) == ([5, 4, 6], Scan(missing=1, unfit=0))


def test_group_rows_gives_each_piece_its_rows_by_rising_place(pack: Kernels) -> None:
    rows, places = pack.group_rows(np.array([3, 0, 2, 1]), np.array([0, 2, 4]))
    assert (rows.tolist(), places.tolist()) == ([0, 1, 1, 0], [1, 3, 0, 2])


def addresses(arrays: list[NDArray[Any]]) -> NDArray[np.int64]:
    """Where contiguous arrays lie: one span's row of a table."""
    return np.array([[array.ctypes.data for array in arrays]], np.int64)


def test_append_rows_leaves_missing_ids_out(pack: Kernels) -> None:
    ids, present, dense = np.array([5, 99, 6]), np.array([1, 0, 1], np.uint8), np.array([1, 2, 3], np.float32)
    words, spans = np.full(20, -5), np.array([[0, 3]])
    sources = addresses([ids]), addresses([present]), addresses([dense])
    counts = np.zeros(1, np.int64)
    pack.count_present(sources[1], spans, counts)
    assert counts.tolist() == [2]
    pack.append_rows(*sources, spans, words, words.view(np.float32), np.array([0]), np.array([8]), np.array([30]))
    assert words[:8].tolist() == [5, 6, -5, -5, -5, -5, -5, -5]
    assert words[8:13].tolist() == [0, 1, 1, 2, -5]
    assert words.view(np.float32)[30:33].tolist() == [1, 2, 3]


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.uint8])
def test_append_lists_copies_from_where_rows_lie(pack: Kernels, dtype: Any) -> None:
    values, words = np.array([4, 5, 6], dtype), np.full(12, -5)
    offsets, starts = np.array([0, 1, 3, 3]), values.ctypes.data + values.itemsize * np.array([0, 1, 3])
    spans, counts, typed = np.array([[1, 3]]), np.zeros(1, np.int64), words.view(dtype)
    pack.count_lists(addresses([offsets]), spans, counts)
    assert counts.tolist() == [2]
    sources = addresses([offsets]), addresses([starts])
    pack.append_lists(*sources, spans, words, typed, np.array([0]), np.array([6]))
    assert typed[:2].tolist() == [5, 6]
    assert words[6:10].tolist() == [0, 2, 2, -5]


# ------------------------------------------------------------------------------------------ kernels against reference


# source, rows, places, dtype of the target, default
Placement = tuple[Column | ListColumn, NDArray[np.uint32], NDArray[np.uint32], Any, float | None]


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    source = draw(st.sampled_from([np.int64, np.float32, np.float64]))
    target = np.int64 if source == np.int64 and draw(st.booleans()) else np.float32
    value = st.integers(-(2**63), 2**63 - 1) | st.integers(-9, 9) if source == np.int64 else st.floats(width=32)
    if source == np.float64:
        value = st.floats()
    item = st.none() | value if draw(st.booleans()) else value
    size = draw(st.sampled_from([1, 7, 63, 200]))
    shape = draw(st.sampled_from(["single", "optional", "list"]))
    if shape == "single":
        made: Any = column(draw(st.lists(item, min_size=size, max_size=size)), source, garbage=77)
    else:
        row = st.lists(item, max_size=2 if shape == "optional" else 6)
        made = list_column(draw(st.lists(st.none() | row, min_size=size, max_size=size)), source, under_null=2)
    rows = draw(st.permutations(range(size)))[: draw(st.integers(0, size))]
    places = sorted(draw(st.permutations(range(size)))[: len(rows)])
    default = draw(st.none() | st.integers(-4, 4))
    return made, indices(rows), indices(places), target, default


@settings(max_examples=80, deadline=None)
@given(case=placements())
def test_placement_kernels_equal_the_reference(case: Placement) -> None:
    source, rows, places, dtype, default = case
    size = len(source.values) if isinstance(source, Column) else len(source.offsets) - 1
    results = []
    for implementation in (reference, cpu):
        target, present, lengths = np.full(size, -5, dtype), np.ones(size, np.uint8), np.full(size, 0, np.int64)
        scans = [implementation.place_singles(source, rows, places, target, present, default)]
        outcome = [target, present]
        if isinstance(source, ListColumn):
            starts = np.zeros(size, np.int64)
            implementation.place_starts(source, rows, places, lengths, starts)
            offsets = np.concatenate([[0], np.cumsum(lengths)])
            values = np.full(offsets[-1], -5, dtype)
            scans.append(implementation.place_lists(source, rows, places, offsets, values, default))
            outcome += [lengths, starts, values]
        results.append((scans, [array.tobytes() for array in outcome]))
    assert results[0] == results[1]


@given(pieces=st.lists(st.integers(1, 50), min_size=1, max_size=7), seed=st.integers(0, 99))
def test_grouping_kernel_equals_the_reference(pieces: list[int], seed: int) -> None:
    bounds = np.cumsum([0, *pieces])
    order = np.random.default_rng(seed).permutation(bounds[-1])
    rows, places = cpu.group_rows(order, bounds)
    expected_rows, expected_places = reference.group_rows(order, bounds)
    assert (rows.tolist(), places.tolist()) == (expected_rows.tolist(), expected_places.tolist())


@settings(max_examples=40, deadline=None)
@given(data=st.data(), ids=st.integers(0, 3), dense=st.integers(0, 2), lists=st.integers(0, 2))
def test_append_kernels_equal_the_reference(data: st.DataObject, ids: int, dense: int, lists: int) -> None:
    rows = data.draw(st.sampled_from([1, 63, 130]))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    dtype = data.draw(st.sampled_from([np.int64, np.float32, np.uint8]))
    spans_P2 = np.array([sorted(data.draw(st.tuples(st.integers(0, rows), st.integers(0, rows)))) for _ in range(3)])
    blocks = []
    for _ in spans_P2:
        ids_IR, dense_FR = random.integers(0, 99, (ids, rows)), random.random((dense, rows), np.float32)
        present_IR = (random.random((ids, rows)) < 0.7).astype(np.uint8)
        lengths_LR = random.integers(0, 4, (lists, rows))
        offsets_LR = np.concatenate([np.zeros((lists, 1), np.int64), lengths_LR.cumsum(1)], axis=1)
        values = random.integers(0, 99, 8).astype(dtype)
        starts_LR = values.ctypes.data + values.itemsize * random.integers(0, 5, (lists, rows))
        present_I = np.where(random.random(ids) < 0.4, 0, addresses(list(present_IR))[0])
        blocks.append((ids_IR, present_IR, dense_FR, offsets_LR, starts_LR, values, present_I))
    ids_PI, dense_PF, offsets_PL, starts_PL = (
        np.concatenate([addresses(list(block[part])) for block in blocks]) for part in (0, 2, 3, 4)
    )
    present_PI = np.stack([block[-1] for block in blocks])
    room = 1000  # words for each part, more than any of them needs
    results = []
    for implementation in (reference, cpu):
        counts_I, counts_L = np.zeros(ids, np.int64), np.zeros(lists, np.int64)
        words = np.full(room * (2 * ids + dense + 2 * lists), -5)
        implementation.count_present(present_PI, spans_P2, counts_I)
        implementation.count_lists(offsets_PL, spans_P2, counts_L)
        total = int(np.diff(spans_P2).sum())
        values_I, offsets_I = room * np.arange(ids), room * np.arange(ids, 2 * ids)
        offsets_I = np.where(counts_I == total, -1, offsets_I)
        dense_F = 2 * room * np.arange(2 * ids, 2 * ids + dense)
        values_L, offsets_L = room * np.arange(2 * ids + dense, 2 * ids + dense + 2 * lists).reshape(2, lists)
        values_L = values_L * (8 // np.dtype(dtype).itemsize)
        floats = words.view(np.float32)
        implementation.append_rows(ids_PI, present_PI, dense_PF, spans_P2, words, floats, values_I, offsets_I, dense_F)
        typed = words.view(dtype)
        implementation.append_lists(offsets_PL, starts_PL, spans_P2, words, typed, values_L, offsets_L)
        results.append([array.tobytes() for array in (counts_I, counts_L, words)])
    assert results[0] == results[1]
