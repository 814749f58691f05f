"""What a run does beside training: it commits the loader's position, measures, records itself, and stops when asked.

`RecModule.configure_callbacks` adds `CommitLoader`, `EvictIds`, `TableStatistics`, `Throughput`, `RunRecord`,
`DayTable` and `SaveOnInterrupt` to every Trainer. `RunProgressBar` is the CLI's; pass it as a callback to have it from
Python.
"""

import itertools
import json
import math
import os
import posixpath
import signal
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from types import FrameType
from typing import Any

import torch
from fsspec.core import url_to_fs
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.trainer.states import TrainerFn

from recis_lightning.ragged import Batch
from recis_lightning.tables import DynamicTable
from triton_ops.transfer import Arriving


def run_directory(trainer: Trainer) -> str | None:
    """Where a run keeps config.yaml, metrics.json, checkpoints/: <save_dir>/<name>/<version> of its first logger.

    `ModelCheckpoint` puts its checkpoints there too, whatever the logger. Without a logger it is <default_root_dir>,
    for want of a version; None under fast_dev_run, which leaves nothing behind.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    if not trainer.loggers:
        return trainer.default_root_dir
    logger = trainer.loggers[0]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return os.path.join(logger.save_dir or trainer.default_root_dir, str(logger.name), version)


def write_text(path: str, text: str) -> None:
    """Write a small file in one step: readers see the old text or the new one."""
    fs, place = url_to_fs(path)
    fs.makedirs(posixpath.dirname(place), exist_ok=True)
    fs.pipe_file(place + ".tmp", text.encode())
    fs.mv(place + ".tmp", place)


def read_text(path: str) -> str | None:
    """What a small file holds; None where there is none."""
    fs, place = url_to_fs(path)
    return fs.cat_file(place).decode() if fs.exists(place) else None


def keep_aside(path: str) -> None:
    """Give the file of an earlier run another name, if there is one: metrics.json -> metrics.1.json, the next one 2."""
    fs, place = url_to_fs(path)
    if fs.exists(place):
        stem, ending = posixpath.splitext(place)
        names = (f"{stem}.{number}{ending}" for number in itertools.count(1))
        fs.mv(place, next(name for name in names if not fs.exists(name)))


class CommitLoader(Callback):
    """Tells the training loader which batch has been trained on, so that a checkpoint's position is right behind it.

    The strategy puts it before all other callbacks: any of them may save. It also brings the position back, which
    Lightning leaves out for checkpoints at the end of an epoch, and where something asked for the loader before the
    checkpoint was read. For this a loader reads its position with the first `next`, not with `iter`.
    """

    def __init__(self) -> None:
        self._position: dict[str, Any] | None = None
        self._restored: dict[str, Any] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._position = None  # of an earlier fit; a checkpoint is read after this

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loader: Any = trainer.train_dataloader
        if self._restored is not None and hasattr(loader, "commit"):
            loader.load_state_dict(self._restored)
        self._restored = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        loader: Any = trainer.train_dataloader
        if hasattr(loader, "commit"):
            loader.commit(batch.token)
            self._position = loader.state_dict()

    def state_dict(self) -> dict[str, Any]:
        return {"position": self._position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._position = self._restored = state_dict["position"]


def is_logged(trainer: Trainer, step: int) -> bool:
    """Whether Lightning hands on to loggers what is logged at an optimizer step; never where log_every_n_steps is 0."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and step % every == 0


class SteppedCallback(Callback):
    """Knows whether the batch that has just ended ended with an optimizer step, or only added to gradients."""

    _global_step = -1
    stepped = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self._global_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.stepped = trainer.global_step > self._global_step

    def is_logged(self, trainer: Trainer) -> bool:
        """Whether loggers get what is logged at this batch's end."""
        return self.stepped and is_logged(trainer, trainer.global_step)


class EvictIds(SteppedCallback):
    """Lets tables forget the ids that their evictions name, after each optimizer step that one of them is due at.

    Never between batches that are accumulated to one step, nor after a step that a loss scaler has skipped.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        embedding: Any = pl_module.embedding
        if self.stepped and not any(group.pending for group in embedding.groups):
            embedding.evict()


class TableStatistics(SteppedCallback):
    """Logs sparse/<table>/rows of every table, and sparse/rows and sparse/bytes of all together.

    Of tables with admission, eviction or a capacity also inserted, admitted, evicted (ids so far), refused (occurrences
    so far), and waiting (ids that are counted and not admitted). On several ranks these are sums over all of them, and
    there are exchange/bytes and exchange/seconds: what this rank has sent to others in a step, and how long it waited.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.is_logged(trainer):
            pl_module.log_dict(self._of_all_ranks(pl_module))

    def _of_all_ranks(self, pl_module: LightningModule) -> dict[str, float]:
        """Statistics of all ranks' rows, and what the exchange between them has cost since they were last logged."""
        found = table_statistics(pl_module.tables)  # type: ignore[arg-type]
        route: Any = pl_module.embedding.route  # type: ignore[union-attr]
        sums = route.sum(torch.tensor(list(found.values()), dtype=torch.float64)).tolist()
        return dict(zip(found, sums, strict=True)) | route.take_costs()


def table_statistics(tables: Mapping[str, DynamicTable]) -> dict[str, float]:
    """What `TableStatistics` logs, of these tables."""
    stats = {name: table.stats() for name, table in tables.items()}
    rows = {f"sparse/{name}/rows": float(table["ids"]) for name, table in stats.items()}
    used = sum(table["row_bytes"] + table["index_bytes"] + table.get("admission_bytes", 0) for table in stats.values())
    events = {
        f"sparse/{name}/{event}": float(stats[name][event])
        for name, table in tables.items()
        if table.has_policies
        for event in ("inserted", "admitted", "refused", "evicted", "waiting")
        if event in stats[name]
    }
    return rows | events | {"sparse/rows": sum(rows.values()), "sparse/bytes": float(used)}


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


