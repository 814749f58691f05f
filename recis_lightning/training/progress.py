"""How fast a fit is, in its logs and on its progress bar."""

import math
import sys
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from recis_lightning.ragged import Batch
from recis_lightning.training.callbacks import SteppedCallback

SPEED = "perf/rows_per_second"


class Throughput(SteppedCallback):
    """Logs perf/rows_per_second and perf/data_wait, the share of time that training waited for its data.

    Both over the steps since they were last logged (every ``log_every_n_steps``), without validation and checkpoints.
    """

    def __init__(self) -> None:
        self._rows = 0
        self._busy = self._waited = 0.0
        self._since = self._saving = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rows, self._busy, self._waited = 0, 0.0, 0.0
        self._lap(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._lap(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._lap(trainer)

    def _lap(self, trainer: Trainer) -> float:
        """Seconds since the last lap, without those that went into checkpoints."""
        since, saving = self._since, self._saving
        self._since, self._saving = time.perf_counter(), trainer.strategy.seconds_saving  # type: ignore[attr-defined]
        return max(self._since - since - (self._saving - saving), 0.0) if since else 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._waited += self._lap(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._busy += self._lap(trainer)
        self._rows += batch.size
        if self.is_logged(trainer):
            self._log(pl_module)

    def _log(self, pl_module: LightningModule) -> None:
        route: Any = pl_module.embedding.route  # type: ignore[union-attr]
        own = [self.rows_per_second() or 0.0, self._waited, self._busy + self._waited]
        speed, waited, seconds = route.sum(torch.tensor(own, dtype=torch.float64)).tolist()
        if speed:
            pl_module.log(SPEED, speed, prog_bar=True)
            pl_module.log("perf/data_wait", waited / seconds)
        self._rows, self._busy, self._waited = 0, 0.0, 0.0

    def rows_per_second(self) -> float | None:
        """Over the steps since it was last logged; None right behind that."""
        seconds = self._busy + self._waited
        return self._rows / seconds if seconds > 0 and self._rows else None


class RunProgressBar(TQDMProgressBar):
    """Lightning's bar with rows/s and the time left of the whole fit, drawn twice a second (in a file, every 10 s)."""

    BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"

    def __init__(self, leave: bool = False) -> None:
        super().__init__(leave=leave)
        self.every_seconds = 0.5 if sys.stdout.isatty() else 10.0
        self._drawn = self._started = 0.0
        self._first_step = 0

    def on_train_start(self, *arguments: Any) -> None:
        super().on_train_start(*arguments)
        self._started, self._first_step = time.monotonic(), self.trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.train_progress_bar.n = batch_idx + 1
        if self._is_due() or batch_idx + 1 == self.total_train_batches:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_batch_end(self, *arguments: Any, **options: Any) -> None:
        if self._is_due():
            super().on_validation_batch_end(*arguments, **options)

    def _is_due(self) -> bool:
        now = time.monotonic()
        if now - self._drawn < self.every_seconds:
            return False
        self._drawn = now
        return True

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        shown: dict[str, Any] = {}
        logged: Any = metrics.pop(SPEED, None)
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        running = next((c.rows_per_second() for c in callbacks if isinstance(c, Throughput)), None)
        speed = logged if running is None else running
        if speed is not None:
            shown["rows/s"] = f"{speed / 1000:.1f}k" if speed >= 1000 else f"{speed:.0f}"
        left = self._seconds_left(trainer)
        if left is not None:
            shown["left"] = self.train_progress_bar.format_interval(left)
        return shown | metrics

    def _seconds_left(self, trainer: Trainer) -> float | None:
        """At the pace since the start, validation and checkpoints included; None where the end is not known."""
        done = trainer.global_step - self._first_step
        if done <= 0 or not math.isfinite(trainer.estimated_stepping_batches):
            return None
        remaining = trainer.estimated_stepping_batches - trainer.global_step
        return max(remaining, 0) * (time.monotonic() - self._started) / done
