"""Leaving a fit on Ctrl-C or SIGTERM with all of it saved."""

import math
import os
import posixpath
import signal
import sys
import threading
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from recis_lightning.ragged import Batch
from recis_lightning.training.callbacks import SteppedCallback
from recis_lightning.training.run_record import run_directory
from triton_ops.transfer import Arriving


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
