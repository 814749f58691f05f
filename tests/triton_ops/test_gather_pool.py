"""gather_pool and its gradients: hand-checked examples, torch's embedding_bag, the CPU's kernels by the reference."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from triton_ops.gather_pool import (
    PooledGrad,
    gather_pool,
    gather_rows,
    join_offsets,
    pool_coefficients,
    pool_grads,
    read_dtype,
    reference,
)

IMPLEMENTATIONS = ["reference", "cpu"]
ROWS = 40
Lengths = st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=4)


def offsets_of(lengths: list[int] | Tensor) -> Tensor:
    return F.pad(torch.as_tensor(lengths).cumsum(0), (1, 0))


def random_bags(features: int, bags: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows [N] and offsets [K, B + 1] of bags with none to three rows."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, (features, bags), generator=generator)
    joined = join_offsets([offsets_of(row) for row in lengths], lengths.sum(1).tolist())
    rows_N = torch.randint(ROWS, (int(lengths.sum()),), generator=generator)
    return rows_N, joined.offsets.view(features, bags + 1)


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TRITON_OPS", request.param)
    return request.param


def test_bags_are_summed(implementation: str) -> None:
    weight = torch.tensor([[1.0], [2.0], [3.0]])
    pooled = gather_pool(weight, torch.tensor([2, 1, 2]), torch.tensor([[0, 2, 2, 3]]))
    assert pooled.tolist() == [[[5.0]], [[0.0]], [[3.0]]]


def test_features_come_side_by_side(implementation: str) -> None:
    weight = torch.tensor([[1.0, 10.0], [2.0, 20.0]])
    pooled = gather_pool(weight, torch.tensor([0, 1, 1]), torch.tensor([[0, 1, 1], [1, 2, 3]]))
    assert pooled.tolist() == [[[1.0, 10.0], [2.0, 20.0]], [[0.0, 0.0], [2.0, 20.0]]]


@pytest.mark.parametrize("bags", [0, 1, 63, 1000])
@pytest.mark.parametrize("dim", [1, 16])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cpu_equals_the_reference(bags: int, dim: int, weighted: bool, dtype: torch.dtype) -> None:
    rows_N, offsets_KB1 = random_bags(3, bags)
    weight = torch.randn(ROWS, dim, dtype=dtype)
    coefficients = torch.rand(len(rows_N), dtype=dtype) if weighted else None
    expected = reference.gather_pool(weight, rows_N, offsets_KB1, coefficients)
    out = torch.full_like(expected, math.nan)
    assert gather_pool(weight, rows_N, offsets_KB1, coefficients, out) is out
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8])
def test_narrow_rows_are_summed_up_in_float32(dtype: torch.dtype, weighted: bool, implementation: str) -> None:
    rows_N, offsets_KB1 = random_bags(3, 50)
    weight = (torch.randn(ROWS, 3) * 50).to(dtype)
    coefficients = torch.rand(len(rows_N)) if weighted else None
    found = gather_pool(weight, rows_N, offsets_KB1, coefficients)
    assert found.dtype == read_dtype(dtype) == torch.float32
    torch.testing.assert_close(found, gather_pool(weight.float(), rows_N, offsets_KB1, coefficients))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_integers_are_summed_up_exactly(dtype: torch.dtype, implementation: str) -> None:
    largest = torch.iinfo(dtype).max
    weight = torch.tensor([[largest, 1], [-largest, 2], [3, 4]], dtype=dtype)
    found = gather_pool(weight, torch.tensor([0, 2, 1, 2]), torch.tensor([[0, 1, 1, 4]]))
    assert found.dtype == read_dtype(dtype) == torch.int64
    assert found.tolist() == [[[largest, 1]], [[0, 0]], [[6 - largest, 10]]]


@given(lengths=Lengths)
def test_pooling_features_together_equals_pooling_each(lengths: list[list[int]]) -> None:
    joined = join_offsets([offsets_of(row) for row in lengths], [sum(row) for row in lengths])
    rows_N = torch.arange(joined.splits[-1]) % ROWS
    weight = torch.arange(ROWS * 2.0).view(ROWS, 2)
    pooled = gather_pool(weight, rows_N, joined.offsets.view(len(lengths), 4))
    for feature, row in enumerate(lengths):
        mine = rows_N[joined.splits[feature] : joined.splits[feature + 1]]
        expected = F.embedding_bag(mine, weight, offsets_of(row), mode="sum", include_last_offset=True)
        assert torch.equal(pooled[:, feature], expected)


@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_pooling_equals_torch_embedding_bag(pooling: str, implementation: str) -> None:
    rows_N, offsets_KB1 = random_bags(1, 100)
    weight = torch.randn(ROWS, 8, dtype=torch.float64)
    coefficients = pool_coefficients(offsets_KB1[0], pooling, None, weight.dtype)
    expected = F.embedding_bag(rows_N, weight, offsets_KB1[0], mode=pooling, include_last_offset=True)
    pooled = gather_pool(weight, rows_N, offsets_KB1, coefficients)[:, 0]
    torch.testing.assert_close(pooled, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("pooling", "weights", "expected"),
    [
        ("sum", None, None),
        ("mean", None, [0.5, 0.5, 1.0]),
        ("sqrtn", None, [0.5**0.5, 0.5**0.5, 1.0]),
        ("sum", [3.0, 1.0, 5.0], [3.0, 1.0, 5.0]),
        ("mean", [3.0, 1.0, 5.0], [0.75, 0.25, 1.0]),
        ("sqrtn", [3.0, 4.0, 5.0], [0.6, 0.8, 1.0]),
        ("mean", [1.0, -1.0, 0.0], [0.0, 0.0, 0.0]),
        ("sqrtn", [0.0, 0.0, -2.0], [0.0, 0.0, -1.0]),
    ],
)
def test_coefficients_by_hand(pooling: str, weights: list[float] | None, expected: list[float] | None) -> None:
    given_weights = None if weights is None else torch.tensor(weights)
    found = pool_coefficients(torch.tensor([0, 2, 2, 3]), pooling, given_weights, torch.float64)
    if expected is None:
        assert found is None
    else:
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-7, atol=0)


def test_unknown_pooling_is_named() -> None:
    with pytest.raises(ValueError, match="no pooling 'max'; there are: sum, mean, sqrtn"):
        pool_coefficients(torch.tensor([0, 1]), "max", None, torch.float32)


def test_gradients_are_summed_by_row(implementation: str) -> None:
    parts = [PooledGrad(torch.tensor([[[1.0]], [[2.0]]]), torch.tensor([[0, 2, 3]]), None)]
    grads_UD = pool_grads(parts, torch.tensor([0, 1, 0]), torch.full((2, 1), math.nan))
    assert grads_UD.tolist() == [[3.0], [1.0]]


def number_rows(rows_N: Tensor, untrained: Tensor) -> tuple[Tensor, Tensor]:
    """As group_by_row, in plain Python."""
    numbers: dict[int, int] = {}
    inverse = [
        -1 if left_out else numbers.setdefault(row, len(numbers))
        for row, left_out in zip(rows_N.tolist(), untrained.tolist(), strict=True)
    ]
    return torch.tensor(list(numbers), dtype=torch.int64), torch.tensor(inverse, dtype=torch.int64)


@pytest.mark.parametrize("bags", [0, 1, 63, 1000])
@pytest.mark.parametrize("dim", [1, 16])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_equal_those_of_autograd(bags: int, dim: int, weighted: bool, implementation: str) -> None:
    rows_N, offsets_KB1 = random_bags(3, bags)
    weight = torch.randn(ROWS, dim, dtype=torch.float64, requires_grad=True)
    coefficients = torch.rand(len(rows_N), dtype=torch.float64) if weighted else None
    grads_BKD = torch.randn(bags, 3, dim, dtype=torch.float64)
    reference.gather_pool(weight, rows_N, offsets_KB1, coefficients).backward(grads_BKD)

    rows_U, inverse_N = number_rows(rows_N, rows_N == 5)
    # The first feature by itself, the others together.
    parts = []
    for first, end in ((0, 1), (1, 3)):
        offsets = offsets_KB1[first:end]
        mine = slice(int(offsets[0, 0]), int(offsets[-1, -1]))
        parts.append(PooledGrad(grads_BKD[:, first:end], offsets, None if coefficients is None else coefficients[mine]))
    grads_UD = pool_grads(parts, inverse_N, torch.full((len(rows_U), dim), math.nan, dtype=torch.float64))
    assert weight.grad is not None
    torch.testing.assert_close(grads_UD, weight.grad[rows_U], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", ["expanded", "transposed", "every other", "features first", "one column"])
def test_gradients_of_any_strides_count_alike(shape: str, implementation: str) -> None:
    grads_BKD = {
        "expanded": torch.tensor(2.0).expand(3, 2, 4),
        "transposed": torch.randn(4, 2, 3).transpose(0, 2),
        "every other": torch.randn(6, 4, 8)[::2, ::2, ::2],
        "features first": torch.randn(2, 3, 4).transpose(0, 1),
        "one column": torch.randn(3, 2, 3)[:, :, 1:2],
    }[shape]
    offsets_KB1, inverse_N = torch.tensor([[0, 1, 2, 3], [3, 4, 5, 6]]), torch.tensor([0, 1, 0, 2, 1, 0])
    found, expected = (
        pool_grads([PooledGrad(grads, offsets_KB1, None)], inverse_N, torch.full((3, grads.shape[2]), math.nan))
        for grads in (grads_BKD, grads_BKD.contiguous())
    )
    assert torch.equal(found, expected)


def test_joined_offsets_count_from_the_first_value_of_all(implementation: str) -> None:
    joined = join_offsets([torch.tensor([0, 2, 2]), torch.tensor([0, 1])], [2, 1])
    assert joined.offsets.tolist() == [0, 2, 2, 2, 3]
    assert joined.offset_splits == [0, 3, 5]
    assert joined.splits == [0, 2, 3]
    assert joined.misfit is None


@pytest.mark.parametrize("broken", [[], [1, 2, 3], [0, 2, 1, 3], [0, 1, 2], [0, 1, 4], [0, -1, 3]])
def test_offsets_that_do_not_fit_are_found(broken: list[int], implementation: str) -> None:
    fitting = torch.tensor([0, 1, 3])
    offsets = [fitting, torch.tensor(broken, dtype=torch.int64), fitting]
    assert join_offsets(offsets, [3, 3, 3]).misfit == 1
    assert join_offsets([fitting] * 3, [3, 3, 3]).misfit is None


def test_rows_are_copied_as_they_are_read(implementation: str) -> None:
    weight, rows_N = torch.randn(4, 2), torch.tensor([3, 0, 3])
    assert torch.equal(gather_rows(weight, rows_N), weight[[3, 0, 3]])
    out = torch.full((3, 2), math.nan)
    assert gather_rows(weight.bfloat16(), rows_N, out) is out
    assert torch.equal(out, weight.bfloat16().float()[[3, 0, 3]])
    with pytest.raises(ValueError, match=r"out torch.float32 \[2, 2\]; give int64 \[N\] and torch.float32 \[N, 2\]"):
        gather_rows(weight, rows_N, out[:2])


def test_arguments_that_do_not_fit_are_named() -> None:
    weight, rows_N, offsets_KB1 = torch.randn(4, 2), torch.tensor([1]), torch.tensor([[0, 1]])
    with pytest.raises(ValueError, match=r"rows are torch.int32 \[1\]"):
        gather_pool(weight, rows_N.int(), offsets_KB1)
    with pytest.raises(ValueError, match=r"offsets torch.int64 \[2\]"):
        gather_pool(weight, rows_N, offsets_KB1[0])
    with pytest.raises(ValueError, match=r"coefficients are torch.float64 \[1\]; give torch.float32"):
        gather_pool(weight, rows_N, offsets_KB1, torch.ones(1, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"out is torch.float32 \[1, 2\]; give contiguous torch.float32 \[1, 1, 2\]"):
        gather_pool(weight, rows_N, offsets_KB1, None, torch.empty(1, 2))
    with pytest.raises(ValueError, match="gradients are torch.float64, the rows' are torch.float32"):
        pool_grads([PooledGrad(torch.zeros(1, 1, 2).double(), offsets_KB1, None)], rows_N, torch.empty(1, 2))
