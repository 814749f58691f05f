"""Which files a data set consists of, and what their tails say: stripes, rows and column types, nothing decoded.

S stripes of all files together
"""

import glob
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import orc

from recis_lightning.data.errors import DataError
from recis_lightning.data.files.formats import (
    SUFFIXES,
    Format,
    StripeEntry,
    format_of,
    plain_type,
    read_parquet_tail,
    read_stripe,
)
from recis_lightning.data.files.storage import is_remote, list_files, open_input, read_range, size_of
from recis_lightning.paths import expand_path

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True, kw_only=True)
class OrcFile:
    """One file as its tail describes it."""

    path: str
    nbytes: int
    stripe_rows: tuple[int, ...]
    columns: Mapping[str, pa.DataType]
    format: Format = "orc"
    stripe_spans: tuple[tuple[int, int], ...] = ()
    """First byte and number of bytes of each stripe, where the tail tells them."""


class Filter(Protocol):
    """What leaves rows of stripes out: `row_filter.RowFilter`."""

    def file_columns(self, types: Mapping[str, Any]) -> list[str]: ...

    def mask(self, batch: pa.RecordBatch) -> pa.Array: ...


@dataclass(frozen=True)
class Manifest:
    """The files of a data set in their order, with every stripe addressable by one number in [0, S)."""

    files: tuple[OrcFile, ...]
    kept_rows: tuple[int, ...] | None = None
    """How many rows of each stripe a filter keeps."""
    row_filter: Filter | None = None

    @cached_property
    def stripe_rows(self) -> NDArray[np.int64]:
        """Rows of each stripe that are read, int64 [S]."""
        if self.kept_rows is not None:
            return np.array(self.kept_rows, np.int64)
        return np.array([rows for file in self.files for rows in file.stripe_rows], np.int64)

    @cached_property
    def _first_stripes(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(len(file.stripe_rows) for file in self.files)], dtype=np.int64)

    @cached_property
    def rows(self) -> int:
        return int(self.stripe_rows.sum())

    def of_files(self, indices: Sequence[int]) -> "Manifest":
        """The manifest of some of the files, with what a filter keeps of them."""
        kept = None
        if self.kept_rows is not None:
            first = self._first_stripes
            kept = tuple(rows for index in indices for rows in self.kept_rows[first[index] : first[index + 1]])
        return Manifest(tuple(self.files[index] for index in indices), kept, self.row_filter)

    def locate(self, stripe: int) -> tuple[OrcFile, int]:
        """The file of a stripe, and which stripe of that file it is."""
        file = int(np.searchsorted(self._first_stripes, stripe, side="right")) - 1
        return self.files[file], stripe - int(self._first_stripes[file])

    def describe_row(self, stripe: int, row: int) -> str:
        """Where a row of a stripe lies, for messages: `a.orc, stripe 1, row 12 (row 5012 of the file)`."""
        file, index = self.locate(stripe)
        if self.row_filter is not None:  # read once more, since rows are counted without those left out
            columns = self.row_filter.file_columns(file.columns)
            mask = self.row_filter.mask(read_stripe(file.path, file.format, index, columns))
            row = int(np.flatnonzero(mask.to_numpy(zero_copy_only=False))[row])
        return f"{file.path}, stripe {index}, row {row} (row {sum(file.stripe_rows[:index]) + row} of the file)"

    def describe_rows(self, stripe: int, first: int, last: int) -> str:
        """Where rows [first, last) of a stripe lie, for messages: `a.orc, stripe 1, rows 0 to 4999`."""
        file, index = self.locate(stripe)
        return f"{file.path}, stripe {index}, rows {first} to {last - 1}"

    @cached_property
    def fingerprint(self) -> str:
        """A hash of names (below the folder that holds them all), sizes and stripes: it stays where files are moved."""
        digest = hashlib.sha256()
        for name, file in zip(self.names, self.files, strict=True):
            digest.update(f"{name}|{file.nbytes}|{file.stripe_rows}\n".encode())
        if self.row_filter is not None:
            digest.update(f"{self.row_filter}|{self.kept_rows}".encode())
        return digest.hexdigest()[:16]

    @cached_property
    def names(self) -> list[str]:
        """What the files are called below the folder that holds them all."""
        paths = ["/" + file.path.split("://", 1)[1] if is_remote(file.path) else file.path for file in self.files]
        base = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
        return [os.path.relpath(path, base) for path in paths]

    @cached_property
    def contents(self) -> dict[str, str]:
        """What tells each file from another of its name: size, rows and stripes in few letters."""
        found = {}
        for name, file in zip(self.names, self.files, strict=True):
            digest = hashlib.sha256(f"{file.nbytes}|{file.stripe_rows}".encode()).hexdigest()
            found[name] = f"{sum(file.stripe_rows)}-{digest[:8]}"
        return found


