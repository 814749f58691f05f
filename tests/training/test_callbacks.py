import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from recis_lightning.training.callbacks import (
    CommitLoader,
    RunProgressBar,
    Throughput,
    run_directory,
    table_statistics,
)
from tests.training.helpers import ListLoader, MemoryLoader, make_batch, make_module, make_trainer


def test_the_loader_knows_each_batch_before_any_other_callback_runs(tmp_path: Path) -> None:
    loader = MemoryLoader(3)
    seen = []

    class Look(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            seen.append(loader.state_dict())

    trainer = make_trainer(tmp_path, Look(), max_epochs=1)
    trainer.fit(make_module(), loader)
    assert seen == [{"epoch": 0, "batch": 1}, {"epoch": 0, "batch": 2}, {"epoch": 1, "batch": 0}]
    assert isinstance(trainer.callbacks[0], CommitLoader)  # type: ignore[attr-defined]


def test_speed_and_table_sizes_are_logged_every_n_steps(tmp_path: Path) -> None:
    module = make_module()
    logger = CSVLogger(tmp_path, name="runs")
    trainer = make_trainer(tmp_path, logger=logger, log_every_n_steps=3)
    trainer.fit(module, MemoryLoader(6))
    rows = [line.split(",") for line in Path(logger.log_dir, "metrics.csv").read_text().splitlines()]
    logged = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    assert [entry["step"] for entry in logged] == ["2", "5", "8", "11"]
    for entry in logged:
        assert float(entry["perf/rows_per_second"]) > 0
        assert 0 <= float(entry["perf/data_wait"]) <= 1
        assert entry["train/loss"]
    assert float(logged[-1]["sparse/user/rows"]) == len(module.tables["user"])
    assert float(logged[-1]["sparse/rows"]) == sum(len(table) for table in module.tables.values())
    assert float(logged[-1]["sparse/bytes"]) > 0


def test_speed_counts_rows_and_leaves_out_what_is_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that moves by what the test says: 2 s of waiting and 1 s of computing a batch, 100 s of validation.
    now = [0.0]
    monkeypatch.setattr("recis_lightning.training.callbacks.time.perf_counter", lambda: now[0])

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


def test_table_statistics_add_up() -> None:
    module = make_module()
    module.tables["user"].find_or_insert(torch.arange(70))
    found = table_statistics(module.tables)
    assert found["sparse/user/rows"] == found["sparse/rows"] == 70
    assert found["sparse/item/rows"] == 0
    assert found["sparse/bytes"] >= 70 * (4 + 4) * 4


def test_metrics_json_holds_last_and_best_values(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_epochs=3)
    best: list[float] = []

    class Look(Callback):
        def on_validation_end(self, trainer: Any, *_: Any) -> None:
            best.append(trainer.callback_metrics["val/auc"].item())

    trainer.callbacks.append(Look())  # type: ignore[attr-defined]
    trainer.fit(make_module(), MemoryLoader(4), MemoryLoader(2, rows=40, seed=9))
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["step"] == 12
    assert record["last"]["val/auc"] == best[-1]
    assert record["best"]["val/auc"] == {"value": max(best), "step": 4 * (best.index(max(best)) + 1)}
    assert "val/calibration" not in record["best"]
    assert "train/loss" in record["last"]


def test_a_metric_that_is_no_number_is_null_in_json(tmp_path: Path) -> None:
    alike = ListLoader(make_batch(0), make_batch(1))  # one label: no pair to order
    make_trainer(tmp_path, max_epochs=1).fit(make_module(), MemoryLoader(1), alike)
    record = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert record["last"]["val/auc"] is None
    assert "val/auc" not in record["best"]
    assert record["best"]["val/loss"]["value"] > 0


def test_a_second_fit_does_not_boast_of_the_first(tmp_path: Path) -> None:
    module = make_module()
    for folder, lr in (("first", 0.01), ("second", 0.0)):
        module.dense_optimizer = partial(torch.optim.SGD, lr=lr)
        trainer = make_trainer(tmp_path / folder, max_epochs=1)
        trainer.fit(module, MemoryLoader(4), MemoryLoader(2, rows=40, seed=9))
        record = json.loads((tmp_path / folder / "metrics.json").read_text())
        assert record["best"]["val/loss"]["value"] == record["last"]["val/loss"]


@pytest.mark.trap(13)
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_second_fit_in_the_same_place_has_a_directory_of_its_own(tmp_path: Path) -> None:
    module = make_module()
    for version in range(2):
        logger = CSVLogger(tmp_path, name="runs")
        trainer = make_trainer(tmp_path, logger=logger, enable_checkpointing=True, max_epochs=1)
        trainer.fit(module, MemoryLoader(2), MemoryLoader(1))
        assert run_directory(trainer) == str(tmp_path / "runs" / f"version_{version}")
        assert (tmp_path / "runs" / f"version_{version}" / "metrics.json").exists()
        assert len(list((tmp_path / "runs" / f"version_{version}" / "checkpoints").iterdir())) == 1


def records(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("metrics*.json"))}


