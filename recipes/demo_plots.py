"""The demo's three plots, written as PNG: calibration curve, AUC over steps, table growth."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

mpl.use("Agg")  # files only: the demo runs where there is no display


def read_history(metrics_csv: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and values of each metric that a CSVLogger wrote: name -> (steps [N], values [N])."""
    points: dict[str, list[tuple[int, float]]] = {}
    with metrics_csv.open() as lines:
        for line in csv.DictReader(lines):
            for name, value in line.items():
                if value and name not in ("step", "epoch"):
                    points.setdefault(name, []).append((int(line["step"]), float(value)))
    return {name: (np.array([x for x, _ in pairs]), np.array([y for _, y in pairs])) for name, pairs in points.items()}


def plot_calibration(path: Path, probabilities: Mapping[str, np.ndarray], labels: np.ndarray) -> Path:
    """Clicked share against mean predicted probability, in twenty groups of equally many rows."""

    def draw(axes: Any) -> None:
        axes.axline((0, 0), slope=1, color="grey", linewidth=1, linestyle=":")
        for name, scores in probabilities.items():
            groups = np.array_split(np.argsort(scores), 20)
            predicted, clicked = (np.array([values[rows].mean() for rows in groups]) for values in (scores, labels))
            axes.plot(predicted, clicked, marker="o", markersize=4, label=name)
        axes.set(xlabel="predicted probability", ylabel="share clicked")

    return _save(path, "Calibration on validation rows", draw)


def plot_auc(path: Path, history: Mapping[str, Any], floor: float, best: float) -> Path:
    """Validation AUC over training steps between the floor and the best reachable."""

    def draw(axes: Any) -> None:
        axes.plot(*history["val/auc"], marker="o", markersize=4, label="with ids")
        axes.axhline(best, color="tab:green", linestyle="--", label="best reachable")
        axes.axhline(floor, color="tab:red", linestyle="--", label="without ids")
        axes.set(xlabel="step", ylabel="validation AUC")

    return _save(path, "AUC over steps", draw)


def plot_tables(path: Path, history: Mapping[str, Any]) -> Path:
    """Rows of each table over training steps."""

    def draw(axes: Any) -> None:
        for name, points in history.items():
            if name.startswith("sparse/") and name.endswith("/rows"):
                table = name.split("/")[1]
                axes.plot(*points, label="all" if table == "rows" else table)
        axes.set(xlabel="step", ylabel="rows", yscale="log")

    return _save(path, "Table growth", draw)


def _save(path: Path, title: str, draw: Any) -> Path:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    draw(axes)
    axes.set_title(title)
    axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
