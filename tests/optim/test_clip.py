"""Clipping: the joint norm of dense parameters and rows, by hand."""

import math

import pytest
import torch
from torch import nn

from recis_lightning.optim import CompositeOptimizer, SparseOptimizer, clip_grad_norm, clip_grad_value
from recis_lightning.schema import Table
from recis_lightning.tables import PendingGrad, TableGroup


def make_optimizer(dense_grads: list[float], row_grads: list[list[float]]) -> tuple[CompositeOptimizer, nn.Parameter]:
    """One dense parameter and one row, whose gradients were left in several parts."""
    parameter = nn.Parameter(torch.zeros(len(dense_grads)))
    parameter.grad = torch.tensor(dense_grads)
    group = TableGroup([Table(name="a", dim=len(row_grads[0]))], max_rows=1000)
    rows = group[0].find_or_insert(torch.tensor([5]))
    group.pending += [PendingGrad(rows, torch.tensor([grad]), frozenset({0})) for grad in row_grads]
    return CompositeOptimizer(torch.optim.SGD([parameter], 0.1), SparseOptimizer([group])), parameter


def grads_of(optimizer: CompositeOptimizer, parameter: nn.Parameter) -> list[float]:
    pending = optimizer.sparse.groups[0].coalesce()
    assert pending is not None
    assert parameter.grad is not None
    return [*parameter.grad.tolist(), *pending.grads[0].tolist()]


def test_all_gradients_are_scaled_by_their_joint_norm() -> None:
    optimizer, parameter = make_optimizer([3.0], [[1.0, 0.0], [3.0, 0.0]])
    assert clip_grad_norm(optimizer, max_norm=1.0).item() == pytest.approx(5.0)
    assert grads_of(optimizer, parameter) == pytest.approx([0.6, 0.8, 0.0], rel=1e-5)


def test_gradients_below_the_bound_stay_as_they_are() -> None:
    optimizer, parameter = make_optimizer([3.0], [[4.0, 0.0]])
    clip_grad_norm(optimizer, max_norm=6.0)
    assert grads_of(optimizer, parameter) == [3.0, 4.0, 0.0]


def test_repeated_rows_count_as_their_sum() -> None:
    optimizer, parameter = make_optimizer([0.0], [[2.0], [-2.0]])
    assert clip_grad_norm(optimizer, max_norm=1.0).item() == 0.0
    assert grads_of(optimizer, parameter) == [0.0, 0.0]


def test_the_norm_and_the_scaling_are_those_of_torch() -> None:
    torch.manual_seed(0)
    dense, row = torch.randn(7) * 3, torch.randn(5) * 3
    optimizer, parameter = make_optimizer(dense.tolist(), [row.tolist()])
    control = [nn.Parameter(torch.zeros(7)), nn.Parameter(torch.zeros(5))]
    control[0].grad, control[1].grad = dense.clone(), row.clone()
    expected = nn.utils.clip_grad_norm_(control, 0.7)
    assert clip_grad_norm(optimizer, 0.7).item() == pytest.approx(expected.item(), rel=1e-6)
    found = torch.tensor(grads_of(optimizer, parameter))
    torch.testing.assert_close(found, torch.cat([control[0].grad, control[1].grad]))


def test_each_part_may_be_missing() -> None:
    optimizer, parameter = make_optimizer([3.0], [[4.0]])
    optimizer.sparse.zero_grad()
    assert clip_grad_norm(optimizer, 1.0).item() == pytest.approx(3.0)
    optimizer, parameter = make_optimizer([3.0], [[4.0]])
    parameter.grad = None
    assert clip_grad_norm(optimizer, 1.0).item() == pytest.approx(4.0)
    optimizer, _ = make_optimizer([3.0], [[4.0]])
    alone = CompositeOptimizer(None, optimizer.sparse)
    assert clip_grad_norm(alone, 1.0).item() == pytest.approx(4.0)
    clip_grad_value(alone, 0.5)
    assert alone.sparse.grad_norm_sq().item() == pytest.approx(0.25)


def test_broken_gradients_give_a_broken_norm() -> None:
    optimizer, _ = make_optimizer([3.0], [[math.inf]])
    assert clip_grad_norm(optimizer, 1.0).item() == math.inf


def test_values_are_limited_after_rows_are_summed_up() -> None:
    optimizer, parameter = make_optimizer([3.0, -0.5], [[2.0, -2.0], [-1.5, -1.0]])
    clip_grad_value(optimizer, 1.0)
    assert grads_of(optimizer, parameter) == [1.0, -0.5, 0.5, -1.0]
