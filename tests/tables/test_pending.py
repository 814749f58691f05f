"""Gradients that wait: summed by row, copied with their group, and counted apart from lookups."""

import copy

import torch

from recis_lightning.schema import Table
from recis_lightning.tables import PendingGrad, TableGroup
from recis_lightning.tables.group import MOST_PENDING
from triton_ops.gather_pool import GradSums, PooledGrad
from triton_ops.group_by_row import LAST_TICK
from triton_ops.row_layout import COUNT


def make_group() -> TableGroup:
    group = TableGroup([Table(name=name, dim=1) for name in ("a", "b")], max_rows=1000)
    group.lookup(torch.tensor([5, 6, 5]), torch.tensor([0, 2, 3]), torch.tensor([0, 1]), insert=True)
    return group


def leave(group: TableGroup, rows: list[int], grads: list[float], tables: set[int]) -> None:
    group.pending.append(PendingGrad(torch.tensor(rows), torch.tensor(grads)[:, None], frozenset(tables)))


def places_with_a_row(rows_U: torch.Tensor) -> slice:
    """All; on a device, which nobody asks how many there are, those before as many -1 as values repeat others."""
    count = int((rows_U >= 0).sum())
    assert (rows_U[count:] == -1).all()
    return slice(count)


def test_gradients_of_one_row_are_summed_once() -> None:
    group = make_group()
    a5, a6, b5 = (int(table.find(torch.tensor([id_]))) for table, id_ in ((group[0], 5), (group[0], 6), (group[1], 5)))
    leave(group, [a5], [1.0], {0})
    leave(group, [b5, a5], [2.0, 3.0], {0, 1})
    leave(group, [a6], [4.0], {0})
    pending = group.coalesce()
    assert pending is not None
    there = places_with_a_row(pending.rows)
    assert pending.rows[there].tolist() == [a5, b5, a6]
    assert pending.grads[there].tolist() == [[4.0], [2.0], [4.0]]
    assert pending.tables == {0, 1}
    assert group.coalesce() is pending
    assert (group.meta[pending.rows[there], COUNT] == 0).all(), "summing gradients is no lookup"


def test_many_accumulated_gradients_take_the_memory_of_few() -> None:
    group = make_group()
    for k in range(100):
        group.leave(PendingGrad(torch.tensor([64 + k % 2]), torch.tensor([[1.0]]), frozenset({k % 2})))
        assert len(group.pending) < MOST_PENDING
    pending = group.coalesce()
    assert pending is not None
    there = places_with_a_row(pending.rows)
    assert pending.rows[there].sort().values.tolist() == [64, 65]
    assert pending.grads[there].tolist() == [[50.0], [50.0]]
    assert pending.tables == {0, 1}


def leave_bags(group: TableGroup, grad: float) -> None:
    """As a lookup on a device does: rows 64 and 65, of bags [64, 65] and [64] with gradients ``grad`` and 1."""
    bags = PooledGrad(torch.tensor([[[grad]], [[1.0]]]), torch.tensor([[0, 2, 3]]), None)
    sums = GradSums([bags], torch.tensor([0, 1, 0]))
    group.leave(PendingGrad(torch.tensor([64, 65]), sums, frozenset({0})))


def test_gradients_of_bags_wait_until_somebody_asks_for_their_sums() -> None:
    group = make_group()
    leave_bags(group, 3.0)
    pending = group.coalesce(summed=False)
    assert pending is not None
    assert isinstance(pending.grads, GradSums)
    copied = copy.deepcopy(group).coalesce(summed=False)
    summed = group.coalesce()
    assert summed is not None
    assert copied is not None
    assert summed.grads.tolist() == copied.grads.tolist() == [[4.0], [3.0]]
    assert group.coalesce(summed=False) is summed
    leave_bags(group, 5.0)
    accumulated = group.coalesce(summed=False)
    assert accumulated is not None
    assert accumulated.grads[places_with_a_row(accumulated.rows)].tolist() == [[10.0], [8.0]]


def test_nothing_pending_is_none() -> None:
    assert make_group().coalesce() is None


def test_a_copied_group_has_pending_gradients_of_its_own() -> None:
    group = make_group()
    leave(group, [64], [1.0], {0})
    copied = copy.deepcopy(group)
    copied.pending[0].grads.mul_(2)
    assert group.pending[0].grads.tolist() == [[1.0]]
    assert copied.pending[0].tables == {0}


def test_ticks_begin_anew_when_they_run_out() -> None:
    group = make_group()
    rows_N = torch.tensor([64, 65, 64])
    group.unique_rows(rows_N)
    group._tick = LAST_TICK - 1
    for _ in range(3):
        rows_U, inverse_N = group.unique_rows(rows_N)
        assert rows_U[places_with_a_row(rows_U)].tolist() == [64, 65]
        assert inverse_N.tolist() == [0, 1, 0]
    assert group._tick == 2
