"""Predictions as ORC files, written while they are made."""

import os
from typing import Any

import pyarrow as pa
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from recis_lightning.data.orc_writer import PartWriter
from recis_lightning.ragged import Batch
from recis_lightning.training.callbacks import run_directory

PART_ROWS = 10_000_000


class PredictionWriter(Callback):
    """Writes what `predict_step` returns to predictions/*.orc in the run's directory: a float column for each task.

    Rows are in the order in which the files hold them: the n-th score belongs to the n-th row. FileExistsError where
    the directory holds predictions already.
    """

    def __init__(self) -> None:
        self._writer: PartWriter | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        directory = run_directory(trainer)
        if directory is not None:
            self._writer = PartWriter(os.path.join(directory, "predictions"), PART_ROWS).__enter__()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: dict[str, Tensor],
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._writer is not None:
            self._writer.write(pa.table({task: scores.float().cpu().numpy() for task, scores in outputs.items()}))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close(None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close(exception)

    def _close(self, error: BaseException | None) -> None:
        writer: Any = self._writer
        if writer is not None:
            self._writer = None
            writer.__exit__(None if error is None else type(error), error, None)
