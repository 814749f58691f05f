"""`make demo`: a synthetic click log, a model without ids, one with hash-table embeddings, and how close it came.

    python recipes/demo.py

Runs what a user would type (the lines behind `$`), then scores the validation rows and says how much of the way from
the model without ids to the best reachable AUC was gone. Data stay in demo/, runs in runs/, both of the folder --work.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.orc
import torch
from demo_plots import plot_auc, plot_calibration, plot_tables, read_history
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from recis_lightning.data.datamodule import OrcDataModule
from recis_lightning.data.synthetic.generator import is_written
from recis_lightning.data.synthetic.truth import SEEN_OFTEN, Reachable, best_reachable, score
from recis_lightning.tables import DynamicTable
from recis_lightning.training import RecModule

RECIS = "import sys; from recis_lightning.cli import main; sys.exit(main())"  # whether or not it is on the PATH
ROOT = Path(__file__).resolve().parents[1]
FLOOR, OURS = "synthetic_dense", "synthetic_deepfm"
console = Console()


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished fit: its folder, what it logged by name, its module, and its scores for the validation rows."""

    folder: Path
    checkpoint: Path
    history: dict[str, tuple[NDArray[Any], NDArray[Any]]]
    module: RecModule
    probabilities: NDArray[Any]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train on a synthetic click log and compare with the best reachable.")
    parser.add_argument("--rows", type=int, default=1_000_000, help="training rows; a tenth as many validate")
    parser.add_argument("--work", type=Path, default=ROOT, help="where data and runs go (default: the repository)")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    os.chdir(arguments.work)
    started = time.perf_counter()
    log = make_log(arguments.rows)
    floor, ours = train(FLOOR, log), train(OURS, log)
    command("validate", "--config", recipe(OURS), "--ckpt_path", str(ours.checkpoint))
    report(log, floor, ours)
    console.print(f"The demo took {time.perf_counter() - started:.0f} s.")


def command(*arguments: str) -> None:
    """Run a line of `recis` in a process of its own; leave with its status where it fails."""
    console.rule()
    console.print(f"$ recis {' '.join(arguments)}", style="bold", highlight=False, soft_wrap=True)
    status = subprocess.run([sys.executable, "-c", RECIS, *arguments]).returncode
    if status:
        sys.exit(status)


def recipe(name: str) -> str:
    return os.path.relpath(ROOT / "recipes" / f"{name}.yaml")


def make_log(rows: int) -> Path:
    """The log in demo/, written anew unless one of these sizes is there."""
    log, validation_rows = Path("demo/log"), max(1, rows // 10)
    if is_written(log, rows=rows, validation_rows=validation_rows):
        console.print(f"{log} is written already.")
        return log
    shutil.rmtree(log, ignore_errors=True)
    command("data", "synth", str(log), "--rows", str(rows))
    return log


def train(name: str, log: Path) -> Run:
    """Fit a recipe and score the validation rows with what it has learned."""
    command("fit", "--config", recipe(name))
    folder = max(Path("runs", name).glob("version_*"), key=lambda path: path.stat().st_mtime)
    checkpoint = folder / "checkpoints" / "last.ckpt"
    module = RecModule.load_from_checkpoint(str(checkpoint))
    trainer = Trainer(strategy="recis_sharded", accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    # One process reads them in the order of the files, so that scores stand beside labels.
    batches: Any = trainer.predict(module, OrcDataModule(module.schema, predict=log / "valid"))
    return Run(
        folder=folder,
        checkpoint=checkpoint,
        history=read_history(folder / "metrics.csv"),
        module=module,
        probabilities=torch.cat([scores["ctr"] for scores in batches]).numpy(),
    )


def report(log: Path, floor: Run, ours: Run) -> None:
    """Print how close the runs came, their tables and speed, and where plots and logs are."""
    rows_B = read_validation(log)
    best = best_reachable(log)
    slices = {"all": rows_B["click"] >= 0, "seen_often": rows_B["min_train_count"] >= SEEN_OFTEN}
    aucs = {name: compare(kept_B, rows_B["click"], floor, ours, best[name]) for name, kept_B in slices.items()}
    plots = plot(floor, ours, rows_B["click"], aucs["all"])
    console.rule()
    console.print(describe_aucs(aucs))
    console.print(describe_tables(ours.module.tables))
    speed = np.median(ours.history["perf/rows_per_second"][1])
    console.print(f"Trained on {speed:,.0f} rows per second (median).")
    console.print("Plots:", *plots, sep="\n  ")
    console.print(f"Logs, checkpoints, metrics.json, config.yaml:\n  {ours.folder}")


def read_validation(log: Path) -> dict[str, NDArray[Any]]:
    """The columns that judge: labels, and how often each row's rarest id was seen."""
    names = ["click", "min_train_count"]
    parts = [pyarrow.orc.read_table(path, columns=names) for path in sorted((log / "valid").glob("*.orc"))]
    rows = pa.concat_tables(parts)
    return {name: rows[name].to_numpy() for name in names}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """AUCs on some of the validation rows."""

    rows: int
    floor: float
    ours: float
    best: float

    @property
    def closed(self) -> float:
        """How much of the way from the floor to the best is gone."""
        return (self.ours - self.floor) / (self.best - self.floor)


def compare(kept_B: NDArray[np.bool_], label_B: NDArray[Any], floor: Run, ours: Run, best: Reachable) -> Comparison:
    floor_auc, our_auc = (score(run.probabilities[kept_B], label_B[kept_B]).auc for run in (floor, ours))
    return Comparison(rows=int(kept_B.sum()), floor=floor_auc, ours=our_auc, best=best.auc)


def plot(floor: Run, ours: Run, label_B: NDArray[Any], auc: Comparison) -> list[str]:
    folder = ours.folder / "plots"
    probabilities = {"with ids": ours.probabilities, "without ids": floor.probabilities}
    paths = [
        plot_auc(folder / "auc.png", ours.history, auc.floor, auc.best),
        plot_calibration(folder / "calibration.png", probabilities, label_B),
        plot_tables(folder / "tables.png", ours.history),
    ]
    return list(map(str, paths))


def describe_aucs(aucs: Mapping[str, Comparison]) -> Table:
    table = Table("validation rows", title="AUC")
    for title in ("no ids", "ours", "best reachable", "gap closed"):
        table.add_column(title, justify="right")
    names = {"all": "all {:,}", "seen_often": f"{{:,}} with ids seen {SEEN_OFTEN}x"}
    for name, auc in aucs.items():
        values = [f"{value:.4f}" for value in (auc.floor, auc.ours, auc.best)]
        table.add_row(names[name].format(auc.rows), *values, f"{auc.closed:.1%}")
    return table


def describe_tables(tables: Mapping[str, DynamicTable]) -> Table:
    stats = {name: table.stats() for name, table in tables.items()}
    sizes = {name: (int(of["ids"]), int(of["row_bytes"] + of["index_bytes"])) for name, of in stats.items()}
    rows, used = map(sum, zip(*sizes.values(), strict=True))
    table = Table("table", title="Tables", show_footer=True)
    table.columns[0].footer = "all"
    table.add_column("rows", f"{rows:,}", justify="right")
    table.add_column("MB", f"{used / 1e6:.2f}", justify="right")
    for name, (rows, used) in sizes.items():
        table.add_row(name, f"{rows:,}", f"{used / 1e6:.2f}")
    return table


if __name__ == "__main__":
    main()
