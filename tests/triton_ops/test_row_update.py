"""row_update: hand-checked examples, torch.optim, RecIS's formulas, and the CPU's kernels by the reference."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from triton_ops.row_layout import GRANULE, ID, RECORD, UNTRAINED
from triton_ops.row_update import HYPER_COLUMNS, hyper_row, row_update, state_slices

IMPLEMENTATIONS = ["reference", "cpu"]
RULES = list(HYPER_COLUMNS)
GRANULE_TABLE = torch.tensor([UNTRAINED, 0, 1, 1, 0, 2, *[2] * 12], dtype=torch.int32)
ROWS = GRANULE * len(GRANULE_TABLE)
KEYS = torch.tensor([11, -12, 13])
SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.1},
    "momentum": {"lr": 0.1, "momentum": 0.9},
    "adagrad": {"lr": 0.1, "eps": 1e-10},
    "rowwise_adagrad": {"lr": 0.1, "eps": 1e-10},
    "adam": {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-8, "weight_decay": 0.2},
    "adam_per_row": {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3, "eps_placement": "corrected"},
    "ftrl": {"lr": 0.1, "beta": 1.0, "l1": 0.3, "l2": 0.2},
}
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NARROW = [(BF16, FP32), (BF16, BF16), (FP16, FP32), (FP16, BF16), (FP32, BF16)]


def state_width(rule: str, dim: int) -> int:
    return max((columns.stop for columns in state_slices(rule, dim).values()), default=0)


def hyper(rule: str, step: int = 1) -> Tensor:
    """Hyper rows of three tables, each with a learning rate of its own."""
    rows = [hyper_row(rule, step, SETTINGS[rule] | {"lr": lr}) for lr in (0.1, 0.2, 0.3)]
    return torch.tensor(rows, dtype=torch.float64)


def choose_rows(count: int) -> Tensor:
    return GRANULE + torch.randperm(ROWS - GRANULE)[:count]


def records(rows: int = ROWS) -> Tensor:
    meta = torch.zeros(rows, RECORD, dtype=torch.int64)
    meta[:, ID] = torch.arange(rows) * 7919 - 5
    return meta


def random_state(rule: str, dim: int, dtype: torch.dtype) -> Tensor:
    state = torch.rand(ROWS, state_width(rule, dim), dtype=torch.float64)
    if rule == "adam_per_row":
        state[:, -1] = torch.randint(50, (ROWS,))
    return state.to(dtype)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_updates_by_hand(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_OPS", implementation)
    granule_table, rows_U = torch.tensor([UNTRAINED, 0], dtype=torch.int32), torch.tensor([64])

    def updated(rule: str, state: list[float], grad: list[float], hyper_H: list[float]) -> list[list[float]]:
        weight, states = torch.zeros(128, 2).double(), torch.zeros(128, len(state)).double()
        weight[64], states[64] = torch.tensor([1.0, 2.0]), torch.tensor(state)
        grads_UD, hyper_TH = torch.tensor([grad]).double(), torch.tensor([hyper_H]).double()
        row_update(rule, weight, states, records(128), rows_U, grads_UD, granule_table, hyper_TH, KEYS[:1])
        return [weight[64].tolist(), states[64].tolist()]

    assert updated("sgd", [], [1, 1], [0.5]) == [[0.5, 1.5], []]
    assert updated("momentum", [2, 4], [1, 1], [0.5, 0.5, 0, 1]) == [[0, 0.5], [2, 3]]
    assert updated("momentum", [2, 4], [1, 1], [0.5, 0.5, 1, 0.5]) == [[0, 0.75], [2, 3]]
    assert updated("adagrad", [0, 5], [2, 2], [0.5, 0]) == [[0.5, 2 - 0.5 * (2 / 3)], [4, 9]]
    assert updated("rowwise_adagrad", [8], [1, -1], [0.5, 1]) == [[1 - 0.5 / 4, 2 + 0.5 / 4], [9]]
    of_adam = [0.5, 0.5, 0.75, 0.25]
    assert updated("adam", [0, 0, 0, 12], [4, 4], [1, 0, 1, *of_adam]) == [[0, 2 - 2 / 13**0.5], [2, 2, 4, 13]]
    assert updated("adam", [0, 0, 0, 0], [4, 4], [1, 0, 0.5, *of_adam]) == [[-0.5, 0], [2, 2, 4, 4]]
    # On a row's first step both moments are those of the gradient: it moves by lr, or by lr * 4 / (4 + eps).
    assert updated("adam_per_row", [0, 0, 0, 0, 0], [4, 4], [1, 0, 1, *of_adam, 0]) == [[0, 1], [2, 2, 4, 4, 1]]
    assert updated("adam_per_row", [0, 0, 0, 0, 0], [4, 4], [1, 4, 1, *of_adam, 1]) == [[0.5, 1.5], [2, 2, 4, 4, 1]]
    # sqrt(sum) goes from 3 to 5; linear to 2 * 4 - (5 - 3) * [1, 2]; beyond l1 it is divided by 5 + beta + l2.
    assert updated("ftrl", [9, 9, 0, 0], [4, 4], [2, 1, 5, 2]) == [[-1 / 8, 0], [25, 25, 6, 4]]


def run_both(
    rule: str, dim: int, count: int, dtypes: tuple[torch.dtype, torch.dtype], grads: torch.dtype
) -> tuple[dict[str, tuple[Tensor, Tensor]], tuple[Tensor, Tensor], Tensor]:
    """What each implementation makes of (weight, state), what these were, and the rows."""
    rows_U, grads_UD = choose_rows(count), torch.randn(count, dim, dtype=grads)
    weight, state = torch.randn(ROWS, dim).to(dtypes[0]), random_state(rule, dim, dtypes[1])
    found = {}
    for implementation in IMPLEMENTATIONS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_OPS", implementation)
            arrays = found[implementation] = weight.clone(), state.clone()
            row_update(rule, *arrays, records(), rows_U, grads_UD, GRANULE_TABLE, hyper(rule, 3), KEYS)
    return found, (weight, state), rows_U


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("dim", "dtype"), [(3, torch.float32), (16, torch.float32), (3, torch.float64)])
def test_cpu_equals_the_reference(rule: str, dim: int, dtype: torch.dtype) -> None:
    torch.manual_seed(dim)
    for count in (0, 1, 63, 1000):
        found, before, rows_U = run_both(rule, dim, count, (dtype, dtype), dtype)
        untouched = torch.ones(ROWS, dtype=torch.bool).index_fill(0, rows_U, False)
        for array, (expected, got) in enumerate(zip(found["reference"], found["cpu"], strict=True)):
            assert torch.equal(got[untouched], before[array][untouched])
            # Numbers of about 1 go in. torch's square root is not always the nearest; the one sum, of
            # rowwise_adagrad, runs in another order.
            tolerance = (16 if rule == "rowwise_adagrad" else 4) * torch.finfo(dtype).eps
            torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


NARROW_RULES = [(rule, dtypes) for dtypes in NARROW for rule in RULES if (rule, dtypes[1]) != ("adam_per_row", BF16)]


@pytest.mark.parametrize(("rule", "dtypes"), NARROW_RULES, ids=str)
def test_cpu_rounds_narrow_rows_as_the_reference(rule: str, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    torch.manual_seed(0)
    found, before, rows_U = run_both(rule, 3, 1000, dtypes, FP32)
    assert torch.equal(found["cpu"][0][:GRANULE], before[0][:GRANULE])
    for expected, got in zip(found["reference"], found["cpu"], strict=True):
        # Where the float32 differ by a bit, of a thousand numbers one or two are rounded to the other side.
        assert (expected != got).sum() <= (2 if expected.dtype != FP32 else expected.numel())
        torch.testing.assert_close(got.float(), expected.float(), rtol=2**-7, atol=2**-7)
    assert (found["cpu"][0][rows_U] != before[0][rows_U]).float().mean() > 0.5


# --------------------------------------------------------------------------------------------------- others' formulas


def torch_optimizer(rule: str, parameter: nn.Parameter, settings: dict[str, Any]) -> torch.optim.Optimizer:
    if rule in ("sgd", "momentum"):
        return torch.optim.SGD([parameter], **settings)
    if rule == "adagrad":
        return torch.optim.Adagrad([parameter], **settings)
    return torch.optim.SparseAdam([parameter], **settings)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("rule", ["sgd", "adagrad", "adam"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-12)])
def test_twenty_steps_equal_torch_on_sparse_gradients(
    rule: str, dtype: torch.dtype, tolerance: float, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_OPS", implementation)
    torch.manual_seed(0)
    settings = {name: value for name, value in SETTINGS[rule].items() if name != "weight_decay"}
    granule_table = torch.tensor([UNTRAINED, *[0] * 9], dtype=torch.int32)
    weight, meta = torch.randn(10 * GRANULE, 3, dtype=dtype), records(10 * GRANULE)
    state = torch.zeros(10 * GRANULE, state_width(rule, 3), dtype=dtype)
    parameter = nn.Parameter(weight.clone())
    optimizer = torch_optimizer(rule, parameter, settings)
    for step in range(1, 21):
        rows_U = GRANULE + torch.randperm(9 * GRANULE)[:50]
        grads_UD = torch.randn(50, 3, dtype=dtype)
        row = torch.tensor([hyper_row(rule, step, settings)], dtype=torch.float64)
        row_update(rule, weight, state, meta, rows_U, grads_UD, granule_table, row, KEYS[:1])
        with torch.sparse.check_sparse_tensor_invariants():  # torch warns unless told whether to
            parameter.grad = torch.sparse_coo_tensor(rows_U[None], grads_UD, parameter.shape)
            optimizer.step()
    torch.testing.assert_close(weight, parameter.detach(), rtol=tolerance, atol=tolerance)
    for name, columns in state_slices(rule, 3).items():
        expected = optimizer.state[parameter][name]
        torch.testing.assert_close(state[:, columns], expected, rtol=tolerance, atol=tolerance)


def dense_steps(rule: str, settings: dict[str, Any], optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    """Hold 20 steps on all rows against an optimizer of dense parameters, in float64."""
    torch.manual_seed(0)
    granule_table, rows_U = torch.tensor([UNTRAINED, 0], dtype=torch.int32), GRANULE + torch.arange(GRANULE)
    weight = torch.randn(2 * GRANULE, 3, dtype=torch.float64)
    state = torch.zeros(2 * GRANULE, state_width(rule, 3), dtype=torch.float64)
    parameter = nn.Parameter(weight[GRANULE:].clone())
    theirs = optimizer([parameter])
    for step in range(1, 21):
        parameter.grad = torch.randn(GRANULE, 3, dtype=torch.float64)
        row = torch.tensor([hyper_row(rule, step, settings)], dtype=torch.float64)
        row_update(rule, weight, state, records(128), rows_U, parameter.grad, granule_table, row, KEYS[:1])
        theirs.step()
    torch.testing.assert_close(weight[GRANULE:], parameter.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rows_that_are_always_touched_are_stepped_as_dense_parameters(
    implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_OPS", implementation)
    for nesterov in (False, True):
        momentum = {"lr": 0.1, "momentum": 0.9, "nesterov": nesterov}
        dense_steps("momentum", momentum, lambda parameters, options=momentum: torch.optim.SGD(parameters, **options))
    adamw = {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-2, "weight_decay": 0.2}
    for rule in ("adam", "adam_per_row"):
        corrected = adamw | {"eps_placement": "corrected"}
        dense_steps(rule, corrected, lambda parameters: torch.optim.AdamW(parameters, **adamw))


def nearest_root(number: Tensor) -> Tensor:
    """The square root as IEEE 754 has it; torch's may be a bit off."""
    return torch.from_numpy(np.sqrt(number.numpy()))


