"""The best AUC and logloss that any model can reach on a synthetic log, measured with its true probabilities."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.orc
from numpy.typing import NDArray

SEEN_OFTEN = 20  # rows of training behind which a model can be asked for the effect of an id


@dataclass(frozen=True, kw_only=True)
class Reachable:
    """What the true probabilities score on some rows, which no model can beat but by luck."""

    rows: int
    rate: float
    """Share of positive labels."""
    auc: float
    logloss: float


def best_reachable(folder: str | Path) -> dict[str, Reachable]:
    """Read ``folder/truth.json``.

    Keys: `all` validation rows; `seen_often`, those whose ids training saw 20 times or more each; `conversion`, of the
    clicked rows.
    """
    report = json.loads(Path(folder, "truth.json").read_text())
    return {name: Reachable(**best) for name, best in report["best_reachable"].items()}


def measure_best_reachable(folder: str | Path) -> dict[str, Reachable]:
    """Score the side columns against the labels of ``folder/valid``; what `best_reachable` reads was measured so."""
    names = ["click", "conversion", "p_click", "p_conversion", "min_train_count"]
    parts = [pyarrow.orc.read_table(path, columns=names) for path in sorted(Path(folder, "valid").glob("*.orc"))]
    rows = {
        name: column.to_numpy()
        for name, column in zip(parts[0].column_names, pa.concat_tables(parts).columns, strict=True)
    }
    seen_often, clicked = rows["min_train_count"] >= SEEN_OFTEN, rows["click"] > 0
    return {
        "all": score(rows["p_click"], rows["click"]),
        "seen_often": score(rows["p_click"][seen_often], rows["click"][seen_often]),
        "conversion": score(rows["p_conversion"][clicked], rows["conversion"][clicked]),
    }


def score(probabilities: NDArray[Any], labels: NDArray[Any]) -> Reachable:
    """AUC and logloss of probabilities: [.2, .6, .6] for labels [0, 0, 1] -> AUC .75, since a tie counts half.

    Nan where they are undefined: without rows, and the AUC without both kinds of label.
    """
    positive = labels > 0
    logloss = -np.log(np.where(positive, probabilities, 1.0 - probabilities)).mean() if len(labels) else np.nan
    return Reachable(
        rows=len(labels),
        rate=float(positive.mean()) if len(labels) else float("nan"),
        auc=_auc(probabilities, positive),
        logloss=float(logloss),
    )


def _auc(scores: NDArray[Any], positive: NDArray[np.bool_]) -> float:
    """The Mann-Whitney statistic: mean rank of the positives, ties sharing theirs."""
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((ranks[inverse][positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))
