"""Read CSV, TSV and JSON lines, compressed or not, in pieces, as typed tables; a value that does not fit names its row.

Everything is read as text first and made numbers by us: Arrow would guess types from a file's first block alone, and
not say which row breaks them.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from recis_lightning.data.errors import DataError
from recis_lightning.schema import did_you_mean

SAMPLE_ROWS = 20_000  # by which types are guessed
BLOCK_BYTES = 8 << 20
JSON_ROWS = 20_000
OnBytes = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How text files are written."""

    delimiter: str = ","
    names: Sequence[str] = ()
    """Of the columns, where files have no header."""
    list_separator: str = "|"
    nulls: Sequence[str] = ("",)
    """What stands for a missing value, besides nothing at all."""
    types: Mapping[str, pa.DataType] = field(default_factory=dict)
    """Of columns by name; those of others are guessed."""


@dataclass(frozen=True)
class Piece:
    """Rows of a file, and the number of the first, counted from 1 without a header."""

    rows: pa.Table
    first_row: int


def open_input(path: Path) -> tuple[pa.NativeFile, pa.NativeFile]:
    """A file as it lies and as it reads: `.gz`, `.bz2` and `.zst` decompressed."""
    raw = pa.OSFile(str(path))
    name = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}.get(path.suffix)
    return raw, pa.CompressedInputStream(raw, name) if name else raw


# ------------------------------------------------------------------------------------------------------ CSV and TSV


def read_csv(path: Path, options: TextOptions, on_bytes: OnBytes = lambda count: None) -> Iterator[Piece]:
    """The rows as columns of strings, missing ones null; DataError where a row has too many fields, or too few."""
    done, first_row = 0, 1
    try:
        names = list(options.names) or _read_names(path, options)
        raw, stream = open_input(path)
        reader = csv.open_csv(
            stream,
            read_options=csv.ReadOptions(
                block_size=BLOCK_BYTES, column_names=list(options.names) or None, use_threads=False
            ),
            parse_options=csv.ParseOptions(delimiter=options.delimiter, newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
                null_values=list(options.nulls),
            ),
        )
        for batch in reader:
            yield Piece(pa.Table.from_batches([batch]), first_row)
            first_row += batch.num_rows
            on_bytes(raw.tell() - done)
            done = raw.tell()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: {_explain(str(error), options)}") from error


def _read_names(path: Path, options: TextOptions) -> list[str]:
    _, stream = open_input(path)
    parsing = csv.ParseOptions(delimiter=options.delimiter, newlines_in_values=True)
    reading = csv.ReadOptions(use_threads=False)  # only then errors name the row
    names: list[str] = csv.open_csv(stream, read_options=reading, parse_options=parsing).schema.names
    return names


def _explain(message: str, options: TextOptions) -> str:
    match = re.search(r"(?:Row #(\d+): )?Expected (\d+) columns, got (\d+): (.*)", message, re.DOTALL)
    if match:
        row = f"row {match[1]}" if match[1] else "a row"
        text = match[4][:60]
        return (
            f"{row} has {match[3]} fields, need {match[2]} between {options.delimiter!r}: {text!r}; mend the row, or "
            "give the --delimiter"
        )
    if "invalid UTF8" in message:
        return f"holds text that is not UTF-8 ({message}); convert it (iconv -f latin1 -t utf8)"
    return f"can't be read ({message}); write the file again, or name another"


# ----------------------------------------------------------------------------------------------------------- types


def type_rows(piece: Piece, types: Mapping[str, pa.DataType], path: Path, options: TextOptions) -> pa.Table:
    """Columns of strings as what they are declared; DataError names file, row, column and value."""
    arrays = []
    for name in piece.rows.column_names:
        texts = piece.rows[name].combine_chunks()
        try:
            arrays.append(cast_texts(texts, types[name], options.list_separator))
        except pa.ArrowInvalid as error:
            row = _find_bad(texts, types[name], options.list_separator)
            found = repr(texts[row].as_py())
            raise DataError(
                f"{path}, row {piece.first_row + row}: column '{name}' holds {found}, need {types[name]}; mend it, or "
                f"declare another type: --types {name}=string"
            ) from error
    return pa.table(dict(zip(piece.rows.column_names, arrays, strict=True)))


def _find_bad(texts: pa.Array, dtype: pa.DataType, separator: str) -> int:
    """The first row that alone can't be cast; by halves, since there is one at least."""
    low, high = 0, len(texts)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            cast_texts(texts.slice(low, middle - low), dtype, separator)
            low = middle
        except pa.ArrowInvalid:
            high = middle
    return low


def cast_texts(texts: pa.Array, dtype: pa.DataType, separator: str) -> pa.Array:
    """Strings as numbers, times, or lists of these: "1|2" or "[1, 2]" -> [1, 2]; ArrowInvalid where one is none."""
    if pa.types.is_string(dtype):
        return texts
    if pa.types.is_list(dtype):
        return _cast_lists(texts, dtype, separator)
    trimmed = pc.utf8_trim_whitespace(texts)
    trimmed = pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)
    if pa.types.is_decimal(dtype):
        return pc.cast(pc.cast(trimmed, pa.float64()), dtype, safe=False)
    if pa.types.is_binary(dtype):
        return pc.cast(texts, dtype)
    return pc.cast(trimmed, dtype)


