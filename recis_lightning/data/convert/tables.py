"""Convert CSV, TSV, JSON lines, Parquet and ORC into ORC that is good to train on: typed, stripes of one size, by day.

    convert(["log.csv.gz"], "log", types={"user": pa.int64()}, partition=Partition("time"))

writes log/2025-01-01/part-00000.orc and so on. Files are read and written in pieces, so that memory does not grow with
them, but for one open writer a partition.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from recis_lightning.data.convert.text_files import (
    OnBytes,
    TextOptions,
    guess_object_types,
    guess_types,
    read_csv,
    read_json_lines,
    type_objects,
    type_rows,
)
from recis_lightning.data.errors import DataError
from recis_lightning.data.files.formats import plain_type, read_stripe
from recis_lightning.data.files.manifest import read_tail
from recis_lightning.data.files.orc_writer import PartWriter
from recis_lightning.schema import did_you_mean

STRIPE_BYTES = 8 << 20
PART_ROWS = 1_000_000
OPEN_PARTITIONS = 400
Unit = Literal["s", "ms", "us", "ns"]
SUFFIXES = {
    ".csv": "csv", ".tsv": "tsv", ".txt": "tsv", ".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl",
    ".parquet": "parquet", ".orc": "orc",
}  # fmt: skip
Kind = Literal["csv", "tsv", "jsonl", "parquet", "orc"]


@dataclass(frozen=True)
class Partition:
    """By what rows are put into folders: the day (UTC) of a column, or the name of their file where none is given."""

    column: str | None = None
    unit: Unit = "s"
    """What a column of integers counts since 1970."""


@dataclass
class Converted:
    """What was written: rows by folder, and notes on what was left out."""

    rows: dict[Path, int] = field(default_factory=dict)
    files: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    """What was met, and how often."""


def kind_of(path: Path) -> Kind:
    """How a file is read, by its name: a.csv.gz is csv; DataError for a name that tells nothing."""
    for suffix in reversed(path.suffixes):
        if suffix in SUFFIXES:
            return SUFFIXES[suffix]  # type: ignore[return-value]
    raise DataError(f"{path} has a name that does not tell its format; say --format csv, tsv, jsonl, parquet or orc")


def convert(
    paths: Sequence[Path],
    out: str | Path,
    *,
    kind: Kind | None = None,
    options: TextOptions | None = None,
    partition: Partition | None = None,
    stripe_bytes: int = STRIPE_BYTES,
    part_rows: int = PART_ROWS,
    on_bytes: OnBytes = lambda count: None,
) -> Converted:
    """Write the rows of the files as ORC below ``out``, in their order; nothing is left where one can't be read.

    DataError names file, row, column, what was found and what to do. FileExistsError where a folder holds ORC already.
    """
    options = options or TextOptions()
    done = Converted()
    types: dict[str, pa.DataType] = {}
    tables = (
        ("", path, table)
        for path in paths
        for table in _read(path, kind or kind_of(path), options, types, done, on_bytes)
    )
    write_tables(tables, Path(out), done, partition=partition, stripe_bytes=stripe_bytes, part_rows=part_rows)
    return done


Named = tuple[str, Path, pa.Table]
"""The name of a data set (its folder), the file a table comes from, and the table."""


def write_tables(
    tables: Iterable[Named],
    out: Path,
    done: Converted,
    *,
    partition: Partition | None = None,
    stripe_bytes: int = STRIPE_BYTES,
    part_rows: int = PART_ROWS,
) -> None:
    """Write tables into the folders of their data sets, counting in ``done``.

    A data set without the partition's column, such as the items beside their reviews, is not partitioned.
    """
    writers: dict[Path, PartWriter] = {}
    with ExitStack() as stack:
        for data_set, path, table in tables:
            column = partition.column if partition is not None else None
            is_beside = data_set != "" and column is not None and column not in table.column_names
            for name, rows in _part(path, table, None if is_beside else partition):
                folder = out / data_set / name
                if folder not in writers:
                    if len(writers) == OPEN_PARTITIONS:
                        raise DataError(
                            f"more than {OPEN_PARTITIONS} partitions ({folder} is one more); is the unit of times "
                            "right? --unit s | ms | us | ns"
                        )
                    writers[folder] = stack.enter_context(PartWriter(folder, part_rows, stripe_bytes))
                    done.rows[folder] = 0
                writers[folder].write(rows)
                done.rows[folder] += len(rows)
    done.files = sum(len(writer.paths) for writer in writers.values())
    if not done.rows:
        raise DataError("the files hold no rows; name others")


# --------------------------------------------------------------------------------------------------------- reading


def _read(
    path: Path, kind: Kind, options: TextOptions, types: dict[str, pa.DataType], done: Converted, on_bytes: OnBytes
) -> Iterator[pa.Table]:
    """A file's rows as tables of one schema, which the first rows of the first file settle in ``types``."""
    if kind in ("csv", "tsv"):
        return _read_text(path, options, types, on_bytes)
    if kind == "jsonl":
        return _read_objects(path, options, types, done, on_bytes)
    return _read_columns(path, options, types, on_bytes)


