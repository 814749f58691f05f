"""Which column becomes what in a starter recipe."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from recis_lightning.data.errors import DataError
from recis_lightning.data.files.manifest import read_manifest
from recis_lightning.data.inspect.profile import profile_files
from recis_lightning.data.inspect.starter import Choices, choose, write_recipe
from recis_lightning.schema import Schema
from tests.data.click_rows import write_stripes

ROWS = 2_000
RNG = np.random.default_rng(0)
PAIRS = pa.list_(pa.struct([("id", pa.int64()), ("weight", pa.float32())]))
EVERYTHING: dict[str, pa.Array] = {
    "click": pa.array(RNG.integers(0, 2, ROWS).astype(np.float32)),
    "row": pa.array([f"row {n}" for n in range(ROWS)]),
    "user_id": pa.array(RNG.integers(0, 300, ROWS)),
    "country": pa.array(RNG.choice(["de", "fr"], ROWS)),
    "hour": pa.array(RNG.integers(0, 24, ROWS), pa.int32()),
    "visits": pa.array(RNG.integers(0, 800, ROWS)),
    "price": pa.array(RNG.normal(10, 2, ROWS)),
    "clicks": pa.array(RNG.lognormal(0, 3, ROWS)),
    "same": pa.array([1.0] * ROWS),
    "title": pa.array(["a title that is rather long, as titles are " + str(n) for n in range(ROWS)]),
    "tags": pa.array([[n % 7, n % 50] for n in range(ROWS)]),
    "maybe": pa.array([[n % 7] if n % 3 else [] for n in range(ROWS)]),
    "profile": pa.array([[0.5, n] if n % 5 else [] for n in range(ROWS)]),
    "scores": pa.array([[0.5] * (n % 4) for n in range(ROWS)]),
    "groups": pa.array([[[n]] for n in range(ROWS)]),
    "time": pa.array(range(ROWS), pa.timestamp("ns")),
    "image": pa.array([b"x"] * ROWS, pa.binary()),
    "nothing": pa.array([None] * ROWS, pa.int64()),
    "pairs": pa.array([[{"id": n % 50, "weight": 0.5}, {"id": 1, "weight": 1.0}] for n in range(ROWS)], PAIRS),
}


def choices_of(folder: Path, columns: dict[str, pa.Array], labels: list[str] | None = None) -> Choices:
    write_stripes(folder / "a.orc", [pa.table(columns)])
    return choose(profile_files(read_manifest(folder)[0]), labels or [])


def test_every_kind_of_column_becomes_what_it_looks_like(tmp_path: Path) -> None:
    choices = choices_of(tmp_path, EVERYTHING)
    assert choices.tasks == [{"name": "ctr", "label": "click"}]
    looked_up = [feature["name"] for feature in choices.features if "table" in feature]
    assert looked_up == ["user_id", "country", "hour", "tags", "maybe", "pairs_id"]
    dense = [feature["name"] for feature in choices.features if "table" not in feature]
    assert dense == ["visits", "price", "clicks", "profile"]
    features = {feature["name"]: feature for feature in choices.features}
    assert features["clicks"]["transforms"] == ["log1p"]
    assert features["price"]["transforms"][0]["kind"] == "z_score"
    assert features["pairs_id"] == {
        "name": "pairs_id",
        "table": "pairs_id",
        "pooling": "mean",
        "weights": "pairs_weight",
    }
    columns = {column["name"]: column for column in choices.columns}
    assert columns["profile"] == {"name": "profile", "dtype": "float64", "layout": "vector", "dim": 2, "default": 0}
    assert columns["maybe"]["layout"] == "optional_list"
    assert choices.left_out == {
        "row": "nearly one value a row",
        "same": "the same in all rows",
        "title": "text, 46 bytes a row; a tower could read it",
        "scores": "lists of numbers; say what they are: weights of ids, or a reduce transform",
        "groups": "lists of lists; a model takes them with pooling: none",
        "time": "a time; make hours or days of it in a transform",
        "image": "bytes, 1 a row; decode them by a custom transform",
        "nothing": "missing in all rows",
    }


def test_the_recipe_is_yaml_with_what_was_left_out_as_comments(tmp_path: Path) -> None:
    choices = choices_of(tmp_path, EVERYTHING)
    text = write_recipe(choices, {"train": "log/train", "validation": "log/valid"}, "log", rows=ROWS)
    recipe = yaml.safe_load(text)
    assert Schema.from_dict(recipe["data"]["schema"]).to_dict() == Schema.from_dict(choices.schema()).to_dict()
    assert (recipe["data"]["train"], recipe["data"]["batch_size"]) == ("log/train", 8)
    assert "      # title: text, 46 bytes a row" in text
    assert "# validation:" not in text
    assert "# validation: <folder>" in write_recipe(choices, {"train": "log/train"}, "log", rows=ROWS)


@pytest.mark.parametrize(
    ("columns", "labels", "tasks"),
    [
        ({"label_a": [0, 1], "label_b": [1, 0], "x": [1.5, 2]}, [], [("a", "label_a"), ("b", "label_b")]),
        ({"x": [1.5, 2], "y": [0, 1]}, [], [("ctr", "y")]),
        ({"x": [1.5, 2], "flag": [0, 1]}, [], [("ctr", "flag")]),
        ({"rating": [1, 5], "x": [1.5, 2]}, ["rating"], [("rating", "rating")]),
        ({"label": [[0.0], [1.0]], "x": [1.5, 2]}, [], [("ctr", "label")]),
    ],
)
def test_labels_are_found_by_name_and_by_what_they_hold(
    tmp_path: Path, columns: dict[str, Any], labels: list[str], tasks: list[tuple[str, str]]
) -> None:
    choices = choices_of(tmp_path, {name: pa.array(values) for name, values in columns.items()}, labels)
    assert [(task["name"], task["label"]) for task in choices.tasks] == tasks
    assert [task.get("loss") for task in choices.tasks] == ["mse" if labels else None] * len(tasks)


@pytest.mark.parametrize(
    ("columns", "labels", "message"),
    [
        ({"x": [1.5, 2]}, [], r"no column of zeros and ones .* name one: --label COLUMN \(numbers: x\)"),
        ({"x": [1.5, 2]}, ["y"], "there is no column 'y' for a label; there are: x"),
        ({"x": [1.5, None]}, ["x"], r"column 'x' is float64 \(scalar\) with 1 missing values; a label is one number"),
        ({"x": ["a", "b"]}, ["x"], r"column 'x' is string \(scalar\) with 0 missing values; a label is one number"),
        ({"x": [2.5, 2.5]}, ["x"], "column 'x' is 2.5 in all 2 rows; there is nothing to learn"),
    ],
)  # fmt: skip
def test_a_label_that_is_none_is_named(
    tmp_path: Path, columns: dict[str, Any], labels: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        choices_of(tmp_path, {name: pa.array(values) for name, values in columns.items()}, labels)
