import contextlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import WandbLogger
from pyarrow import orc

from recis_lightning.cli import main
from recis_lightning.cli.run import SaveConfig
from recis_lightning.data.synthetic.schema import synthesize
from recis_lightning.schema import Schema
from recis_lightning.training import RecModule
from tests.ranks import ROOT, run_trainers, shell_environment
from tests.training.helpers import everything, make_module, make_trainer

SCHEMA = {
    "columns": [
        {"name": "click", "dtype": "float32"},
        {"name": "{user,item}", "dtype": "int64"},
        {"name": "tags", "dtype": "int64", "layout": "list"},
        {"name": "price", "dtype": "float32", "default": 0},
    ],
    "tables": [{"name": "{user,item,tags}", "dim": 4, "optimizer": {"kind": "adagrad", "lr": 0.05}}],
    "features": [{"name": "{user,item,tags}", "table": "{user,item,tags}"}, {"name": "price"}],
    "tasks": [{"name": "ctr", "label": "click"}],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for split, (name, rows) in enumerate({"train": 640, "valid": 200, "test": 200}.items()):
        synthesize(Schema.from_dict(SCHEMA), folder / name, rows, split=split)
    return folder


@pytest.fixture
def recipe(data: Path, tmp_path: Path) -> Callable[..., str]:
    """Writes a recipe of ten steps an epoch; what is given replaces entries, `model__network={...}`."""

    def write(**changes: Any) -> str:
        settings: dict[str, Any] = {
            "seed_everything": 0,
            "model": {"network": {"class_path": "DeepFM", "init_args": {"hidden": [8], "dropout": 0.3}}},
            "data": {
                "schema": SCHEMA,
                "train": str(data / "train"),
                "validation": str(data / "valid"),
                "test": str(data / "test"),
                "predict": str(data / "test"),
                "batch_size": 64,
            },
            "trainer": {
                "max_epochs": 2,
                "default_root_dir": str(tmp_path),
                "log_every_n_steps": 5,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "num_sanity_val_steps": 0,
            },
        }
        for path, value in changes.items():
            *sections, last = path.split("__")
            place = settings
            for section in sections:
                place = place[section]
            place[last] = value
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(settings))
        return str(file)

    return write


def run_dir(root: Path, version: int) -> Path:
    return root / "runs" / f"version_{version}"


def checkpoint_of(directory: Path) -> Path:
    return next((directory / "checkpoints").iterdir())


def metrics_of(directory: Path) -> dict[str, float]:
    return json.loads((directory / "metrics.json").read_text())["last"]


