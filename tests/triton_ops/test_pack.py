"""Packing: hand-checkable examples for every implementation, and the kernels against the reference."""

import ctypes
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from triton_ops.pack import cpu, reference
from triton_ops.pack.op import Kernels, kernels
from triton_ops.pack.types import KIND, LONG, MISSING, UNFIT, Column, ListColumn, describe

NO_BITS = np.empty(0, np.uint8)
EXPORTED: list[Any] = []


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


def scan(missing: int = 0, unfit: int = 0, long: int = 0) -> list[int]:
    """A line of a table of scans."""
    found = [0, 0, 0]
    found[MISSING], found[UNFIT], found[LONG] = missing, unfit, long
    return found


def located(*arrays: NDArray[Any]) -> NDArray[np.int64]:
    return np.array([array.ctypes.data for array in arrays], np.int64)


def place_at(
    pack: Kernels,
    source: Column | ListColumn,
    rows: NDArray[np.uint32],
    places: NDArray[np.uint32],
    target: NDArray[Any],
    present: NDArray[np.uint8] | None,
    default: float = 0,
) -> list[int]:
    presents = np.zeros(1, np.int64) if present is None else located(present)
    defaults = np.array([default], target.dtype)
    return pack.place_singles(describe([source]), rows, places, located(target), presents, defaults)[0].tolist()


def place(
    pack: Kernels, source: Column | ListColumn, rows: list[int], dtype: Any = np.int64, default: float | None = None
) -> tuple[list[Any], list[int], list[int]]:
    """Place rows at 0, 1, 2, ...; gives the target, the flags (ones with a default) and what was met."""
    target, present = np.full(len(rows), -5, dtype), np.ones(len(rows), np.uint8)
    marked = present if default is None else None
    found = place_at(pack, source, indices(rows), indices(list(range(len(rows)))), target, marked, default or 0)
    return target.tolist(), present.tolist(), found


def place_list(
    pack: Kernels,
    source: ListColumn,
    rows: list[int],
    size: int,
    dtype: Any = np.int64,
    default: float = 0,
    dim: int = 0,
) -> tuple[list[Any], list[int], list[int]]:
    """Place rows at 0, 1, 2, ...; gives the target, where in it rows start, and what was met."""
    target, starts = np.full(size, 77, dtype), np.full(len(rows), -5, np.int64)
    settings = np.array([dim]), np.array([default], dtype)
    places = indices(list(range(len(rows))))
    found = pack.place_lists(describe([source]), indices(rows), places, located(target), located(starts), *settings)
    if not dim:
        starts = (starts - target.ctypes.data) // target.itemsize
    return target.tolist(), starts.tolist(), found[0].tolist()


def test_place_singles_marks_what_is_missing(pack: Kernels) -> None:
    target, present, found = place(pack, column([7, None, 9]), [2, 0, 1])
    assert (target, present, found) == ([9, 7, 0], [1, 1, 0], scan(missing=1))


def test_place_singles_gives_the_default_for_what_is_missing(pack: Kernels) -> None:
    target, present, found = place(pack, column([7, None, 9]), [2, 0, 1], default=3)
    assert (target, present, found) == ([9, 7, 3], [1, 1, 1], scan(missing=1))


def test_place_singles_puts_rows_where_they_belong(pack: Kernels) -> None:
    target = np.full(5, -5, np.int64)
    assert place_at(pack, column([7, 8, 9]), indices([2, 0]), indices([1, 4]), target, None) == scan()
    assert target.tolist() == [-5, 9, -5, -5, 7]


def test_place_singles_serves_columns_of_several_kinds_at_once(pack: Kernels) -> None:
    sources = [
        column([7, None], np.float64),
        column([5, 6], np.float32),
        list_column([[3], [4, 9]]),
        column([1, 2**30]),
    ]
    targets, defaults = np.zeros((4, 2), np.float32), np.array([0.5, 0, 0, 0], np.float32)
    places, rows = indices([0, 1]), indices([1, 0])
    found = pack.place_singles(describe(sources), rows, places, located(*targets), np.zeros(4, np.int64), defaults)
    assert targets.tolist() == [[0.5, 7], [6, 5], [4, 3], [2**30, 1]]
    assert found.tolist() == [scan(missing=1), scan(), scan(long=1), scan(unfit=1)]


