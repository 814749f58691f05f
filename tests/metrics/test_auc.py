"""AUC: exact beside scikit-learn, bounded beyond, and the same whatever the parts and their order."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from recis_lightning.metrics import AUC
from recis_lightning.metrics.auc import EXACT, area, coarsen, count_distinct, merge_equal, round_down, tied

few_logits = st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.25, 1.0, 3.5]), min_size=2, max_size=40)
any_logits = st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=60)


def draw_rows(logits: list[float], seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, targets of both classes, and weights."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(2, (len(logits),), generator=generator)
    target[:2] = torch.tensor([0, 1])
    weight = torch.rand(len(logits), generator=generator, dtype=torch.float64)
    return torch.tensor(logits, dtype=torch.float64), target, weight


def auc_of(*parts: tuple[torch.Tensor, ...], max_cells: int = 2**18) -> AUC:
    metric = AUC(max_cells)
    for part in parts:
        metric.update(*part)
    return metric


def split(rows: tuple[torch.Tensor, ...], cuts: list[int]) -> list[tuple[torch.Tensor, ...]]:
    bounds = sorted({min(cut, len(rows[0])) for cut in cuts} | {0, len(rows[0])})
    return [tuple(tensor[a:b] for tensor in rows) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]


def test_auc_counts_right_pairs_and_half_of_ties():
    metric = auc_of((torch.tensor([1.0, 3.0, 2.0, 2.0]), torch.tensor([0, 1, 1, 0])))
    assert metric.compute() == 0.875
    assert metric.compute().dtype == torch.float64
    assert metric.error_bound() == 0


def test_a_pair_counts_the_product_of_its_weights():
    logits, target = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1, 0, 1])
    metric = auc_of((logits, target, torch.tensor([3.0, 2.0, 1.0])))
    assert metric.compute() == 0.25  # the wrong pair weighs 3 * 2, the right one 1 * 2


@given(logits=few_logits | any_logits, seed=st.integers(0, 99))
def test_auc_equals_scikit_learn(logits, seed):
    logits, target, weight = draw_rows(logits, seed)
    assert auc_of((logits, target)).compute() == pytest.approx(roc_auc_score(target, logits), abs=1e-12)
    expected = roc_auc_score(target, logits, sample_weight=weight)
    assert auc_of((logits, target, weight)).compute() == pytest.approx(expected, abs=1e-12)


def test_auc_is_exact_to_1e9_on_a_hundred_thousand_rows():
    generator = np.random.default_rng(0)
    logits = generator.normal(-4, 1.5, 100_000)
    target = generator.random(100_000) < 1 / (1 + np.exp(-logits))
    weight = generator.random(100_000)
    metric = auc_of(*split(tuple(map(torch.from_numpy, (logits, target, weight))), list(range(0, 100_000, 4096))))
    assert abs(float(metric.compute()) - roc_auc_score(target, logits, sample_weight=weight)) < 1e-9
    assert metric.error_bound() == 0


@pytest.mark.parametrize("deviation", [0.3, 1.0, 3.0])
def test_beyond_the_cells_the_bound_holds_and_is_small(deviation):
    generator = np.random.default_rng(1)
    logits = generator.normal(-2.2, deviation, 400_000)
    target = generator.random(400_000) < 1 / (1 + np.exp(-logits))
    metric = auc_of(*split((torch.from_numpy(logits), torch.from_numpy(target)), list(range(0, 400_000, 65_536))))
    error = abs(float(metric.compute()) - roc_auc_score(target, logits))
    assert error <= metric.error_bound() <= 1e-5
    assert metric.error_bound() > 0
    assert len(metric.cells[0]) <= metric.max_cells


@given(logits=any_logits, seed=st.integers(0, 99), max_cells=st.integers(4, 20))
def test_the_bound_holds_for_any_logits_and_cells(logits, seed, max_cells):
    rows = draw_rows(logits, seed)
    metric = auc_of(rows, max_cells=max_cells)
    error = abs(float(metric.compute()) - roc_auc_score(rows[1], rows[0], sample_weight=rows[2]))
    assert error <= float(metric.error_bound()) + 1e-12


@given(
    logits=any_logits,
    seed=st.integers(0, 99),
    max_cells=st.sampled_from([4, 16, 1000]),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    order=st.randoms(use_true_random=False),
)
def test_merging_parts_in_any_order_equals_one_update(logits, seed, max_cells, cuts, order):
    rows = draw_rows(logits, seed)[:2]
    whole = auc_of(rows, max_cells=max_cells)
    metrics = [auc_of(part, max_cells=max_cells) for part in split(rows, cuts)]
    order.shuffle(metrics)
    for metric in metrics:
        if order.random() < 0.5:
            metric.compute()  # merges its cells: a part may be on a grid already, or still exact
    while len(metrics) > 1:
        metrics[0].merge_state(metrics.pop(order.randrange(1, len(metrics))))
    assert metrics[0].compute() == whole.compute()
    assert metrics[0].error_bound() == whole.error_bound()
    assert torch.equal(metrics[0].cells[0], whole.cells[0])


def test_an_exact_state_merges_with_one_on_a_grid():
    logits = torch.arange(100.0).sqrt()
    target = (torch.arange(100) % 3 == 0).long()
    coarse = auc_of((logits[:90], target[:90]), max_cells=50)
    exact = auc_of((logits[90:], target[90:]), max_cells=50)
    coarse.compute(), exact.compute()
    assert int(coarse.exponent) > EXACT
    assert int(exact.exponent) == EXACT
    whole = auc_of((logits, target), max_cells=50)
    exact.merge_state(coarse.metric_state)
    assert exact.compute() == whole.compute()


def test_merging_changes_a_value_already_computed():
    right = auc_of((torch.tensor([0.0, 1.0]), torch.tensor([0, 1])))
    wrong = auc_of((torch.tensor([0.0, 1.0]), torch.tensor([1, 0])))
    assert right.compute() == 1
    right.merge_state(wrong)
    assert right.compute() == 0.5


def test_merging_something_else_is_refused():
    with pytest.raises(ValueError, match="cannot merge a list into an AUC; give an AUC or its state"):
        AUC().merge_state([])


def test_memory_stays_bounded_however_rows_arrive():
    metric = AUC(max_cells=100)
    for step in range(300):
        logits = torch.linspace(-1, 1, 7) + step / 1000
        metric(logits, torch.tensor([0, 1] * 3 + [0]))
        assert sum(map(len, metric.cells)) <= 200
        assert len(metric.cells) <= 256
    assert metric.compute() == metric.compute()


def test_forward_gives_the_value_of_its_rows_and_keeps_all():
    metric = AUC()
    assert metric(torch.tensor([0.0, 1.0]), torch.tensor([0, 1])) == 1
    assert metric(torch.tensor([0.0, 1.0]), torch.tensor([1, 0])) == 0
    assert metric.compute() == 0.5


@pytest.mark.parametrize("target", [[0, 0], [1, 1]])
def test_one_class_alone_gives_nan_without_a_warning(target):
    metric = auc_of((torch.tensor([0.0, 1.0]), torch.tensor(target)))
    assert math.isnan(metric.compute())
    assert metric.error_bound() == 0


def test_no_rows_and_rows_without_weight_give_nan():
    metric = auc_of((torch.zeros(0), torch.zeros(0)))
    assert math.isnan(metric.compute())
    metric.update(torch.tensor([1.0, 2.0]), torch.tensor([0, 1]), torch.zeros(2))
    assert math.isnan(metric.compute())


def test_rows_without_weight_take_no_cells():
    logits = torch.cat([torch.linspace(-5, 5, 1000), torch.tensor([0.0, 1.0])])
    weight = torch.cat([torch.zeros(1000), torch.ones(2)])
    metric = auc_of((logits, (logits > 0).long(), weight), max_cells=4)
    assert metric.compute() == 1
    assert metric.error_bound() == 0


@pytest.mark.parametrize(
    ("logits", "target", "weight", "message"),
    [
        ([0.0, math.nan], [0, 1], None, "logit 1 of 2 is nan, need a finite number; the model has diverged"),
        ([math.inf, 0.0], [0, 1], None, "logit 0 of 2 is inf, need a finite number"),
        ([0.0, 1.0], [0, 2], None, "target 1 of 2 is 2.0, need 0 or 1"),
        ([0.0, 1.0], [0.5, 1], None, "target 0 of 2 is 0.5, need 0 or 1"),
        ([0.0, 1.0], [0, 1], [1.0, -1.0], "weight 1 of 2 is -1.0, need a finite number that is not negative"),
        ([0.0, 1.0], [0], None, r"target is \[1\] for logits \[2\]; give one for each logit"),
        ([0.0, 1.0], [0, 1], [1.0], r"weight is \[1\] for logits \[2\]; give one for each logit"),
    ],
)
def test_rows_that_cannot_be_counted_are_refused(logits, target, weight, message):
    metric = AUC()
    with pytest.raises(ValueError, match=message):
        metric.update(torch.tensor(logits), torch.tensor(target), None if weight is None else torch.tensor(weight))
    assert not metric.cells


def test_fewer_than_four_cells_are_refused():
    with pytest.raises(ValueError, match="max_cells is 3, need at least 4"):
        AUC(max_cells=3)


def test_states_stay_float64_under_any_precision():
    metric = auc_of((torch.tensor([0.1, 0.2], dtype=torch.float64), torch.tensor([0, 1])))
    for convert in (lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.set_dtype(torch.float16)):
        convert(metric)
        assert metric.cells[0].dtype == torch.float64
        assert metric.cells[0][:, 0].tolist() == [0.1, 0.2]


def test_reset_forgets_rows_and_grid():
    metric = auc_of((torch.linspace(-1, 1, 100), torch.arange(100) % 2), max_cells=8)
    assert metric.error_bound() > 0
    metric.reset()
    metric.update(torch.tensor([0.0, 1.0]), torch.tensor([0, 1]))
    assert metric.compute() == 1
    assert metric.error_bound() == 0


def test_area_and_tied_of_three_cells_follow_by_hand():
    cells = torch.tensor([[1, 0, 1], [2, 1, 1], [3, 1, 0]], dtype=torch.float64)
    assert area(cells) == 0.875
    assert tied(cells) == 0.25


def test_coarsen_takes_the_finest_grid_that_fits():
    cells = torch.tensor([[0.3, 1, 0], [0.0, 0, 1], [1.1, 1, 0], [0.6, 0, 1]], dtype=torch.float64)
    assert coarsen(cells, EXACT, max_cells=4)[1] == EXACT
    coarse, exponent = coarsen(cells, EXACT, max_cells=3)
    assert exponent == -1
    assert coarse.tolist() == [[0, 1, 1], [0.5, 0, 1], [1, 1, 0]]


@given(
    values=st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=30),
    fine=st.integers(EXACT, 200),
    step=st.integers(0, 200),
)
def test_rounding_twice_equals_rounding_once_to_the_coarser_grid(values, fine, step):
    cells = torch.tensor([[value, 1, 0] for value in values], dtype=torch.float64)
    once = round_down(cells, fine + step)
    assert torch.equal(round_down(round_down(cells, fine), fine + step), once)
    assert (once[:, 0] <= cells[:, 0]).all()


@given(values=few_logits)
def test_merge_equal_sorts_and_keeps_all_weight(values):
    cells = torch.tensor([[value, 1, 2] for value in values], dtype=torch.float64)
    merged = merge_equal(cells)
    assert merged[:, 0].tolist() == sorted(set(values))
    assert merged[:, 1:].sum(0).tolist() == [len(values), 2 * len(values)]
    assert count_distinct(merged) == len(set(values))


def test_auc_equals_a_golden_case_of_scikit_learn():
    thirds = [0, 1, 1, 0, 0, 1, 1, 1, 1, 2, 3, 2, 1, 0, 0, 1, 1]
    target = [0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 0, 1, 0]
    scores = torch.tensor(thirds, dtype=torch.float64) / 3
    metric = auc_of((scores.clamp(1e-7, 1 - 1e-7).logit(), torch.tensor(target)))
    assert metric.compute() == pytest.approx(0.7, abs=1e-12)


@pytest.mark.real_data
@pytest.mark.skipif("RECIS_DATA" not in os.environ, reason="RECIS_DATA names no data folder")
@pytest.mark.parametrize("case", range(6))
def test_auc_equals_the_golden_values(case):
    folder = Path(os.environ["RECIS_DATA"]).parent / "oracle"
    golden = json.loads((folder / "metrics_golden.json").read_text())[case]
    arrays = np.load(folder / "metrics_golden.npz")
    logits = torch.from_numpy(arrays[f"s{case}"]).clamp(1e-7, 1 - 1e-7).logit()
    target = torch.from_numpy(arrays[f"y{case}"])
    assert auc_of((logits, target)).compute() == pytest.approx(golden["auc"], abs=1e-9)
    if golden["auc_weighted"] is not None:
        weighted = auc_of((logits, target, torch.from_numpy(arrays[f"w{case}"])))
        assert weighted.compute() == pytest.approx(golden["auc_weighted"], abs=1e-9)
