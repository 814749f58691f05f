"""gather_pool in Triton: equal to the CPU, bit by bit where sums run in the same order, for rows and blocks of rows."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.triton_ops.test_places import in_blocks
from triton_ops.gather_pool import PooledGrad, gather_pool, gather_rows, kernels, pool_grads, read_dtype, reference

ROWS = 256
few = settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])


def offsets_of(lengths: Sequence[Sequence[int]]) -> Tensor:
    """[K, B + 1] of features with bags of these lengths."""
    bounds = F.pad(torch.tensor(lengths, dtype=torch.int64).flatten().cumsum(0), (1, 0))
    bags = len(lengths[0])
    return torch.stack([bounds[feature * bags : (feature + 1) * bags + 1] for feature in range(len(lengths))])


def cpu_gather(weight: Tensor, rows_N: Tensor, offsets_KB1: Tensor, coefficients: Tensor | None) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_OPS", "cpu")
        return gather_pool(weight, rows_N, offsets_KB1, coefficients)


def cpu_grads(parts: list[PooledGrad], inverse_N: Tensor, unique: int, like: Tensor) -> Tensor:
    out = like.new_zeros(unique, like.shape[2])
    reference.pool_grads(parts, inverse_N, out)
    return out


@pytest.mark.parametrize(("dtype", "width"), [
    (torch.float32, 16), (torch.float32, 3), (torch.float64, 5), (torch.bfloat16, 8), (torch.float16, 3),
    (torch.int8, 4), (torch.int32, 4), (torch.int64, 1),
])  # fmt: skip
def test_sums_of_rows_in_blocks_are_those_of_the_cpu(dtype: torch.dtype, width: int, on_triton: torch.device) -> None:
    torch.manual_seed(width)
    weight = (torch.randn(ROWS, width) * 50).to(dtype)
    offsets_KB1 = offsets_of([[2, 0, 1, 7], [0, 0, 3, 1], [5, 1, 1, 1]])
    rows_N = torch.randint(ROWS, (int(offsets_KB1[-1, -1]),))
    is_weighted = dtype.is_floating_point
    coefficients = torch.rand(len(rows_N), dtype=read_dtype(dtype)) if is_weighted else None
    given_coefficients = None if coefficients is None else coefficients.to(on_triton)
    arrays = in_blocks(weight.to(on_triton)), rows_N.to(on_triton), offsets_KB1.to(on_triton)
    found = gather_pool(*arrays, given_coefficients)
    assert torch.equal(found.cpu(), cpu_gather(weight, rows_N, offsets_KB1, coefficients))


@pytest.mark.parametrize("bags", [0, 1, 63])
def test_empty_and_uneven_calls_write_every_sum(bags: int, on_triton: torch.device) -> None:
    torch.manual_seed(bags)
    weight, offsets_KB1 = torch.randn(ROWS, 10), offsets_of([torch.randint(3, (bags,)).tolist()] * 2)
    rows_N = torch.randint(ROWS, (int(offsets_KB1[-1, -1]),))
    out = torch.full((bags, 2, 10), torch.nan, device=on_triton)
    arrays = weight.to(on_triton), rows_N.to(on_triton), offsets_KB1.to(on_triton)
    assert gather_pool(*arrays, None, out) is out
    assert torch.equal(out.cpu(), cpu_gather(weight, rows_N, offsets_KB1, None))


@few
@given(lengths=st.lists(st.lists(st.integers(0, 60), min_size=4, max_size=4), min_size=1, max_size=3))
def test_long_bags_are_summed_up_in_pieces(lengths: list[list[int]], on_triton: torch.device) -> None:
    offsets_KB1 = offsets_of(lengths)
    rows_N = torch.randint(ROWS, (int(offsets_KB1[-1, -1]),))
    weight = torch.randint(-99, 99, (ROWS, 4)).float()  # whose sums are exact in any order
    coefficients = torch.randint(9, rows_N.shape).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "LONG", 8)
        arrays = (each.to(on_triton) for each in (weight, rows_N, offsets_KB1, coefficients))
        found = gather_pool(*arrays)
    assert torch.equal(found.cpu(), cpu_gather(weight, rows_N, offsets_KB1, coefficients))


def test_a_call_may_be_part_of_a_longer_list(on_triton: torch.device) -> None:
    weight, rows_N = torch.randn(ROWS, 4), torch.randint(ROWS, (40,))
    offsets_KB1, coefficients = torch.tensor([[5, 6, 30, 31]]), torch.rand(26)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "LONG", 8)
        arrays = (each.to(on_triton) for each in (weight, rows_N, offsets_KB1, coefficients))
        found = gather_pool(*arrays)
    torch.testing.assert_close(found.cpu(), cpu_gather(weight, rows_N, offsets_KB1, coefficients))


@pytest.mark.parametrize("deterministic", [False, True])
@few
@given(
    lengths=st.lists(st.lists(st.integers(0, 9), min_size=5, max_size=5), min_size=3, max_size=3),
    rows=st.integers(1, 12),
    weighted=st.booleans(),
)
def test_gradients_are_added_up_by_row(
    deterministic: bool, lengths: list[list[int]], rows: int, weighted: bool, on_triton: torch.device
) -> None:
    offsets_KB1 = offsets_of(lengths)
    count = int(offsets_KB1[-1, -1])
    inverse_N = torch.randint(-1, rows, (count,))
    grads = torch.randint(-99, 99, (5, 3, 6)).float()
    parts, there = [], []
    for first, end in ((0, 1), (1, 3)):
        offsets = offsets_KB1[first:end]
        values = int(offsets[-1, -1] - offsets[0, 0])
        coefficients = torch.randint(9, (values,)).float() if weighted and first else None
        parts.append(PooledGrad(grads[:, first:end], offsets, coefficients))
        on_device = None if coefficients is None else coefficients.to(on_triton)
        there.append(PooledGrad(grads.to(on_triton)[:, first:end], offsets.to(on_triton), on_device))
    # Longer than there are rows, as where nobody may wait for how many there are.
    out = torch.full((rows + 3, 6), torch.nan, device=on_triton)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "LONG", 8)
        patch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
        assert pool_grads(there, inverse_N.to(on_triton), out) is out
    assert torch.equal(out.cpu(), cpu_grads(parts, inverse_N, rows + 3, grads))


@pytest.mark.parametrize("shape", ["expanded", "transposed", "every other", "one column"])
def test_gradients_of_any_strides_count_alike(shape: str, on_triton: torch.device) -> None:
    grads_BKD = {
        "expanded": torch.tensor(2.0).expand(3, 2, 4),
        "transposed": torch.randn(4, 2, 3).transpose(0, 2),
        "every other": torch.randn(6, 4, 8)[::2, ::2, ::2],
        "one column": torch.randn(3, 2, 3)[:, :, 1:2],
    }[shape].to(on_triton)
    offsets_KB1, inverse_N = torch.tensor([[0, 1, 2, 3], [3, 4, 5, 6]]), torch.tensor([0, 1, 0, 2, 1, 0])
    offsets_KB1, inverse_N = offsets_KB1.to(on_triton), inverse_N.to(on_triton)
    out = torch.full((3, grads_BKD.shape[2]), torch.nan, device=on_triton)
    found = pool_grads([PooledGrad(grads_BKD, offsets_KB1, None)], inverse_N, out).cpu()
    parts = [PooledGrad(grads_BKD.cpu(), offsets_KB1.cpu(), None)]
    torch.testing.assert_close(found, cpu_grads(parts, inverse_N.cpu(), 3, grads_BKD.cpu()))


def test_a_thousand_values_of_one_row(on_triton: torch.device) -> None:
    offsets_KB1, inverse_N = torch.arange(1001)[None].to(on_triton), torch.zeros(1000, dtype=torch.int64)
    grads = torch.randn(1000, 1, 8)
    out = torch.full((1, 8), torch.nan, device=on_triton)
    pool_grads([PooledGrad(grads.to(on_triton), offsets_KB1, None)], inverse_N.to(on_triton), out)
    torch.testing.assert_close(out.cpu(), grads.sum(0), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("as_blocks", [False, True])
def test_rows_of_sequences_are_copied(dtype: torch.dtype, as_blocks: bool, on_triton: torch.device) -> None:
    weight, rows_N = (torch.randn(ROWS, 6) * 9).to(dtype), torch.randint(ROWS, (70,))
    there = weight.to(on_triton)
    found = gather_rows(in_blocks(there) if as_blocks else there, rows_N.to(on_triton))
    assert torch.equal(found.cpu(), weight[rows_N].to(read_dtype(dtype)))
    assert gather_rows(there, rows_N[:0].to(on_triton)).shape == (0, 6)
