"""group_by_row: hand-checked examples, and the CPU's kernel equal to the reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from triton_ops.group_by_row import LAST_TICK, group_by_row
from triton_ops.row_layout import COUNT, GRANULE, LAST_STEP, RECORD, STAMP, UNTRAINED

IMPLEMENTATIONS = ["reference", "cpu"]
GRANULES = 8


def make_group(stamp: int = 0) -> tuple[Tensor, Tensor]:
    """meta and granule_table of eight granules; the first and the fourth are nobody's."""
    granule_table = torch.tensor([UNTRAINED, 0, 0, UNTRAINED, 1, 1, 2, 2], dtype=torch.int32)
    meta = torch.zeros(GRANULES * GRANULE, RECORD, dtype=torch.int64)
    meta[:, STAMP] = stamp
    return meta, granule_table


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rows_come_once_in_the_order_they_first_appear(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_OPS", implementation)
    meta, granule_table = make_group()
    rows_U, inverse_N = group_by_row(torch.tensor([70, 3, 70, 64]), meta, granule_table, tick=1, step=5)
    assert rows_U.tolist() == [70, 64]
    assert inverse_N.tolist() == [0, -1, 0, 1]
    assert meta[[70, 64, 3], LAST_STEP].tolist() == [5, 5, 0]
    assert meta[[70, 64, 3], COUNT].tolist() == [2, 1, 0]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_values_may_count_several_times_or_not_at_all(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_OPS", implementation)
    meta, granule_table = make_group()
    counts_N = torch.tensor([2, 9, 3, 0])
    rows_U, _ = group_by_row(torch.tensor([70, 3, 70, 64]), meta, granule_table, 1, 5, counts_N)
    assert rows_U.tolist() == [70, 64]
    assert meta[[70, 64, 3], COUNT].tolist() == [5, 0, 0]
    with pytest.raises(ValueError, match="counts are torch.int64 \\[3\\] for 4 rows"):
        group_by_row(torch.tensor([70, 3, 70, 64]), meta, granule_table, 2, 5, counts_N[:3])


@pytest.mark.parametrize("size", [0, 1, 63, 1000])
@pytest.mark.parametrize("step", [None, 7])
def test_cpu_equals_the_reference(size: int, step: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    rows_N = torch.randint(GRANULES * GRANULE, (size,), generator=torch.Generator().manual_seed(size))
    found = {}
    for implementation in IMPLEMENTATIONS:
        monkeypatch.setenv("TRITON_OPS", implementation)
        # Stamps of an earlier call that met each row as its 12th.
        meta, granule_table = make_group(stamp=(3 << 32) | 11)
        found[implementation] = (*group_by_row(rows_N, meta, granule_table, 4, step), meta[:, LAST_STEP:])
    for expected, got in zip(found["reference"], found["cpu"], strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


@given(rows=st.lists(st.integers(0, GRANULES * GRANULE - 1), max_size=60))
def test_inverse_leads_back_to_each_trained_row(rows: list[int]) -> None:
    meta, granule_table = make_group()
    rows_N = torch.tensor(rows, dtype=torch.int64)
    rows_U, inverse_N = group_by_row(rows_N, meta, granule_table, tick=1)
    trained = granule_table[rows_N // GRANULE] != UNTRAINED
    assert torch.equal(rows_U[inverse_N[trained]], rows_N[trained])
    assert (inverse_N[~trained] == -1).all()
    assert len(rows_U.unique()) == len(rows_U)


def test_calls_with_ticks_of_their_own_do_not_see_each_other() -> None:
    meta, granule_table = make_group()
    for tick in (1, 2, LAST_TICK):
        rows_U, inverse_N = group_by_row(torch.tensor([65, 64, 65]), meta, granule_table, tick)
        assert rows_U.tolist() == [65, 64]
        assert inverse_N.tolist() == [0, 1, 0]


def test_without_a_step_nothing_is_recorded() -> None:
    meta, granule_table = make_group()
    group_by_row(torch.tensor([65, 65]), meta, granule_table, tick=1)
    assert (meta[:, LAST_STEP:] == 0).all()


def test_arguments_that_do_not_fit_are_named() -> None:
    meta, granule_table = make_group()
    rows_N = torch.tensor([64])
    with pytest.raises(ValueError, match=r"rows are torch.int32 \[1\]"):
        group_by_row(rows_N.int(), meta, granule_table, 1)
    with pytest.raises(ValueError, match=r"meta is torch.int64 of 3 columns"):
        group_by_row(rows_N, meta[:, 1:], granule_table, 1)
    for tick in (0, LAST_TICK + 1):
        with pytest.raises(ValueError, match=f"tick is {tick}"):
            group_by_row(rows_N, meta, granule_table, tick)


def test_torch_knows_what_the_op_writes_and_returns() -> None:
    meta, granule_table = make_group()
    op = torch.ops.triton_ops.group_by_row.default
    arguments = torch.tensor([64, 70, 64]), meta, granule_table, 1, 2
    assert set(torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor")).values()) == {
        "SUCCESS"
    }