@pytest.mark.parametrize("garbage", [99, float("nan"), float("inf"), 1e300])
def test_place_singles_lets_nothing_through_from_under_a_null(pack: Kernels, garbage: float) -> None:
    target, _, found = place(pack, column([1.5, None], np.float64, garbage), [0, 1], np.float32, default=2.5)
    assert (target, found) == ([1.5, 2.5], scan(missing=1))


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
    _, _, found = place(pack, source, list(range(len(values) + 1)), np.float32, default=0)
    assert found == scan(missing=1, unfit=unfit)


def test_place_singles_takes_lists_of_at_most_one(pack: Kernels) -> None:
    source = list_column([[7], [], None, [None], [9]], under_null=2)
    target, present, found = place(pack, source, [4, 3, 2, 1, 0])
    assert (target, present, found) == ([9, 0, 0, 0, 7], [1, 0, 0, 0, 1], scan(missing=3))


def test_place_singles_counts_longer_lists(pack: Kernels) -> None:
    target, _, found = place(pack, list_column([[7, 8], [9]]), [0, 1])
    assert (target, found) == ([7, 9], scan(long=1))


def test_measure_lists_says_how_long_rows_are_and_where_they_lie(pack: Kernels) -> None:
    source = list_column([[5, 6], None, [7], []], under_null=3)
    lengths, starts = np.full(4, -5, np.int64), np.full(4, -5, np.int64)
    rows, places = indices([2, 1, 0, 3]), indices([0, 1, 2, 3])
    counts = pack.measure_lists(describe([source]), rows, places, located(lengths), located(starts))
    assert (lengths.tolist(), counts.tolist()) == ([1, 0, 2, 0], [[3, 1]])
    assert (starts[[0, 2]] - source.values.ctypes.data).tolist() == [5 * 8, 0]


def test_place_lists_puts_rows_one_behind_the_other(pack: Kernels) -> None:
    source = list_column([[5, 6], None, [7], []], under_null=3)
    assert place_list(pack, source, [2, 1, 0, 3], size=3) == ([7, 5, 6], [0, 1, 1, 3], scan())


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.uint8])
def test_place_lists_fills_nulls_inside_and_counts_them(pack: Kernels, dtype: Any) -> None:
    source = list_column([[5, None, 6]], dtype)
    assert place_list(pack, source, [0], 3, dtype, default=4) == ([5, 4, 6], [0], scan(missing=1))


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_place_lists_makes_floats_of_numbers(pack: Kernels, dtype: Any) -> None:
    source = list_column([[5, 2**24 + 2, None]], dtype)
    unfit = int(dtype is np.int64)
    assert place_list(pack, source, [0], 3, np.float32) == ([5, 2**24 + 2, 0], [0], scan(missing=1, unfit=unfit))


def test_place_lists_leaves_out_what_is_not_of_the_length_declared(pack: Kernels) -> None:
    source = list_column([[5, 6], [7], None, [8, 9]], np.float32)
    target, _, found = place_list(pack, source, [3, 1, 2, 0], 8, np.float32, dim=2)
    assert (target, found) == ([8, 9, 77, 77, 77, 77, 5, 6], scan())