@pytest.mark.trap(13)
def test_without_a_logger_the_record_of_an_earlier_run_is_kept_under_another_name(tmp_path: Path) -> None:
    kept = []
    for steps in (1, 2, 3):
        trainer = make_trainer(tmp_path, max_epochs=1)
        trainer.fit(make_module(), MemoryLoader(steps), MemoryLoader(1))
        assert run_directory(trainer) == str(tmp_path)
        kept.append(records(tmp_path)["metrics.json"])
    assert records(tmp_path) == {"metrics.json": kept[2], "metrics.1.json": kept[0], "metrics.2.json": kept[1]}
    assert [record["step"] for record in kept] == [1, 2, 3]


def test_a_run_that_goes_on_and_is_tested_keeps_one_record(tmp_path: Path) -> None:
    trainer, path = make_trainer(tmp_path, max_epochs=1), tmp_path / "x.ckpt"
    trainer.fit(make_module(), MemoryLoader(3), MemoryLoader(1))
    trainer.save_checkpoint(path)
    make_trainer(tmp_path, max_epochs=2).fit(make_module(), MemoryLoader(3), MemoryLoader(1), ckpt_path=path)
    make_trainer(tmp_path).test(make_module(), MemoryLoader(1), ckpt_path=path, verbose=False)
    (record,) = records(tmp_path).values()
    assert record["step"] == 6
    assert {"train/loss", "val/loss", "test/loss"} <= record["last"].keys()
    (tmp_path / "metrics.json").write_text("[no record of ours")
    make_trainer(tmp_path).test(make_module(), MemoryLoader(1), verbose=False)
    assert (tmp_path / "metrics.1.json").read_text() == "[no record of ours"
    assert "train/loss" not in json.loads((tmp_path / "metrics.json").read_text())["last"]


@pytest.mark.trap(13)
def test_a_run_of_weights_and_biases_has_its_own_directory(tmp_path: Path) -> None:
    # Lightning's own idea of it, trainer.log_dir, is save_dir: the same for all runs.
    found = []
    for version in ("abc", "def"):
        logger = WandbLogger(project="clicks", version=version, offline=True, save_dir=tmp_path)
        trainer = make_trainer(tmp_path, logger=logger)
        assert trainer.log_dir == str(tmp_path)
        found.append(run_directory(trainer))
    assert found == [str(tmp_path / "clicks" / "abc"), str(tmp_path / "clicks" / "def")]


def test_fast_dev_run_leaves_nothing_behind(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, fast_dev_run=True, enable_checkpointing=True, logger=CSVLogger(tmp_path))
    trainer.fit(make_module(), MemoryLoader(2), MemoryLoader(1))
    assert list(tmp_path.iterdir()) == []


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
    monkeypatch.setattr("recis_lightning.training.callbacks.time.monotonic", lambda: now[0])
    left: list[float | None] = []

    class Tick(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            now[0] += 2
            left.append(bar._seconds_left(trainer))

    bar = RunProgressBar()
    make_trainer(tmp_path, bar, Tick(), enable_progress_bar=True, max_epochs=2).fit(make_module(), MemoryLoader(3))
    assert left == [10, 8, 6, 4, 2, 0]


def test_a_trainer_that_fits_twice_has_each_callback_once(tmp_path: Path) -> None:
    module, trainer = make_module(), make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, MemoryLoader(1))
    trainer.validate(module, MemoryLoader(1), verbose=False)
    assert sum(isinstance(callback, Throughput) for callback in trainer.callbacks) == 1  # type: ignore[attr-defined]
