"""Calibration: predicted over observed clicks."""

import math

import pytest
import torch

from recis_lightning.metrics import Calibration


def calibration(logits: list[float], target: list[float], weight: list[float] | None = None) -> float:
    metric = Calibration()
    weights = None if weight is None else torch.tensor(weight)
    metric.update(torch.tensor(logits, dtype=torch.float64), torch.tensor(target), weights)
    return float(metric.compute())


def test_calibration_is_predicted_over_observed():
    assert calibration([0, 0], [0, 1]) == 1
    assert calibration([0, 0, 0, 0], [0, 0, 0, 1]) == 2
    assert calibration([math.log(1 / 3)] * 2, [0, 1]) == pytest.approx(0.5)


def test_weights_count_on_both_sides():
    assert calibration([0, 0], [0, 1], [1.0, 3.0]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("target", [[], [0.0, 0.0]])
def test_nothing_to_divide_by_gives_nan(target):
    assert math.isnan(calibration([0.0] * len(target), target))


def test_parts_merge_to_the_whole():
    first, second = Calibration(), Calibration()
    first.update(torch.tensor([0.0, 0.0]), torch.tensor([0, 1]))
    second.update(torch.tensor([0.0, 0.0]), torch.tensor([0, 0]))
    first.merge_state(second)
    assert first.compute() == 2


def test_a_logit_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="logit 1 of 2 is inf, need a finite number"):
        calibration([0.0, math.inf], [0, 1])


def test_sums_stay_float64_under_any_precision():
    metric = Calibration()
    metric.update(torch.tensor([0.123456789]), torch.tensor([1]))
    before = float(metric.compute())
    metric.to(torch.bfloat16)
    metric.update(torch.zeros(0), torch.zeros(0))
    assert float(metric.compute()) == before
