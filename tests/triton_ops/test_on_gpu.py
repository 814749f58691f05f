"""Ops on rows on a real GPU: sizes and duplicates that no interpreter could run, graphs, and no waiting.

A million values over a few thousand rows, half of them one: programs that run at once meet at the same rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from tests.triton_ops.test_places import in_blocks
from tests.triton_ops.test_row_update import KEYS, RULES, SETTINGS, state_width
from triton_ops.gather_pool import GradSums, PooledGrad, gather_pool, pool_grads
from triton_ops.group_by_row import group_by_row
from triton_ops.row_layout import GRANULE, ID, RECORD
from triton_ops.row_update import hyper_row, row_update

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

CUDA = torch.device("cuda")
ROWS, VALUES, WIDTH = 1 << 13, 1 << 20, 128


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def hot_rows() -> Tensor:
    """int64 [VALUES]: half of the values are of one row."""
    generator = torch.Generator().manual_seed(0)
    rows_N = torch.randint(GRANULE, ROWS, (VALUES,), generator=generator)
    return torch.where(torch.rand(VALUES, generator=generator) < 0.5, rows_N, 777)


def records() -> tuple[Tensor, Tensor]:
    """meta and granule_table of one table."""
    meta = torch.zeros(ROWS, RECORD, dtype=torch.int64)
    meta[:, ID] = torch.arange(ROWS) * 7919 - 5
    granule_table = torch.zeros(ROWS // GRANULE, dtype=torch.int32)
    granule_table[0] = -1
    return meta, granule_table


def test_rows_are_numbered_as_on_the_cpu_whichever_program_comes_first() -> None:
    rows_N, (meta, granule_table) = hot_rows(), records()
    there, meta_there, granules_there = rows_N.to(CUDA), in_blocks(meta.to(CUDA)), granule_table.to(CUDA)
    for tick in range(1, 20):
        expected_U, expected_N = group_by_row(rows_N, meta, granule_table, tick, tick)
        found_U, found_N = group_by_row(there, meta_there, granules_there, tick, tick)
        assert torch.equal(found_U[: len(expected_U)].cpu(), expected_U)
        assert torch.equal(found_N.cpu(), expected_N)
        assert torch.equal(meta_there[:ROWS, 1:].cpu(), meta[:, 1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bags_are_summed_to_the_bits_of_the_cpu(dtype: torch.dtype) -> None:
    weight, rows_N = torch.randn(ROWS, WIDTH).to(dtype), hot_rows()[:200_000]
    offsets_KB1 = torch.linspace(0, len(rows_N), 8 * 5000 + 1).long().as_strided((8, 5001), (5000, 1)).contiguous()
    expected = gather_pool(weight, rows_N, offsets_KB1)
    found = gather_pool(in_blocks(weight.to(CUDA)), rows_N.to(CUDA), offsets_KB1.to(CUDA))
    assert torch.equal(found.cpu(), expected)


def test_gradients_of_a_hot_row_are_summed_up_the_same_each_time() -> None:
    rows_N, (meta, granule_table) = hot_rows().to(CUDA), (each.to(CUDA) for each in records())
    rows_U, inverse_N = group_by_row(rows_N, meta, granule_table, 1)
    grads = torch.randn(VALUES, 1, 16, device=CUDA)
    parts = [PooledGrad(grads, torch.arange(VALUES + 1, device=CUDA)[None], None)]
    trained = inverse_N >= 0
    exact = torch.zeros(VALUES, 16, dtype=torch.float64, device=CUDA)
    exact.index_add_(0, inverse_N[trained], grads[trained, 0].double())
    found = pool_grads(parts, inverse_N, torch.full((VALUES, 16), torch.nan, device=CUDA))
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-2)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (pool_grads(parts, inverse_N, torch.empty_like(found)) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first, second)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_updates_are_the_bits_of_the_cpu(rule: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    (meta, granule_table), rows_U = records(), GRANULE + torch.randperm(ROWS - GRANULE)[:5000]
    arrays = [torch.randn(ROWS, WIDTH).to(dtype), torch.rand(ROWS, state_width(rule, WIDTH))]
    there = [in_blocks(array.to(CUDA)) for array in (*arrays, meta)]
    grads_UD = torch.randn(5000, WIDTH)
    tables = granule_table, torch.tensor([hyper_row(rule, 3, SETTINGS[rule])], dtype=torch.float64), KEYS[:1]
    row_update(rule, *arrays, meta, rows_U, grads_UD, *tables)
    row_update(rule, *there, rows_U.to(CUDA), grads_UD.to(CUDA), *(each.to(CUDA) for each in tables))
    for expected, found in zip(arrays, there, strict=False):
        got = found[:ROWS].cpu()
        if rule in ("rowwise_adagrad", "adam_per_row"):  # whose sum and whose powers are worked out differently
            tolerance = 1e-5 if expected.dtype == torch.float32 else 2**-7
            torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
        else:
            assert torch.equal(got, expected)


def test_a_step_waits_for_nothing_and_is_captured_in_a_graph() -> None:
    rows_N, (meta, granule_table) = hot_rows()[:50_000].to(CUDA), (each.to(CUDA) for each in records())
    weight, state = torch.ones(ROWS, WIDTH, device=CUDA), torch.zeros(ROWS, 2 * WIDTH, device=CUDA)
    eager = weight.clone(), state.clone(), meta.clone()
    offsets_KB1 = torch.arange(50_001, device=CUDA)[None]
    hyper = torch.tensor([hyper_row("adam", 1, SETTINGS["adam"])], dtype=torch.float64).to(CUDA)
    tables = granule_table, hyper, KEYS[:1].to(CUDA)
    tick = torch.zeros(1, dtype=torch.int64, device=CUDA)

    def step(weight: Tensor, state: Tensor, meta: Tensor) -> None:
        tick.add_(1)
        pooled = gather_pool(weight, rows_N, offsets_KB1)
        rows_U, inverse_N = group_by_row(rows_N, meta, granule_table, tick, tick)
        sums = GradSums([PooledGrad(pooled * 1e-3, offsets_KB1, None)], inverse_N)
        row_update("adam", weight, state, meta, rows_U, sums, *tables)

    aside = torch.cuda.Stream()
    with torch.cuda.stream(aside):
        step(weight.clone(), state.clone(), meta.clone())  # compiles
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(weight, state, meta)
    for _ in range(3):
        graph.replay()
        with waiting_is_an_error():
            step(*eager)
    torch.cuda.synchronize()
    torch.testing.assert_close(weight, eager[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(meta[:, 2], eager[2][:, 2])
    assert bool((weight[777] != 1).all())