def _cast_lists(texts: pa.Array, dtype: pa.DataType, separator: str) -> pa.Array:
    trimmed = pc.utf8_trim_whitespace(texts)
    inside = pc.replace_substring(pc.utf8_trim(trimmed, "[]"), ",", separator)
    trimmed = pc.if_else(pc.starts_with(trimmed, "["), inside, trimmed)
    is_empty = pc.equal(pc.utf8_length(trimmed), 0)
    lists = pc.split_pattern(pc.if_else(is_empty, pa.scalar(None, pa.string()), trimmed), separator)
    values = cast_texts(lists.values, dtype.value_type, separator)
    offsets = lists.offsets
    return pa.ListArray.from_arrays(offsets, values, mask=texts.is_null())


def guess_types(rows: pa.Table, given: Mapping[str, pa.DataType]) -> dict[str, pa.DataType]:
    """Types of columns of strings: the first of int64, float64, bool, timestamp that all values are, else string."""
    unknown = [name for name in given if name not in rows.column_names]
    if unknown:
        raise DataError(f"there is no column '{unknown[0]}' in the files{did_you_mean(unknown[0], rows.column_names)}")
    return {name: given.get(name) or _guess_type(rows[name].combine_chunks()) for name in rows.column_names}


def _guess_type(texts: pa.Array) -> pa.DataType:
    texts = texts.drop_null()
    for dtype in (pa.int64(), pa.float64(), pa.bool_(), pa.timestamp("ns")):
        try:
            cast_texts(texts, dtype, "")
        except pa.ArrowInvalid:
            continue
        return dtype if len(texts) else pa.string()
    return pa.string()


# -------------------------------------------------------------------------------------------------------- JSON lines


def read_json_lines(path: Path, on_bytes: OnBytes = lambda count: None) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """The objects of a file in pieces, with the number of the first; DataError names a line that is no object."""
    raw, stream = open_input(path)
    done, first_row, rows = 0, 1, []
    for number, line in enumerate(read_lines(stream, path), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: is no JSON ({error}): {line[:60]!r}; mend the line") from error
        if not isinstance(value, dict):
            raise DataError(f"{path}, line {number}: holds {line[:60]!r}, need an object {{...}}; mend the line")
        rows.append(value)
        if len(rows) == JSON_ROWS:
            yield first_row, rows
            on_bytes(raw.tell() - done)
            done, first_row, rows = raw.tell(), number + 1, []
    if rows:
        yield first_row, rows
    on_bytes(raw.size() - done)


def read_lines(stream: pa.NativeFile, path: Path) -> Iterator[str]:
    """The lines of an open file; what is no UTF-8 becomes a question mark."""
    rest = b""
    while True:
        try:
            block = stream.read(BLOCK_BYTES)
        except OSError as error:
            raise DataError(f"{path}: can't be read ({error}); copy the file again") from error
        if not block:
            break
        *lines, rest = (rest + block).split(b"\n")
        yield from (line.decode("utf-8", "replace") for line in lines)
    if rest:
        yield rest.decode("utf-8", "replace")


def type_objects(
    objects: Sequence[Mapping[str, Any]], first_row: int, types: Mapping[str, pa.DataType], path: Path
) -> pa.Table:
    """Objects as a table; a missing key is null. DataError names file, line, key and value of what does not fit."""
    arrays = {}
    for name, dtype in types.items():
        values = [each.get(name) for each in objects]
        try:
            arrays[name] = pa.array(values, dtype)
        except (pa.ArrowException, TypeError, OverflowError) as error:
            row = next(row for row, value in enumerate(values) if not _fits(value, dtype))
            raise DataError(
                f"{path}, line {first_row + row}: key '{name}' holds {str(values[row])[:60]!r}, need {dtype}; mend it, "
                f"or declare another type: --types {name}=string"
            ) from error
    return pa.table(arrays)


def _fits(value: Any, dtype: pa.DataType) -> bool:
    try:
        pa.array([value], dtype)
    except (pa.ArrowException, TypeError, OverflowError):
        return False
    return True


def guess_object_types(
    objects: Sequence[Mapping[str, Any]], given: Mapping[str, pa.DataType], path: Path
) -> dict[str, pa.DataType]:
    """Types of all keys; what Arrow can't put into one type is an error that names the key."""
    names = dict.fromkeys(name for each in objects for name in each)
    types: dict[str, pa.DataType] = {}
    for name in names:
        if name in given:
            types[name] = given[name]
            continue
        try:
            dtype = pa.array([each.get(name) for each in objects]).type
        except (pa.ArrowException, TypeError) as error:
            raise DataError(
                f"{path}: key '{name}' holds values of several types ({error}); declare one: --types {name}=string"
            ) from error
        types[name] = _without_null(dtype)
    return types | {name: dtype for name, dtype in given.items() if name not in types}


def _without_null(dtype: pa.DataType) -> pa.DataType:
    """Strings in the place of what has no value, and so no type."""
    if pa.types.is_null(dtype):
        return pa.string()
    if pa.types.is_list(dtype):
        return pa.list_(_without_null(dtype.value_type))
    if pa.types.is_struct(dtype):
        return pa.struct([(item.name, _without_null(item.type)) for item in dtype])
    return dtype
