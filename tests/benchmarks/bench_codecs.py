"""Rows and gradients that travel between two ranks as they are, as bfloat16 and as float16: losses beside bytes.

An epoch of DeepFM on the synthetic click log, each precision from the same first values over the same batches. Printed
are the mean training loss of each tenth of the epoch and the last validation; the ratio is that of bytes sent a step.

    python -m tests.benchmarks codecs
"""

import logging
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from recis_lightning.data.commands.synth import read_schema
from recis_lightning.data.datamodule import OrcDataModule
from recis_lightning.data.synthetic.generator import write_click_log
from recis_lightning.models import DeepFM
from recis_lightning.training import RecModule, ShardedStrategy
from tests.benchmarks.report import Result
from tests.ranks import ROOT, run_trainers

ROWS, VALIDATION, BATCH = 200_000, 50_000, 1024
PRECISIONS = ("full", "bf16", "fp16")
TENTHS = 10


class Curve(Callback):
    """The loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].item())


def fit(log: str, precision: str) -> dict[str, Any]:
    """An epoch on this rank, of two."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.manual_seed(0)
    schema, curve = read_schema(ROOT / "recipes/synthetic_deepfm.yaml"), Curve()
    module = RecModule(schema, network=partial(DeepFM, hidden=[64, 32]))
    strategy = ShardedStrategy(rows_as=precision, grads_as=precision)  # type: ignore[arg-type]
    trainer = Trainer(
        strategy=strategy,
        accelerator="cpu",
        devices=2,
        max_epochs=1,
        callbacks=[curve],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=ROWS // BATCH,  # once: bytes are those of a step, on average since it was last logged
        default_root_dir=log,
    )
    data = OrcDataModule(schema, train=f"{log}/train", validation=f"{log}/valid", batch_size=BATCH)
    trainer.fit(module, datamodule=data)
    metrics = {name: float(trainer.callback_metrics[name]) for name in ("val/loss", "val/auc", "exchange/bytes")}
    return {"losses": curve.losses, **metrics}


def run() -> list[Result]:
    with tempfile.TemporaryDirectory() as folder:
        write_click_log(Path(folder), rows=ROWS, validation_rows=VALIDATION, seed=0)
        outcomes = {precision: run_trainers(2, fit, folder, precision) for precision in PRECISIONS}
    curves = {precision: _curve(ranks) for precision, ranks in outcomes.items()}
    print(f"  {'steps':>9}" + "".join(f"{precision:>10}" for precision in PRECISIONS))
    size = len(outcomes["full"][0]["losses"]) // TENTHS
    for tenth in range(TENTHS):
        losses = "".join(f"{curves[precision][tenth]:10.5f}" for precision in PRECISIONS)
        print(f"  {tenth * size:4}-{(tenth + 1) * size:4}{losses}")
    for name in ("val/loss", "val/auc"):
        print(f"  {name:>9}" + "".join(f"{outcomes[precision][0][name]:10.5f}" for precision in PRECISIONS))
    return [_result(precision, outcomes) for precision in PRECISIONS[1:]]


def _curve(ranks: list[dict[str, Any]]) -> list[float]:
    """The mean over ranks and over a tenth of the steps."""
    losses = torch.tensor([rank["losses"] for rank in ranks], dtype=torch.float64).mean(0)
    return losses[: len(losses) // TENTHS * TENTHS].view(TENTHS, -1).mean(1).tolist()


def _result(precision: str, outcomes: dict[str, list[dict[str, Any]]]) -> Result:
    ours, theirs = (outcomes[each][0]["exchange/bytes"] for each in (precision, "full"))
    return Result(
        name=f"bytes a rank sends a step, {precision}",
        rival="float32 (rows_as and grads_as full)",
        ratio=theirs / ours,
        worst_ratio=theirs / ours,
        ours=ours,
        theirs=theirs,
        unit="bytes",
        shapes=f"2 ranks, {BATCH} rows, 8 features of 8 floats",
        threads=1,
    )
