"""Files of many formats into ORC: the same rows come back, and what does not fit is named."""

import datetime
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import csv, orc

from recis_lightning.cli import main
from recis_lightning.data.convert.tables import Partition, convert, kind_of
from recis_lightning.data.convert.text_files import TextOptions, cast_texts
from recis_lightning.data.errors import DataError

CSV = """user,price,name,seen,time,tags
1,0.5,Ann,true,2025-01-01 10:00:00,1|2
-9223372036854775808,,"a ""quoted"", name",false,2025-01-02 00:00:00,
3,1e3,,true,2025-01-01 23:59:59,[]
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def rows_of(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.rglob("*.orc"))
    return [row for path in files for row in orc.read_table(path).to_pylist()]


def error_of(path: Path, out: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        convert([path], out, **options)
    assert not list(out.rglob("*.orc"))
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_types_are_guessed_and_nulls_kept(tmp_path: Path, name: str) -> None:
    options = TextOptions(types={"tags": pa.list_(pa.int64())})
    done = convert([write(tmp_path / name, CSV)], tmp_path / "out", options=options)
    assert (done.rows, done.files) == ({tmp_path / "out": 3}, 1)
    (path,) = (tmp_path / "out").glob("*.orc")
    assert orc.ORCFile(path).schema == pa.schema(
        {
            "user": pa.int64(),
            "price": pa.float64(),
            "name": pa.string(),
            "seen": pa.bool_(),
            "time": pa.timestamp("ns"),
            "tags": pa.list_(pa.int64()),
        }
    )
    first, second, third = rows_of(tmp_path / "out")
    assert (first["user"], first["price"], first["tags"]) == (1, 0.5, [1, 2])
    assert (second["user"], second["price"], second["name"], second["tags"]) == (
        -(2**63),
        None,
        'a "quoted", name',
        None,
    )
    assert (third["name"], third["seen"], third["tags"]) == (None, True, [])


def test_rows_go_to_the_folder_of_their_day(tmp_path: Path) -> None:
    done = convert([write(tmp_path / "a.csv", CSV)], tmp_path / "out", partition=Partition("time"))
    assert done.rows == {tmp_path / "out/2025-01-01": 2, tmp_path / "out/2025-01-02": 1}
    assert [row["user"] for row in rows_of(tmp_path / "out/2025-01-01")] == [1, 3]


def test_days_of_integers_and_names_of_files_part_rows_too(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"day_{n}.tsv", f"t\n{86_400_000 * n}\n") for n in (0, 1)]
    options = TextOptions(delimiter="\t")
    convert(paths, tmp_path / "days", options=options, partition=Partition("t", "ms"))
    assert sorted(path.name for path in (tmp_path / "days").iterdir()) == ["1970-01-01", "1970-01-02"]
    convert(paths, tmp_path / "files", options=options, partition=Partition())
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == ["day_0", "day_1"]


def test_stripes_have_the_size_asked_for(tmp_path: Path) -> None:
    table = pa.table({"x": np.random.default_rng(0).integers(2**62, size=400_000)})
    pq.write_table(table, tmp_path / "a.parquet")
    convert([tmp_path / "a.parquet"], tmp_path / "out", stripe_bytes=1 << 20)
    (path,) = (tmp_path / "out").glob("*.orc")
    assert 2 <= orc.ORCFile(path).nstripes <= 5
    assert orc.read_table(path).equals(table)


def test_json_lines_keep_lists_structs_and_missing_keys(tmp_path: Path) -> None:
    lines = [{"id": 1, "tags": ["a", "b"], "user": {"age": 3}}, {"id": 2, "tags": []}, {"id": 3, "user": None}]
    write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)))
    convert([tmp_path / "a.jsonl"], tmp_path / "out")
    assert rows_of(tmp_path / "out") == [
        {"id": 1, "tags": ["a", "b"], "user": {"age": 3}},
        {"id": 2, "tags": [], "user": None},
        {"id": 3, "tags": None, "user": None},
    ]


def test_a_key_that_comes_late_is_counted_and_told(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.jsonl", '{"a": 1}'), write(tmp_path / "b.jsonl", '{"a": 2, "b": 1}\n{"b": 2}')
    done = convert([first, second], tmp_path / "out")
    assert done.notes == {"key 'b' was not among the first rows and is left out; declare it: --types b=string": 2}
    assert rows_of(tmp_path / "out") == [{"a": 1}, {"a": 2}, {"a": None}]


def test_parquet_is_typed_as_it_is_read(tmp_path: Path) -> None:
    table = pa.table({"id": pa.array([2**64 - 1], pa.uint64()), "t": pa.array([0], pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "a.parquet")
    convert([tmp_path / "a.parquet"], tmp_path / "out")
    assert rows_of(tmp_path / "out") == [{"id": -1, "t": datetime.datetime(1970, 1, 1)}]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.csv",
            "a,b\n1,2\n3\n",
            "row 3 has 1 fields, need 2 between ',': '3'; mend the row, or give",
        ),
        ("a.csv", "", "can't be read (Empty CSV file)"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', "line 2: is no JSON"),
        ("a.jsonl", "[1]", "line 1: holds '[1]', need an object {...}; mend the line"),
        ("a.jsonl", '{"a": 1}\n{"a": "x"}', "key 'a' holds values of several types"),
        ("a.csv", "a,b\n", "the files hold no rows; name others"),
        ("a.csv.gz", "\x00not gzip", "a.csv.gz: can't be read"),
        ("a.parquet", "no", "a.parquet is no ORC or Parquet file"),
        ("a.xls", "no", "has a name that does not tell its format; say --format csv"),
    ],
)
def test_what_can_not_be_read_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    assert message in error_of(tmp_path / name, tmp_path / "out")


def test_a_value_that_breaks_its_column_is_named_with_its_row(tmp_path: Path) -> None:
    lines = "\n".join(["a,b", *(f"{n},{n}" for n in range(300_000)), "1,x7"])
    path = write(tmp_path / "a.csv", lines)
    options = TextOptions(types={"b": pa.int64()})
    message = error_of(path, tmp_path / "out", options=options)
    assert message == (
        f"{path}, row 300001: column 'b' holds 'x7', need int64; mend it, or declare another type: --types b=string"
    )


def test_an_object_that_breaks_its_column_is_named_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"a": 1}\n{"a": "x"}')
    message = error_of(path, tmp_path / "out", options=TextOptions(types={"a": pa.int64()}))
    assert f"{path}, line 2: key 'a' holds 'x', need int64" in message


@pytest.mark.parametrize(
    ("rows", "column", "message"),
    [
        ("t\n1\n\n2\n", "time", "has no column 'time' to partition by; there are: t"),
        ("t\nx\n", "t", "column 't' is string, need a timestamp, a date, or integers with a --unit"),
        ("t,u\n,1\n5,1\n", "t", "column 't' has 1 rows without a time; they belong to no day"),
    ],
)
def test_a_column_that_tells_no_day_is_named(tmp_path: Path, rows: str, column: str, message: str) -> None:
    assert message in error_of(write(tmp_path / "a.csv", rows), tmp_path / "out", partition=Partition(column))


def test_a_wrong_unit_is_found_before_there_are_thousands_of_folders(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "t\n" + "\n".join(str(1_700_000_000_000 + 90_000 * n) for n in range(1000)))
    assert "is the unit of times right?" in error_of(path, tmp_path / "out", partition=Partition("t", "s"))


def test_files_of_other_columns_do_not_mix(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.csv", "a,b\n1,2\n"), write(tmp_path / "b.csv", "a,c\n1,2\n")]
    with pytest.raises(DataError, match="b.csv has other columns than the files before it: it lacks b, and has c"):
        convert(paths, tmp_path / "out")


def test_a_folder_that_holds_orc_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.csv", "a\n1\n")
    assert main(["data", "convert", str(path), "--out", str(tmp_path / "out")]) == 0
    assert "1 rows" in capsys.readouterr().out
    assert main(["data", "convert", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "holds ORC files already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.csv"], "nowhere.csv names no file to convert"),
        (["a.csv", "--types", "a=int46"], "--types a=int46: 'int46' is no type; write a=int64"),
        (["a.csv", "--types", "b=int64"], "there is no column 'b' in the files; there are: a"),
        (["a.csv", "--stripe-mb", "0"], "both must be above 0"),
        (["a.csv", "--format", "movielens"], "a.csv is no folder; name that of an unpacked MovieLens set"),
    ],
)
def test_mistakes_on_the_line_are_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.csv", "a\n1\n")
    assert main(["data", "convert", *arguments, "--out", "out"]) == 2
    assert message in capsys.readouterr().err.replace("\n", "")


def test_the_format_is_told_by_the_name() -> None:
    assert [kind_of(Path(name)) for name in ("a.csv.gz", "b.txt", "c.json.zst", "d.parquet")] == [
        "csv",
        "tsv",
        "jsonl",
        "parquet",
    ]


VALUES = st.none() | st.floats(allow_nan=False, width=32)
TEXTS = st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), max_size=5)


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.tuples(st.none() | st.integers(-(2**63), 2**63 - 1), VALUES, TEXTS), min_size=1, max_size=20))
def test_what_arrow_writes_as_csv_comes_back_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, ...]]
) -> None:
    folder = tmp_path_factory.mktemp("csv")
    kinds = {"i": pa.int64(), "f": pa.float32(), "s": pa.string()}
    table = pa.table({name: pa.array([row[at] for row in rows], kinds[name]) for at, name in enumerate(kinds)})
    csv.write_csv(table, folder / "a.csv")
    convert([folder / "a.csv"], folder / "out", options=TextOptions(types=kinds))
    assert rows_of(folder / "out") == table.to_pylist()


def test_lists_are_cast_value_by_value() -> None:
    texts = pa.array(["1|2", "", None, "3"])
    assert cast_texts(texts, pa.list_(pa.float32()), "|").to_pylist() == [[1, 2], [], None, [3]]
    assert cast_texts(pa.array(["[1, 2]", "[]"]), pa.list_(pa.int64()), "|").to_pylist() == [[1, 2], []]
    with pytest.raises(pa.ArrowInvalid):
        cast_texts(pa.array(["1|x"]), pa.list_(pa.int64()), "|")
