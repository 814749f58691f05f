"""A log that went through CSV trains as the log itself."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from pyarrow import csv, orc

from recis_lightning.cli import main
from recis_lightning.data.datamodule import OrcDataModule
from recis_lightning.data.synthetic.generator import write_click_log
from recis_lightning.models import DeepFM
from recis_lightning.training import RecModule

RECIPE = Path(__file__).resolve().parents[2] / "recipes/debug.yaml"


class Losses(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))


def train(folder: Path, schema: dict[str, Any], root: Path) -> list[float]:
    # In the order of rows: that of stripes is drawn from where they end, which differs between writers.
    data = OrcDataModule(schema, train=str(folder), batch_size=512, shuffle=False)
    torch.manual_seed(0)
    module = RecModule(data.schema, network=DeepFM)
    losses = Losses()
    trainer = Trainer(
        strategy="recis_sharded", accelerator="cpu", devices=1, max_epochs=1, logger=False, callbacks=[losses],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, default_root_dir=root,
    )  # fmt: skip
    trainer.fit(module, data)
    return losses.losses


def as_csv(folder: Path, path: Path) -> None:
    rows = pa.concat_tables([orc.read_table(part) for part in sorted(folder.glob("*.orc"))])
    for at, field in enumerate(rows.schema):
        if pa.types.is_list(field.type):
            texts = pc.binary_join(pc.cast(rows[field.name].combine_chunks(), pa.list_(pa.string())), "|")
            rows = rows.set_column(at, field.name, texts)
    csv.write_csv(rows, path)


def test_a_log_through_csv_gives_the_losses_of_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_click_log(tmp_path / "log", rows=4_000, validation_rows=100, seed=0)
    as_csv(tmp_path / "log/train", tmp_path / "log.csv")
    arguments = ["data", "convert", str(tmp_path / "log.csv"), "--out", str(tmp_path / "orc"), "--schema", str(RECIPE)]
    assert main(arguments) == 0
    assert "4,000 rows" in capsys.readouterr().out
    schema = yaml.safe_load(RECIPE.read_text())["data"]["schema"]
    expected = train(tmp_path / "log/train", schema, tmp_path)
    assert len(expected) == 8
    assert train(tmp_path / "orc", schema, tmp_path) == expected
