"""Every kind of column, from the file to the batch, against what plain Python makes of the same rows."""

import datetime
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recis_lightning.data.check import find_mismatches
from recis_lightning.data.columns import Selection
from recis_lightning.data.errors import DataError
from recis_lightning.data.files.manifest import read_manifest
from recis_lightning.data.loader import OrcLoader
from recis_lightning.data.plan import Order
from recis_lightning.data.sources import cut, file_column, find_unequal, flatten, follow_type
from recis_lightning.features import FeatureEngine
from recis_lightning.ragged import Batch, Ragged
from recis_lightning.schema import Column, Schema, SchemaError
from tests.data.click_rows import write_stripes
from triton_ops.hash_bytes.reference import HASHES


def make_schema(*columns: dict[str, Any], weights: str | None = None) -> Schema:
    """Columns named id... are looked up, `weights` weighs the first; all others are inputs of a custom transform."""
    ids = [column["name"] for column in columns if column["name"].startswith("id")]
    others = [column["name"] for column in columns if column["name"] not in [*ids, weights]]
    features: list[dict[str, Any]] = [{"name": name, "table": "t", "pooling": "none"} for name in ids]
    if weights:
        features[0]["weights"] = weights
    custom = {"kind": "custom", "class_path": "torch.ones"}
    features += [{"name": f"of_{name}", "inputs": [name], "transforms": [custom]} for name in others]
    tables = [{"name": "t", "dim": 4}] if ids else []
    return Schema.from_dict({"columns": list(columns), "features": features, "tables": tables})


def read(folder: Path, schema: Schema, **order: Any) -> list[Batch]:
    manifest, problems = read_manifest(folder)
    selection = Selection.of(schema)
    problems += find_mismatches(manifest, selection.columns)
    assert problems == []
    options = {"batch_size": 4, "streams": 1, "shuffle": False} | order
    return [*OrcLoader(manifest, selection, Order(**options), read_threads=1)]


def rows_of(batches: list[Batch], name: str) -> list[Any]:
    rows: list[Any] = []
    for batch in batches:
        entry = batch[name]
        rows += entry.check().to_lists() if isinstance(entry, Ragged) else entry.tolist()
    return rows


def values_of(tmp_path: Path, stored: pa.Array, **column: Any) -> list[Any]:
    """What batches carry of one column, which is stored as `x` and two stripes."""
    half = len(stored) // 2
    # Not slices: pyarrow writes those of structs wrongly.
    parts = [stored.take(pa.array(range(*part))) for part in ((0, half), (half, len(stored))) if part[0] < part[1]]
    write_stripes(tmp_path / "a.orc", [pa.table({"x": part}) for part in parts])
    column = {"name": "x"} | column
    return rows_of(read(tmp_path, make_schema(column)), column["name"])


PAIRS = pa.list_(pa.struct([("id", pa.int64()), ("weight", pa.float32())]))
MAP = pa.map_(pa.int64(), pa.float32())
TIMES = [datetime.datetime(1969, 12, 31, 23, 59, 59, 500_000), None, datetime.datetime(2020, 2, 29, 13)]


