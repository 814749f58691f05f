import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from pyarrow import orc

from recis_lightning.cli import main
from recis_lightning.data.synthetic.schema import synthesize
from recis_lightning.schema import Schema

SCHEMA = {
    "columns": [
        {"name": "click", "dtype": "float32"},
        {"name": "user", "dtype": "int64"},
        {"name": "city", "dtype": "string", "hash": "farm"},
    ],
    "tables": [{"name": "{user,city}", "dim": 4}],
    "features": [{"name": "{user,city}", "table": "{user,city}"}],
    "tasks": [{"name": "ctr", "label": "click"}],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A recipe, and the checkpoint of its one epoch."""
    folder = tmp_path_factory.mktemp("run")
    for split, (name, rows) in enumerate({"train": 256, "valid": 100}.items()):
        synthesize(Schema.from_dict(SCHEMA), folder / name, rows, split=split)
    settings: dict[str, Any] = {
        "seed_everything": 0,
        "model": {"network": {"class_path": "DeepFM", "init_args": {"hidden": [8]}}},
        "data": {
            "schema": SCHEMA,
            "train": str(folder / "train"),
            "validation": str(folder / "valid"),
            "predict": str(folder / "valid"),
            "batch_size": 64,
        },
        "trainer": {
            "max_epochs": 1,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "default_root_dir": str(folder),
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings))
    assert main(["fit", "--config", str(recipe)]) == 0
    return str(recipe), str(next(folder.glob("runs/*/checkpoints/*.ckpt")))


def test_export_prints_sizes_and_load_time_and_compares_scores(
    trained: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, checkpoint = trained
    out = tmp_path / "exported"
    assert main(["export", "--config", recipe, "--ckpt", checkpoint, "--out", str(out), "--verify", "100"]) == 0
    printed = capsys.readouterr().out
    assert "scores.pt2" in printed
    assert "tables/*.parquet (2)" in printed
    assert "loads in" in printed
    assert re.search(r"100 rows scored in .*\n\d+ unknown ids and \d+ missing ones", printed)
    assert re.search(r"difference to the model:\s+ctr \d\.\de[+-]\d\d", printed)
    assert sorted(path.name for path in out.iterdir()) == [
        "features.pt2",
        "manifest.json",
        "scorer.py",
        "scores.pt2",
        "tables",
    ]
    assert json.loads((out / "manifest.json").read_text())["tasks"][0]["name"] == "ctr"


def test_verify_without_a_recipe_is_refused(
    trained: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--ckpt", trained[1], "--out", str(tmp_path / "x"), "--verify", "9"]) == 2
    assert "--verify needs the recipe's data" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("form", ["parquet", "orc"])
def test_predictions_go_to_the_folder_named_with_the_columns_kept(
    form: str, trained: tuple[str, str], tmp_path: Path
) -> None:
    recipe, checkpoint = trained
    options = ["--predictions", str(tmp_path / "out"), "--predictions_format", form, "--data.keep", "[city, user]"]
    assert main(["predict", "--config", recipe, "--ckpt_path", checkpoint, *options]) == 0
    path = tmp_path / "out" / f"part-00000.{form}"
    found = pq.read_table(path) if form == "parquet" else orc.read_table(path)
    assert (found.column_names, found.num_rows) == (["city", "user", "ctr"], 100)
