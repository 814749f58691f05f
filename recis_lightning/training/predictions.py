"""Scores as files, written while they are made: `recis predict --config recipe.yaml --ckpt_path x.ckpt`."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from pyarrow import orc
from torch import Tensor

from recis_lightning.ragged import Batch
from recis_lightning.training.run_record import run_directory

log = logging.getLogger(__name__)

ROWS = 65_536  # of a row group or stripe: batches are gathered until there are as many


class _Writer(Protocol):
    def write(self, table: pa.Table) -> Any: ...
    def close(self) -> None: ...


class PredictionWriter(Callback):
    """Writes the scores of `predict`, a column for each task, beside the columns that the data module keeps.

        data: {predict: log/new, keep: [user_id, item_id]}

    Each rank writes ``folder``/part-<rank>.orc, or .parquet, in the order of its rows; it appears when it is whole.
    ``folder`` is predictions in the run's directory where none is given. Raises FileExistsError where it holds
    predictions already, and MisconfigurationException where a task has the name of a kept column.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, format: Literal["orc", "parquet"] = "orc") -> None:
        self.folder, self.format = folder, format
        if format not in ("parquet", "orc"):
            raise MisconfigurationException(f"format is '{format}', need parquet or orc")
        self.rows = 0
        """Rows written so far."""
        self._writer: _Writer | None = None
        self._waiting: list[pa.Table] = []
        self._kept: Any = None
        self._folder: Path | None = None

    @property
    def _unfinished(self) -> Path:
        return self._path.with_name(f".{self._path.name}.unfinished")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        directory = trainer.strategy.broadcast(run_directory(trainer))
        self._folder = (
            None if self.folder is None and directory is None else Path(self.folder or f"{directory}/predictions")
        )
        if self._folder is None:  # fast_dev_run leaves nothing behind
            return
        if self._folder.is_dir() and any(self._folder.glob("part-*")):
            raise FileExistsError(f"{self._folder} holds predictions already; remove them, or name another folder")
        self._path = self._folder / f"part-{trainer.global_rank:05d}.{self.format}"
        kept_rows = getattr(getattr(trainer, "datamodule", None), "kept_rows", None)
        self._kept = kept_rows() if kept_rows is not None else None
        self.rows, self._waiting = 0, []

    # Not BasePredictionWriter: Lightning would ask the loader for indices of rows, and warn that there are none.
    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Mapping[str, Tensor],
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._folder is None:
            return
        rows = self._kept.take(batch_idx) if self._kept is not None and self._kept.columns else None
        names = list(rows.column_names) if rows is not None else []
        arrays = list(rows.columns) if rows is not None else []
        for task, scores_B in outputs.items():
            if task in names:
                raise MisconfigurationException(f"task '{task}' and a kept column have one name; keep another column")
            names.append(task)
            arrays.append(pa.array(scores_B.detach().float().cpu().numpy()))
        self._waiting.append(pa.table(arrays, names=names))
        self.rows += batch.size
        if sum(map(len, self._waiting)) >= ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting).combine_chunks()
        self._waiting = []
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = _open(str(self._unfinished), self.format, table.schema)
        self._writer.write(table)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._flush()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._unfinished.rename(self._path)
            log.info("wrote the scores of %d rows to %s", self.rows, self._path)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._unfinished.unlink()


def _open(path: str, format: str, schema: pa.Schema) -> _Writer:
    if format == "orc":
        writer: _Writer = orc.ORCWriter(path, compression="zstd")
        return writer
    return _ParquetWriter(path, schema)


class _ParquetWriter:
    def __init__(self, path: str, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table)

    def close(self) -> None:
        self._writer.close()
