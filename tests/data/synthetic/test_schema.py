"""Files made for a schema: every dtype in every layout is there, as declared, and missing only where it may be."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.orc
import pytest
from sklearn.linear_model import LogisticRegression

from recis_lightning.data.check import find_mismatches
from recis_lightning.data.columns import Selection
from recis_lightning.data.errors import DataError
from recis_lightning.data.files.manifest import read_manifest
from recis_lightning.data.loader import OrcLoader
from recis_lightning.data.plan import Order
from recis_lightning.data.synthetic.schema import WRITTEN_AS, synthesize
from recis_lightning.schema import Schema

NUMBERS = ["int8", "int16", "int32", "int64", "float32", "float64", "bool"]
INTEGERS = ["int8", "int16", "int32", "int64", "bool"]
LAYOUTS = ["scalar", "list", "optional_list"]


def make(tmp_path: Path, settings: dict[str, Any], rows: int = 400, **options: Any) -> pa.Table:
    paths = synthesize(Schema.from_dict(settings), tmp_path / "out", rows, **options)
    return pa.concat_tables([pyarrow.orc.read_table(path) for path in paths])


def column_type(table: pa.Table, name: str) -> tuple[bool, pa.DataType]:
    """Whether a column is of lists, and the type of its values."""
    kind = table.schema.field(name).type
    return (True, kind.value_type) if pa.types.is_list(kind) else (False, kind)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ids_of_every_dtype_and_layout_are_read_back_as_declared(tmp_path: Path, layout: str) -> None:
    columns: list[dict[str, Any]] = [{"name": dtype, "dtype": dtype, "layout": layout} for dtype in INTEGERS]
    columns.append({"name": "hashed", "dtype": "string", "layout": layout, "hash": "farm"})
    columns.append({"name": "parsed", "dtype": "string", "layout": layout, "parse": "int64"})
    names = [column["name"] for column in columns]
    features = [{"name": name, "table": name} for name in names]
    table = make(tmp_path, {"columns": columns, "features": features, "tables": [{"name": n, "dim": 4} for n in names]})
    assert table.column_names == names
    for column in columns:
        assert column_type(table, column["name"]) == (layout != "scalar", WRITTEN_AS[column["dtype"]])
        rows = table[column["name"]].to_pylist()
        lengths = {None if row is None else len(row) if isinstance(row, list) else 1 for row in rows}
        assert lengths == {"scalar": {None, 1}, "list": {None, *range(9)}, "optional_list": {0, 1}}[layout]
        flat = [value for row in rows if row is not None for value in (row if isinstance(row, list) else [row])]
        assert len(set(flat)) > (1 if column["dtype"] == "bool" else 20)
    assert all(int(value) < 2**63 for row in table["parsed"].to_pylist() for value in np.atleast_1d(row or []))


def test_wide_ids_are_64_bit_and_signed(tmp_path: Path) -> None:
    settings = {
        "columns": [{"name": "id", "dtype": "int64"}],
        "features": [{"name": "id", "table": "id"}],
        "tables": [{"name": "id", "dim": 4}],
    }
    ids = make(tmp_path, settings)["id"].drop_null().to_numpy()
    assert ids.min() < -(2**60) < 2**60 < ids.max()


@pytest.mark.parametrize("layout", ["scalar", "optional_list"])
def test_dense_columns_are_missing_only_with_a_default(tmp_path: Path, layout: str) -> None:
    columns: list[dict[str, Any]] = []
    for dtype in NUMBERS:
        columns.append({"name": f"{dtype}_full", "dtype": dtype, "layout": layout})
        columns.append({"name": f"{dtype}_gaps", "dtype": dtype, "layout": layout, "default": 0})
    columns.append({"name": "text", "dtype": "string", "layout": layout, "parse": "float32"})
    table = make(tmp_path, {"columns": columns, "features": [{"name": column["name"]} for column in columns]})
    for column in columns:
        assert column_type(table, column["name"]) == (layout != "scalar", WRITTEN_AS[column["dtype"]])
        missing = sum(row is None or row == [] for row in table[column["name"]].to_pylist())
        assert 15 < missing < 80 if "default" in column else missing == 0
    texts = [row[0] if layout == "optional_list" else row for row in table["text"].to_pylist()]
    assert all(float(value) >= 0 for value in texts)


def test_dense_values_are_in_the_domain_of_log1p(tmp_path: Path) -> None:
    settings = {
        "columns": [{"name": "x", "dtype": "float32"}],
        "features": [{"name": "x", "transforms": [{"kind": "log1p"}]}],
    }
    assert make(tmp_path, settings)["x"].to_numpy().min() >= 0


def test_weights_have_the_lengths_of_their_ids(tmp_path: Path) -> None:
    # w is declared first, and weighs two columns of ids.
    settings = {
        "columns": [
            {"name": "w", "dtype": "float32", "layout": "list"},
            {"name": "{a,b,alone}", "dtype": "int64", "layout": "list"},
        ],
        "features": [{"name": "{a,b}", "table": "t", "weights": "w"}, {"name": "alone", "table": "t"}],
        "tables": [{"name": "t", "dim": 4}],
    }
    table = make(tmp_path, settings)
    lengths = {name: pa.compute.list_value_length(table[name]).to_pylist() for name in table.column_names}
    assert lengths["a"] == lengths["b"] == lengths["w"] != lengths["alone"]
    weights = table["w"].combine_chunks().flatten().to_numpy()
    assert 0 < weights.min() < weights.max() <= 2


def test_columns_that_share_a_table_share_ids(tmp_path: Path) -> None:
    settings = {
        "columns": [{"name": "{a,b,other}", "dtype": "int64"}],
        "features": [{"name": "{a,b}", "table": "t"}, {"name": "other", "table": "u"}],
        "tables": [{"name": "{t,u}", "dim": 4}],
    }
    table = make(tmp_path, settings)
    a, b, other = (set(table[name].drop_null().to_pylist()) for name in ("a", "b", "other"))
    assert len(a & b) > 20
    assert not a & other


@pytest.mark.parametrize("dtype", [*NUMBERS, "string"])
@pytest.mark.parametrize("layout", ["scalar", "optional_list"])
def test_task_columns_are_never_missing_and_in_range(tmp_path: Path, dtype: str, layout: str) -> None:
    parse = {"parse": "float32"} if dtype == "string" else {}
    settings = {
        "columns": [{"name": "{click,buy,stars,kept,weight}", "dtype": dtype, "layout": layout} | parse],
        "tasks": [
            {"name": "ctr", "label": "click", "sample_weight": "weight"},
            {"name": "cvr", "label": "buy", "where": "click"},
            {"name": "rating", "label": "stars", "loss": "mse", "where": "kept"},
        ],
    }
    table = make(tmp_path, settings)
    values = {}
    for name in table.column_names:
        assert column_type(table, name) == (layout != "scalar", WRITTEN_AS[dtype])
        rows = table[name].to_pylist()
        values[name] = [float(row[0]) for row in rows] if layout == "optional_list" else [float(row) for row in rows]
    for name in ("click", "buy", "kept"):
        assert set(values[name]) == {0.0, 1.0}
    assert min(values["weight"]) > 0
    assert min(values["stars"]) >= 0
    assert np.std(values["stars"]) > 0 or dtype == "bool"


LEARNABLE = {
    "columns": [
        {"name": "label", "dtype": "float32"},
        {"name": "x", "dtype": "float32"},
        {"name": "c", "dtype": "int64"},
    ],
    "features": [{"name": "x"}, {"name": "c", "table": "c"}],
    "tables": [{"name": "c", "dim": 4}],
    "tasks": [{"name": "ctr", "label": "label"}],
}


def test_labels_can_be_learned_and_the_lesson_holds_on_another_split(tmp_path: Path) -> None:
    train = make(tmp_path / "train", LEARNABLE, rows=5000)
    valid = make(tmp_path / "valid", LEARNABLE, rows=2000, split=1)
    frequent = train["c"].drop_null().value_counts().to_pylist()
    top = [row["values"] for row in sorted(frequent, key=lambda row: -row["counts"])[:20]]

    def features(table: pa.Table) -> np.ndarray:
        ids = np.array(table["c"].to_pylist(), object)
        return np.column_stack([np.minimum(table["x"].to_numpy(), 40), *[ids == value for value in top]]).astype(float)

    model = LogisticRegression(max_iter=1000).fit(features(train), train["label"].to_numpy())
    labels = valid["label"].to_numpy()
    order = np.argsort(model.predict_proba(features(valid))[:, 1])
    assert labels[order[1000:]].mean() > labels[order[:1000]].mean() + 0.1


def test_files_are_a_function_of_schema_rows_seed_and_split(tmp_path: Path) -> None:
    runs = [{}, {}, {"seed": 1}, {"split": 1}]
    tables = [make(tmp_path / str(index), LEARNABLE, rows=50, **run) for index, run in enumerate(runs)]
    assert tables[0] == tables[1]
    assert tables[0] != tables[2]
    assert tables[0] != tables[3]


def test_rows_are_cut_into_the_parts_asked_for_over_many_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recis_lightning.data.synthetic.schema.BLOCK_ROWS", 7)
    told: list[int] = []
    paths = synthesize(Schema.from_dict(LEARNABLE), tmp_path, 25, parts=3, on_rows=told.append)
    assert [pyarrow.orc.ORCFile(path).nrows for path in paths] == [9, 9, 7]
    assert told == [7, 7, 7, 4]


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="rows is 0"):
        synthesize(Schema.from_dict(LEARNABLE), tmp_path, 0)


def test_texts_and_token_ids_are_made_for_towers(tmp_path: Path) -> None:
    settings = {
        "columns": [
            {"name": "title", "dtype": "string", "tokenizer": "any.json"},
            {"name": "{few,many}", "dtype": "int64", "layout": "list"},
        ],
        "features": [{"name": "title", "tower": "a"}, {"name": "few", "tower": "b"}, {"name": "many", "tower": "c"}],
        "towers": [
            {"name": "a", "dim": 4, "model": "some/model"},
            {"name": "b", "dim": 4, "model": {"model_type": "bert", "vocab_size": 30}},
            {"name": "c", "dim": 4, "model": "some/model"},
        ],
    }
    table = make(tmp_path, settings)
    texts = [text for text in table["title"].to_pylist() if text is not None]
    assert 15 < len(table) - len(texts) < 80
    assert len(set(texts)) > 20
    assert all(len(text.split()) == 4 for text in texts)
    largest = [pa.compute.max(table[name].combine_chunks().flatten()).as_py() for name in ("few", "many")]
    assert 20 < largest[0] < 30
    assert 60 < largest[1] < 100


def test_columns_of_every_kind_are_read_back_as_declared(tmp_path: Path) -> None:
    lists = {"layout": "list"}
    columns: list[dict[str, Any]] = [
        {"name": "tags", "source": "pairs.key", "dtype": "int64", **lists},
        {"name": "tag_weights", "source": "pairs.value", "dtype": "float32", **lists},
        {"name": "age", "source": "user.age", "dtype": "int32"},
        {"name": "groups", "dtype": "int64", "layout": "nested_list"},
        {"name": "topics", "dtype": "string", "split": "|", "hash": "farm", **lists},
        {"name": "times", "dtype": "timestamp", "unit": "hours", **lists},
        {"name": "price", "dtype": "decimal", "default": 0},
        {"name": "profile", "dtype": "float32", "layout": "vector", "dim": 3},
        {"name": "image", "dtype": "binary"},
    ]
    ids = ("tags", "groups", "topics", "times")
    features: list[dict[str, Any]] = [{"name": name, "table": "t", "pooling": "none"} for name in ids]
    features[0]["weights"] = "tag_weights"
    custom = {"kind": "custom", "class_path": "torch.ones"}
    features += [{"name": "age"}, {"name": "price"}, {"name": "profile"}, {"name": "image", "transforms": [custom]}]
    schema = Schema.from_dict({"columns": columns, "features": features, "tables": [{"name": "t", "dim": 2}]})
    synthesize(schema, tmp_path / "out", 100, parts=1)
    manifest, problems = read_manifest(tmp_path / "out")
    selection = Selection.of(schema)
    assert problems + [*find_mismatches(manifest, selection.columns)] == []
    (batch,) = OrcLoader(manifest, selection, Order(batch_size=100, streams=1))
    entries = {name: batch[name] for name in batch}
    assert list(entries["profile"].shape) == [100, 3]
    for name in ("tags", "groups", "topics", "times", "image"):
        assert len(entries[name].check().values) > 100
    assert entries["groups"].inner_offsets


def test_a_source_too_deep_to_make_up_is_refused(tmp_path: Path) -> None:
    schema = Schema.from_dict({"columns": [{"name": "x", "dtype": "int64", "source": "a.b.c"}]})
    with pytest.raises(DataError, match="column 'x' comes from 'a.b.c', for which no data can be made up"):
        synthesize(schema, tmp_path, 10)
