import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from recis_lightning.training.run_record import run_directory
from tests.training.helpers import ListLoader, MemoryLoader, make_batch, make_module, make_trainer


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