@pytest.mark.parametrize(
    ("stored", "column", "expected"),
    [
        (pa.array([[[1, 2], [], [3]], [], None, [None, [4]]], pa.list_(pa.list_(pa.int64()))),
         {"name": "ids", "source": "x", "dtype": "int64", "layout": "nested_list"},
         [[[1, 2], [], [3]], [], [], [[], [4]]]),
        (pa.array([[[0.5]], [[1.5, 2.5]]], pa.list_(pa.list_(pa.float64()))),
         {"dtype": "float64", "layout": "nested_list"}, [[[0.5]], [[1.5, 2.5]]]),
        (pa.array([[[[1], [2, 3]], []], [[[4]]]], pa.list_(pa.list_(pa.list_(pa.int32())))),
         {"name": "ids", "source": "x", "dtype": "int32", "layout": "nested_list", "levels": 3},
         [[[[1], [2, 3]], []], [[[4]]]]),
        (pa.array([[[1], [2]], [[3], [4], [5]]], pa.list_(pa.list_(pa.int64()))),
         {"name": "ids", "source": "x", "dtype": "int64", "layout": "nested_list", "max_length": 2, "keep": "last"},
         [[[1], [2]], [[4], [5]]]),
        (pa.array([[1, 2, 3], [4], None, []], pa.list_(pa.int64())),
         {"name": "ids", "source": "x", "dtype": "int64", "layout": "list", "max_length": 2}, [[1, 2], [4], [], []]),
        (pa.array([[1, 2, 3], [4], None, []], pa.list_(pa.int64())),
         {"name": "ids", "source": "x", "dtype": "int64", "layout": "list", "max_length": 2, "keep": "last"},
         [[2, 3], [4], [], []]),
        (pa.array([[1.0, 2.0], [], None, [3.0, 4.0]], pa.list_(pa.float32())),
         {"dtype": "float32", "layout": "vector", "dim": 2, "default": 9}, [[1, 2], [9, 9], [9, 9], [3, 4]]),
        (pa.array([[1, 2], [], [3, None]], pa.list_(pa.int32())),
         {"dtype": "int32", "layout": "vector", "dim": 2, "default": 0.5}, [[1, 2], [0.5, 0.5], [3, 0.5]]),
        (pa.array([[], [3.0, 4.0]], pa.list_(pa.float32())),
         {"dtype": "float32", "layout": "vector", "dim": 2, "default": [7, 8]}, [[7, 8], [3, 4]]),
        (pa.array(["0.5|1.5", "2|3"]),
         {"dtype": "string", "split": "|", "parse": "float32", "layout": "vector", "dim": 2}, [[0.5, 1.5], [2, 3]]),
        (pa.array(["1|2", "", None, "3"]),
         {"name": "ids", "source": "x", "dtype": "string", "split": "|", "parse": "int64", "layout": "list"},
         [[1, 2], [], [], [3]]),
        (pa.array(["a||b", "b"]),
         {"name": "ids", "source": "x", "dtype": "string", "split": "||", "hash": "farm", "layout": "list"},
         [["a", "b"], ["b"]]),
        (pa.array([b"\x00\xff", None, b"", b"abc"], pa.binary()), {"dtype": "binary"},
         [[0, 255], [], [], [97, 98, 99]]),
        (pa.array([{"age": 3}, None, {"age": None}], pa.struct([("age", pa.int32())])),
         {"name": "age", "source": "x.age", "dtype": "int32", "default": -1}, [3, -1, -1]),
        (pa.array([Decimal("1.25"), Decimal("-2.50")], pa.decimal128(10, 2)), {"dtype": "decimal"}, [1.25, -2.5]),
        (pa.array(TIMES, pa.timestamp("ns")),
         {"name": "id_t", "source": "x", "dtype": "timestamp", "unit": "s"}, [[-1], [], [1582981200]]),
        (pa.array(TIMES, pa.timestamp("ns")), {"dtype": "timestamp", "unit": "days", "default": 0}, [-1, 0, 18321]),
        (pa.array(TIMES, pa.timestamp("ns")),
         {"name": "id_t", "source": "x", "dtype": "timestamp", "unit": "ms"}, [[-500], [], [1582981200000]]),
        (pa.array([datetime.date(1970, 1, 3), None], pa.date32()),
         {"name": "id_t", "source": "x", "dtype": "timestamp", "unit": "hours"}, [[48], []]),
        (pa.array([[TIMES[2]], []], pa.list_(pa.timestamp("ns"))),
         {"name": "id_t", "source": "x", "dtype": "timestamp", "unit": "hours", "layout": "list"}, [[439717], []]),
        (pa.array([[(1, 0.5), (2, 2.0)], None, []], MAP),
         {"name": "ids", "source": "x.key", "dtype": "int64", "layout": "list"}, [[1, 2], [], []]),
        (pa.array([[(1, 0.5), (2, 2.0)], None, []], MAP),
         {"name": "w", "source": "x.value", "dtype": "float32", "layout": "list"}, [[0.5, 2], [], []]),
        (pa.array([[{"id": 7, "weight": 0.5}], [], None, [{"id": 8, "weight": None}]], PAIRS),
         {"name": "w", "source": "x.value", "dtype": "float32", "layout": "list", "default": 1}, [[0.5], [], [], [1]]),
        (pa.array([[{"id": 7, "weight": 0.5}], [], None, [{"id": 8, "weight": 1.5}]], PAIRS),
         {"name": "ids", "source": "x.id", "dtype": "int64", "layout": "list"}, [[7], [], [], [8]]),
        (pa.array([["7:0.5", "a:b:2"], [], ["9"]], pa.list_(pa.string())),
         {"name": "w", "source": "x.value", "dtype": "string", "parse": "float32", "layout": "list", "default": 1},
         [[0.5, 2], [], [1]]),
        (pa.array(["7:0.5,8:2", "", None, "9"]),
         {"name": "ids", "source": "x.key", "dtype": "string", "split": ",", "parse": "int64", "layout": "list"},
         [[7, 8], [], [], [9]]),
        (pa.array([["7:0.5", "a:b:2"], [], ["9"]], pa.list_(pa.string())),
         {"name": "ids", "source": "x.key", "dtype": "string", "hash": "murmur", "layout": "list"},
         [["7", "a:b"], [], ["9"]]),
    ],
)  # fmt: skip
def test_a_stored_value_is_read_as_declared(
    tmp_path: Path, stored: pa.Array, column: dict[str, Any], expected: list[Any]
) -> None:
    if "hash" in column:
        hashed = [[HASHES[column["hash"]](text.encode()) for text in row] for row in expected]
        expected = [[value - 2**64 if value >= 2**63 else value for value in row] for row in hashed]
    assert values_of(tmp_path, stored, **column) == expected


