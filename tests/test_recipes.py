"""Every recipe is whole: it parses, its schema holds, and it runs where its real files are not."""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from recis_lightning.cli import main
from recis_lightning.data.commands.synth import read_schema
from recis_lightning.data.synthetic.schema import synthesize
from recis_lightning.data.train_tokenizer import train_tokenizer
from tests.ranks import run_trainers, shell_environment

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(ROOT.joinpath("recipes").glob("*.yaml"))


@pytest.fixture(params=RECIPES, ids=lambda path: path.stem)
def recipe(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_there_are_recipes() -> None:
    assert {"synthetic_deepfm", "synthetic_dlrm", "criteo_deepfm", "recis_deepfm", "debug"} <= {r.stem for r in RECIPES}


def test_a_recipe_has_a_valid_schema_with_a_task(recipe: Path) -> None:
    assert read_schema(recipe).tasks


def test_a_recipe_runs_where_tables_exist(recipe: Path) -> None:
    trainer = yaml.safe_load(recipe.read_text())["trainer"]
    assert (trainer["accelerator"], trainer["devices"]) == ("cpu", 1)


def test_a_recipe_reads_no_side_column(recipe: Path) -> None:
    names = {column.name for column in read_schema(recipe).columns}
    assert not names & {"p_click", "p_conversion", "min_train_count"}


@pytest.fixture
def made(recipe: Path, tmp_path: Path) -> dict[str, Path]:
    return make_data(recipe, tmp_path)


def make_data(recipe: Path, folder: Path) -> dict[str, Path]:
    """Data for the recipe's schema: five batches to train on, two to validate on."""
    schema = read_schema(recipe)
    for split, (name, rows) in enumerate({"train": 300, "valid": 100}.items()):
        synthesize(schema, folder / name, rows, split=split)
    for column in schema.columns:
        if column.tokenizer is not None:
            train_tokenizer(folder / "train", column.name, folder / column.tokenizer, vocab_size=512)
    return {"train": folder / "train", "validation": folder / "valid"}


def on_small_data(made: dict[str, Path]) -> list[str]:
    """Options with which a recipe takes five steps and is quiet."""
    options = ["--data.batch_size", "64", "--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "5"]
    for name, folder in made.items():
        options += [f"--data.{name}", str(folder)]
    for name in ("logger", "enable_progress_bar", "enable_model_summary"):
        options += [f"--trainer.{name}", "false"]
    return options


def check_run(folder: Path) -> dict[str, float]:
    """The metrics of a run that has taken its five steps."""
    record = json.loads((folder / "metrics.json").read_text())
    assert record["step"] == 5
    losses = [value for name, value in record["last"].items() if name in ("train/loss", "val/loss")]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    metrics: dict[str, float] = record["last"]
    return metrics


def test_a_recipe_trains_and_validates_on_data_made_for_it(
    recipe: Path, made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fits = yaml.safe_load(recipe.read_text())["data"]["schema"].get("fits")
    if fits:
        assert main(["features", "fit", "--config", str(recipe), "--train", str(made["train"]), "--out", fits]) == 0
    assert main(["fit", "--config", str(recipe), *on_small_data(made)]) == 0
    check_run(tmp_path)


# ------------------------------------------------------------------------------------------------------- several ranks

README = ROOT.joinpath("README.md").read_text()
SHOWN = [line.split("#")[0].split() for line in README.splitlines() if line.startswith(("recis", "torchrun"))]
SHOWN = [command for command in SHOWN if "--trainer.devices" in command]


def run_here(folder: Path, arguments: list[str]) -> int:
    with contextlib.chdir(folder):
        return main(arguments)


@pytest.mark.parametrize("command", SHOWN, ids=" ".join)
def test_a_command_of_the_readme_trains_on_two_ranks(
    command: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    recipe = ROOT / command[command.index("--config") + 1]
    arguments = [*command[command.index("fit") :], *on_small_data(make_data(recipe, tmp_path))]
    arguments[arguments.index("--config") + 1] = str(recipe)
    # One that takes seconds of importing, the one with most in it; the other as torchrun would start its ranks.
    is_launched = command[0] == "torchrun" and ("text" in recipe.stem or request.config.getoption("full"))
    if not is_launched:
        assert run_trainers(2, run_here, tmp_path, arguments) == [0, 0]
    else:
        launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
        start = [*launcher, *command[1 : command.index("fit")], *arguments]
        done = subprocess.run(start, capture_output=True, text=True, cwd=tmp_path, env=shell_environment())
        assert done.returncode == 0, done.stderr
    assert check_run(tmp_path)["exchange/bytes"] > 0


def test_the_strategy_of_the_docs_trains_on_two_ranks(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", ROOT.joinpath("docs/ranks.md").read_text(), re.DOTALL)
    strategy = yaml.safe_load(blocks[0])["trainer"]["strategy"]
    assert strategy["init_args"] == {"dense": "fsdp2", "rows_as": "bf16", "grads_as": "bf16"}
    recipe = ROOT / "recipes/synthetic_deepfm.yaml"
    (tmp_path / "strategy.yaml").write_text(blocks[0])
    configs = ["--config", str(recipe), "--config", "strategy.yaml", "--trainer.devices", "2"]
    arguments = ["fit", *configs, *on_small_data(make_data(recipe, tmp_path))]
    assert run_trainers(2, run_here, tmp_path, arguments) == [0, 0]
    assert check_run(tmp_path)["exchange/bytes"] > 0


def test_the_readme_shows_both_strategies_and_torchrun() -> None:
    shown = {(command[0], Path(command[command.index("--config") + 1]).stem, command[-1]) for command in SHOWN}
    recipes = ("synthetic_deepfm", "synthetic_text_ctr")
    assert shown >= {("recis", recipe, end) for recipe in recipes for end in ("2", "recis_sharded_fsdp2")}
    assert shown >= {("torchrun", "synthetic_deepfm", "2"), ("torchrun", "synthetic_text_ctr", "recis_sharded_fsdp2")}


def test_the_demo_runs_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = [sys.executable, str(ROOT / "recipes/demo.py"), "--rows", "100000", "--work", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words in ("best reachable", "ids seen 20x", "user_id", "rows per second", "The demo took"):
        assert words in done.stdout
    plots = {path.name for path in tmp_path.glob("runs/synthetic_deepfm/*/plots/*")}
    assert plots == {"auc.png", "calibration.png", "tables.png"}
