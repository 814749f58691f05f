import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from recis_lightning.training import RecModule
from recis_lightning.training.interrupt import RunInterrupted
from tests.training.helpers import (
    InterruptAt,
    Losses,
    MemoryLoader,
    SmallNet,
    everything,
    make_module,
    make_schema,
    make_trainer,
)

BATCHES = 6  # an epoch, of which there are two


class Run:
    """A fit on the same data from the same first values, interrupted or not, from a checkpoint or not."""

    def __init__(self, root: Path, *callbacks: Callback, ckpt_path: str | None = None, **options: Any) -> None:
        self.losses, self.module = Losses(), make_module()
        torch.manual_seed(1 if ckpt_path is None else 999)  # dropout must come from the checkpoint's random state
        self.trainer = make_trainer(root, self.losses, *callbacks, **options)
        self.interrupted: str | None = None
        try:
            loaders = MemoryLoader(BATCHES), MemoryLoader(2, seed=9)
            self.trainer.fit(self.module, *loaders, ckpt_path=ckpt_path)
        except RunInterrupted as stop:
            self.interrupted = stop.path


def validated(trainer: Trainer) -> dict[str, float]:
    return {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}


def best_of(root: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads((root / "metrics.json").read_text())["best"]
    return found


OPTIONS: list[dict[str, Any]] = [
    {},
    {"accumulate_grad_batches": 4, "gradient_clip_val": 0.1},
    {"val_check_interval": 2},
    {"max_steps": 9, "max_epochs": -1},
]


@pytest.mark.trap(2)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
def test_interrupted_and_resumed_equals_uninterrupted(options: dict[str, Any], tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole", **options)
    for batch in (0, 2, 5, 7):
        stopped = Run(tmp_path / f"{batch}", InterruptAt(batch), **options)
        assert stopped.interrupted == str(tmp_path / f"{batch}" / "interrupted.ckpt")
        assert stopped.trainer.global_step < whole.trainer.global_step
        resumed = Run(tmp_path / f"{batch}", ckpt_path=stopped.interrupted, **options)
        assert stopped.losses.by_batch | resumed.losses.by_batch == whole.losses.by_batch
        assert not stopped.losses.by_batch.keys() & resumed.losses.by_batch.keys()
        assert everything(resumed.module) == everything(whole.module)
        assert resumed.trainer.global_step == whole.trainer.global_step
        if "max_steps" not in options:
            assert validated(resumed.trainer) == validated(whole.trainer)
            assert best_of(tmp_path / f"{batch}") == best_of(tmp_path / "whole")


@pytest.mark.parametrize("later", [{}, {"max_steps": 9}, {"max_steps": 12, "max_epochs": -1}])
@pytest.mark.parametrize("every", [{"every_n_train_steps": 4}, {"save_on_train_epoch_end": True}, {}], ids=str)
def test_an_epoch_that_max_steps_cuts_off_goes_on_where_it_was_left(
    every: dict[str, Any], later: dict[str, Any], tmp_path: Path
) -> None:
    whole = Run(tmp_path / "whole", **later)
    path = str(tmp_path / "cut.ckpt")
    if every:
        Run(tmp_path, ModelCheckpoint(tmp_path, filename="cut", **every), max_steps=4)
    else:
        Run(tmp_path, max_steps=4).trainer.save_checkpoint(path)
    rest = Run(tmp_path / "rest", ckpt_path=path, **later)
    assert rest.losses.by_batch == {batch: loss for batch, loss in whole.losses.by_batch.items() if batch >= 4}
    assert everything(rest.module) == everything(whole.module)
    assert rest.trainer.current_epoch == whole.trainer.current_epoch
    if "max_steps" not in later:
        assert validated(rest.trainer) == validated(whole.trainer)


def save_often(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder / "often", filename="{step}", every_n_train_steps=3, save_top_k=-1)


@pytest.mark.trap(2)
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("step", [9, 12])
def test_a_run_that_went_on_behind_the_last_batch_of_an_epoch_saves_what_can_be_gone_on_from(
    step: int, tmp_path: Path
) -> None:
    whole = Run(tmp_path, save_often(tmp_path))
    resumed = Run(tmp_path / "1", save_often(tmp_path / "1"), ckpt_path=str(tmp_path / "often" / "step=6.ckpt"))
    again = Run(tmp_path / "2", ckpt_path=str(tmp_path / "1" / "often" / f"step={step}.ckpt"))
    assert again.losses.by_batch == {batch: loss for batch, loss in whole.losses.by_batch.items() if batch >= step}
    for run in (resumed, again):
        assert everything(run.module) == everything(whole.module)
        assert run.trainer.fit_loop.epoch_progress.current == whole.trainer.fit_loop.epoch_progress.current


class InterruptInValidation(Callback):
    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.trap(2)
def test_an_interrupt_in_validation_saves_behind_it(tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole", val_check_interval=3)
    stopped = Run(tmp_path, InterruptInValidation(), val_check_interval=3)
    assert stopped.trainer.global_step == 3
    assert validated(stopped.trainer)
    resumed = Run(tmp_path, ckpt_path=stopped.interrupted, val_check_interval=3)
    assert stopped.losses.by_batch | resumed.losses.by_batch == whole.losses.by_batch
    assert everything(resumed.module) == everything(whole.module)


def test_every_saved_checkpoint_resumes_exactly(tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole")
    every_step = ModelCheckpoint(tmp_path / "steps", every_n_train_steps=1, save_top_k=-1)
    after_training = ModelCheckpoint(tmp_path / "epochs", save_top_k=-1, save_on_train_epoch_end=True)
    after_validation = ModelCheckpoint(tmp_path / "validated", monitor="val/loss", save_top_k=-1)
    Run(tmp_path, every_step, after_training, after_validation)
    paths = [path for folder in ("steps", "epochs", "validated") for path in (tmp_path / folder).iterdir()]
    assert len(paths) == 2 * BATCHES + 2 + 2
    for path in paths:
        resumed = Run(tmp_path, ckpt_path=str(path))
        assert everything(resumed.module) == everything(whole.module), path
        assert resumed.losses.by_batch.items() <= whole.losses.by_batch.items()


@pytest.mark.trap(21)
def test_the_best_and_the_last_checkpoint_are_kept_as_directories(tmp_path: Path) -> None:
    best = ModelCheckpoint(
        dirpath=tmp_path / "c", monitor="val/loss", save_top_k=1, save_last="link", filename="{step}"
    )
    whole = Run(tmp_path, best, max_epochs=4)
    names = sorted(path.name for path in (tmp_path / "c").iterdir())
    assert len(names) == 2
    assert names[0] == "last.ckpt"
    assert Path(best.best_model_path).is_dir()
    for path in (str(tmp_path / "c" / "last.ckpt"), "last"):
        resumed = Run(tmp_path, ModelCheckpoint(tmp_path / "c", monitor="val/loss"), ckpt_path=path, max_epochs=4)
        assert min(resumed.losses.by_batch) > 0
        assert everything(resumed.module) == everything(whole.module)


@pytest.mark.trap(9)
def test_top_k_removes_directories(tmp_path: Path) -> None:
    top = ModelCheckpoint(dirpath=tmp_path / "c", monitor="val/loss", save_top_k=2, save_last=True, filename="{epoch}")
    Run(tmp_path, top, max_epochs=5)
    kept = {path.name for path in (tmp_path / "c").iterdir()}
    assert kept == {"last.ckpt", *(Path(path).name for path in top.best_k_models)}
    assert len(kept) == 3


@pytest.mark.trap(2)
def test_the_position_comes_back_to_a_loader_that_was_asked_for_early(tmp_path: Path) -> None:
    # Lightning sets up the loader, and forgets the saved position, once configure_optimizers asks how long it is.
    class Asking(RecModule):
        def configure_optimizers(self) -> Any:
            assert self.trainer.estimated_stepping_batches == 2 * BATCHES
            return super().configure_optimizers()

    def fit(*callbacks: Callback, ckpt_path: str | None = None) -> dict[int, float]:
        torch.manual_seed(0)
        losses = Losses()
        trainer = make_trainer(tmp_path, losses, *callbacks)
        trainer.fit(Asking(make_schema(), SmallNet), MemoryLoader(BATCHES), ckpt_path=ckpt_path)
        return losses.by_batch

    whole = fit()
    with pytest.raises(RunInterrupted) as stop:
        fit(InterruptAt(2))
    assert fit(ckpt_path=stop.value.path) == {batch: loss for batch, loss in whole.items() if batch > 2}


@pytest.mark.trap(2)
def test_a_loader_without_length_loses_no_batch(tmp_path: Path) -> None:
    # Lightning reads one batch ahead of such a loader, and would save the position behind it.
    class Unsized:
        def __init__(self) -> None:
            self.loader = MemoryLoader(BATCHES)
            self.commit, self.state_dict = self.loader.commit, self.loader.state_dict
            self.load_state_dict = self.loader.load_state_dict

        def __iter__(self) -> Any:
            return iter(self.loader)

    def fit(root: Path, *callbacks: Callback, ckpt_path: str | None = None) -> tuple[dict[int, float], RecModule]:
        losses, module = Losses(), make_module()
        torch.manual_seed(1)
        trainer = make_trainer(root, losses, *callbacks, val_check_interval=1.0)
        trainer.fit(module, Unsized(), ckpt_path=ckpt_path)
        return losses.by_batch, module

    losses, whole = fit(tmp_path / "whole")
    with pytest.raises(RunInterrupted) as stop:
        fit(tmp_path, InterruptAt(2))
    rest, resumed = fit(tmp_path, ckpt_path=stop.value.path)
    assert rest == {batch: loss for batch, loss in losses.items() if batch > 2}
    assert everything(resumed) == everything(whole)