# -------------------------------------------------------------------------------------------- against plain Python


WEIGHTS = st.sampled_from([0.0, 0.5, 1.0, -2.25])
ROWS = st.lists(
    st.none() | st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), WEIGHTS), max_size=4), min_size=1, max_size=12
)


def _as_structs(rows: list[Any]) -> dict[str, pa.Array]:
    pairs = [None if row is None else [{"id": key, "weight": value} for key, value in row] for row in rows]
    return {"x": pa.array(pairs, PAIRS)}


def _as_maps(rows: list[Any]) -> dict[str, pa.Array]:
    return {"x": pa.array(rows, MAP)}


def _as_strings(rows: list[Any]) -> dict[str, pa.Array]:
    texts = [None if row is None else [f"{key}:{value}" for key, value in row] for row in rows]
    return {"x": pa.array(texts, pa.list_(pa.string()))}


def _as_one_string(rows: list[Any]) -> dict[str, pa.Array]:
    texts = [None if row is None else ",".join(f"{key}:{value}" for key, value in row) for row in rows]
    return {"x": pa.array(texts, pa.string())}


def _as_two_lists(rows: list[Any]) -> dict[str, pa.Array]:
    keys, values = ([None if row is None else [pair[side] for pair in row] for row in rows] for side in (0, 1))
    return {"k": pa.array(keys, pa.list_(pa.int64())), "v": pa.array(values, pa.list_(pa.float32()))}


NUMBERS = ({"dtype": "int64"}, {"dtype": "float32"})
TEXTS = ({"dtype": "string", "parse": "int64"}, {"dtype": "string", "parse": "float32"})
SPLIT = tuple(column | {"split": ","} for column in TEXTS)
ENCODINGS: list[tuple[Callable[[list[Any]], dict[str, pa.Array]], tuple[dict[str, Any], ...], tuple[str, str]]] = [
    (_as_structs, NUMBERS, ("x.id", "x.weight")),
    (_as_structs, NUMBERS, ("x.key", "x.value")),
    (_as_maps, NUMBERS, ("x.key", "x.value")),
    (_as_strings, TEXTS, ("x.key", "x.value")),
    (_as_one_string, SPLIT, ("x.key", "x.value")),
    (_as_two_lists, NUMBERS, ("k", "v")),
]


