"""Each operation against the same thing done to Python lists, and its gradient against finite differences."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recis_lightning import ragged_ops as ops
from recis_lightning.ragged import Ragged

NUMBERS = st.integers(-3, 3)
ROWS = st.lists(st.lists(NUMBERS, max_size=5), max_size=5)
NESTED = st.lists(st.lists(st.lists(NUMBERS, max_size=3), max_size=4), max_size=4)


def ragged_of(rows, depth=1, weights=False, dtype=torch.int64):
    """From lists of a known depth, which empty lists do not tell; weights are the places, in halves."""
    levels, level = [], rows
    for _ in range(depth):
        levels.append(ops.offsets_of(torch.tensor([len(row) for row in level], dtype=torch.int64)))
        level = [entry for row in level for entry in row]
    values = torch.tensor(level, dtype=dtype)
    return Ragged(values, levels[0], torch.arange(len(level)) / 2 if weights else None, tuple(levels[1:]))


def weight_lists(ragged):
    assert ragged.weights is not None
    return ragged.with_values(ragged.weights).to_lists()


def cut(row, length, side):
    return row[:length] if side == "right" else row[max(len(row) - length, 0) :]


@given(ROWS, st.integers(0, 6), st.sampled_from(["left", "right"]))
def test_truncate_cuts_values_and_weights_alike(rows, length, side):
    ragged = ragged_of(rows, weights=True)
    result = ops.truncate(ragged, length, side).check()
    assert result.to_lists() == [cut(row, length, side) for row in rows]
    assert weight_lists(result) == [cut(row, length, side) for row in weight_lists(ragged)]
    assert result.offsets.dtype == torch.int64


@given(NESTED, st.integers(0, 4), st.sampled_from(["left", "right"]))
def test_truncate_of_nested_rows_cuts_inner_rows_whole(rows, length, side):
    result = ops.truncate(ragged_of(rows, depth=2), length, side).check()
    assert result.to_lists() == [cut(row, length, side) for row in rows]


@given(ROWS, st.integers(0, 6), st.randoms())
def test_top_k_sorts_by_score_and_breaks_ties_by_place(rows, k, random):
    scores = [[random.randint(0, 2) for _ in row] for row in rows]
    flat = torch.tensor([score for row in scores for score in row], dtype=torch.float32)
    result = ops.top_k(ragged_of(rows), k, flat).check()
    places = [sorted(range(len(row)), key=lambda i, row=row: -row[i])[:k] for row in scores]
    assert result.to_lists() == [[row[i] for i in chosen] for row, chosen in zip(rows, places, strict=True)]


def test_top_k_goes_by_weights_where_no_scores_are_given():
    ragged = Ragged(torch.tensor([7, 8, 9]), torch.tensor([0, 3, 3]), torch.tensor([0.1, 0.9, 0.5]))
    result = ops.top_k(ragged, 2)
    assert result.to_lists() == [[8, 9], []]
    assert weight_lists(result)[0] == pytest.approx([0.9, 0.5])


@given(ROWS)
def test_unique_keeps_first_places_and_their_weights_or_the_sums(rows):
    ragged = ragged_of(rows, weights=True)
    first, summed = ops.unique(ragged).check(), ops.unique(ragged, weights="sum")
    assert first.to_lists() == summed.to_lists() == [list(dict.fromkeys(row)) for row in rows]
    pairs = [list(zip(row, weights, strict=True)) for row, weights in zip(rows, weight_lists(ragged), strict=True)]
    assert weight_lists(first) == [[next(w for v, w in row if v == value) for value in dict(row)] for row in pairs]
    assert weight_lists(summed) == [[sum(w for v, w in row if v == value) for value in dict(row)] for row in pairs]


@given(st.lists(ROWS, min_size=1, max_size=3))
def test_concat_along_rows_and_along_batches(parts):
    count = min(map(len, parts))
    parts = [part[:count] for part in parts]
    raggeds = [ragged_of(part, weights=True) for part in parts]
    side_by_side = ops.concat(raggeds).check()
    assert side_by_side.to_lists() == [sum(rows, []) for rows in zip(*parts, strict=True)]
    weights = [weight_lists(ragged) for ragged in raggeds]
    assert weight_lists(side_by_side) == [sum(rows, []) for rows in zip(*weights, strict=True)]
    assert ops.concat(raggeds, dim=0).check().to_lists() == sum(parts, [])


@given(NESTED, NESTED)
def test_concat_of_nested_rows_keeps_inner_rows_whole(left, right):
    count = min(len(left), len(right))
    left, right = left[:count], right[:count]
    result = ops.concat([ragged_of(left, depth=2), ragged_of(right, depth=2)]).check()
    assert result.to_lists() == [a + b for a, b in zip(left, right, strict=True)]


REDUCE = {
    "sum": sum,
    "mean": lambda row: sum(row) / len(row) if row else 0,
    "max": lambda row: max(row, default=0),
    "min": lambda row: min(row, default=0),
}


@pytest.mark.parametrize("reduction", REDUCE)
@given(rows=ROWS)
def test_segment_reduce_equals_python(reduction, rows):
    result = ops.segment_reduce(ragged_of(rows, dtype=torch.float64), reduction)
    assert result.tolist() == pytest.approx([REDUCE[reduction](row) for row in rows])


@given(rows=NESTED)
def test_segment_reduce_of_nested_rows_takes_one_level_away(rows):
    result = ops.segment_reduce(ragged_of(rows, depth=2), "max").check()
    assert result.to_lists() == [[max(inner, default=0) for inner in row] for row in rows]


def test_segment_reduce_weighs_sum_and_mean():
    ragged = Ragged(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 2, 2, 3]), torch.tensor([1.0, 3.0, 0.0]))
    assert ops.segment_reduce(ragged).tolist() == [10, 0, 0]
    assert ops.segment_reduce(ragged, "mean").tolist() == [2.5, 0, 0]  # weights that sum up to 0 give 0


@given(ROWS)
def test_dense_and_back_keeps_rows(rows):
    padded = ops.to_dense(ragged_of(rows), padding=9)
    assert ops.from_dense(padded, padding=9).check().to_lists() == rows


@given(NESTED)
def test_nested_rows_become_one_dense_tensor(rows):
    dense = ops.to_dense(ragged_of(rows, depth=2), padding=9)
    outer = max((len(row) for row in rows), default=0)
    width = max((len(inner) for row in rows for inner in row), default=0)
    padded = [
        [inner + [9] * (width - len(inner)) for inner in row] + [[9] * width] * (outer - len(row)) for row in rows
    ]
    assert dense.shape == (len(rows), outer, width)
    assert dense.tolist() == padded


def test_from_dense_drops_padding_at_the_end_alone():
    assert ops.from_dense(torch.tensor([[1, -1, 2, -1], [-1, -1, -1, -1]]), padding=-1).to_lists() == [[1, -1, 2], []]
    assert ops.from_dense(torch.tensor([[1, -1]])).to_lists() == [[1, -1]]
    vectors = torch.tensor([[[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert ops.from_dense(vectors, padding=0).to_lists() == [[[0, 1]], []]


def test_rows_go_to_a_nested_tensor_and_come_back():
    ragged = ragged_of([[1, 2], [], [3]], dtype=torch.float32)
    assert Ragged.from_nested(ragged.to_nested()).to_lists() == [[1, 2], [], [3]]


@given(ROWS, st.integers(0, 4))
def test_tile_lays_the_first_values_side_by_side(rows, length):
    expected = [row[:length] + [0] * (length - len(row)) for row in rows]
    assert ops.tile(ragged_of(rows), length).tolist() == expected


def test_tile_of_vectors_is_as_wide_as_all_of_them():
    ragged = Ragged(torch.tensor([[1, 2], [3, 4]]), torch.tensor([0, 2, 2]))
    assert ops.tile(ragged, 3).tolist() == [[1, 2, 3, 4, 0, 0], [0] * 6]


OPERATIONS = {
    "truncate": lambda ragged: ops.truncate(ragged, 2, "left").values,
    "top_k": lambda ragged: ops.top_k(ragged, 2).values,
    "concat": lambda ragged: ops.concat([ragged, ragged]).values,
    "to_dense": ops.to_dense,
    "tile": lambda ragged: ops.tile(ragged, 2),
    **{name: lambda ragged, name=name: ops.segment_reduce(ragged, name) for name in REDUCE},
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients_of_values_are_those_of_finite_differences(name):
    offsets = torch.tensor([0, 0, 3, 4, 4, 6])
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0, -1.0, 3.0], dtype=torch.float64)
    values = torch.tensor([[1.0], [4.0], [2.0], [0.5], [-1.0], [7.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: OPERATIONS[name](Ragged(v, offsets, weights)), (values,))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_gradients_of_weights_are_those_of_finite_differences(reduction):
    offsets, values = torch.tensor([0, 2, 2, 3]), torch.tensor([1.0, 4.0, 2.0], dtype=torch.float64)
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: ops.segment_reduce(Ragged(values, offsets, w), reduction), (weights,))


def test_a_mean_over_no_weight_has_a_finite_gradient():
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    ops.segment_reduce(Ragged(values, torch.tensor([0, 2, 2]), torch.zeros(2)), "mean").sum().backward()
    assert values.grad.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: ops.truncate(r, -1), "length is -1"),
        (lambda r: ops.truncate(r, 1, "top"), "side 'top'"),
        (lambda r: ops.top_k(r, 1), "no scores and no weights"),
        (lambda r: ops.top_k(r, 1, torch.zeros(9)), r"scores \[9\] for 3 entries"),
        (lambda r: ops.unique(r, weights="last"), "weights 'last'"),
        (lambda r: ops.concat([]), "0 parts"),
        (lambda r: ops.concat([r, ragged_of([[1]])]), "unlike: 2 rows"),
        (lambda r: ops.concat([r, ragged_of([[1], []], dtype=torch.float32)]), "torch.float32"),
        (lambda r: ops.segment_reduce(r, "prod"), "no reduction 'prod'"),
        (lambda r: ops.segment_reduce(r, "mean"), "need floats"),
        (lambda r: ops.to_dense(r, lengths=[1]), r"\[2\], lengths \[1\]"),
        (lambda r: ops.from_dense(torch.zeros(3)), r"need \[B, S"),
        (lambda r: ops.tile(ragged_of([[[1]]], depth=2), 1), "1 inner levels"),
    ],
)
def test_what_cannot_be_done_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call(ragged_of([[1, 2], [3]]))
