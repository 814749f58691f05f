from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from recis_lightning.training.progress import RunProgressBar
from tests.training.helpers import MemoryLoader, make_module, make_trainer


def test_speed_counts_rows_and_leaves_out_what_is_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that moves by what the test says: 2 s of waiting and 1 s of computing a batch, 100 s of validation.
    now = [0.0]
    monkeypatch.setattr("recis_lightning.training.progress.time.perf_counter", lambda: now[0])

    class Slow(MemoryLoader):
        def __iter__(self) -> Any:
            for batch in super().__iter__():
                now[0] += 2
                yield batch

    class Clock(Callback):
        def on_before_backward(self, *_: Any) -> None:
            now[0] += 1

        def on_validation_start(self, *_: Any) -> None:
            now[0] += 100

    now[0] = 1.0
    trainer = make_trainer(tmp_path, Clock(), log_every_n_steps=4, val_check_interval=2)
    module = make_module()
    trainer.fit(module, Slow(8, rows=30), MemoryLoader(1))
    assert trainer.callback_metrics["perf/rows_per_second"].item() == pytest.approx(10)
    assert trainer.callback_metrics["perf/data_wait"].item() == pytest.approx(2 / 3)


def test_the_bar_shows_rows_per_second_and_the_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bar = RunProgressBar()
    bar.every_seconds = 0.0
    make_trainer(tmp_path, bar, enable_progress_bar=True, log_every_n_steps=50).fit(make_module(), MemoryLoader(4))
    shown = capsys.readouterr().out
    assert "4/4" in shown
    assert "rows/s=" in shown
    assert "left=00:00" in shown
    assert "train/loss=" in shown
    assert "v_num" not in shown


def test_the_bar_counts_down_to_the_end_of_the_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("recis_lightning.training.progress.time.monotonic", lambda: now[0])
    left: list[float | None] = []

    class Tick(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            now[0] += 2
            left.append(bar._seconds_left(trainer))

    bar = RunProgressBar()
    make_trainer(tmp_path, bar, Tick(), enable_progress_bar=True, max_epochs=2).fit(make_module(), MemoryLoader(3))
    assert left == [10, 8, 6, 4, 2, 0]