@settings(max_examples=60, deadline=None)
@given(
    rows=ROWS,
    encoding=st.sampled_from(ENCODINGS),
    length=st.none() | st.integers(1, 4),
    keep=st.sampled_from(["first", "last"]),
    stripe_rows=st.integers(1, 12),
    batch_size=st.integers(1, 13),
)
def test_pairs_of_ids_and_weights_are_the_same_however_they_are_stored_and_cut(
    rows: list[Any],
    encoding: tuple[Callable[[list[Any]], dict[str, pa.Array]], tuple[dict[str, Any], ...], tuple[str, str]],
    length: int | None,
    keep: str,
    stripe_rows: int,
    batch_size: int,
) -> None:
    encode, kinds, sources = encoding
    cutting = {} if length is None else {"max_length": length, "keep": keep}
    columns = [
        {"name": name, "source": source, "layout": "list"} | kind | cutting
        for name, source, kind in zip(("ids", "weights"), sources, kinds, strict=True)
    ]
    with TemporaryDirectory() as folder:
        stripes = [pa.table(encode(rows[at : at + stripe_rows])) for at in range(0, len(rows), stripe_rows)]
        write_stripes(Path(folder) / "a.orc", stripes)
        batches = read(Path(folder), make_schema(*columns, weights="weights"), batch_size=batch_size)
    kept = [(row or [])[: length or 9] if keep == "first" else (row or [])[-(length or 9) :] for row in rows]
    assert rows_of(batches, "ids") == [[key for key, _ in row] for row in kept]
    assert rows_of(batches, "weights") == [[value for _, value in row] for row in kept]


