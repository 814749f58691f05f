"""row_update in Triton: the CPU's bits for every rule and dtype, in blocks too, gradients summed on the way."""

import pytest
import torch
from torch import Tensor

from tests.triton_ops.test_gather_pool import number_rows
from tests.triton_ops.test_places import in_blocks
from tests.triton_ops.test_row_update import (
    BF16,
    FP16,
    FP32,
    GRANULE_TABLE,
    KEYS,
    NARROW,
    ROWS,
    RULES,
    choose_rows,
    hyper,
    random_state,
    records,
)  # fmt: skip
from triton_ops.gather_pool import GradSums, PooledGrad
from triton_ops.places import Rows
from triton_ops.row_update import first_infinite, row_update

FP64 = torch.float64
CASES = [(rule, dim, (dtype, dtype), dtype) for dim, dtype in ((16, FP32), (3, FP64)) for rule in RULES]
CASES += [("adam", 3, dtypes, FP32) for dtypes in NARROW]
# Each other rule with one of them: how numbers are rounded does not depend on the rule.
OTHERS = [rule for rule in RULES if rule not in ("adam", "adam_per_row")]
CASES += [(rule, 3, NARROW[place % len(NARROW)], FP32) for place, rule in enumerate(OTHERS)]
CASES += [("adam_per_row", 3, (BF16, FP32), FP32)]


def on_cpu(rule: str, arrays: list[Tensor], rows_U: Tensor, grads_UD: Tensor | GradSums) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_OPS", "cpu")
        row_update(rule, *arrays, records(), rows_U, grads_UD, GRANULE_TABLE, hyper(rule, 3), KEYS)


def there(rule: str, device: torch.device) -> tuple[Tensor, ...]:
    return tuple(each.to(device) for each in (GRANULE_TABLE, hyper(rule, 3), KEYS))


@pytest.mark.parametrize(("rule", "dim", "dtypes", "grads"), CASES, ids=str)
def test_rows_and_state_are_those_of_the_cpu(
    rule: str, dim: int, dtypes: tuple[torch.dtype, torch.dtype], grads: torch.dtype, on_triton: torch.device
) -> None:
    torch.manual_seed(dim)
    rows_U, grads_UD = choose_rows(150), torch.randn(150, dim, dtype=grads)
    before = torch.randn(ROWS, dim).to(dtypes[0]), random_state(rule, dim, dtypes[1])
    expected = [array.clone() for array in before]
    on_cpu(rule, expected, rows_U, grads_UD)
    # Half of the rows as a tensor, the others in blocks; behind each half what group_by_row leaves behind the last.
    found = [array.to(on_triton, copy=True) for array in before]
    padding = torch.nn.functional.pad
    for half, as_blocks in ((slice(0, 75), False), (slice(75, 150), True)):
        arrays: list[Rows] = [*found, records().to(on_triton)]
        blocks = [in_blocks(array) for array in arrays if isinstance(array, Tensor)]
        rows, values = padding(rows_U[half], (0, 9), value=-1), padding(grads_UD[half], (0, 0, 0, 9), value=torch.nan)
        row_update(rule, *(blocks if as_blocks else arrays), rows.to(on_triton), values.to(on_triton),
                   *there(rule, on_triton))  # fmt: skip
        found = [each[:ROWS] for each in blocks[:2]] if as_blocks else found
    for name, want, got in zip(("weight", "state"), expected, found, strict=True):
        if rule in ("rowwise_adagrad", "adam_per_row"):  # whose sum and whose powers are worked out differently
            tolerance = {FP32: 2e-6, FP64: 1e-12}.get(want.dtype, 2**-7)
            torch.testing.assert_close(got.cpu(), want, rtol=tolerance, atol=tolerance, msg=name)
            assert want.dtype in (FP32, FP64) or (got.cpu() != want).sum() <= 2
        else:
            assert torch.equal(got.cpu(), want), name


