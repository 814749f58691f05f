"""The schema against the tails of all files."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import orc

from recis_lightning.data.check import find_mismatches
from recis_lightning.data.files.manifest import read_manifest
from recis_lightning.schema import Column


def mismatches(folder: Path, *columns: Column) -> list[str]:
    return list(find_mismatches(read_manifest(folder)[0], columns))


def write(folder: Path, *tables: dict[str, pa.Array]) -> None:
    for index, table in enumerate(tables):
        orc.write_table(pa.table(table), folder / f"part-{index}.orc")


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "float32", "float64", "bool", "string"])
@pytest.mark.parametrize("layout", ["scalar", "list", "optional_list"])
def test_every_dtype_and_layout_passes_where_it_is_stored_as_declared(tmp_path: Path, dtype: Any, layout: Any) -> None:
    stored = {"float32": pa.float32(), "float64": pa.float64(), "bool": pa.bool_(), "string": pa.string()}.get(dtype)
    stored = stored or pa.type_for_alias(dtype)
    write(tmp_path, {"x": pa.array([None], stored if layout == "scalar" else pa.list_(stored))})
    assert mismatches(tmp_path, Column(name="x", dtype=dtype, layout=layout, **_strings(dtype))) == []


def _strings(dtype: str) -> dict[str, Any]:
    return {"hash": "farm"} if dtype == "string" else {}


INT, FLOAT = pa.array([1], pa.int64()), pa.array([1], pa.float32())
LIST, NESTED = pa.array([[1]], pa.list_(pa.int64())), pa.array([[[1]]], pa.list_(pa.list_(pa.int64())))


@pytest.mark.parametrize(
    ("declared", "stored", "message"),
    [
        (
            {"dtype": "float32"},
            INT,
            "column 'x' is int64 in {0}, need float32 as declared; declare dtype: int64, or write the files again",
        ),
        (
            {"dtype": "int64"},
            LIST,
            "column 'x' is a list of int64 in {0}, need int64 as declared; declare layout: list (or optional_list "
            "where a row has one value at most), or write the files again",
        ),
        (
            {"dtype": "int64", "layout": "list"},
            FLOAT,
            "column 'x' is float32 in {0}, need a list of int64 as declared; declare dtype: float32 and layout: "
            "scalar, or write the files again",
        ),
        (
            {"dtype": "int64", "layout": "list"},
            NESTED,
            "column 'x' is a list of a list of int64 in {0}, need a list of int64 as declared; "
            "declare layout: nested_list (of 2 levels), or write the files again",
        ),
        (
            {"dtype": "int64"},
            pa.array([b"1"], pa.binary()),
            "column 'x' is binary in {0}, need int64 as declared; declare dtype: binary, or write the files again",
        ),
    ],
)
def test_a_wrong_type_is_told_with_what_to_declare(
    tmp_path: Path, declared: dict[str, Any], stored: pa.Array, message: str
) -> None:
    write(tmp_path, {"x": stored})
    assert mismatches(tmp_path, Column(name="x", **declared)) == [message.format(tmp_path / "part-0.orc")]


def test_a_missing_column_is_told_with_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path, {"label": FLOAT, "user_id": INT})
    assert mismatches(tmp_path, Column(name="user", dtype="int64")) == [
        f"column 'user' is missing in {tmp_path}/part-0.orc; did you mean 'user_id'?"
    ]


def test_all_files_are_looked_at_and_each_mistake_told_once(tmp_path: Path) -> None:
    write(tmp_path, *[{"x": INT, "y": FLOAT}] * 6, {"x": FLOAT, "y": FLOAT}, {"x": INT}, {"x": FLOAT})
    found = mismatches(tmp_path, Column(name="x", dtype="int64"), Column(name="y", dtype="float32"))
    assert found == [
        f"column 'x' is float32 in 2 of 9 files ({tmp_path}/part-6.orc, ...), need int64 as declared; "
        "declare dtype: float32, or write the files again",
        f"column 'y' is missing in 2 of 9 files ({tmp_path}/part-7.orc, ...); there are: x",
    ]