INNER = st.none() | st.lists(st.integers(0, 99), max_size=3)
NESTED = st.lists(st.none() | st.lists(INNER, max_size=4), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(rows=NESTED, stripe_rows=st.integers(1, 12), batch_size=st.integers(1, 13), seed=st.none() | st.integers(0, 9))
def test_nested_lists_and_byte_strings_are_what_the_files_hold_in_any_order(
    rows: list[Any], stripe_rows: int, batch_size: int, seed: int | None
) -> None:
    table = pa.table(
        {
            "id": pa.array(range(len(rows))),
            "ids": pa.array(rows, pa.list_(pa.list_(pa.int64()))),
            "bytes": pa.array([None if row is None else bytes(len(row)) for row in rows], pa.binary()),
        }
    )
    schema = make_schema(
        {"name": "id", "dtype": "int64"},
        {"name": "ids", "dtype": "int64", "layout": "nested_list"},
        {"name": "bytes", "dtype": "binary"},
    )
    with TemporaryDirectory() as folder:
        write_stripes(Path(folder) / "a.orc", [table.slice(at, stripe_rows) for at in range(0, len(rows), stripe_rows)])
        batches = read(Path(folder), schema, batch_size=batch_size, shuffle=seed is not None, seed=seed or 0)
    order = [row[0] for row in rows_of(batches, "id")]
    assert sorted(order) == list(range(len(rows)))
    assert rows_of(batches, "ids") == [[inner or [] for inner in rows[at] or []] for at in order]
    assert rows_of(batches, "bytes") == [[0] * len(rows[at] or []) for at in order]


def arrays(rows: list[Any]) -> Iterator[pa.ListArray]:
    """The rows as Arrow has them, and with values left over below what is null."""
    array = pa.array(rows, pa.list_(pa.list_(pa.int64())))
    yield array
    full = pa.array([[[7, 7], [7]] if row is None else [inner or [] for inner in row] for row in rows], array.type)
    yield pa.ListArray.from_arrays(full.offsets, full.values, mask=array.is_null())


@given(rows=NESTED)
def test_what_is_left_over_below_a_null_is_no_value(rows: list[Any]) -> None:
    for array in arrays(rows):
        lengths, values = flatten(array, levels=2)
        filled = [[inner or [] for inner in row or []] for row in rows]
        assert [row or [] for row in lengths.to_pylist()] == [[len(inner) for inner in row] for row in filled]
        assert [row or [] for row in values.to_pylist()] == [sum(row, []) for row in filled]
        for keep in ("first", "last"):
            kept = [row[:2] if keep == "first" else row[-2:] for row in filled]
            found = [[inner or [] for inner in row or []] for row in cut(array, 2, keep).to_pylist()]
            assert found == kept
        assert not find_unequal(array, pa.array(filled, array.type)).any()


def test_lists_that_differ_inside_alone_are_found() -> None:
    left = pa.array([[[1], [2, 3]], None, [[4]]])
    right = pa.array([[[1, 2], [3]], [], [[4]]])
    assert find_unequal(left, right).tolist() == [True, False, False]
    assert find_unequal(left, pa.array([[[1], [2, 3]], [[9]], [[4]]])).tolist() == [False, True, False]


def test_a_vector_is_one_tensor_whatever_the_stripes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal((50, 3)).astype(np.float32)
    array = pa.array(list(numbers), pa.list_(pa.float32()))
    write_stripes(tmp_path / "a.orc", [pa.table({"x": array.slice(at, 7)}) for at in range(0, 50, 7)])
    schema = make_schema({"name": "x", "dtype": "float32", "layout": "vector", "dim": 3})
    batches = read(tmp_path, schema, batch_size=16)
    assert [list(batch["x"].shape) for batch in batches] == [[16, 3], [16, 3], [16, 3], [2, 3]]  # type: ignore[union-attr]
    assert torch.equal(torch.cat([batch["x"] for batch in batches]), torch.from_numpy(numbers))  # type: ignore[misc]


def mean_brightness(images: Ragged) -> torch.Tensor:
    """A stand-in for a decoder: [B, 1] of bytes."""
    assert images.values.dtype == torch.uint8
    return images.to_padded().float().mean(1, keepdim=True)


def test_features_take_vectors_weighted_pairs_and_decoded_bytes(tmp_path: Path) -> None:
    pairs = [[{"id": 7, "weight": 0.5}, {"id": 8, "weight": 2.0}], []]
    vectors = pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32()))
    images = pa.array([b"\x02\x04", b"\x08\x08"], pa.binary())
    write_stripes(tmp_path / "a.orc", [pa.table({"tags": pa.array(pairs, PAIRS), "profile": vectors, "image": images})])
    decode = {"kind": "custom", "class_path": f"{__name__}.mean_brightness", "form": "vector", "dim": 1}
    schema = Schema.from_dict(
        {
            "columns": [
                {"name": "tags", "source": "tags.id", "dtype": "int64", "layout": "list"},
                {"name": "tag_weights", "source": "tags.weight", "dtype": "float32", "layout": "list"},
                {"name": "profile", "dtype": "float32", "layout": "vector", "dim": 2},
                {"name": "image", "dtype": "binary"},
            ],
            "features": [
                {"name": "tags", "table": "tags", "weights": "tag_weights"},
                {"name": "profile"},
                {"name": "image", "transforms": [decode]},
            ],
            "tables": [{"name": "tags", "dim": 4}],
        }
    )
    (batch,) = read(tmp_path, schema)
    features = FeatureEngine(schema)(batch)
    tags = features["tags"]
    assert isinstance(tags, Ragged)
    assert tags.weights is not None
    assert (tags.to_lists(), tags.weights.tolist()) == ([[7, 8], []], [0.5, 2.0])
    assert features["profile"].tolist() == [[1, 2], [3, 4]]  # type: ignore[union-attr]
    assert features["image"].tolist() == [[3], [8]]  # type: ignore[union-attr]


