"""group_by_row in Triton: the CPU's numbers in the CPU's order, without asking the device how many rows there are."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.triton_ops.test_group_by_row import GRANULES, make_group
from tests.triton_ops.test_places import in_blocks
from triton_ops.group_by_row import group_by_row, reference
from triton_ops.row_layout import COUNT, GRANULE, LAST_STEP

few = settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(rows_N: Tensor, step: int | None, counts_N: Tensor | None, as_blocks: bool, device: torch.device) -> None:
    """AssertionError where rows, places or records are not those of the reference."""
    # Stamps of an earlier call that met each row as its 12th.
    meta, granule_table = make_group(stamp=(3 << 32) | 11)
    there = meta.to(device)
    blocks = in_blocks(there)
    expected_U, expected_N = reference.group_by_row(rows_N, meta, granule_table, step, counts_N)
    counts = None if counts_N is None else counts_N.to(device)
    arrays = rows_N.to(device), blocks if as_blocks else there, granule_table.to(device)
    found_U, found_N = group_by_row(*arrays, 4, step, counts)
    assert torch.equal(found_N.cpu(), expected_N)
    assert torch.equal(found_U.cpu()[: len(expected_U)], expected_U)
    assert (found_U[len(expected_U) :] == -1).all()
    assert len(found_U) == len(rows_N)
    after = blocks[: len(meta)] if as_blocks else there
    assert torch.equal(after.cpu()[:, LAST_STEP:], meta[:, LAST_STEP:])


@pytest.mark.parametrize("as_blocks", [False, True])
@pytest.mark.parametrize("size", [0, 1, 63, 1200])
@pytest.mark.parametrize("step", [None, 7])
def test_triton_equals_the_reference(size: int, step: int | None, as_blocks: bool, on_triton: torch.device) -> None:
    rows_N = torch.randint(GRANULES * GRANULE, (size,), generator=torch.Generator().manual_seed(size))
    check(rows_N, step, None, as_blocks, on_triton)


@few
@given(rows=st.lists(st.integers(60, 70) | st.integers(0, GRANULES * GRANULE - 1), max_size=60), counted=st.booleans())
def test_repeated_rows_get_the_number_of_their_first(rows: list[int], counted: bool, on_triton: torch.device) -> None:
    rows_N = torch.tensor(rows, dtype=torch.int64)
    check(rows_N, 9, torch.randint(5, rows_N.shape) if counted else None, False, on_triton)


def test_a_clock_on_the_device_may_be_another_at_each_replay(on_triton: torch.device) -> None:
    meta, granule_table = (each.to(on_triton) for each in make_group())
    rows_N = torch.tensor([65, 64, 65, 2, -1], device=on_triton)
    tick, step = torch.zeros(2, 1, dtype=torch.int64, device=on_triton)
    for _ in range(3):
        tick += 1
        step += 10
        rows_U, inverse_N = group_by_row(rows_N, meta, granule_table, tick, step)
        assert rows_U.tolist() == [65, 64, -1, -1, -1]
        assert inverse_N.tolist() == [0, 1, 0, -1, -1]
    assert meta[[64, 65], LAST_STEP].tolist() == [30, 30]
    assert meta[[64, 65], COUNT].tolist() == [3, 6]