def _read_text(
    path: Path, options: TextOptions, types: dict[str, pa.DataType], on_bytes: OnBytes
) -> Iterator[pa.Table]:
    for piece in read_csv(path, options, on_bytes):
        if not types:
            types |= guess_types(piece.rows, options.types)
        _compare_names(path, piece.rows.column_names, types)
        yield type_rows(piece, types, path, options).select(list(types))


def _compare_names(path: Path, names: Sequence[str], types: Mapping[str, pa.DataType]) -> None:
    if set(names) != set(types):
        lacking = ", ".join(name for name in types if name not in names) or "nothing"
        more = ", ".join(name for name in names if name not in types) or "nothing"
        raise DataError(
            f"{path} has other columns than the files before it: it lacks {lacking}, and has {more} besides; "
            "convert it into a folder of its own"
        )


def _read_objects(
    path: Path, options: TextOptions, types: dict[str, pa.DataType], done: Converted, on_bytes: OnBytes
) -> Iterator[pa.Table]:
    for first_row, objects in read_json_lines(path, on_bytes):
        if not types:
            types |= guess_object_types(objects, options.types, path)
        for each in objects:
            for key in each.keys() - types.keys():
                note = f"key '{key}' was not among the first rows and is left out; declare it: --types {key}=string"
                done.notes[note] = done.notes.get(note, 0) + 1
        yield type_objects(objects, first_row, types, path)


def _read_columns(
    path: Path, options: TextOptions, types: dict[str, pa.DataType], on_bytes: OnBytes
) -> Iterator[pa.Table]:
    file = read_tail(str(path))
    if not types:
        unknown = [name for name in options.types if name not in file.columns]
        if unknown:
            raise DataError(f"{path} has no column '{unknown[0]}'{did_you_mean(unknown[0], file.columns)}")
        types |= {name: _writable(options.types.get(name, dtype), name) for name, dtype in file.columns.items()}
    _compare_names(path, list(file.columns), types)
    for stripe in range(len(file.stripe_rows)):
        rows = read_stripe(file.path, file.format, stripe)
        yield pa.table({name: _cast(rows.column(name), types[name], path, stripe, name) for name in types})
        on_bytes(file.nbytes // len(file.stripe_rows))


def _writable(dtype: pa.DataType, name: str) -> pa.DataType:
    """A type that ORC has; times get nanoseconds."""
    plain = plain_type(dtype)
    if pa.types.is_null(plain) or pa.types.is_time(plain) or pa.types.is_duration(plain):
        raise DataError(f"column '{name}' is {dtype}, which ORC has no type for; declare one: --types {name}=int64")
    return plain


def _cast(array: pa.Array, dtype: pa.DataType, path: Path, stripe: int, name: str) -> pa.Array:
    if array.type == dtype:
        return array
    try:
        return pc.cast(array, dtype)
    except pa.ArrowException as error:
        raise DataError(
            f"{path}, stripe {stripe}: column '{name}' is {array.type}, need {dtype}: {error}; declare another type: "
            f"--types {name}={array.type}"
        ) from error


# -------------------------------------------------------------------------------------------------------- partitions


def _part(path: Path, table: pa.Table, partition: Partition | None) -> Iterator[tuple[str, pa.Table]]:
    """The folder's name and rows of each partition, in the order of their first row."""
    if partition is None:
        yield "", table
        return
    if partition.column is None:
        yield re.sub(r"(\.(csv|tsv|txt|jsonl?|ndjson|parquet|orc|gz|bz2|zst))+$", "", path.name), table
        return
    days = days_of(table, partition, path)
    found = pc.unique(days)
    if len(found) == 1:
        yield found[0].as_py(), table
        return
    for day in found:
        yield day.as_py(), table.filter(pc.equal(days, day))


def days_of(table: pa.Table, partition: Partition, path: Path) -> pa.Array:
    """The day of each row as text, 2025-01-31; DataError where a row has no time."""
    name = partition.column
    assert name is not None
    if name not in table.column_names:
        raise DataError(f"{path} has no column '{name}' to partition by{did_you_mean(name, table.column_names)}")
    times = table[name].combine_chunks()
    if times.null_count:
        raise DataError(f"{path}: column '{name}' has {times.null_count} rows without a time; they belong to no day")
    if pa.types.is_integer(times.type):
        times = pc.cast(pc.cast(times, pa.int64()), pa.timestamp(partition.unit))
    if not (pa.types.is_timestamp(times.type) or pa.types.is_date(times.type)):
        raise DataError(f"{path}: column '{name}' is {times.type}, need a timestamp, a date, or integers with a --unit")
    return pc.cast(pc.cast(times, pa.date32()), pa.string())


def total_bytes(paths: Sequence[Path]) -> int:
    """Of all files, for a progress bar; DataError where one is missing."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError([f"{path} is no file; name files, or a glob that matches some" for path in missing])
    return sum(path.stat().st_size for path in paths)
