import signal
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from recis_lightning.training.interrupt import RunInterrupted
from tests.training.helpers import InterruptAt, MemoryLoader, make_module, make_trainer


def fit(root: Path, *callbacks: Callback) -> None:
    make_trainer(root, *callbacks).fit(make_module(), MemoryLoader(6), MemoryLoader(2, seed=9))


def test_the_second_interrupt_aborts_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        fit(tmp_path, InterruptAt(3), InterruptAt(3))
    assert isinstance(stop.value.__context__, KeyboardInterrupt)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning ignores the signal from then on
    assert not (tmp_path / "interrupted.ckpt").exists()
    assert "Ctrl-C again to abort at once" in capfd.readouterr().err


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunInterrupted) as stop:
        fit(tmp_path, InterruptAt(3))
    path = tmp_path / "interrupted.ckpt"
    assert (stop.value.code, stop.value.path) == (130, str(path))
    assert f"recis: stopped after step 4; go on with --ckpt_path {path}" in capfd.readouterr().err


def test_interrupts_are_handled_as_before_once_the_fit_is_over(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    fit(tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler

    class Fail(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise RuntimeError("as it happens")

    with pytest.raises(RuntimeError, match="as it happens"):
        fit(tmp_path, Fail())
    assert signal.getsignal(signal.SIGINT) is handler