def read_manifest(paths: Paths) -> tuple[Manifest, list[str]]:
    """Read the tails of all files; gives the manifest of those that could be read, and the problems of the others.

    ``paths`` is a folder (its *.orc and *.parquet files, however deep, but none below names that begin with `.` or
    `_`), a file, a glob, a URL of these such as `s3://bucket/logs`, or a list of these; `${NAME}` stands for an
    environment variable. Files without rows are left out.
    """
    found, problems = find_files(paths)
    files = []
    for path in found:
        try:
            files.append(read_tail(path))
        except DataError as error:
            problems += error.problems
    return Manifest(tuple(file for file in files if sum(file.stripe_rows))), problems


# -------------------------------------------------------------------------------------------------------- finding files


def find_files(paths: Paths) -> tuple[list[str], list[str]]:
    """Expand folders and globs to absolute paths, sorted within each entry; gives them and the problems met."""
    entries = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    found: list[str] = []
    problems: list[str] = [] if entries else ["the list of paths is empty; name a folder, a file or a glob"]
    for entry in entries:
        try:
            found += _expand_entry(expand_variables(os.fspath(entry)))
        except DataError as error:
            problems += error.problems
    for path in dict.fromkeys(path for path in found if found.count(path) > 1) if len(set(found)) < len(found) else ():
        problems.append(f"{path} is named more than once, its rows would count twice; name it once")
    return found, problems


def expand_variables(path: str) -> str:
    """Put environment variables and ~ in: `${RECIS_DATA}/train` -> `data/train`; DataError where one is not set."""
    try:
        return expand_path(path)
    except ValueError as error:
        raise DataError(str(error)) from None


def _expand_entry(entry: str) -> list[str]:
    if is_remote(entry):
        return list_files(entry, SUFFIXES)
    if os.path.isdir(entry):
        return _list_folder(entry)
    if os.path.exists(entry):
        return [os.path.abspath(entry)]
    if not glob.has_magic(entry):
        parent = _existing_parent(entry)
        raise DataError(f"{entry} does not exist; {parent} does, and holds {_list_names(parent)}")
    matches = sorted(glob.glob(entry, recursive=True))
    found = [path for match in matches for path in (_list_folder(match) if os.path.isdir(match) else [match])]
    if not found:
        raise DataError(f"{entry} matches no file; check the glob, or name a folder")
    return [os.path.abspath(path) for path in found]


def _list_folder(folder: str) -> list[str]:
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        # Writers keep unfinished output below _temporary and the like.
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        found += [os.path.join(parent, name) for name in names if name.endswith(SUFFIXES) and name[0] not in "._"]
    if not found:
        raise DataError(
            f"{folder} holds no *.orc or *.parquet file, but {_list_names(folder)}; name another folder, "
            "or a glob for files that are named otherwise"
        )
    return sorted(os.path.abspath(path) for path in found)


def _existing_parent(path: str) -> str:
    return next(str(parent) for parent in Path(os.path.abspath(path)).parents if parent.exists())


def _list_names(folder: str) -> str:
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "nothing"


# -------------------------------------------------------------------------------------------------------- reading tails