@pytest.mark.parametrize(("rule", "many"), [("adam", 1 << 17), ("adam", 1), ("rowwise_adagrad", 1)])
def test_gradients_of_bags_are_summed_on_the_way(
    rule: str, many: int, on_triton: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triton_ops.row_update.kernels.MANY", many)  # from which on a program takes several tiles
    torch.manual_seed(0)
    rows_N = choose_rows(20)[torch.randint(20, (300,))]
    rows_N[:200] = torch.where(torch.rand(200) < 0.2, rows_N[:200], rows_N[0])  # hot: too many for one program
    rows_U, inverse_N = number_rows(rows_N, rows_N == rows_N[-1])
    offsets_KB1 = torch.arange(0, 301, 2)[None]
    grads, coefficients = torch.randint(-9, 9, (150, 1, 8)).float(), torch.randint(1, 4, (300,)).float()
    before = torch.randn(ROWS, 8), random_state(rule, 8, FP32)
    expected, found = [array.clone() for array in before], [array.to(on_triton, copy=True) for array in before]
    on_cpu(rule, expected, rows_U, GradSums([PooledGrad(grads, offsets_KB1, coefficients)], inverse_N))
    part = PooledGrad(*(each.to(on_triton) for each in (grads, offsets_KB1, coefficients)))
    row_update(rule, *found, records().to(on_triton), rows_U.to(on_triton),
               GradSums([part], inverse_N.to(on_triton)), *there(rule, on_triton))  # fmt: skip
    for want, got in zip(expected, found, strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=2e-6, atol=2e-6)
    assert not torch.equal(found[0].cpu(), before[0])


@pytest.mark.parametrize("implementation", ["cpu", "triton"])
def test_nothing_changes_where_the_step_is_to_be_skipped(
    implementation: str, on_triton: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = on_triton if implementation == "triton" else torch.device("cpu")
    monkeypatch.setenv("TRITON_OPS", implementation)
    for found_inf in (1.0, 0.0):
        arrays = [torch.ones(ROWS, 2, device=device), torch.zeros(ROWS, 0, device=device), records().to(device)]
        rows_U, grads_UD = torch.tensor([64], device=device), torch.ones(1, 2, device=device)
        skip = torch.tensor([found_inf], device=device)
        row_update("sgd", *arrays, rows_U, grads_UD, *there("sgd", device), skip)
        assert bool((arrays[0] == 1).all()) == bool(found_inf)


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("value", [0.0, -1.5, 3 * 2.0**-20, 1e-7, 65519.0, 1e6, -torch.inf, torch.nan])
def test_narrow_numbers_of_every_size_are_rounded_as_on_the_cpu(
    dtype: torch.dtype, value: float, on_triton: torch.device
) -> None:
    rows_U, grads_UD = choose_rows(40), torch.full((40, 4), -value * 5)
    expected = [torch.zeros(ROWS, 4, dtype=dtype), torch.zeros(ROWS, 0)]
    found = [array.to(on_triton, copy=True) for array in expected]
    on_cpu("sgd", expected, rows_U, grads_UD)
    row_update("sgd", *found, records().to(on_triton), rows_U.to(on_triton), grads_UD.to(on_triton),
               *there("sgd", on_triton))  # fmt: skip
    bits = [array.view(torch.int16).cpu() for array in (found[0], expected[0])]
    assert torch.equal(*bits)


@pytest.mark.parametrize("implementation", ["reference", "triton"])
@pytest.mark.parametrize("broken", [torch.inf, -torch.inf, torch.nan])
def test_the_first_row_without_a_finite_gradient_is_found(
    broken: float, implementation: str, on_triton: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = on_triton if implementation == "triton" else torch.device("cpu")
    monkeypatch.setenv("TRITON_OPS", implementation)
    rows_U = torch.tensor([70, 71, 72, 73, -1], device=device)
    grads_UD = torch.full((5, 3), 3e38, device=device)
    grads_UD[4] = broken  # of no row
    assert first_infinite(rows_U, grads_UD).tolist() == [5]
    grads_UD[2, 1] = grads_UD[3, 0] = broken
    assert first_infinite(rows_U, grads_UD).tolist() == [2]
    assert first_infinite(rows_U[:0], grads_UD[:0]).tolist() == [0]
    offsets_KB1, inverse_N = torch.tensor([[0, 1, 3]], device=device), torch.tensor([0, 1, 0], device=device)
    for grad, place in ((1.0, 5), (broken, 0)):
        grads = torch.tensor([[[1.0]], [[grad]]], device=device)
        assert first_infinite(rows_U, GradSums([PooledGrad(grads, offsets_KB1, None)], inverse_N)).tolist() == [place]
