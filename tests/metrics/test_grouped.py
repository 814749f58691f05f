"""GroupedAUC: the mean of what AUC gives for each group alone."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recis_lightning.metrics import AUC, GroupedAUC

rows = st.lists(
    st.tuples(
        st.sampled_from([-(2**63), -1, 0, 2**53 + 1, 2**53 + 2, 2**63 - 1]),  # float64 can't tell two of them apart
        st.sampled_from([-2.0, -0.5, 0.25, 3.5]),
        st.integers(0, 1),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=40,
)


def one_after_the_other(
    group: torch.Tensor, logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor
) -> tuple[float, float]:
    """The definition: (sum of area times weight, sum of weights) of groups that have both kinds of rows."""
    total = counted = 0.0
    for value in group.unique():
        mine = group == value
        metric = AUC()
        metric.update(logits[mine], target[mine], weight[mine])
        area = float(metric.compute())
        if not math.isnan(area):
            total += area * float(weight[mine].sum())
            counted += float(weight[mine].sum())
    return total, counted


def test_groups_count_with_their_rows():
    metric = GroupedAUC()
    metric.update(torch.tensor([1.0, 3, 2, 2, 0]), torch.tensor([0, 1, 1, 0, 0]), torch.tensor([7, 7, 9, 9, 9]))
    assert float(metric.compute()) == pytest.approx(0.85)
    assert metric.compute().dtype == torch.float64


@given(rows=rows, cut=st.integers(0, 40), seed=st.integers(0, 99))
def test_it_is_the_mean_of_the_areas_of_groups(rows, cut, seed):
    group, logits, target, weight = (torch.tensor(values) for values in zip(*rows, strict=True))
    shuffled = torch.randperm(len(group), generator=torch.Generator().manual_seed(seed))
    metric = GroupedAUC()
    for part in (shuffled[:cut], shuffled[cut:]):
        metric.update(logits[part], target[part], group[part], weight[part])
    total, counted = one_after_the_other(group, logits, target, weight.double())
    expected = total / counted if counted else math.nan
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_a_score_that_only_ranks_groups_is_worth_nothing():
    # What AUC rewards and a ranking within a user's list does not: telling users who click from those who don't.
    group = torch.arange(100).repeat_interleave(10)
    target = (torch.arange(1000) % 10 < group // 20 + 1).long()
    logits = group.double()
    grouped, overall = GroupedAUC(), AUC()
    grouped.update(logits, target, group)
    overall.update(logits, target)
    assert grouped.compute() == 0.5
    assert overall.compute() > 0.6


def test_nothing_to_order_gives_nan():
    metric = GroupedAUC()
    metric.update(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert math.isnan(metric.compute())
    metric.update(torch.tensor([1.0, 2.0]), torch.tensor([0, 1]), torch.tensor([1, 2]))
    assert math.isnan(metric.compute())


@pytest.mark.parametrize("group", [torch.tensor([1]), torch.tensor([1.0, 2.0])])
def test_groups_that_do_not_fit_are_refused(group):
    metric = GroupedAUC()
    with pytest.raises(ValueError, match=r"for logits \[2\]; give an int64 for each logit"):
        metric.update(torch.tensor([1.0, 2.0]), torch.tensor([0, 1]), group)
    assert not metric.groups
