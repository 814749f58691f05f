"""Text beside ids from end to end: what it gains on items never seen, the MovieLens recipe, and bad input."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from pyarrow import orc

from recis_lightning.cli import main
from recis_lightning.data.commands.synth import read_schema
from recis_lightning.data.files.orc_writer import PartWriter
from recis_lightning.data.synthetic.schema import synthesize
from recis_lightning.data.train_tokenizer import train_tokenizer
from recis_lightning.schema import Schema

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes"


def run_script(name: str, *arguments: str, **environment: str) -> str:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    settings = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, str(RECIPES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=settings)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_text_ranks_items_that_nobody_has_seen_and_harms_no_others(tmp_path: Path) -> None:
    arguments = ["synthetic", "--rows", "100000", "--seeds", "1", "--work", f"{tmp_path}", "--out", f"{tmp_path}/out"]
    shown = run_script("cold_start.py", *arguments)
    ids, text = json.loads((tmp_path / "out/synthetic.json").read_text())
    assert (ids["variant"], text["variant"]) == ("ids alone", "ids + text")
    assert text["held_out"] - ids["held_out"] >= 0.05
    assert text["seen"] - ids["seen"] >= -0.002
    assert 0 < text["trained_share"] < 0.05
    assert "gain, never seen" in shown
    assert (tmp_path / "out/synthetic.png").stat().st_size > 5_000


# -------------------------------------------------------------------------------------------------- what is documented


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def test_the_schema_in_the_readme_holds() -> None:
    (declared,) = [block for block in blocks("README.md", "yaml") if "towers:" in block]
    schema = Schema.from_dict(yaml.safe_load(declared))
    assert [feature.name for feature in schema.tower_features] == ["title"]
    assert schema.column("item_id").dropout == 0.1


def test_the_examples_in_the_docs_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (declared,) = blocks("docs/text.md", "yaml")
    label = {"name": "click", "dtype": "float32"}
    settings = yaml.safe_load(declared) | {"tasks": [{"name": "ctr", "label": "click"}]}
    settings["columns"].append(label)
    assert Schema.from_dict(settings).tower("text").lora.targets == ("query", "value")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("docs/text.md", "python")
    exec(code, {})
    assert (tmp_path / "models/random/config.json").exists()


# ---------------------------------------------------------------------------------------------------------- MovieLens


def write_ratings(folder: Path) -> None:
    """Files as those of MovieLens that the recipe reads: 300 movies, 20 ratings each."""
    movies = range(1, 301)
    with PartWriter(folder / "ml1m_items", part_rows=1000) as writer:
        writer.write(
            pa.table(
                {
                    "movie_id": pa.array(movies, pa.int64()),
                    "title": [f"Movie {movie} (1999)" for movie in movies],
                    "genres": pa.array([["Drama", "War"] if movie % 2 else None for movie in movies]),
                    "plot": [f"A plot of {movie}." if movie % 3 else None for movie in movies],
                }
            )
        )
    rows = range(6000)
    with PartWriter(folder / "ml1m_ratings", part_rows=4000) as writer:
        writer.write(
            pa.table(
                {
                    "user_id": pa.array([row % 97 for row in rows], pa.int64()),
                    "movie_id": pa.array([row % 300 + 1 for row in rows], pa.int64()),
                    "rating": pa.array([row % 5 + 1.0 for row in rows], pa.float32()),
                    "fold5": pa.array([row // 300 % 5 + 1 for row in rows], pa.int8()),
                }
            )
        )


def read_part(folder: Path) -> pa.Table:
    return pa.concat_tables(orc.read_table(path) for path in sorted(folder.glob("*.orc")))


def test_movielens_is_parted_by_movie_with_a_text_for_each(tmp_path: Path) -> None:
    write_ratings(tmp_path / "data")
    shown = run_script("movielens.py", f"{tmp_path}/out", RECIS_DATA=f"{tmp_path}/data")
    parts = {name: read_part(tmp_path / "out" / name) for name in ("train", "seen", "held_out")}
    movies = {name: set(part["movie_id"].to_pylist()) for name, part in parts.items()}
    assert movies["train"] == movies["seen"]
    assert not movies["train"] & movies["held_out"]
    assert movies["train"] | movies["held_out"] == set(range(1, 301))
    assert 15 < len(movies["held_out"]) < 45
    assert sum(map(len, parts.values())) == 6000
    assert len(parts["seen"]) == 4 * len(movies["seen"])
    for part in parts.values():
        for row in part.slice(0, 50).to_pylist():
            movie = row["movie_id"]
            genres = ["Drama, War"] if movie % 2 else []
            plot = [f"A plot of {movie}."] if movie % 3 else []
            assert row["text"] == ". ".join([f"Movie {movie} (1999)", *genres, *plot])
    assert f"held_out: {len(parts['held_out']):,} ratings" in shown
    assert (tmp_path / "out/tokenizer.json").exists()


@pytest.mark.real_data
@pytest.mark.skipif("RECIS_DATA" not in os.environ, reason="RECIS_DATA names no folder with the public data")
def test_the_movielens_recipe_trains_on_the_ratings_and_tests_on_movies_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_script("movielens.py", f"{tmp_path}/demo/ml1m")
    arguments = ["--config", str(RECIPES / "ml1m_text.yaml"), "--trainer.enable_progress_bar", "false"]
    limits = [f"--trainer.limit_{part}_batches=3" for part in ("train", "val", "test")]
    limits.append("--trainer.log_every_n_steps=1")
    assert main(["fit", *arguments, *limits]) == 0
    (checkpoint,) = tmp_path.glob("runs/ml1m_text/*/checkpoints/last.ckpt")
    assert main(["test", *arguments, *limits, "--ckpt_path", str(checkpoint)]) == 0
    records = [json.loads(path.read_text())["last"] for path in tmp_path.glob("runs/ml1m_text/*/metrics.json")]
    aucs = {name: value for record in records for name, value in record.items() if name.endswith("/auc")}
    assert aucs.keys() == {"val/auc", "test/auc"}
    assert min(aucs.values()) > 0.4


# ---------------------------------------------------------------------------------------- bad input, before training


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and a tokenizer for the recipe on the synthetic log."""
    folder = tmp_path_factory.mktemp("made")
    synthesize(read_schema(RECIPES / "synthetic_text_ctr.yaml"), folder / "train", 300)
    train_tokenizer(folder / "train", "title", folder / "tokenizer.json", vocab_size=512)
    return folder