# ---------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("stored", "column", "fault"),
    [
        (pa.array([[1.0, 2.0], [3.0]], pa.list_(pa.float32())),
         {"dtype": "float32", "layout": "vector", "dim": 2, "default": 0},
         "holds 1 numbers, a vector of dim 2 is declared; mend the data, or the dim"),
        (pa.array([[1.0, 2.0], [1.0] * 900], pa.list_(pa.float32())),
         {"dtype": "float32", "layout": "vector", "dim": 2},
         "holds 900 numbers, a vector of dim 2 is declared; mend the data, or the dim"),
        (pa.array([[1.0, 2.0], []], pa.list_(pa.float32())),
         {"dtype": "float32", "layout": "vector", "dim": 2},
         "is missing and has no default; declare default: 0, or 2 numbers, or leave such rows out"),
        (pa.array([[1.0, 2.0], [1, None]], pa.list_(pa.float32())),
         {"dtype": "float32", "layout": "vector", "dim": 2},
         "holds a null inside a list and has no default; declare default: <number>, or mend the data"),
        (pa.array([["1:2"], ["1"]], pa.list_(pa.string())),
         {"name": "w", "source": "x.value", "dtype": "string", "parse": "float32", "layout": "list"},
         "holds a null inside a list and has no default; declare default: <number>, or mend the data"),
        (pa.array(["1|2", "3|x"]), {"dtype": "string", "split": "|", "parse": "float32", "layout": "vector", "dim": 2},
         "holds 'x', which is no number (float32); mend it, or declare hash: farm to read ids"),
        (pa.array([TIMES[2], TIMES[2]], pa.timestamp("ns")), {"dtype": "timestamp", "unit": "s", "default": 0},
         "holds 1582981200, which float32 can't stand for"),
    ],
)  # fmt: skip
def test_a_wrong_value_names_file_stripe_row_and_column(
    tmp_path: Path, stored: pa.Array, column: dict[str, Any], fault: str
) -> None:
    column = {"name": "x"} | column
    with pytest.raises(DataError) as caught:
        values_of(tmp_path, stored, **column)
    stripe = 0 if "1582981200" in fault else 1
    where = f"{tmp_path}/a.orc, stripe {stripe}, row 0 (row {stripe} of the file): column '{column['name']}', an input"
    assert str(caught.value).startswith(where)
    assert fault in str(caught.value)


def test_weights_that_would_only_be_equal_once_cut_are_an_error(tmp_path: Path) -> None:
    write_stripes(tmp_path / "a.orc", [pa.table({"ids": pa.array([[1, 2, 3]]), "w": pa.array([[0.5, 1.5]])})])
    ids = {"name": "ids", "dtype": "int64", "layout": "list", "max_length": 2}
    weights = {"name": "w", "dtype": "float64", "layout": "list", "max_length": 2}
    with pytest.raises(DataError, match="has 2 weights for 3 ids in column 'ids'; write one weight for each id"):
        read(tmp_path, make_schema(ids, weights, weights="w"))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"source": "nope"}, "column 'nope' (source of 'x') is missing in {0}; there are: m, s"),
        ({"source": "m.nope"}, "column 'x': source 'm.nope' leads nowhere in {0}, where 'm' is map<int64, float>; "
         "name a field of a struct, or key or value of a map or of pairs"),
        ({"source": "m"}, "column 'x' is map<int64, float> in {0}, need int64 as declared; declare a column of one of "
         "its parts, such as source: m.key"),
        ({"source": "s"}, "column 'x' is struct<a: timestamp[ns]> in {0}, need int64 as declared; declare a column of "
         "one of its parts, such as source: s.a"),
        ({"source": "s.a"}, "column 'x' is timestamp[ns] in {0}, need int64 as declared; declare dtype: timestamp and "
         "unit: s, or write the files again"),
        ({"source": "m.key", "dtype": "timestamp", "unit": "s"}, "column 'x' is a list of int64 in {0}, need timestamp "
         "as declared; declare dtype: int64 and no unit and layout: list (or optional_list where a row has one value "
         "at most), or write the files again"),
    ],
)  # fmt: skip
def test_a_source_that_does_not_fit_the_files_is_told_before_training(
    tmp_path: Path, column: dict[str, Any], message: str
) -> None:
    struct = pa.array([{"a": TIMES[2]}], pa.struct([("a", pa.timestamp("ns"))]))
    write_stripes(tmp_path / "a.orc", [pa.table({"m": pa.array([[(1, 0.5)]], MAP), "s": struct})])
    declared = Column(**({"name": "x", "dtype": "int64"} | column))
    found = [*find_mismatches(read_manifest(tmp_path)[0], [declared])]
    assert found == [message.format(tmp_path / "a.orc")]


