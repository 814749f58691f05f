"""Logarithmic loss and normalised entropy, beside scikit-learn and by hand."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from torchmetrics import Metric

from recis_lightning.metrics import LogLoss, NormalizedEntropy


def value_of(metric: Metric, *rows: torch.Tensor) -> float:
    metric.update(*rows)
    return float(metric.compute())


def test_log_loss_of_even_odds_is_log_two():
    assert value_of(LogLoss(), torch.zeros(2), torch.tensor([0, 1])) == pytest.approx(math.log(2), abs=1e-15)


def test_log_loss_stays_finite_for_confident_mistakes():
    assert value_of(LogLoss(), torch.tensor([800.0]), torch.tensor([0])) == 800


@given(seed=st.integers(0, 99), rows=st.integers(2, 50))
def test_log_loss_equals_scikit_learn(seed, rows):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, generator=generator, dtype=torch.float64) * 3
    target = torch.randint(2, (rows,), generator=generator)
    weight = torch.rand(rows, generator=generator, dtype=torch.float64) + 0.1
    expected = log_loss(target, logits.sigmoid(), labels=[0, 1])
    assert value_of(LogLoss(), logits, target) == pytest.approx(expected, abs=1e-12)
    expected = log_loss(target, logits.sigmoid(), sample_weight=weight, labels=[0, 1])
    assert value_of(LogLoss(), logits, target, weight) == pytest.approx(expected, abs=1e-12)


def test_log_loss_takes_probabilities_as_targets():
    assert value_of(LogLoss(), torch.zeros(1), torch.tensor([0.25])) == pytest.approx(math.log(2))


def test_normalized_entropy_is_one_for_the_click_rate_alone():
    target = torch.tensor([1, 0, 0, 0])
    logits = torch.full((4,), math.log(1 / 3), dtype=torch.float64)
    assert value_of(NormalizedEntropy(), logits, target) == pytest.approx(1, abs=1e-12)
    weight = torch.tensor([3.0, 1.0, 1.0, 1.0])
    assert value_of(NormalizedEntropy(), torch.zeros(4), target, weight) == pytest.approx(1, abs=1e-12)


def test_normalized_entropy_falls_below_one_for_a_better_model():
    target = torch.tensor([1, 0, 0, 0])
    better = value_of(NormalizedEntropy(), torch.tensor([2.0, -2.0, -2.0, -2.0]), target)
    by_hand = math.log1p(math.exp(-2)) / (-0.25 * math.log(0.25) - 0.75 * math.log(0.75))
    assert better == pytest.approx(by_hand, abs=1e-12)
    assert value_of(NormalizedEntropy(), torch.tensor([-2.0, 2.0, -2.0, -2.0]), target) > 1


@pytest.mark.parametrize("target", [[0, 0], [1, 1]])
def test_normalized_entropy_of_one_class_is_nan(target):
    assert math.isnan(value_of(NormalizedEntropy(), torch.zeros(2), torch.tensor(target)))


@pytest.mark.parametrize("metric_class", [LogLoss, NormalizedEntropy])
def test_no_rows_give_nan(metric_class):
    assert math.isnan(value_of(metric_class(), torch.zeros(0), torch.zeros(0)))


@pytest.mark.parametrize("metric_class", [LogLoss, NormalizedEntropy])
@given(cuts=st.lists(st.integers(0, 30), max_size=4), order=st.randoms(use_true_random=False))
def test_merging_parts_in_any_order_equals_one_update(metric_class, cuts, order):
    logits, target = torch.linspace(-3, 3, 30), torch.arange(30) % 3 == 0
    bounds = sorted({0, 30, *cuts})
    metrics = []
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        metrics.append(metric_class())
        metrics[-1].update(logits[start:stop], target[start:stop])
    order.shuffle(metrics)
    for metric in metrics[1:]:
        metrics[0].merge_state(metric)
    assert float(metrics[0].compute()) == pytest.approx(value_of(metric_class(), logits, target), abs=1e-13)


@pytest.mark.parametrize("metric_class", [LogLoss, NormalizedEntropy])
def test_forward_gives_the_value_of_its_rows_and_keeps_all(metric_class):
    logits, target = torch.linspace(-3, 3, 30), torch.arange(30) % 3 == 0
    metric, alone = metric_class(), metric_class()
    metric(logits[:10], target[:10])
    assert metric(logits[10:], target[10:]) == value_of(alone, logits[10:], target[10:])
    assert float(metric.compute()) == pytest.approx(value_of(metric_class(), logits, target), abs=1e-13)


@pytest.mark.parametrize("metric_class", [LogLoss, NormalizedEntropy])
def test_states_stay_float64_under_any_precision(metric_class):
    metric = metric_class()
    metric.update(torch.tensor([1.0]), torch.tensor([0]))
    before = float(metric.loss_sum)
    for convert in (lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.set_dtype(torch.float16)):
        convert(metric)
        assert metric.loss_sum.dtype == torch.float64
        assert float(metric.loss_sum) == before


@pytest.mark.parametrize("metric_class", [LogLoss, NormalizedEntropy])
@pytest.mark.parametrize(
    ("logit", "target", "message"),
    [
        (math.nan, 0.0, "logit 0 of 1 is nan, need a finite number"),
        (0.0, 1.5, "target 0 of 1 is 1.5, need a probability from 0 to 1"),
        (0.0, math.nan, "target 0 of 1 is nan, need a probability from 0 to 1"),
    ],
)
def test_rows_that_cannot_be_counted_are_refused(metric_class, logit, target, message):
    with pytest.raises(ValueError, match=message):
        metric_class().update(torch.tensor([logit]), torch.tensor([target]))


def test_log_loss_equals_a_golden_case_of_scikit_learn():
    thirds = [0, 1, 1, 0, 0, 1, 1, 1, 1, 2, 3, 2, 1, 0, 0, 1, 1]
    target = [0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 0, 1, 0]
    logits = (torch.tensor(thirds, dtype=torch.float64) / 3).clamp(1e-7, 1 - 1e-7).logit()
    assert value_of(LogLoss(), logits, torch.tensor(target)) == pytest.approx(0.5069999925029123, abs=1e-12)


@pytest.mark.real_data
@pytest.mark.skipif("RECIS_DATA" not in os.environ, reason="RECIS_DATA names no data folder")
@pytest.mark.parametrize("case", range(6))
def test_log_loss_equals_the_golden_values(case):
    folder = Path(os.environ["RECIS_DATA"]).parent / "oracle"
    golden = json.loads((folder / "metrics_golden.json").read_text())[case]
    arrays = np.load(folder / "metrics_golden.npz")
    logits = torch.from_numpy(arrays[f"s{case}"]).clamp(1e-7, 1 - 1e-7).logit()
    found = value_of(LogLoss(), logits, torch.from_numpy(arrays[f"y{case}"]))
    assert found == pytest.approx(golden["logloss"], abs=1e-12)
