"""`recis features plan` and `recis features fit`, and the recipe that shows the feature engine."""

import json
from pathlib import Path

import pytest
import yaml
from pyarrow import orc

from recis_lightning.cli import main
from recis_lightning.schema import Schema, find_unfitted
from recis_lightning.training import RecModule

RECIPE = Path(__file__).parents[2] / "recipes" / "feature_engine.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the recipe's data."""
    folder = tmp_path_factory.mktemp("features")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["data", "synth", "demo/features", "--schema", str(RECIPE), "--rows", "1200"]) == 0
    return folder


@pytest.fixture
def workplace(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


FITS = "demo/features/fits.json"


def fit(out: str = FITS) -> dict:
    assert main(["features", "fit", "--config", str(RECIPE), "--out", out]) == 0
    return json.loads(Path(out).read_text())


def read_schema(**changes) -> Schema:
    settings = yaml.safe_load(RECIPE.read_text())["data"]["schema"]
    return Schema.from_dict(settings | changes)


@pytest.mark.usefixtures("workplace")
def test_plan_prints_every_step_and_what_is_not_fitted(capsys):
    assert main(["features", "plan", "--config", str(RECIPE)]) == 0
    printed = capsys.readouterr().out
    for part in (
        "truncate (history)",
        "cross",
        "small_user x item x category",
        "quantile",
        "transforms of 17 features",
    ):
        assert part in printed
    assert "feature 'price', transforms[1] (quantile) is not fitted" in printed


@pytest.mark.usefixtures("workplace")
def test_fit_writes_numbers_that_the_recipe_reads(capsys):
    content = fit()
    printed = capsys.readouterr().out
    assert f"4 transforms fitted to 1200 rows, version {content['version']}: demo/features/fits.json" in printed
    assert content["train"] == "demo/features/train"
    assert sorted(content["features"]) == ["age", "device", "price", "price_bucket"]
    assert fit("again.json") == content
    assert list(find_unfitted(read_schema().features)) == []


@pytest.mark.usefixtures("workplace")
def test_fit_sees_the_rows_that_training_keeps(capsys, tmp_path):
    settings = yaml.safe_load(RECIPE.read_text())
    settings["data"] |= {"train": {"one": "demo/features/train", "two": ["demo/features/valid"]}}
    settings["data"] |= {"filter": [[settings["data"]["schema"]["tasks"][0]["label"], "==", 1]]}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings))
    assert main(["features", "fit", "--config", str(recipe)]) == 0
    rows = json.loads(recipe.with_suffix(".fits.json").read_text())["rows"]
    files = [*Path("demo/features/train").glob("*.orc"), *Path("demo/features/valid").glob("*.orc")]
    label = settings["data"]["filter"][0][0]
    assert rows == sum(sum(orc.read_table(path)[label].to_pylist()) for path in files) > 0


@pytest.mark.usefixtures("workplace")
def test_mistakes_of_a_fit_are_told_in_a_line(capsys, tmp_path):
    assert main(["features", "fit", "--config", str(RECIPE), "--train", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
    fitted = tmp_path / "recipe.yaml"
    columns = [{"name": "price", "dtype": "float32"}]
    fitted.write_text(yaml.safe_dump({"data": {"train": "x", "schema": {"columns": columns}}}))
    assert main(["features", "fit", "--config", str(fitted)]) == 2
    assert "has no transform to fit: all have their numbers" in capsys.readouterr().err


@pytest.mark.usefixtures("workplace")
def test_the_recipe_trains_on_fitted_features_and_names_a_changed_fit(capsys):
    fit()
    limits = ["--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1", "--trainer.default_root_dir=runs"]
    assert main(["fit", "--config", str(RECIPE), *limits]) == 0, capsys.readouterr().err
    checkpoint = str(next(Path("runs").rglob("*.ckpt")))
    knots = read_schema().feature("price").transforms[1].knots
    assert RecModule.load_from_checkpoint(checkpoint).schema.feature("price").transforms[1].knots == knots

    assert main(["features", "fit", "--config", str(RECIPE), "--train", "demo/features/valid", "--out", FITS]) == 0
    with pytest.warns(UserWarning, match=r"feature 'age', transforms\[0\] \(z_score\): mean was .*, is "):
        assert main(["validate", "--config", str(RECIPE), "--ckpt_path", checkpoint, *limits]) == 0
