"""row_update: hand-checked examples, torch.optim, and the CPU's kernels by the reference."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from triton_ops.row_layout import GRANULE, UNTRAINED
from triton_ops.row_update import HYPER_COLUMNS, hyper_row, row_update, state_slices

IMPLEMENTATIONS = ["reference", "cpu"]
KINDS = list(HYPER_COLUMNS)
GRANULE_TABLE = torch.tensor([UNTRAINED, 0, 1, 1, 0, 2, *[2] * 12], dtype=torch.int32)
ROWS = GRANULE * len(GRANULE_TABLE)
SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.1},
    "adagrad": {"lr": 0.1, "eps": 1e-10},
    "rowwise_adagrad": {"lr": 0.1, "eps": 1e-10},
    "adam": {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-8},
    "adamw": {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-8, "weight_decay": 0.2},
}


def state_width(kind: str, dim: int) -> int:
    return max((columns.stop for columns in state_slices(kind, dim).values()), default=0)


def hyper(kind: str, step: int = 1) -> Tensor:
    """Hyper rows of three tables, each with a learning rate of its own."""
    rows = [hyper_row(kind, step, **SETTINGS[kind] | {"lr": lr}) for lr in (0.1, 0.2, 0.3)]
    return torch.tensor(rows, dtype=torch.float64)


def choose_rows(count: int) -> Tensor:
    return GRANULE + torch.randperm(ROWS - GRANULE)[:count]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_updates_by_hand(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_OPS", implementation)
    granule_table, rows_U = torch.tensor([UNTRAINED, 0], dtype=torch.int32), torch.tensor([64])

    def updated(kind: str, state: list[float], grad: list[float], hyper_H: list[float]) -> list[list[float]]:
        weight, states = torch.zeros(128, 2).double(), torch.zeros(128, len(state)).double()
        weight[64], states[64] = torch.tensor([1.0, 2.0]), torch.tensor(state)
        grads_UD, hyper_TH = torch.tensor([grad]).double(), torch.tensor([hyper_H]).double()
        row_update(kind, weight, states, rows_U, grads_UD, granule_table, hyper_TH)
        return [weight[64].tolist(), states[64].tolist()]

    assert updated("sgd", [], [1, 1], [0.5]) == [[0.5, 1.5], []]
    assert updated("adagrad", [0, 5], [2, 2], [0.5, 0]) == [[0.5, 2 - 0.5 * (2 / 3)], [4, 9]]
    assert updated("rowwise_adagrad", [8], [1, -1], [0.5, 1]) == [[1 - 0.5 / 4, 2 + 0.5 / 4], [9]]
    assert updated("adam", [0, 0, 0, 12], [4, 4], [1, 0.5, 0.25, 0, 1]) == [[0, 2 - 2 / 13**0.5], [2, 2, 4, 13]]
    assert updated("adamw", [0, 0, 0, 0], [4, 4], [1, 0.5, 0.25, 0, 0.5]) == [[-0.5, 0], [2, 2, 4, 4]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [3, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cpu_equals_the_reference(kind: str, dim: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(dim)
    for count in (0, 1, 63, 1000):
        rows_U = choose_rows(count)
        weight, grads_UD = torch.randn(ROWS, dim, dtype=dtype), torch.randn(count, dim, dtype=dtype)
        state = torch.rand(ROWS, state_width(kind, dim), dtype=dtype)
        found = {}
        for implementation in IMPLEMENTATIONS:
            monkeypatch.setenv("TRITON_OPS", implementation)
            found[implementation] = weight.clone(), state.clone()
            row_update(kind, *found[implementation], rows_U, grads_UD, GRANULE_TABLE, hyper(kind, 3))
        untouched = torch.ones(ROWS, dtype=torch.bool).index_fill(0, rows_U, False)
        assert torch.equal(found["cpu"][0][untouched], weight[untouched])
        assert torch.equal(found["cpu"][1][untouched], state[untouched])
        for expected, got in zip(found["reference"], found["cpu"], strict=True):
            # Numbers of about 1 go in; the one sum, of rowwise_adagrad, runs in another order.
            tolerance = (16 if kind == "rowwise_adagrad" else 4) * torch.finfo(dtype).eps
            torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def torch_optimizer(kind: str, parameter: nn.Parameter) -> torch.optim.Optimizer:
    settings = SETTINGS[kind]
    if kind == "sgd":
        return torch.optim.SGD([parameter], **settings)
    if kind == "adagrad":
        return torch.optim.Adagrad([parameter], **settings)
    return torch.optim.SparseAdam([parameter], **settings)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", ["sgd", "adagrad", "adam"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-12)])
def test_twenty_steps_equal_torch_on_sparse_gradients(
    kind: str, dtype: torch.dtype, tolerance: float, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_OPS", implementation)
    torch.manual_seed(0)
    granule_table = torch.tensor([UNTRAINED, *[0] * 9], dtype=torch.int32)
    weight = torch.randn(10 * GRANULE, 3, dtype=dtype)
    state = torch.zeros(10 * GRANULE, state_width(kind, 3), dtype=dtype)
    parameter = nn.Parameter(weight.clone())
    optimizer = torch_optimizer(kind, parameter)
    for step in range(1, 21):
        rows_U = GRANULE + torch.randperm(9 * GRANULE)[:50]
        grads_UD = torch.randn(50, 3, dtype=dtype)
        row = torch.tensor([hyper_row(kind, step, **SETTINGS[kind])], dtype=torch.float64)
        row_update(kind, weight, state, rows_U, grads_UD, granule_table, row)
        with torch.sparse.check_sparse_tensor_invariants():  # torch warns unless told whether to
            parameter.grad = torch.sparse_coo_tensor(rows_U[None], grads_UD, parameter.shape)
            optimizer.step()
    torch.testing.assert_close(weight, parameter.detach(), rtol=tolerance, atol=tolerance)
    for name, columns in state_slices(kind, 3).items():
        expected = optimizer.state[parameter][name]
        torch.testing.assert_close(state[:, columns], expected, rtol=tolerance, atol=tolerance)


def test_adamw_is_adam_on_rows_that_are_shrunk_first() -> None:
    torch.manual_seed(0)
    rows_U, grads_UD = choose_rows(100), torch.randn(100, 3)
    weight, state = torch.randn(ROWS, 3), torch.rand(ROWS, 6)
    shrunk, others = weight.clone(), state.clone()
    table = GRANULE_TABLE[rows_U // GRANULE].long()
    lrs = torch.tensor([0.1, 0.2, 0.3])[table]
    shrunk[rows_U] *= (1 - lrs * SETTINGS["adamw"]["weight_decay"])[:, None]
    row_update("adam", shrunk, others, rows_U, grads_UD, GRANULE_TABLE, hyper("adam", 2))
    row_update("adamw", weight, state, rows_U, grads_UD, GRANULE_TABLE, hyper("adamw", 2))
    torch.testing.assert_close(weight, shrunk)
    assert torch.equal(state, others)


def test_hyper_rows_by_hand() -> None:
    assert hyper_row("adagrad", 1, lr=0.5, eps=0.1) == [0.5, 0.1]
    assert hyper_row("sgd", 9, lr=0.5, eps=0.1) == [0.5]
    assert hyper_row("adam", 2, lr=1.0, betas=(0.5, 0.75), eps=0.1) == pytest.approx(
        [math.sqrt(1 - 0.75**2) / 0.75, 0.5, 0.25, 0.1, 1.0]
    )
    assert hyper_row("adamw", 2, lr=0.1, weight_decay=0.5)[-1] == pytest.approx(0.95)
    with pytest.raises(ValueError, match="no optimizer kind 'lamb'; there are: sgd"):
        hyper_row("lamb", 1, lr=0.1)
    with pytest.raises(ValueError, match="step is 0"):
        hyper_row("sgd", 0, lr=0.1)


def test_arguments_that_do_not_fit_are_named() -> None:
    rows_U = torch.tensor([64])
    arguments: dict[str, Any] = {
        "kind": "sgd",
        "weight": torch.zeros(128, 2),
        "state": torch.zeros(128, 0),
        "rows_U": rows_U,
        "grads_UD": torch.zeros(1, 2),
        "granule_table": torch.zeros(2, dtype=torch.int32),
        "hyper_TH": torch.zeros(1, 1, dtype=torch.float64),
    }
    row_update(**arguments)
    faults: list[tuple[str, Any, str]] = [
        ("kind", "lamb", "no optimizer kind 'lamb'"),
        ("grads_UD", torch.zeros(1, 2).double(), "weight is torch.float32, state torch.float32, grads torch.float64"),
        ("weight", torch.zeros(128, 2).half(), "weight is torch.float16"),
        ("grads_UD", torch.zeros(2, 2), r"grads are \[2, 2\] for rows torch.int64 \[1\]; give one of width 2"),
        ("rows_U", rows_U.int(), r"rows torch.int32 \[1\]"),
        ("state", torch.zeros(64, 0), "weight has 128 rows, state 64"),
        ("granule_table", torch.zeros(1, dtype=torch.int32), "granule_table 1 granules"),
        ("hyper_TH", torch.zeros(1, 2).double(), r"hyper is torch.float64 \[1, 2\]; sgd takes float64 \[tables, 1\]"),
    ]
    for name, value, message in faults:
        with pytest.raises(ValueError, match=message):
            row_update(**arguments | {name: value})


def test_torch_knows_what_the_op_writes() -> None:
    op = torch.ops.triton_ops.row_update.default
    arguments = "adam", torch.zeros(ROWS, 3), torch.zeros(ROWS, 6), choose_rows(5), torch.ones(5, 3), GRANULE_TABLE
    results = torch.library.opcheck(op, (*arguments, hyper("adam")), test_utils=("test_schema", "test_faketensor"))
    assert set(results.values()) == {"SUCCESS"}
