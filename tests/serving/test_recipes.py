"""Models of recipes, as files alone: they score as the model does, unknown and missing ids included."""

from pathlib import Path

import pytest
import torch
import yaml

from recis_lightning.cli import main
from recis_lightning.cli.run import quiet, read_recipe
from recis_lightning.data.commands.synth import read_schema
from recis_lightning.data.datamodule import OrcDataModule
from recis_lightning.data.synthetic.schema import synthesize
from recis_lightning.serving import export_model
from recis_lightning.serving.verify import verify

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("name", ["criteo_deepfm", "synthetic_deepfm", "synthetic_dlrm", "feature_engine"])
def test_the_files_of_a_recipe_score_as_its_model_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = RECIPES / f"{name}.yaml"
    for split, (part, rows) in enumerate({"train": 200, "valid": 100}.items()):
        synthesize(read_schema(recipe), Path(part), rows, split=split)
    if fits := yaml.safe_load(recipe.read_text())["data"]["schema"].get("fits"):
        assert main(["features", "fit", "--config", str(recipe), "--train", "train", "--out", fits]) == 0
    quiet()
    module = read_recipe(recipe).model
    seen = OrcDataModule(module.schema, predict="train")
    seen.setup("predict")
    module.train()
    with torch.no_grad():
        for batch in seen.predict_dataloader():
            module(batch)  # gives ids their rows
    seen.teardown("predict")

    export_model(module, "exported")
    keep = [column.name for column in module.schema.input_columns]
    verdict = verify(module, OrcDataModule(module.schema, predict="valid", keep=keep), "exported", 100)
    assert verdict.rows == 100
    assert verdict.unknown_ids > 0
    assert verdict.missing_ids > 0
    assert max(verdict.largest.values()) < 1e-5