def read_tail(path: str) -> OrcFile:
    """Read one file's tail; DataError says why it is neither ORC nor Parquet."""
    try:
        nbytes = size_of(path)
        if bytes(read_range(path, 0, min(nbytes, 4))) == b"PAR1":
            stripes, types = read_parquet_tail(path)
            kind: Format = "parquet"
        else:
            stripes, types = _read_orc_tail(orc.ORCFile(open_input(path)))
            kind = "orc"
    except (OSError, pa.ArrowException) as error:
        raise DataError(_explain_unreadable(path, error)) from error
    return OrcFile(
        path=path,
        nbytes=nbytes,
        stripe_rows=tuple(stripe.rows for stripe in stripes),
        columns=types,
        format=kind,
        stripe_spans=tuple(stripe.span for stripe in stripes if stripe.span is not None),
    )


def _read_orc_tail(file: orc.ORCFile) -> tuple[list[StripeEntry], dict[str, pa.DataType]]:
    tail = getattr(file.reader, "serialized_file_tail", None)
    stripes = _parse_stripes(tail()) if tail else []
    if len(stripes) != file.nstripes:
        stripes = [StripeEntry(rows, None) for rows in _count_stripe_rows(file)]
    return stripes, {field.name: plain_type(field.type) for field in file.schema}


def _explain_unreadable(path: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        return f"{path} can't be opened: {error}"
    try:
        nbytes = size_of(path)
        head = bytes(read_range(path, 0, min(nbytes, 4))) if nbytes else b""
    except OSError as reason:
        return f"{path} can't be read: {reason}; look after the storage, and start again"
    if nbytes == 0:
        return f"{path} is empty (0 bytes), so whatever wrote it did not finish; write it again, or delete it"
    if format_of(head) is None:
        kind = "a gzip file" if head[:2] == b"\x1f\x8b" else "something else"
        return (
            f"{path} is no ORC or Parquet file but {kind} (begins with {head!r}, need b'ORC' or b'PAR1'); "
            "convert it (recis data convert), or leave it out"
        )
    name = "ORC" if format_of(head) == "orc" else "Parquet"
    return (
        f"{path} is truncated or damaged: {nbytes} bytes begin as {name}, but the tail can't be read ({error}); "
        "copy or write it again"
    )


def _count_stripe_rows(file: orc.ORCFile) -> list[int]:
    """The slow way, for a pyarrow that no longer shows the tail: decode one column of each stripe."""
    cheapest = [file.schema.names[0]]
    return [file.read_stripe(stripe, columns=cheapest).num_rows for stripe in range(file.nstripes)]


# Field numbers of orc_proto.proto: FileTail.footer, Footer.stripes; of StripeInformation offset, lengths, numberOfRows
_FOOTER, _STRIPES = 2, 3
_OFFSET, _INDEX_LENGTH, _DATA_LENGTH, _FOOTER_LENGTH, _NUMBER_OF_ROWS = 1, 2, 3, 4, 5


def _parse_stripes(tail: bytes) -> list[StripeEntry]:
    """Each stripe, from the uncompressed protobuf message FileTail; a field that is not there is 0."""
    footer = next(value for number, value in _fields(memoryview(tail)) if number == _FOOTER)
    assert isinstance(footer, memoryview)
    stripes = [value for number, value in _fields(footer) if number == _STRIPES and isinstance(value, memoryview)]
    # Where footer and stripes disagree on the rows, the stripes are right: they are what can be read.
    return [_describe_stripe(dict(_fields(stripe))) for stripe in stripes]


def _describe_stripe(fields: Mapping[int, int | memoryview]) -> StripeEntry:
    def value(number: int) -> int:
        found = fields.get(number, 0)
        assert isinstance(found, int)
        return found

    nbytes = value(_INDEX_LENGTH) + value(_DATA_LENGTH) + value(_FOOTER_LENGTH)
    return StripeEntry(value(_NUMBER_OF_ROWS), (value(_OFFSET), nbytes))


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a protobuf message: (number, integer or bytes)."""
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, at = _read_varint(message, at)
            yield number, value
            continue
        if wire_type == 2:
            size, at = _read_varint(message, at)
        else:
            size = {1: 8, 5: 4}[wire_type]
        yield number, message[at : at + size]
        at += size


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
