"""What is logged of each source, against training and validating on it alone."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

from recis_lightning.data.datamodule import OrcDataModule
from recis_lightning.models import DeepFM
from recis_lightning.ragged import Batch
from recis_lightning.schema import Task
from recis_lightning.training import RecModule
from recis_lightning.training.sources import losses_by_source, source_spans
from tests.data.click_rows import click_rows, click_schema, write_stripes

FIRST = {"ads": 0, "feed": 1000}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    for name, first in FIRST.items():
        rows = click_rows(first, 60)
        query = pa.array([None if n % 6 == 5 else n // 7 for n in range(60)], pa.int32())
        write_stripes(tmp_path / name / "a.orc", [rows.append_column("query", query)])
    return tmp_path


def make_trainer(folder: Path, callbacks: list[Callback] | None = None, **limits: Any) -> Trainer:
    return Trainer(
        strategy="recis_sharded", accelerator="cpu", devices=1, logger=False, log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder,
        callbacks=callbacks, **({"max_epochs": 1} | limits),
    )  # fmt: skip


class Logged(Callback):
    def __init__(self) -> None:
        self.values: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.values.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def test_each_source_is_logged_as_it_would_be_alone(log: Path) -> None:
    both: dict[str, Any] = {name: str(log / name) for name in FIRST}
    schema = click_schema().to_dict()
    schema["columns"].append({"name": "query", "dtype": "int32"})
    schema["tasks"][0]["group"] = "query"
    data = OrcDataModule(schema, train=both, validation=both, batch_size=16, streams=2)
    torch.manual_seed(0)
    module, logged = RecModule(data.schema, network=DeepFM), Logged()
    trainer = make_trainer(log, [logged])
    trainer.fit(module, data)
    for values in logged.values:
        losses = [values[f"train/source/{name}/loss"] for name in FIRST]
        assert values["train/loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)
    of_both = {name: float(value) for name, value in trainer.callback_metrics.items()}
    for name in FIRST:
        alone = OrcDataModule(schema, validation=str(log / name), batch_size=16)
        (found,) = make_trainer(log).validate(module, alone, verbose=False)
        assert "val/source/ads/auc" not in found
        for metric in ("auc", "gauc", "loss", "logloss"):
            assert of_both[f"val/source/{name}/{metric}"] == pytest.approx(found[f"val/{metric}"], rel=1e-6)


def test_rows_of_sources_lie_one_behind_the_other() -> None:
    token = {"source_rows": {"ads": 3, "none": 0, "feed": 1}}
    batch = Batch(torch.zeros(0, dtype=torch.uint8), {}, 4, token)
    assert source_spans(batch) == {"ads": slice(0, 3), "none": slice(3, 3), "feed": slice(3, 4)}
    assert source_spans(Batch(torch.zeros(0, dtype=torch.uint8), {}, 4)) == {}


def test_a_source_without_rows_has_no_loss_to_speak_of() -> None:
    batch: Any = type("Rows", (dict,), {"token": {"source_rows": {"ads": 2, "none": 0}}})(
        label=torch.tensor([1.0, 0.0])
    )
    task = Task(name="ctr", label="label")
    losses = losses_by_source([task], batch, {"ctr": torch.zeros(2)}, lambda losses: losses["ctr"])
    assert losses["ads"].item() == pytest.approx(0.693147)
    assert losses["none"].item() == 0


class SaveAt(Callback):
    """Saves behind a batch, as ModelCheckpoint would."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def losses_of(log: Path, callback: Callback, checkpoint: Path | None = None) -> list[float]:
    """Losses of two epochs of a mix, or of what is left of them behind a checkpoint."""
    both: dict[str, Any] = {name: str(log / name) for name in FIRST}
    data = OrcDataModule(click_schema(), train=both, mix={"ads": 3, "feed": 1}, batch_size=16, streams=2)
    torch.manual_seed(0)
    module, logged = RecModule(data.schema, network=DeepFM), Logged()
    make_trainer(log, [logged, callback], max_epochs=2).fit(module, data, ckpt_path=checkpoint)
    return [values["train/loss"] for values in logged.values]


@pytest.mark.parametrize("step", [13, 15, 16])
def test_a_mix_goes_on_behind_the_batch_it_was_saved_at(log: Path, tmp_path: Path, step: int) -> None:
    whole = losses_of(log, SaveAt(step, tmp_path / "saved.ckpt"))
    assert len(whole) == 30
    assert losses_of(log, Callback(), tmp_path / "saved.ckpt") == whole[step:]
