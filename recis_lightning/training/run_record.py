"""Where a run keeps its small files, and the record of its metrics among them."""

import itertools
import json
import math
import os
import posixpath
import uuid
from typing import Any

from fsspec.core import url_to_fs
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn


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
