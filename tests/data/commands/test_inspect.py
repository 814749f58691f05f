"""`recis data inspect` and `recis data stats` as commands."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recis_lightning.cli import main
from recis_lightning.data.commands.inspect import find_splits, show_time
from tests.data.click_rows import write_stripes

DAY = 86_400


@pytest.fixture
def log(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, rows in (("train", 400), ("valid", 80)):
        users = rng.integers(0, 60, rows)
        table = pa.table(
            {
                "click": pa.array((users % 2).astype(np.float32)),
                "user_id": pa.array(users),
                "price": pa.array(rng.normal(5, 1, rows)),
                "time": pa.array([n * 2 * DAY // rows for n in range(rows)]),
                "name": pa.array([f"<{n % 3}>" for n in range(rows)]),
            }
        )
        write_stripes(tmp_path / "log" / split / "a.orc", [table[: rows // 2], table[rows // 2 :]])
    return tmp_path / "log"


def fit(recipe: Path, folder: Path) -> dict[str, float]:
    options = ["logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"]
    arguments = [part for option in options for part in (f"--trainer.{option}", "false")]
    arguments += ["--trainer.default_root_dir", str(folder)]
    assert main(["fit", "--config", str(recipe), *arguments]) == 0
    last: dict[str, float] = json.loads((folder / "metrics.json").read_text())["last"]
    return last


def test_the_recipe_of_inspect_trains(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    assert main(["data", "inspect", str(log), "--out", str(recipe)]) == 0
    printed = capsys.readouterr().out
    assert "400 rows in 1 files, 2 stripes" in printed
    assert "recis fit --config" in printed
    last = fit(recipe, tmp_path)
    assert last["train/loss"] < 0.7
    assert 0 <= last["val/auc"] <= 1


@pytest.mark.real_data
@pytest.mark.skipif("RECIS_DATA" not in os.environ, reason="RECIS_DATA names no folder with the public data")
def test_the_recipe_of_inspect_trains_on_census(tmp_path: Path) -> None:
    folder = Path(os.environ["RECIS_DATA"]) / "census_kdd_100k"
    assert main(["data", "inspect", str(folder), "--out", str(tmp_path / "recipe.yaml")]) == 0
    last = fit(tmp_path / "recipe.yaml", tmp_path)
    assert last["val/income/auc"] > 0.9
    assert last["val/education/auc"] > 0.9


def test_times_are_shown_as_times() -> None:
    assert show_time(1_735_725_600) == "2025-01-01 10:00"
    assert show_time(-1.5) == "1969-12-31 23:59"


def test_folders_are_told_apart_by_their_names(log: Path) -> None:
    both = {"train": str(log / "train"), "validation": str(log / "valid")}
    assert find_splits(str(log)) == find_splits(str(log / "train")) == both
    assert find_splits(str(log / "valid")) == {"train": str(log / "valid")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "{log}", "--out", "{log}/train/a.orc"], "a.orc exists; remove it, or write to another file"),
        (["inspect", "{log}/nowhere"], "nowhere does not exist"),
        (["inspect", "{log}", "--rows", "0"], "rows is 0, need at least 1"),
        (["stats", "{log}", "--label", "click"], "--label is for the mean by day; give --by COLUMN too"),
        (["stats", "{log}", "--by", "tiem"], "there is no column 'tiem'; did you mean 'time'?"),
        (["stats", "{log}", "--by", "time", "--label", "name"], "column 'name' is string, which has no mean"),
    ],
)
def test_mistakes_on_the_line_are_told(
    log: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["data", *(part.format(log=log) for part in arguments)]) == 2
    assert message in capsys.readouterr().err.replace("\n", "")


def test_files_of_several_kinds_are_not_mixed(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(pa.table({"click": [1]}), log / "train/b.parquet")
    assert main(["data", "inspect", str(log)]) == 2
    error = capsys.readouterr().err
    assert "b.parquet: column 'click' is int64, in" in error
    assert "column 'user_id' is missing" in error


def test_stats_writes_a_page_that_needs_nothing_else(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "out/stats.html"
    arguments = ["stats", str(log), "--html", str(page), "--by", "time", "--label", "click"]
    assert main(["data", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "1970-01-02" in printed
    assert "commonest" in printed
    text = page.read_text()
    assert text.count("<svg") == 6  # five columns, and the days
    assert "<td>1970-01-01</td><td class='n'>200</td>" in text
    assert "&lt;0&gt;" in text
    assert "<0>" not in text
    assert "://" not in text