@pytest.mark.parametrize(("implementation", "root"), [("reference", torch.sqrt), ("cpu", nearest_root)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("theirs", ["SparseAdam", "SparseAdamW", "SparseAdamWTF"])
def test_recis_optimizers_are_reproduced_to_the_bit(
    theirs: str, dtype: torch.dtype, implementation: str, root: Callable[[Tensor], Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("TRITON_OPS", implementation)
    torch.manual_seed(0)
    lr, beta1, beta2, eps, decay = 0.01, 0.9, 0.999, 1e-8, 0.0 if theirs == "SparseAdam" else 0.02
    settings = {"lr": lr, "betas": (beta1, beta2), "eps": eps, "weight_decay": decay}
    settings["decay_by_lr"] = theirs != "SparseAdamWTF"
    granule_table, all_rows = torch.tensor([UNTRAINED, 0, 0], dtype=torch.int32), 3 * GRANULE
    weight, state = torch.randn(all_rows, 5, dtype=dtype), torch.zeros(all_rows, 10, dtype=dtype)
    expected, m, v = weight.clone(), torch.zeros_like(weight), torch.zeros_like(weight)
    for step in range(1, 11):
        rows, grad = GRANULE + torch.randperm(2 * GRANULE)[:40], torch.randn(40, 5, dtype=dtype)
        row = torch.tensor([hyper_row("adam", step, settings)], dtype=torch.float64)
        row_update("adam", weight, state, records(all_rows), rows, grad, granule_table, row, KEYS[:1])
        alpha = -lr / (1 - beta1**step) * math.sqrt(1 - beta2**step)
        decayed = expected[rows] * (1 - decay if theirs == "SparseAdamWTF" else 1 - lr * decay)
        m[rows] = m[rows] * beta1 + grad * (1 - beta1)
        v[rows] = v[rows] * beta2 + (1 - beta2) * grad * grad
        expected[rows] = decayed + alpha * (m[rows] / (root(v[rows]) + eps))
    assert torch.equal(weight, expected)
    assert torch.equal(state, torch.cat([m, v], dim=1))


def test_ftrl_without_penalties_is_adagrad_whatever_becomes_of_lr() -> None:
    torch.manual_seed(0)
    weight, rows_U = torch.randn(128, 3, dtype=torch.float64), torch.arange(64, 128)
    other, granule_table = weight.clone(), torch.tensor([UNTRAINED, 0], dtype=torch.int32)
    ftrl, adagrad = torch.zeros(128, 6, dtype=torch.float64), torch.zeros(128, 3, dtype=torch.float64)
    for lr in (0.5, 0.1, 0.0, 0.2):
        grads_UD, arrays = torch.randn(64, 3, dtype=torch.float64), (granule_table, KEYS[:1])
        hyper_F, hyper_A = torch.tensor([[lr, 0, 0, 0]]).double(), torch.tensor([[lr, 0]]).double()
        row_update("ftrl", weight, ftrl, records(128), rows_U, grads_UD, arrays[0], hyper_F, arrays[1])
        row_update("adagrad", other, adagrad, records(128), rows_U, grads_UD, arrays[0], hyper_A, arrays[1])
    torch.testing.assert_close(weight, other, rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------------------------------------------- stochastic rounding


def round_once(value: float, dtype: torch.dtype, draws: int) -> Tensor:
    """What SGD makes of 0 and the gradient -value, in as many rows of one column."""
    rows = -(-draws // GRANULE) * GRANULE
    weight, state = torch.zeros(rows, 1, dtype=dtype), torch.zeros(rows, 0)
    granule_table, hyper_TH = torch.zeros(rows // GRANULE, dtype=torch.int32), torch.ones(1, 1).double()
    grads_UD = torch.full((draws, 1), -value)
    row_update("sgd", weight, state, records(rows), torch.arange(draws), grads_UD, granule_table, hyper_TH, KEYS[:1])
    return weight[:draws, 0]


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("value", [1.003, -0.7, 3.3e-5, 1e-7, -5e-8])
def test_stochastic_rounding_keeps_the_mean(value: float, dtype: torch.dtype) -> None:
    draws = 10**6
    found = round_once(value, dtype, draws).double()
    exact = float(torch.tensor(value))
    below, above = found.min().item(), found.max().item()
    assert below < exact < above, "both neighbours are drawn"
    assert ((found == below) | (found == above)).all()
    assert torch.nextafter(torch.tensor(below).to(dtype), torch.tensor(math.inf).to(dtype)).item() == above
    error = found.std().item() / math.sqrt(draws)
    assert abs(found.mean().item() - exact) < 3 * error


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_numbers_that_need_no_rounding_stay(
    dtype: torch.dtype, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_OPS", implementation)
    for value in (0.0, 1.0, -1.5, 2.0**-14, 3 * 2.0**-20, -(2.0**-24), 65280.0, math.inf, -math.inf):
        found = round_once(value, dtype, 5)
        assert found.tolist() == [value] * 5
    assert round_once(math.nan, dtype, 5).isnan().all()


def test_random_bits_depend_on_key_id_and_column_and_not_on_the_row() -> None:
    weight, state, meta = torch.zeros(4 * GRANULE, 64, dtype=BF16), torch.zeros(4 * GRANULE, 0), records(4 * GRANULE)
    granule_table, hyper_TH = torch.tensor([0, 0, 0, 1], dtype=torch.int32), torch.ones(2, 1).double()
    meta[[70, 130, 200], ID], meta[71, ID] = 5, 6
    rows_U = torch.tensor([70, 71, 130, 200])
    grads_UD = torch.full((4, 64), 1.003)
    row_update("sgd", weight, state, meta, rows_U, grads_UD, granule_table, hyper_TH, KEYS[:2])
    assert torch.equal(weight[70], weight[130]), "of one id, key and step"
    for other in (71, 200):
        assert not torch.equal(weight[70], weight[other]), "of another id, or of another table or step"
    assert len(weight[70].unique()) == 2, "columns are rounded apart"


# --------------------------------------------------------------------------------------------------------- arguments


def test_hyper_rows_by_hand() -> None:
    assert hyper_row("adagrad", 1, {"lr": 0.5, "eps": 0.1}) == [0.5, 0.1]
    assert hyper_row("sgd", 9, {"lr": 0.5, "eps": 0.1}) == [0.5]
    assert hyper_row("momentum", 1, {"lr": 0.5, "momentum": 0.9}) == [0.5, 0.9, 0, 1]
    adam = {"lr": 1.0, "betas": (0.5, 0.75), "eps": 0.1}
    moments = [0.5, 0.5, 0.75, 0.25]
    root = math.sqrt(1 - 0.75**2)
    assert hyper_row("adam", 2, adam) == pytest.approx([root / 0.75, 0.1, 1.0, *moments])
    assert hyper_row("adam", 2, adam | {"eps_placement": "corrected"})[1] == pytest.approx(0.1 * root)
    decay = {"lr": 0.1, "weight_decay": 0.5}
    assert hyper_row("adam", 2, adam | decay)[2] == pytest.approx(0.95)
    assert hyper_row("adam", 2, adam | decay | {"decay_by_lr": False})[2] == pytest.approx(0.5)
    assert hyper_row("adam_per_row", 2, adam) == pytest.approx([1.0, 0.1, 1.0, *moments, 0])
    assert hyper_row("ftrl", 1, {"lr": 0.5, "beta": 1.0, "l1": 2.0, "l2": 3.0}) == [0.5, 1, 1, 1.5]
    assert {rule: len(hyper_row(rule, 1, SETTINGS[rule])) for rule in RULES} == HYPER_COLUMNS
    with pytest.raises(ValueError, match="no rule 'lamb'; there are: sgd"):
        hyper_row("lamb", 1, {"lr": 0.1})
    with pytest.raises(ValueError, match="step is 0"):
        hyper_row("sgd", 0, {"lr": 0.1})


def test_arguments_that_do_not_fit_are_named() -> None:
    rows_U = torch.tensor([64])
    arguments: dict[str, Any] = {
        "rule": "sgd",
        "weight": torch.zeros(128, 2),
        "state": torch.zeros(128, 0),
        "meta": records(128),
        "rows_U": rows_U,
        "grads_UD": torch.zeros(1, 2),
        "granule_table": torch.zeros(2, dtype=torch.int32),
        "hyper_TH": torch.zeros(1, 1, dtype=torch.float64),
        "keys_T": KEYS[:1],
    }
    row_update(**arguments)
    faults: list[tuple[str, Any, str]] = [
        ("rule", "lamb", "no rule 'lamb'"),
        ("grads_UD", torch.zeros(1, 2).double(), "weight is torch.float32, state torch.float32, grads torch.float64"),
        ("grads_UD", torch.zeros(1, 2).half(), "grads torch.float16; give float64 for all, or grads of float32"),
        ("weight", torch.zeros(128, 2).int(), "weight is torch.int32"),
        ("state", torch.zeros(128, 1).half(), "state torch.float16"),
        ("grads_UD", torch.zeros(2, 2), r"grads are \[2, 2\] for rows torch.int64 \[1\]; give one of width 2"),
        ("rows_U", rows_U.int(), r"rows torch.int32 \[1\]"),
        ("state", torch.zeros(64, 0), "weight has 128 rows, state 64"),
        ("meta", records(64), "meta 64"),
        ("meta", records(128).int(), r"meta is torch.int32 of 4 columns; give int64 \[R, 4\]"),
        ("granule_table", torch.zeros(1, dtype=torch.int32), "granule_table 1 granules"),
        ("hyper_TH", torch.zeros(1, 2).double(), r"hyper is torch.float64 \[1, 2\]; sgd takes float64 \[tables, 1\]"),
        ("keys_T", KEYS, r"keys are torch.int64 \[3\]; give int64 \[1\], one a table"),
    ]
    for name, value, message in faults:
        with pytest.raises(ValueError, match=message):
            row_update(**arguments | {name: value})


def test_torch_knows_what_the_op_writes() -> None:
    op = torch.ops.triton_ops.row_update.default
    arrays = torch.zeros(ROWS, 3), torch.zeros(ROWS, 6), records(), choose_rows(5), torch.ones(5, 3), GRANULE_TABLE
    checks = ("test_schema", "test_faketensor")
    results = torch.library.opcheck(op, ("adam", *arrays, hyper("adam"), KEYS), test_utils=checks)
    assert set(results.values()) == {"SUCCESS"}
