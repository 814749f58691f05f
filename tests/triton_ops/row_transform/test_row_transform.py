"""The transforms of rows: hand-checkable examples, Python as the rival, reference and CPU alike."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triton_ops import row_transform as ops
from triton_ops.hash_bytes.reference import murmur_hash64a
from triton_ops.row_transform import Rows

few_ids = st.integers(-2, 4) | st.sampled_from([-(2**63), 2**63 - 1])
some_rows = st.lists(st.lists(few_ids, max_size=4), max_size=5)
pairs_of_rows = st.lists(st.tuples(st.lists(few_ids, max_size=5), st.lists(few_ids, max_size=5)), max_size=5)


@pytest.fixture(params=["reference", "cpu"])
def implementation(request, monkeypatch):
    monkeypatch.setenv("TRITON_OPS", request.param)
    return request.param


def rows(lists, weights=None, dtype=torch.int64) -> Rows:
    flat = torch.tensor([value for row in lists for value in row], dtype=dtype)
    offsets = torch.tensor([0, *itertools.accumulate(map(len, lists))])
    return Rows(flat, offsets, None if weights is None else torch.tensor([w for row in weights for w in row]))


def to_lists(found: Rows) -> list[list[int]]:
    bounds = found.offsets.tolist()
    return [found.values[start:stop].tolist() for start, stop in itertools.pairwise(bounds)]


def hash_words(*words: int) -> int:
    value = murmur_hash64a(b"".join((word % 2**64).to_bytes(8, "little") for word in words))
    return value - (value >> 63 << 64)


@pytest.mark.usefixtures("implementation")
def test_cross_gives_recis_golden_values():
    (found,) = ops.cross([[rows([[1001], [1002], [1003]]), rows([[1], [2], [3]])]], [10])
    assert to_lists(found) == [[-7808879811642834040], [-4967483181219983279], [1752425377096056168]]
    assert found.weights is None


@pytest.mark.usefixtures("implementation")
def test_cross_counts_repeats_once_and_multiplies_weights():
    left = rows([[5, 6, 5], []], [[0.5, 2.0, 9.0], []])
    right = rows([[1, 2], [3]], [[10.0, 100.0], [1.0]])
    (found,) = ops.cross([[left, right]], [10])
    assert to_lists(found) == [[hash_words(a, b) for a in (5, 6) for b in (1, 2)], []]
    assert found.weights.tolist() == [5.0, 50.0, 20.0, 200.0]


@pytest.mark.usefixtures("implementation")
def test_sides_without_weights_count_one():
    (found,) = ops.cross([[rows([[1]]), rows([[2, 3]], [[0.5, 4.0]]), rows([[7]])]], [10])
    assert to_lists(found) == [[hash_words(1, 2, 7), hash_words(1, 3, 7)]]
    assert found.weights.tolist() == [0.5, 4.0]


@pytest.mark.usefixtures("implementation")
@given(pairs=pairs_of_rows)
def test_cross_equals_python(pairs):
    left, right = [a for a, _ in pairs], [b for _, b in pairs]
    (found,) = ops.cross([[rows(left), rows(right)]], [100])
    assert to_lists(found) == [
        [hash_words(*words) for words in itertools.product(dict.fromkeys(a), dict.fromkeys(b))] for a, b in pairs
    ]


@pytest.mark.usefixtures("implementation")
def test_several_crosses_equal_each_alone():
    sides = [rows([[1, 2], [3]]), rows([[4], [5, 6]]), rows([[7, 7], []])]
    together = ops.cross([sides[:2], sides], [10, 10])
    alone = [ops.cross([sides[:2]], [10])[0], ops.cross([sides], [10])[0]]
    assert [to_lists(each) for each in together] == [to_lists(each) for each in alone]


@pytest.mark.usefixtures("implementation")
def test_a_cross_that_explodes_names_the_row():
    big = rows([[1], list(range(100))])
    with pytest.raises(ops.RowError, match="gives 100 x 100 x 100 combinations") as caught:
        ops.cross([[big, rows([[1], [2]])], [big, big, big]], [1000, 999_999])
    assert (caught.value.column, caught.value.row) == (1, 1)


@pytest.mark.usefixtures("implementation")
def test_long_rows_are_hashed_where_short_ones_are_compared():
    values = [i % 40 for i in range(200)]
    (found,) = ops.cross([[rows([values]), rows([[1]])]], [100])
    assert to_lists(found) == [[hash_words(i, 1) for i in range(40)]]
    common, distinct = ops.count_common([(rows([values]), rows([list(range(30, 100))]))])[0]
    assert (common.tolist(), distinct.tolist()) == ([10], [40])


@pytest.mark.usefixtures("implementation")
@given(pairs=pairs_of_rows)
def test_overlap_counts_as_python_sets_do(pairs):
    (found,) = ops.count_common([(rows([a for a, _ in pairs]), rows([b for _, b in pairs]))])
    assert found[0].tolist() == [len(set(a) & set(b)) for a, b in pairs]
    assert found[1].tolist() == [len(set(a)) for a, _ in pairs]


@pytest.mark.usefixtures("implementation")
@given(pairs=pairs_of_rows)
def test_find_keys_finds_the_first_of_equal_keys(pairs):
    ids, keys = rows([a for a, _ in pairs]), rows([b for _, b in pairs])
    starts = keys.offsets.tolist()
    expected = [starts[row] + b.index(id_) if id_ in b else -1 for row, (a, b) in enumerate(pairs) for id_ in a]
    assert ops.find_keys([(ids, keys)])[0].tolist() == expected


@pytest.mark.usefixtures("implementation")
@given(pairs=st.lists(st.tuples(st.lists(few_ids, max_size=4), few_ids), max_size=4), unit=st.integers(1, 9))
def test_time_gaps_saturate_and_round_down(pairs, unit):
    times, now = rows([a for a, _ in pairs]), torch.tensor([b for _, b in pairs], dtype=torch.int64)
    expected = [max(-(2**63), min(2**63 - 1, b - time)) // unit for a, b in pairs for time in a]
    assert ops.time_gap([(times, now)], [unit])[0].tolist() == expected


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("sum", [4.0, -1.0, 3.5]),
        ("mean", [2.0, -1.0, 3.5]),
        ("min", [1.0, -1.0, 3.5]),
        ("max", [3.0, -1.0, 3.5]),
        ("count", [2.0, -1.0, 1.0]),
        ("first", [3.0, -1.0, 3.5]),
        ("last", [1.0, -1.0, 3.5]),
    ],
)
def test_reduce_makes_one_number_of_a_row(how, expected):
    numbers = rows([[3.0, 1.0], [], [3.5]], dtype=torch.float32)
    assert ops.reduce([numbers], [how], [-1.0])[0].tolist() == expected


@pytest.mark.usefixtures("implementation")
@given(lists=some_rows, most=st.integers(1, 3))
def test_take_ranges_cuts_columns_of_both_widths_alike(lists, most):
    ids = rows(lists)
    lengths = ids.offsets.diff().clamp(max=most)
    starts = ids.offsets[1:] - lengths
    narrow, wide = ops.take_ranges([ids.values.float(), ids.values], [starts] * 2, [lengths] * 2)
    assert to_lists(wide) == [row[-most:] for row in lists]
    assert narrow.values.tolist() == wide.values.float().tolist()
    assert narrow.offsets is wide.offsets


@pytest.mark.usefixtures("implementation")
def test_batches_without_rows_and_rows_without_values_are_fine():
    for lists in ([], [[]], [[], []]):
        each = rows(lists)
        assert [to_lists(found) for found in ops.cross([[each, each]], [1])] == [lists]
        assert ops.count_common([(each, each)])[0][0].tolist() == [0] * len(lists)
        assert ops.find_keys([(each, each)])[0].tolist() == []
        assert ops.time_gap([(each, torch.zeros(len(lists), dtype=torch.int64))], [1])[0].tolist() == []
        assert ops.reduce([each], ["sum"], [0.5])[0].tolist() == [0.5] * len(lists)
