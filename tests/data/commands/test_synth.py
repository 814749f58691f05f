"""`recis data synth` from its arguments to its files."""

import argparse
from pathlib import Path

import pyarrow.orc
import pytest
import yaml

from recis_lightning.data.commands import synth
from recis_lightning.data.errors import DataError
from recis_lightning.data.synthetic.truth import best_reachable
from recis_lightning.schema import SchemaError

SCHEMA = {
    "columns": [{"name": "label", "dtype": "float32"}, {"name": "c", "dtype": "int64"}],
    "features": [{"name": "c", "table": "c"}],
    "tables": [{"name": "c", "dim": 4}],
    "tasks": [{"name": "ctr", "label": "label"}],
}


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    synth.add_arguments(parser)
    return synth.run(parser.parse_args([str(argument) for argument in arguments]))


def count_rows(folder: Path) -> int:
    return sum(pyarrow.orc.ORCFile(path).nrows for path in folder.glob("*.orc"))


def test_without_a_schema_it_writes_the_click_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "log", "--rows", 5000, "--seed", 2) == 0
    assert [count_rows(tmp_path / "log" / name) for name in ("train", "valid")] == [5000, 500]
    assert f"{best_reachable(tmp_path / 'log')['all'].auc:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"data": {"schema": s}}, lambda s: {"data": {"init_args": {"schema": s}}}]
)
def test_with_a_schema_it_writes_three_splits_that_fit_it(tmp_path: Path, wrap: object) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(wrap(SCHEMA)))  # type: ignore[operator]
    assert run(tmp_path / "made", "--schema", recipe, "--rows", 100, "--validation-rows", 20) == 0
    assert [count_rows(tmp_path / "made" / name) for name in ("train", "valid", "test")] == [100, 20, 20]
    first = next((tmp_path / "made" / "test").glob("*.orc"))
    assert pyarrow.orc.ORCFile(first).schema.names == ["label", "c"]


def test_a_file_without_a_schema_is_named(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("trainer: {max_epochs: 1}\n")
    with pytest.raises(DataError, match=r"recipe\.yaml holds no schema"):
        run(tmp_path / "made", "--schema", recipe)


def test_mistakes_in_the_schema_are_told_before_anything_is_written(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(SCHEMA | {"tables": [{"name": "c", "dim": 0}]}))
    with pytest.raises(SchemaError, match="dim is 0"):
        run(tmp_path / "made", "--schema", recipe)
    assert not (tmp_path / "made").exists()


def test_a_second_log_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    run(tmp_path, "--rows", 100)
    with pytest.raises(DataError, match="holds ORC files already"):
        run(tmp_path, "--rows", 100)


def test_a_schema_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.yaml"):
        run(tmp_path / "made", "--schema", tmp_path / "nowhere.yaml")
