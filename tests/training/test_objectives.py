import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recis_lightning.ragged import Ragged
from recis_lightning.schema import Task
from recis_lightning.training.objectives import (
    MeanLoss,
    TargetChecks,
    TaskMetrics,
    check_logits,
    check_targets,
    dense_column,
    groups_of,
    mean_loss,
    scores_of,
    targets_of,
)

NAN = float("nan")


def task(**options: Any) -> Task:
    return Task(name="ctr", label="label", **options)


def batch(**columns: list[float]) -> dict[str, Tensor | Ragged]:
    return {name: torch.tensor(values) for name, values in columns.items()}


def test_loss_is_the_mean_over_all_rows() -> None:
    logits, label = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([1.0, 0.0, 0.0])
    found = mean_loss(task(), logits, *targets_of(task(), {"label": label}))
    torch.testing.assert_close(found, F.binary_cross_entropy_with_logits(logits, label))


def test_rows_outside_where_do_not_count() -> None:
    conversion = task(where="clicked", loss="mse")
    label, weight = targets_of(conversion, batch(label=[1, 0, 9], clicked=[1, 1, 0]))
    assert weight.tolist() == [1, 1, 0]
    assert mean_loss(conversion, torch.tensor([2.0, 2.0, 2.0]), label, weight).item() == 2.5


def test_sample_weights_weigh_the_mean() -> None:
    weighted = task(sample_weight="weight", loss="mse")
    label, weight = targets_of(weighted, batch(label=[0, 0], weight=[3, 1]))
    assert mean_loss(weighted, torch.tensor([1.0, 3.0]), label, weight).item() == 3.0


def test_no_row_that_counts_is_no_loss_and_no_nan_gradient() -> None:
    conversion = task(where="clicked")
    logits = torch.tensor([0.5, -1.0], requires_grad=True)
    loss = mean_loss(conversion, logits, *targets_of(conversion, batch(label=[NAN, 1], clicked=[0, 0])))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.tolist() == [0, 0]


def test_a_missing_label_outside_where_reaches_no_gradient() -> None:
    conversion = task(where="clicked")
    logits = torch.tensor([0.5, -1.0], requires_grad=True)
    label, weight = targets_of(conversion, batch(label=[NAN, 1], clicked=[0, 1]))
    check_targets(conversion, label, weight)
    mean_loss(conversion, logits, label, weight).backward()
    assert logits.grad is not None
    assert logits.grad[0] == 0
    assert torch.isfinite(logits.grad).all()


def test_an_empty_batch_is_no_loss() -> None:
    empty = torch.zeros(0, requires_grad=True)
    label, weight = targets_of(task(), batch(label=[]))
    check_targets(task(), label, weight)
    loss = mean_loss(task(), empty, label, weight)
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize(
    ("label", "message"),
    [([0.0, 5.0], "reach from 0 to 5, loss bce needs 0 to 1"), ([0.0, NAN], "holds labels that are no finite numbers")],
)
def test_labels_that_mean_nothing_are_refused(label: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_targets(task(), *targets_of(task(), batch(label=label)))
    check_targets(task(loss="mse"), *targets_of(task(), batch(label=[0, 5])))


def test_negative_sample_weights_are_refused() -> None:
    weighted = task(sample_weight="weight")
    with pytest.raises(ValueError, match="'weight' holds weights down to -1"):
        check_targets(weighted, *targets_of(weighted, batch(label=[0, 1], weight=[-1, 1])))


def test_logits_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \[3, 1\], need \[3\]; .*squeeze"):
        check_logits(task(), {"ctr": torch.zeros(3, 1)}, 3)
    with pytest.raises(ValueError, match="returned 'cvr', but no logits for task 'ctr'"):
        check_logits(task(), {"cvr": torch.zeros(3)}, 3)


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="column 'label' is not in the batch"):
        dense_column({}, "label")
    with pytest.raises(ValueError, match="column 'label' holds lists"):
        dense_column({"label": Ragged.from_lists([[1]])}, "label")


def test_scores_are_probabilities_for_bce_and_values_for_mse() -> None:
    assert scores_of(task(), torch.tensor([0.0])).item() == 0.5
    assert scores_of(task(loss="mse"), torch.tensor([7.0])).item() == 7