def address_of(batch: pa.RecordBatch) -> int:
    """Where its C struct lies, which is kept for the rest of the test."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    EXPORTED.append(batch.__arrow_c_array__())
    return pointer(EXPORTED[-1][1], b"arrow_array")


@pytest.mark.parametrize("rows", [0, 1, 9])
def test_find_buffers_reads_the_c_data_interface(pack: Kernels, rows: int) -> None:
    batch = pa.record_batch(
        {
            "full": pa.array(range(rows), pa.int64()),
            "null": pa.array([None if row % 2 else row for row in range(rows)], pa.float32()),
            "text": pa.array([None if row % 2 else str(row) for row in range(rows)], pa.string()),
            "list": pa.array([None if row % 3 else [row, None] for row in range(rows)], pa.list_(pa.float64())),
        }
    )
    sources = np.full((5, 6), -5, np.int64)
    assert pack.find_buffers(address_of(batch), np.array([3, 0, 1, 2]), np.array([0, 3, 1, 4]), sources)
    inner = batch.column("list").values
    columns = [batch.column("list"), inner, batch.column("null"), batch.column("full"), batch.column("text")]
    (row_bits, offsets), (bits, values), (null_bits, nulls), (_, full), (text_bits, bounds, text) = (
        [0 if buffer is None else buffer.address for buffer in each.buffers()[: 3 if each is columns[4] else 2]]
        for each in columns
    )
    assert sources[[0, 1, 3, 4], :KIND].tolist() == [
        [values, len(inner), bits, offsets, row_bits],
        [nulls, rows, null_bits, 0, 0],
        [full, rows, 0, 0, 0],
        [text, rows, text_bits, bounds, 0],
    ]
    assert sources[2].tolist() == [-5] * 6


def test_find_buffers_tells_slices(pack: Kernels) -> None:
    batch = pa.record_batch({"x": pa.array(range(9))}).slice(3)
    assert not pack.find_buffers(address_of(batch), np.array([0]), np.array([0]), np.zeros((1, 6), np.int64))


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
    lengths, starts = np.array([1, 2, 0]), values.ctypes.data + values.itemsize * np.array([0, 1, 3])
    spans, counts, typed = np.array([[1, 3]]), np.zeros(1, np.int64), words.view(dtype)
    pack.count_lists(addresses([lengths]), spans, counts)
    assert counts.tolist() == [2]
    sources = addresses([lengths]), addresses([starts])
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
        target, present = np.full(size, -5, dtype), np.ones(size, np.uint8)
        marked = present if default is None else None
        scans = [place_at(implementation, source, rows, places, target, marked, default or 0)]
        outcome = [target, present]
        if isinstance(source, ListColumn):
            lengths, starts, table = np.zeros(size, np.int64), np.zeros(size, np.int64), describe([source])
            counts = implementation.measure_lists(table, rows, places, located(lengths), located(starts))
            values = np.full(counts[0, 0], -5, dtype)
            for dim, room in ((0, values), (2, np.full(2 * size, -5, dtype))):
                settings = np.array([dim]), np.array([default or 0], dtype)
                found = implementation.place_lists(table, rows, places, located(room), located(starts), *settings)
                scans.append(found[0].tolist())
                outcome.append(room)
            starts = np.where(lengths > 0, starts - values.ctypes.data, 0)
            outcome += [lengths, starts, counts]
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
        values = random.integers(0, 99, 4 * rows + 8).astype(dtype)
        # One behind the other, but for some.
        behind = np.cumsum(lengths_LR, axis=1) - lengths_LR
        anywhere = random.integers(0, 5, (lists, rows))
        chosen = np.where(random.random((lists, rows)) < 0.2, anywhere, behind)
        starts_LR = values.ctypes.data + values.itemsize * chosen
        present_I = np.where(random.random(ids) < 0.4, 0, addresses(list(present_IR))[0])
        blocks.append((ids_IR, present_IR, dense_FR, lengths_LR, starts_LR, values, present_I))
    ids_PI, dense_PF, lengths_PL, starts_PL = (
        np.concatenate([addresses(list(block[part])) for block in blocks]) for part in (0, 2, 3, 4)
    )
    present_PI = np.stack([block[-1] for block in blocks])
    room = 1000  # words for each part, more than any of them needs
    results = []
    for implementation in (reference, cpu):
        counts_I, counts_L = np.zeros(ids, np.int64), np.zeros(lists, np.int64)
        words = np.full(room * (2 * ids + dense + 2 * lists), -5)
        implementation.count_present(present_PI, spans_P2, counts_I)
        implementation.count_lists(lengths_PL, spans_P2, counts_L)
        total = int(np.diff(spans_P2).sum())
        values_I, offsets_I = room * np.arange(ids), room * np.arange(ids, 2 * ids)
        offsets_I = np.where(counts_I == total, -1, offsets_I)
        dense_F = 2 * room * np.arange(2 * ids, 2 * ids + dense)
        values_L, offsets_L = room * np.arange(2 * ids + dense, 2 * ids + dense + 2 * lists).reshape(2, lists)
        values_L = values_L * (8 // np.dtype(dtype).itemsize)
        floats = words.view(np.float32)
        implementation.append_rows(ids_PI, present_PI, dense_PF, spans_P2, words, floats, values_I, offsets_I, dense_F)
        typed = words.view(dtype)
        implementation.append_lists(lengths_PL, starts_PL, spans_P2, words, typed, values_L, offsets_L)
        results.append([array.tobytes() for array in (counts_I, counts_L, words)])
    assert results[0] == results[1]