BETTER = {"loss": min, "logloss": min, "ne": min, "mse": min, "auc": max, "gauc": max}
"""Which of two values of a metric is better, by the last part of its name; others have no best value."""


class RunRecord(Callback):
    """Writes metrics.json into the run's directory: every metric's last value, and the best of those of validation.

    {"step": 200, "last": {"train/loss": 0.43, "val/auc": 0.79}, "best": {"val/auc": {"value": 0.8, "step": 100}}}

    ``run`` beside them tells runs apart that share a directory, having no logger to number them: the file of another
    one is kept as metrics.1.json. A fit that goes on from a checkpoint, and a test of one, belong to the run it is of.
    """

    def __init__(self) -> None:
        self.best: dict[str, dict[str, float]] = {}
        self.run = uuid.uuid4().hex

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.best, self.run = {}, uuid.uuid4().hex  # not those of an earlier fit; a checkpoint is read after this

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        for name, value in _metrics(trainer).items():
            better = BETTER.get(name.rpartition("/")[2])
            if name.startswith("val/") and better is not None and value is not None:
                best = self.best.get(name)
                if best is None or better(value, best["value"]) != best["value"]:
                    self.best[name] = {"value": value, "step": trainer.global_step}
        self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    def describe_best(self) -> str:
        """The best AUCs, or else losses, of validation: "best val/auc 0.8021"; empty without validation."""
        for kind in ("auc", "loss"):
            names = [name for name in self.best if name.rpartition("/")[2] == kind and "/source/" not in name]
            if names:
                return ", ".join(f"best {name} {self.best[name]['value']:.4f}" for name in names)
        return ""

    def _write(self, trainer: Trainer) -> None:
        directory = run_directory(trainer)
        if directory is None or not trainer.is_global_zero:
            return
        path = posixpath.join(directory, "metrics.json")
        record = {"run": self.run, "step": trainer.global_step, "last": _metrics(trainer), "best": self.best}
        before = _read_record(path)
        if before.get("run") != self.run:
            keep_aside(path)
        elif trainer.state.fn != TrainerFn.FITTING:  # a test says nothing of the fit's own values
            record |= {"step": before["step"], "last": before["last"] | record["last"]}
        write_text(path, json.dumps(record, indent=1))

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "run": self.run}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.run = state_dict["best"], state_dict.get("run", self.run)


def _read_record(path: str) -> dict[str, Any]:
    try:
        return dict(json.loads(read_text(path) or "{}"))
    except (ValueError, TypeError):  # somebody else's
        return {}


def _metrics(trainer: Trainer) -> dict[str, float | None]:
    """Metrics as JSON has them: None for what is no finite number, as the auc where all labels are alike."""
    values = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


class RunInterrupted(SystemExit):
    """Ends the process once the run is saved in ``path``: with status 130, as a shell's Ctrl-C does, or with 143."""

    def __init__(self, path: str | None, status: int = 130) -> None:
        super().__init__(status)
        self.path = path


class SaveOnInterrupt(SteppedCallback):
    """On the first SIGINT (Ctrl-C) or SIGTERM of a fit: end the running step, save interrupted.ckpt, leave.

    The status is 130, for SIGTERM 143. A second signal aborts at once, as without this callback. What is saved resumes
    to the bit. On several ranks it is enough that one gets the signal: they tell each other with the next batch.
    """

    def __init__(self) -> None:
        self.requested = False
        """Whether this process has got a signal."""
        self.agreed = Arriving(torch.zeros(()))
        """How many ranks had, when they last told each other."""
        self._status = 130
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.requested, self.agreed, self._status = False, Arriving(torch.zeros(())), 130
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._previous = {
                number: signal.signal(number, self._request) for number in (signal.SIGINT, signal.SIGTERM)
            }

    def _request(self, signum: int, frame: FrameType | None) -> None:
        self.requested, self._status = True, 128 + signum
        self._restore_handler()
        # Not print(): the signal may have come in the middle of one.
        os.write(2, b"\nrecis: saving after this step; Ctrl-C again to abort at once\n")

    def _restore_handler(self) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if not _may_be_validated(trainer, batch_idx):
            self._leave_if_requested(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._leave_if_requested(trainer)

    def _leave_if_requested(self, trainer: Trainer) -> None:
        is_due = self.requested if trainer.world_size == 1 else bool(self.agreed.read())
        if not (is_due and self.stepped):
            return
        self.requested, self.agreed = False, Arriving(torch.zeros(()))
        # Lightning kills the process that started the others when one of these ends with a status that is not 0.
        status = self._status if trainer.is_global_zero else 0
        directory = run_directory(trainer)
        if directory is None:
            raise RunInterrupted(None, status)
        path = posixpath.join(directory, "interrupted.ckpt")
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            print(f"recis: stopped after step {trainer.global_step}; go on with --ckpt_path {path}", file=sys.stderr)
        raise RunInterrupted(path, status)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_handler()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore_handler()


def _may_be_validated(trainer: Trainer, batch_idx: int) -> bool:
    """Whether validation may follow this batch: what is saved before it would resume behind it, and leave it out."""
    every = trainer.val_check_batch
    is_due = every is not None and math.isfinite(every) and (batch_idx + 1) % every == 0
    return trainer.enable_validation and (trainer.is_last_batch or is_due)


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