def write_recipe(path: Path, tokenizer: Path, column: dict[str, Any], tower: dict[str, Any]) -> None:
    """The synthetic recipe, its column of texts and its tower changed; model of a tower is changed in part."""
    recipe = yaml.safe_load((RECIPES / "synthetic_text_ctr.yaml").read_text())
    schema = recipe["data"]["schema"]
    (title,) = [each for each in schema["columns"] if "tokenizer" in each]
    title.update({"tokenizer": str(tokenizer)} | column)
    (declared,) = schema["towers"]
    if isinstance(tower.get("model"), dict):
        tower = tower | {"model": declared["model"] | tower["model"]}
    declared.update(tower)
    path.write_text(yaml.safe_dump(recipe))


@pytest.mark.parametrize(
    ("column", "tower", "missing", "message"),
    [
        ({}, {"model": "./nowhere"}, None, "tower 'title': model './nowhere': there is no folder"),
        ({}, {"lora": {"targets": ["qwery"]}}, None, "LoRA target 'qwery' matches no linear layer of the model"),
        ({}, {"model": {"vocab_size": 8}}, None, "column 'title': tokenizer .* the model has embeddings for 8 "),
        ({"max_length": 17}, {}, None, "column 'title': max_length is 17, .* takes 16 tokens at most"),
        ({"tokenizer": "nowhere.json"}, {}, None, "column 'title': there is no tokenizer .*nowhere.json; train one"),
        ({}, {}, "peft", r"needs the package 'peft', which is not installed; pip install 'recis-lightning\[llm\]'"),
        (
            {"max_length": None},
            {"model": {"max_position_embeddings": 4}},
            None,
            r"feature 'title': row \d+ of the batch has \d+ tokens, and the model takes 4 .*max_length: 4",
        ),
    ],
)
def test_bad_input_ends_in_a_line_before_anything_is_trained(
    column: dict[str, Any],
    tower: dict[str, Any],
    missing: str | None,
    message: str,
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if missing is not None:
        monkeypatch.setitem(sys.modules, missing, None)
    write_recipe(tmp_path / "bad.yaml", made / "tokenizer.json", column, tower)
    data = [f"--data.{name}={made / 'train'}" for name in ("train", "validation")]
    quiet = [f"--trainer.{name}=false" for name in ("logger", "enable_progress_bar", "enable_model_summary")]
    assert main(["fit", "--config", "bad.yaml", *data, *quiet]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.rglob("*.ckpt"))