def test_a_column_whose_name_has_a_dot_is_found_as_it_is() -> None:
    column = Column(name="x", dtype="int64", source="a.b")
    assert file_column(column, {"a.b": 0}) == ("a.b", ())
    assert file_column(column, {"a": 0}) == ("a", ("b",))
    assert follow_type(pa.struct([("b", pa.int64())]), ("b",)) == pa.int64()
    assert follow_type(pa.int64(), ("b",)) is None


@pytest.mark.parametrize(
    ("column", "problem"),
    [
        ({"dtype": "timestamp"}, "is timestamp and its unit is None; a timestamp has one"),
        ({"dtype": "int64", "unit": "s"}, "is int64 and its unit is s; a timestamp has one"),
        ({"dtype": "int64", "split": ","}, "is int64; only strings can be split"),
        ({"dtype": "string", "hash": "farm", "split": ","}, "is split into lists, but its layout is scalar"),
        ({"dtype": "binary", "layout": "list"}, "is binary, its layout is list"),
        ({"dtype": "binary", "default": 0}, "is binary; what is missing is an empty row"),
        ({"dtype": "float32", "layout": "vector"}, ": layout is vector and dim None"),
        ({"dtype": "float32", "dim": 3}, ": layout is scalar and dim 3"),
        ({"dtype": "float32", "layout": "vector", "dim": 2, "default": [1]}, " has a default of 1 numbers, and dim 2"),
        ({"dtype": "float32", "default": [1]}, " has 1 numbers for a default; that is for vectors"),
        ({"dtype": "int64", "levels": 3}, ": levels is 3 and layout scalar"),
        ({"dtype": "int64", "max_length": 3}, ": max_length is 3; it cuts lists"),
        ({"dtype": "int64", "layout": "list", "keep": "last"}, ": keep is last; it says what max_length keeps"),
        ({"dtype": "int64", "source": "a."}, ": source 'a.' has an empty part"),
    ],
)
def test_options_of_a_column_that_contradict_each_other_are_told(column: dict[str, Any], problem: str) -> None:
    with pytest.raises(SchemaError) as caught:
        Schema.from_dict({"columns": [{"name": "x"} | column]})
    (found,) = caught.value.problems
    assert found.startswith(f"column 'x'{'' if problem[0] in ': ' and problem[1:4] != 'is ' else ' '}{problem}")


@pytest.mark.parametrize(
    ("column", "feature", "problem"),
    [
        ({"dtype": "binary"}, {"table": "t"}, "is binary, but a feature reads it as ids"),
        ({"dtype": "binary"}, {}, "feature 'x' is dense, but column 'x' is binary; make a vector of it by a custom"),
        ({"dtype": "binary"}, {"transforms": ["log1p"]}, "works on ids and numbers, but column 'x' is binary"),
        ({"dtype": "int64", "layout": "vector", "dim": 2}, {"table": "t"}, "is a vector of numbers, but is read as"),
        ({"dtype": "int64", "layout": "nested_list"}, {"table": "t"}, "holds lists of lists; declare pooling: none"),
    ],
)
def test_a_feature_that_has_no_use_for_its_column_is_told(
    column: dict[str, Any], feature: dict[str, Any], problem: str
) -> None:
    tables = [{"name": "t", "dim": 2}] if "table" in feature else []
    with pytest.raises(SchemaError) as caught:
        Schema.from_dict({"columns": [{"name": "x"} | column], "features": [{"name": "x"} | feature], "tables": tables})
    assert any(problem in found for found in caught.value.problems)