def in_new_process(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs `recis` in `folder`; as the console script does, without that folder among the places of modules."""
    command = [sys.executable, "-P", "-W", "ignore", "-m", "recis_lightning", *arguments]
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 120, "check": False}
    return subprocess.run(command, cwd=folder, env=shell_environment(), **options)


def test_a_recipe_may_name_classes_of_modules_in_the_folder_where_recis_runs(
    recipe: Callable[..., str], tmp_path: Path
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "my_callbacks.py").write_text(
        "from lightning.pytorch import Callback\n\n\n"
        "class Hello(Callback):\n"
        "    def on_fit_start(self, trainer, module):\n"
        "        print('hello from my folder')\n"
    )
    config = recipe(trainer__callbacks=[{"class_path": "my_callbacks.Hello"}], trainer__max_steps=1)
    ran = in_new_process("fit", "--config", config, folder=folder)
    assert ran.returncode == 0, ran.stderr
    assert "hello from my folder" in ran.stdout


def test_a_recipe_is_fitted_tested_validated_and_used_for_predictions(
    recipe: Callable[..., str], tmp_path: Path
) -> None:
    config = recipe()
    assert main(["fit", "--config", config]) == 0
    run = run_dir(tmp_path, 0)
    assert {path.name for path in run.iterdir()} >= {"config.yaml", "metrics.json", "metrics.csv", "checkpoints"}
    fitted = metrics_of(run)
    checkpoint = str(checkpoint_of(run))
    assert main(["test", "--config", config, "--ckpt_path", checkpoint]) == 0
    assert metrics_of(run_dir(tmp_path, 1))["test/auc"] > 0
    assert main(["predict", "--config", config, "--ckpt_path", checkpoint]) == 0
    predicted = orc.read_table(run_dir(tmp_path, 2) / "predictions" / "part-00000.orc")
    assert (predicted.column_names, predicted.num_rows) == (["ctr"], 200)
    assert 0 < min(predicted["ctr"].to_pylist()) <= max(predicted["ctr"].to_pylist()) < 1
    # A checkpoint in a new process scores as the model did when it was written, to the bit.
    assert in_new_process("validate", "--config", config, "--ckpt_path", checkpoint).returncode == 0
    validated = metrics_of(run_dir(tmp_path, 3))
    assert validated == {name: value for name, value in fitted.items() if name.startswith("val/")}
    assert len(validated) == 5


def test_a_recipe_begins_warm_from_an_earlier_run(
    recipe: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", recipe(trainer__max_steps=4)]) == 0
    checkpoint = checkpoint_of(run_dir(tmp_path, 0))
    entries = [{"path": str(checkpoint), "include": ["tables.*"], "exclude": ["tables.tags"], "reset_optimizer": True}]
    warm = recipe(model__warm_start=entries, trainer__max_steps=1)
    assert main(["fit", "--config", warm]) == 0
    earlier, begun = (
        RecModule.load_from_checkpoint(str(checkpoint_of(run_dir(tmp_path, version)))) for version in (0, 1)
    )
    known = earlier.tables["user"].export().ids
    assert (begun.tables["user"].find(known) >= 0).all()
    assert (begun.tables["tags"].find(earlier.tables["tags"].export().ids) < 0).any()
    assert begun.tables["user"].step == 1
    assert yaml.safe_load((run_dir(tmp_path, 1) / "config.yaml").read_text())["model"]["warm_start"] == entries
    assert main(["fit", "--config", recipe(model__warm_start=[{"path": str(checkpoint), "renam": {}}])]) == 2
    assert "warm_start[0] has no option 'renam'; did you mean 'rename'?" in capsys.readouterr().err
    wrong = [{"path": str(checkpoint), "include": ["tables.usr"]}]
    assert main(["fit", "--config", recipe(model__warm_start=wrong)]) == 2
    assert "warm_start[0]: include 'tables.usr' fits nothing" in capsys.readouterr().err


@pytest.mark.trap(2)
def test_interrupted_in_the_middle_of_an_epoch_and_resumed_equals_uninterrupted(
    recipe: Callable[..., str], tmp_path: Path
) -> None:
    assert main(["fit", "--config", recipe()]) == 0
    whole = run_dir(tmp_path, 0)
    interrupt = {"class_path": "tests.training.helpers.InterruptAt", "init_args": {"batch": 13}}
    stopped = in_new_process("fit", "--config", recipe(trainer__callbacks=[interrupt]))
    assert stopped.returncode == 130, stopped.stderr
    path = run_dir(tmp_path, 1) / "interrupted.ckpt"
    assert f"stopped after step 14; go on with --ckpt_path {path}" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert main(["fit", "--config", recipe(), "--ckpt_path", str(path)]) == 0
    resumed = run_dir(tmp_path, 2)
    first, second = (RecModule.load_from_checkpoint(str(checkpoint_of(run))) for run in (whole, resumed))
    assert everything(first) == everything(second)
    assert all(len(table) > 10 for table in first.tables.values())
    assert losses_of(whole, 10) == losses_of(resumed, 10)
    for name in ("train/loss", "val/loss", "val/auc", "sparse/rows"):
        assert metrics_of(whole)[name] == metrics_of(resumed)[name]


def losses_of(run: Path, since: int) -> list[str]:
    header, *lines = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    return [row["train/loss"] for row in rows if row["train/loss"] and int(row["step"]) >= since + 4]


def test_the_resolved_recipe_of_a_run_is_a_recipe_itself(recipe: Callable[..., str], tmp_path: Path) -> None:
    assert main(["fit", "--config", recipe(trainer__max_epochs=1)]) == 0
    first = run_dir(tmp_path, 0)
    assert main(["fit", "--config", str(first / "config.yaml")]) == 0
    second = run_dir(tmp_path, 1)
    assert (first / "config.yaml").read_text() == (second / "config.yaml").read_text()
    assert metrics_of(first)["val/loss"] == metrics_of(second)["val/loss"]
    resolved = yaml.safe_load((first / "config.yaml").read_text())
    assert resolved["trainer"]["strategy"] == "recis_sharded"
    assert (resolved["trainer"]["accelerator"], resolved["trainer"]["devices"]) == ("cpu", 1)
    assert "schema" not in resolved["model"]


@pytest.mark.trap(13)
@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
def test_the_recipe_of_a_run_of_weights_and_biases_lies_in_a_directory_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Left alone, Lightning writes it to the logger's save_dir, and refuses a second one there or overwrites the first.
    shown: list[Any] = []  # beside the run's curves
    monkeypatch.setattr(WandbLogger, "log_hyperparams", lambda self, recipe: shown.append(recipe))
    parser = LightningArgumentParser()
    parser.add_argument("--lr", type=float)
    for version, lr in (("abc", 0.1), ("def", 0.2)):
        logger = WandbLogger(project="clicks", version=version, offline=True, save_dir=tmp_path)
        save = SaveConfig(parser, parser.parse_args([f"--lr={lr}"]), save_to_log_dir=False)
        save.setup(make_trainer(tmp_path, logger=logger), make_module(), "fit")
    found = {path.parent.name: yaml.safe_load(path.read_text())["lr"] for path in tmp_path.rglob("config.yaml")}
    assert found == {"abc": 0.1, "def": 0.2}
    assert shown == [{"lr": 0.1}, {"lr": 0.2}]


@pytest.mark.parametrize("changes", [{"data__train": "/no/such/folder"}, {"ckpt_path": "no.ckpt"}])
def test_what_is_not_there_is_told_before_a_run_begins(
    changes: dict[str, str], recipe: Callable[..., str], tmp_path: Path
) -> None:
    assert main(["fit", "--config", recipe(**changes)]) == 2
    assert not (tmp_path / "runs").exists()


def test_a_fit_says_what_its_filter_keeps_and_where_its_run_is(
    recipe: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = recipe(data__filter=[["user", "is not null"]], trainer__max_epochs=1)
    assert main(["fit", "--config", config]) == 0
    told = capsys.readouterr().err
    assert re.search(r"^recis: train: the filter keeps \d+ of 640 rows \(user is not null\)$", told, re.MULTILINE)
    checkpoint = checkpoint_of(run_dir(tmp_path, 0))
    assert f"recis: the run is in {run_dir(tmp_path, 0)}, its checkpoint {checkpoint}, best val/auc 0." in told
    assert main(["predict", "--config", config, "--ckpt_path", str(checkpoint)]) == 0
    assert f"recis: wrote the scores of 200 rows to {run_dir(tmp_path, 1)}" in capsys.readouterr().err


@pytest.mark.trap(13)
@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
def test_without_a_logger_the_recipe_of_an_earlier_run_is_kept_under_another_name(tmp_path: Path) -> None:
    parser = LightningArgumentParser()
    parser.add_argument("--lr", type=float)
    for lr in (0.1, 0.1, 0.2):
        save = SaveConfig(parser, parser.parse_args([f"--lr={lr}"]), save_to_log_dir=False)
        save.setup(make_trainer(tmp_path), make_module(), "fit")
    found = {path.name: yaml.safe_load(path.read_text())["lr"] for path in tmp_path.glob("config*.yaml")}
    assert found == {"config.yaml": 0.2, "config.1.yaml": 0.1}


def test_print_config_prints_a_recipe_and_runs_nothing(
    recipe: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", recipe(), "--trainer.max_epochs", "7", "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["trainer"]["max_epochs"] == 7
    assert printed["data"]["schema"] == SCHEMA
    assert not (tmp_path / "runs").exists()


def test_numbers_may_be_written_as_1e_minus_3(recipe: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    config = Path(recipe(model__dense_optimizer={"class_path": "Adam", "init_args": {"lr": "LR"}}))
    config.write_text(config.read_text().replace("LR", "1e-3"))
    assert main(["fit", "--config", str(config), "--print_config"]) == 0
    optimizer = yaml.safe_load(capsys.readouterr().out)["model"]["dense_optimizer"]
    assert optimizer["class_path"] == "torch.optim.Adam"
    assert optimizer["init_args"]["lr"] == 0.001


@pytest.mark.parametrize(
    ("changes", "arguments", "told"),
    [
        ({"trainer__max_epoch": 3}, [], "there is no option trainer.max_epoch; did you mean trainer.max_epochs?"),
        ({}, ["--data.batch_sise=3"], "there is no option data.batch_sise; did you mean data.batch_size?"),
        ({}, ["--trainer.max_epoch=3"], "there is no option trainer.max_epoch; did you mean trainer.max_epochs?"),
        ({}, ["--model.network=DepFM"], "model.network: there is no class 'DepFM'; did you mean DeepFM?"),
        ({"model__network__init_args": {"hiden": [3]}}, [], "DeepFM has no option 'hiden'; did you mean hidden?"),
        ({"data__batch_size": "many"}, [], "data.batch_size is 'many', need int"),
        (
            {"data__schema": {"columns": [{"name": "a", "dtyp": "int64"}]}},
            [],
            "unknown option 'dtyp'; did you mean 'dtype'?",
        ),
        ({"data__train": "/no/such/folder"}, [], "train: /no/such/folder does not exist"),
        ({"trainer__strategy": "auto"}, [], "in a recipe trainer: {strategy: recis_sharded}"),
        ({}, ["--ckpt_path", "no.ckpt"], "there is no checkpoint 'no.ckpt'"),
        ({"data__batch_size": 100}, [], "set batch_size=96 or 104, or streams=5"),
        (
            {
                "trainer__strategy": {
                    "class_path": "recis_lightning.training.ShardedStrategy",
                    "init_args": {"dense": "fsdp2", "find_unused_parameters": True},
                }
            },
            [],
            "find_unused_parameters: options of DDP, and dense is fsdp2; leave them out",
        ),
        ({}, ["--config", "/no.yaml"], "config: File does not exist: '/no.yaml'"),
    ],
)
def test_mistakes_end_with_status_2_in_a_line_that_says_what_to_do(
    changes: dict[str, Any],
    arguments: list[str],
    told: str,
    recipe: Callable[..., str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(["fit", "--config", recipe(**changes), *arguments]) == 2
    error = capfd.readouterr().err
    assert told in error
    assert "Traceback" not in error
    assert max(len(line) for line in error.splitlines()) < 400


def test_the_bar_of_the_command_can_be_replaced_and_turned_off(
    recipe: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    for settings, shown in (({"enable_progress_bar": True}, "rows/s="), ({"enable_progress_bar": False}, "")):
        changes: dict[str, Any] = {f"trainer__{name}": value for name, value in settings.items()}
        assert main(["fit", "--config", recipe(**changes, trainer__max_epochs=1)]) == 0
        printed = capsys.readouterr().out
        assert shown in printed
        assert bool(shown) == ("Epoch" in printed)


def test_a_recipe_mixes_sources_and_measures_each(recipe: Callable[..., str], data: Path, tmp_path: Path) -> None:
    sources = {"one": str(data / "train"), "two": [str(data / "test")]}
    changes = {"data__train": sources, "data__validation": sources, "data__mix": {"one": 3, "two": 1}}
    changes |= {"data__filter": [["price", ">=", 0]], "trainer__max_epochs": 1}
    assert main(["fit", "--config", recipe(**changes)]) == 0
    metrics = metrics_of(run_dir(tmp_path, 0))
    for name in ("train/source/one/loss", "train/source/two/loss", "val/source/one/auc", "val/source/two/auc"):
        assert 0 <= metrics[name] < 2


# ------------------------------------------------------------------------------------------------------ several ranks


def test_two_ranks_train_as_one_does(recipe: Callable[..., str], tmp_path: Path) -> None:
    config = recipe(trainer__max_epochs=1)
    assert main(["fit", "--config", config]) == 0
    two = in_new_process("fit", "--config", config, "--trainer.devices", "2", folder=tmp_path)
    assert two.returncode == 0, two.stderr
    one, both = (metrics_of(run_dir(tmp_path, number)) for number in (0, 1))
    assert both["exchange/bytes"] > 0
    assert both["val/auc"] == pytest.approx(one["val/auc"], abs=0.05)  # ranks draw dropout for other rows
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["version_0", "version_1"]
    checkpoint = str(checkpoint_of(run_dir(tmp_path, 1)))
    assert main(["validate", "--config", config, "--ckpt_path", checkpoint]) == 0
    assert metrics_of(run_dir(tmp_path, 2))["val/auc"] == pytest.approx(both["val/auc"], abs=1e-6)


def tell(arguments: list[str]) -> tuple[int, str]:
    """The status of `recis` on this rank, and what it has told."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        return main(arguments), told.getvalue()


@pytest.mark.parametrize(
    ("ranks", "options", "told"),
    [
        (3, ["--trainer.devices=3"], "streams 8 can't be shared equally by 3 ranks; set streams=9"),
        (2, ["--trainer.devices=2", "--data.streams=1"], "streams 1 can't be shared equally by 2 ranks; set streams=2"),
        (
            2,
            ["--trainer.devices=4"],
            "has started 2 processes, and the Trainer asks for devices 4 x num_nodes 1 = 4",
        ),
    ],
)
def test_ranks_that_do_not_fit_are_told_by_each_in_a_line(
    ranks: int, options: list[str], told: str, recipe: Callable[..., str]
) -> None:
    for status, error in run_trainers(ranks, tell, ["fit", "--config", recipe(), *options]):
        assert status == 2
        assert told in error
        assert "Traceback" not in error


def test_a_rank_that_is_killed_ends_all_and_is_named(recipe: Callable[..., str]) -> None:
    kill = {"class_path": "tests.training.helpers.OnRank", "init_args": {"rank": 1, "batch": 3, "kind": "kill"}}
    ran = in_new_process("fit", "--config", recipe(trainer__callbacks=[kill], trainer__devices=2))
    assert ran.returncode != 0
    assert re.search(r"The first failure was that of rank 1: process \d+ was ended by SIGKILL", ran.stderr), ran.stderr