def test_metrics_do_not_depend_on_how_rows_were_batched() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1000, generator=generator)
    columns: dict[str, Tensor | Ragged] = {
        "label": (torch.rand(1000, generator=generator) < logits.sigmoid()).float(),
        "clicked": (torch.rand(1000, generator=generator) < 0.5).float(),
        "weight": torch.rand(1000, generator=generator),
    }
    one_task = task(where="clicked", sample_weight="weight")
    values = []
    for size in (1000, 300, 7):
        metrics = TaskMetrics(one_task)
        for start in range(0, 1000, size):
            rows = {name: column[start : start + size] for name, column in columns.items()}  # type: ignore[index]
            metrics.update(logits[start : start + size], *targets_of(one_task, rows))
        values.append({name: value.item() for name, value in metrics.compute().items()})
    assert set(values[0]) == {"loss", "auc", "logloss", "ne", "calibration"}
    for others in values[1:]:
        assert others == pytest.approx(values[0], rel=1e-12)
    assert values[0]["loss"] == pytest.approx(values[0]["logloss"], rel=1e-6)


def test_metrics_are_empty_where_no_row_counts() -> None:
    one_task = task(where="clicked")
    metrics = TaskMetrics(one_task)
    metrics.update(torch.zeros(2), *targets_of(one_task, batch(label=[0, 1], clicked=[0, 0])))
    assert metrics.compute() == {}
    metrics.update(torch.zeros(2), *targets_of(one_task, batch(label=[0, 1], clicked=[1, 1])))
    assert metrics.compute()["loss"].item() == pytest.approx(math.log(2))
    metrics.reset()
    assert metrics.compute() == {}


def test_rows_without_a_group_count_in_all_metrics_but_gauc() -> None:
    grouped = task(group="user")
    rows = {**batch(label=[1, 0, 1, 0]), "user": Ragged.from_lists([[7], [7], [], [7]])}
    metrics = TaskMetrics(grouped)
    metrics.update(torch.tensor([2.0, 1.0, 0.0, 3.0]), *targets_of(grouped, rows), groups_of(grouped, rows))
    values = metrics.compute()
    assert values["gauc"].item() == 0.5  # of user 7 alone: above one of two
    assert values["auc"].item() == 0.25
    metrics.reset()
    assert not metrics.grouped.groups


def test_groups_that_come_as_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="task 'ctr' is grouped by column 'user', which holds numbers; need ids"):
        groups_of(task(group="user"), batch(user=[1, 2]))
    with pytest.raises(ValueError, match="'user', which is not in the batch; need ids"):
        groups_of(task(group="user"), batch(label=[1, 2]))


def test_a_loss_that_is_no_number_is_seen() -> None:
    mean = MeanLoss()
    mean.update(torch.tensor(1.0), torch.tensor(2.0))
    assert mean.compute()[0].item() == 1
    mean.update(torch.tensor(NAN), torch.tensor(1.0))
    assert math.isnan(mean.compute()[0].item())


@pytest.mark.parametrize(
    ("loss", "label", "weight", "message"),
    [
        ("bce", [0.0, 1.5], [1.0, 1.0], "labels in column 'label' of batch 2 are not all from 0 to 1"),
        ("bce", [0.0, NAN], [1.0, 1.0], "labels in column 'label' of batch 2 are not all from 0 to 1"),
        ("mse", [0.0, math.inf], [1.0, 1.0], "column 'label' of batch 2 holds labels that are no finite numbers"),
        ("mse", [0.0, 7.0], [1.0, -1.0], "column 'weight' of batch 2 holds weights below 0"),
    ],
)
def test_targets_that_mean_nothing_are_told_with_a_later_batch_where_nobody_waits(
    loss: str, label: list[float], weight: list[float], message: str
) -> None:
    weighted = task(loss=loss, sample_weight="weight")
    good, bad = torch.tensor([0.0, 1.0]), (torch.tensor(label), torch.tensor(weight))
    checks = TargetChecks()
    checks.check_later(weighted, good, good)
    checks.check_later(weighted, *bad)
    with pytest.raises(ValueError, match=message):
        checks.check_later(weighted, good, good)
    checks.check_later(weighted, good, good)
