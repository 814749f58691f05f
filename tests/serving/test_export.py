import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recis_lightning.schema import Schema
from recis_lightning.serving import export_model, scorer
from recis_lightning.serving.export import scorer_source
from recis_lightning.serving.verify import score_alone
from recis_lightning.training import RecModule
from tests.serving.rows import (
    SETTINGS,
    SequenceNet,
    WideNet,
    make_rows,
    predict,
    read_batches,
    trained_module,
    write_rows,
)


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> RecModule:
    return trained_module(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def folder(module: RecModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving") / "exported"
    sizes = export_model(module, folder)
    assert sizes["scores.pt2"] > 0
    return folder


def load_copy(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("exported_scorer", folder / "scorer.py")
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


def largest_difference(scores: dict[str, np.ndarray], expected: dict[str, torch.Tensor]) -> float:
    assert scores.keys() == expected.keys()
    return max(float(np.abs(scores[task] - expected[task].numpy()).max()) for task in scores)


@pytest.fixture(scope="module")
def exported(folder: Path) -> ModuleType:
    return load_copy(folder)


@pytest.fixture(scope="module")
def loaded(folder: Path, exported: ModuleType) -> scorer.Scorer:
    """The scorer of the copied file."""
    return exported.Scorer(folder)


def test_files_alone_score_as_the_model_does(module, folder, tmp_path):
    requests = [make_rows(200, seed=0, ids=40), make_rows(100, seed=1, ids=400)]  # ids seen, ids mostly unknown
    scores, _ = score_alone(folder, requests)
    paths = [write_rows(rows, tmp_path / f"{seed}.orc") for seed, rows in enumerate(requests)]
    expected = predict(module, [batch for path in paths for batch in read_batches(module.schema, path)])
    assert largest_difference(scores, expected) < 1e-5
    assert np.ptp(scores["ctr"]) > 0.01  # of different rows different ones


def test_the_process_that_scores_alone_has_no_package_of_ours(folder):
    text = (folder / "scorer.py").read_text()
    assert "import triton_ops" not in text
    assert "from triton_ops" not in text
    assert "from recis_lightning" not in text


@pytest.mark.parametrize("count", [1, 2, 5])
def test_small_requests_score_as_large_ones(loaded, count):
    rows = make_rows(count, seed=3)
    together = loaded.score(rows)
    for row in range(count):
        scores = loaded.score({name: values[row : row + 1] for name, values in rows.items()})
        for task in scores:
            assert scores[task][0] == pytest.approx(together[task][row], abs=1e-6)


def test_a_request_without_rows_has_no_scores(loaded):
    scores = loaded.score({name: [] for name in make_rows(1)})
    assert {task: found.shape for task, found in scores.items()} == {"ctr": (0,), "value": (0,)}


def test_rows_that_miss_everything_are_scored(module, loaded, tmp_path):
    rows = {name: [None] * 3 for name in make_rows(1)} | {"tags": [[], [], []], "tag_weights": [[], [], []]}
    expected = predict(module, read_batches(module.schema, write_rows(rows, tmp_path / "rows.orc")))
    assert largest_difference(loaded.score(rows), expected) < 1e-6


def test_tables_hold_every_id_in_order_as_safetensors_and_parquet(module, folder):
    for name, table in module.tables.items():
        rows = table.export()
        order = rows.ids.argsort()
        stored = safetensors.numpy.load_file(folder / "tables" / f"{name}.safetensors")
        assert stored["ids"].tolist() == rows.ids[order].tolist()
        np.testing.assert_array_equal(stored["weight"], rows.weight[order].numpy())
        read = pq.read_table(folder / "tables" / f"{name}.parquet")
        assert read.column_names == ["id", "vector"]
        assert read["id"].to_pylist() == rows.ids[order].tolist()
        np.testing.assert_array_equal(np.array(read["vector"].to_pylist(), np.float32), stored["weight"])


def test_the_manifest_says_what_is_in_the_folder(module, folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["format"] == scorer.FORMAT
    assert manifest["tables"]["user"] == {"rows": len(module.tables["user"]), "dim": 4, "dtype": "float32"}
    assert Schema.from_dict(manifest["schema"]) == module.schema


def test_the_scorer_runs_as_a_command_on_json_lines(folder, loaded):
    rows = make_rows(6, seed=4)
    lines = [json.dumps({name: values[row] for name, values in rows.items()}) for row in range(6)]
    command = [sys.executable, "-I", str(folder / "scorer.py")]
    result = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=True)
    expected = loaded.score(rows)
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["ctr"] for row in found] == pytest.approx(expected["ctr"].tolist(), abs=1e-6)


def test_sequences_go_to_the_model_unpooled(tmp_path):
    settings = SETTINGS | {
        "features": [
            {"name": "user", "table": "user"},
            {"name": "tags", "table": "tags", "weights": "tag_weights", "pooling": "none"},
        ],
        "tables": [{"name": "{user,tags}", "dim": 4, "dtype": "float64", "initializer": {"kind": "uniform"}}],
    }
    module = trained_module(tmp_path, Schema.from_dict(settings), SequenceNet)
    export_model(module, tmp_path / "exported")
    rows = make_rows(50, seed=6)
    scores = load_copy(tmp_path / "exported").Scorer(tmp_path / "exported").score(rows)
    expected = predict(module, read_batches(module.schema, write_rows(rows, tmp_path / "rows.orc")))
    assert largest_difference(scores, expected) < 1e-6


def test_tiles_and_rows_of_other_dtypes_score_as_the_model_does(tmp_path):
    tables = [
        {"name": "user", "dim": 4, "dtype": "bfloat16", "initializer": "uniform"},
        {"name": "shop", "dim": 4, "dtype": "float16", "initializer": "uniform"},
        {
            "name": "tags",
            "dim": 4,
            "dtype": "int8",
            "trainable": False,
            "initializer": {"kind": "constant", "value": 3},
        },
        {
            "name": "words",
            "dim": 4,
            "dtype": "int32",
            "trainable": False,
            "initializer": {"kind": "constant", "value": 2},
        },
    ]
    features = [
        {"name": "{user,shop}", "table": "{user,shop}"},
        {"name": "tags", "table": "tags", "pooling": "tile", "tile_length": 2},
        {"name": "tag_mean", "column": "tags", "table": "tags", "pooling": "mean"},
        {"name": "words", "table": "words", "pooling": "tile", "tile_length": 1},
        {"name": "word_sum", "column": "words", "table": "words"},
    ]
    schema = Schema.from_dict({**SETTINGS, "tables": tables, "features": features})
    module = trained_module(tmp_path, schema, WideNet)
    export_model(module, tmp_path / "exported")
    scores = scorer.Scorer(tmp_path / "exported")
    for count in (1, 50):
        rows = make_rows(count, seed=2)
        expected = predict(module, read_batches(schema, write_rows(rows, tmp_path / f"{count}.orc")))
        assert largest_difference(scores.score(rows), expected) < 1e-5
    stored = {name: pq.read_schema(tmp_path / "exported" / "tables" / f"{name}.parquet") for name in module.tables}
    kinds = {name: str(schema.field("vector").type.value_type) for name, schema in stored.items()}
    assert kinds == {"user": "float", "shop": "float", "tags": "int8", "words": "int32"}


def test_export_leaves_a_folder_that_holds_something_alone(module, tmp_path):
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(MisconfigurationException, match="is not empty"):
        export_model(module, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_model_with_towers_is_refused(tmp_path):
    with_towers = SimpleNamespace(schema=SimpleNamespace(towers=(SimpleNamespace(name="title"),)))
    with pytest.raises(MisconfigurationException, match=r"through towers \(title\)"):
        export_model(with_towers, tmp_path / "exported")


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        ({"dtype": "int64", "layout": "list", "max_length": 3}, "max_length"),
        ({"dtype": "string", "layout": "list", "split": "|", "hash": "farm"}, "split"),
        ({"dtype": "int64", "layout": "nested_list"}, "layout: nested_list"),
    ],
)
def test_columns_that_the_scorer_would_read_otherwise_are_refused(tmp_path, column, reason):
    settings = {
        "columns": [{"name": "ids"} | column],
        "features": [{"name": "ids", "table": "t", "pooling": "none"}],
        "tables": [{"name": "t", "dim": 2}],
    }
    module = RecModule(Schema.from_dict(settings), network=lambda schema: torch.nn.Identity())
    with pytest.raises(MisconfigurationException, match=rf"columns 'ids' \({reason}\) as training does"):
        export_model(module, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_that_fails_leaves_nothing_behind(module, tmp_path, monkeypatch):
    monkeypatch.setattr("recis_lightning.serving.export.trace_scores", lambda module: 1 / 0)
    monkeypatch.setattr("recis_lightning.serving.export.trace_features", lambda *arguments: None)
    monkeypatch.setattr("torch.export.save", lambda *arguments: None)
    with pytest.raises(ZeroDivisionError):
        export_model(module, tmp_path / "exported")
    assert list(tmp_path.iterdir()) == []


def test_the_copied_source_is_whole_and_reads_alone():
    source = scorer_source()
    compile(source, "scorer.py", "exec")
    assert source.startswith('"""Score rows with an exported model')
    assert source.count("import torch\n") == 1


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user": None}, "column 'user' is missing"),
        ({"user": [1.5, 2]}, "column 'user', value 0: 1.5 is no int64"),
        ({"user": [2**63, 2]}, "is no int64"),
        ({"user": [[1, 2], [3]]}, "column 'user', row 0: a list"),
        ({"user": [1, 2, 3]}, "unequal numbers of rows"),
        ({"user": "ab"}, "is one string"),
        ({"city": [7, "a"]}, "column 'city', value 0: 7 is no string"),
        ({"code": ["x", "1"]}, "column 'code', value 0: 'x' is no string"),
        ({"tags": [[1, None], [2]], "tag_weights": [[1, 2], [1]]}, "row 0: a missing value in a list"),
        (
            {"tags": [[1, 2], [2]], "tag_weights": [[1, 2], []]},
            "row 1 has 1 values in 'tags', 0 in 'tag_weights'; these",
        ),
        ({"price": [1e300, 1]}, "column 'price': 1e.300 is no number"),
        ({"age": [2**24 + 1, 1]}, "column 'age'"),
        (
            {"price": [float("inf"), 1]},
            r"feature 'price', transforms\[1\] \(log1p\): column 'price', row 0 has no result, need",
        ),
    ],
)
def test_what_does_not_fit_is_named(loaded, changes, message):
    rows = {name: values for name, values in (make_rows(2) | changes).items() if values is not None}
    with pytest.raises(ValueError, match=message):
        loaded.score(rows)


def test_arrays_score_as_lists_do(exported, loaded):
    rows = make_rows(20, seed=7)
    lists = loaded.score(rows)
    flat = [tag for row in rows["tags"] for tag in row]
    offsets = np.cumsum([0, *(len(row) for row in rows["tags"])])
    masked = np.ma.array([user or 0 for user in rows["user"]], mask=[user is None for user in rows["user"]])
    arrays = rows | {
        "user": masked,
        "price": np.array([np.nan if price is None else price for price in rows["price"]]),
        "tags": exported.Lists(np.array(flat, np.int64), offsets),
        "shop": np.array([3 if shop is None else shop for shop in rows["shop"]], np.int32),
    }
    for task, found in loaded.score(arrays).items():
        np.testing.assert_array_equal(found, lists[task])


def test_a_folder_of_another_format_is_refused(folder, tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        scorer.Scorer(tmp_path)
