"""What the true probabilities score is what the log says is best reachable."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.orc
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from recis_lightning.data.synthetic.generator import write_click_log
from recis_lightning.data.synthetic.truth import SEEN_OFTEN, best_reachable, score


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    write_click_log(folder, rows=30_000, validation_rows=10_000, seed=5)
    return folder


@pytest.fixture(scope="module")
def valid(log: Path) -> pa.Table:
    return pa.concat_tables([pyarrow.orc.read_table(path) for path in sorted((log / "valid").glob("*.orc"))])


def test_best_reachable_is_what_the_true_probabilities_score(log: Path, valid: pa.Table) -> None:
    best = best_reachable(log)
    rows = {
        name: valid[name].to_numpy() for name in ("click", "conversion", "p_click", "p_conversion", "min_train_count")
    }
    slices = {
        "all": (np.ones(len(valid), bool), "click"),
        "seen_often": (rows["min_train_count"] >= SEEN_OFTEN, "click"),
        "conversion": (rows["click"] > 0, "conversion"),
    }
    assert set(best) == set(slices)
    for name, (kept, label) in slices.items():
        labels, probabilities = rows[label][kept], rows[f"p_{label}"][kept]
        assert best[name].rows == kept.sum() > 0
        assert best[name].rate == pytest.approx(labels.mean())
        assert best[name].auc == pytest.approx(roc_auc_score(labels, probabilities), abs=1e-12)
        assert best[name].logloss == pytest.approx(log_loss(labels, probabilities), abs=1e-9)


@pytest.mark.parametrize("distort", [lambda p: np.sqrt(p), lambda p: np.clip(p + 0.02, 0, 1)])
def test_no_distortion_of_the_truth_has_a_better_logloss(
    valid: pa.Table, distort: Callable[[np.ndarray], np.ndarray]
) -> None:
    labels, truth = valid["click"].to_numpy(), valid["p_click"].to_numpy()
    assert score(truth, labels).logloss < score(distort(truth), labels).logloss


def test_score_counts_ties_half_and_is_nan_without_both_classes() -> None:
    assert score(np.array([0.2, 0.6, 0.6]), np.array([0, 0, 1])).auc == 0.75
    assert np.isnan(score(np.array([0.2, 0.6]), np.array([1, 1])).auc)
    assert np.isnan(score(np.array([]), np.array([])).logloss)
