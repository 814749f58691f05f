"""A table's rows in files of their own: safetensors, Parquet or ORC, in pieces of bounded size.

    ids            int64, each id once
    weight         its embedding, D numbers
    last_step      int64: the last training step that looked it up
    count          int64: how often training looked it up
    slot.<name>    its optimizer state, by the optimizer's own names

A safetensors file holds each as a tensor [N, ...], in the dtype it has in the table. In Parquet and ORC a row is a row,
vectors are lists, and bfloat16 and float16 are written as float32, which holds their every value. How many optimizer
steps the table had made is in the metadata of the file; ORC files, whose writer knows none, repeat it in each row.

N rows, W numbers of each in a column of vectors.
"""

import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from recis_lightning.errors import UserError
from recis_lightning.schema import did_you_mean
from triton_ops.index import virtual_shard

FORMATS = ("safetensors", "parquet", "orc")
PIECE_BYTES = 64 << 20  # of rows that are in memory at once
PART_BYTES = 256 << 20  # of rows in a file of a folder
METADATA = "recis_lightning"  # the key of what a file says of its table, as JSON
STEP = "table_step"

SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
}  # fmt: skip
"""What the format calls dtypes."""
_NAMES_OF_DTYPES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


class TableFileError(UserError, ValueError):
    """A file of rows that cannot be read, or that does not fit a table: which, why, and what to do."""


# -------------------------------------------------------------------------------------------------------------- writing


class _Writer(Protocol):
    def write(self, columns: Mapping[str, Tensor]) -> None:
        """Append rows."""

    def close(self) -> None:
        """Make the file whole."""


class RowWriter:
    """Writes rows to one file where ``out`` ends in .safetensors, .parquet or .orc, else to parts in the folder `out`.

    A context manager. Files appear under their names once they are whole; an error on the way leaves none of them. An
    existing file is replaced. TableFileError where a folder holds such files already, or its format is not told.
    """

    def __init__(self, out: str | Path, format: str | None = None, step: int = 0) -> None:
        self.out, self.step = Path(out), step
        ending = self.out.suffix.removeprefix(".")
        self._is_folder = ending not in FORMATS
        if not self._is_folder and format not in (None, ending):
            raise TableFileError(f"'{out}' ends in .{ending}, and format {format} is asked for; let them agree")
        self.format = format or ending
        if self.format not in FORMATS:
            raise TableFileError(
                f"'{out}' is a folder, since it ends in none of .{', .'.join(FORMATS)}; say in which format its files "
                f"are to be: {', '.join(FORMATS)}"
            )
        self.rows = 0
        self.files: list[Path] = []
        self._names: list[str] = []
        self._writer: _Writer | None = None
        self._part_bytes = 0

    def __enter__(self) -> "RowWriter":
        if self._is_folder:
            self.out.mkdir(parents=True, exist_ok=True)
            if found := _files_in(self.out):
                raise TableFileError(f"folder '{self.out}' holds {found[0].name} already; give a folder of its own")
        else:
            self.out.parent.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None and self._writer is not None:
                self._writer.close()
        except BaseException:
            self._remove()
            raise
        if error is not None:
            self._remove()
            return
        for file in self.files:
            os.replace(_aside(file), file)

    def _remove(self) -> None:
        for file in self.files:
            _aside(file).unlink(missing_ok=True)
            shutil.rmtree(_scratch(_aside(file)), ignore_errors=True)

    def write(self, columns: Mapping[str, Tensor]) -> None:
        """Append rows; the columns, their dtypes and their widths are the same in every call, in any order."""
        self._names = self._names or list(columns)
        columns = {name: columns[name] for name in self._names}
        if self._writer is None or (self._is_folder and self._part_bytes >= PART_BYTES):
            self._open()
        assert self._writer is not None
        self._writer.write(columns)
        self.rows += len(columns["ids"])
        self._part_bytes += sum(column.nbytes for column in columns.values())

    def _open(self) -> None:
        if self._writer is not None:
            self._writer.close()
        file = self.out / f"part-{len(self.files):05d}.{self.format}" if self._is_folder else self.out
        self.files.append(file)
        self._part_bytes = 0
        self._writer = _WRITERS[self.format](_aside(file), self.step)


def _aside(file: Path) -> Path:
    return file.with_name(file.name + ".tmp")


def _scratch(file: Path) -> Path:
    return file.with_name(file.name + ".columns")


class _SafetensorsWriter:
    """Keeps each column in a file of its own until their sizes, which come first in the format, are known."""

    def __init__(self, path: Path, step: int) -> None:
        self._path, self._step = path, step
        self._folder = _scratch(path)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        self._rows = 0
        self._like: dict[str, Tensor] = {}

    def write(self, columns: Mapping[str, Tensor]) -> None:
        self._like = self._like or {name: column[:0].clone() for name, column in columns.items()}
        self._rows += len(columns["ids"])
        for number, column in enumerate(columns.values()):
            with open(self._folder / str(number), "ab") as file:
                # A copy: strides of a tensor without rows, or of one, need not be those its bytes are viewed by.
                plain = torch.empty(column.shape, dtype=column.dtype).copy_(column)
                file.write(plain.reshape(-1).view(torch.uint8).numpy().data)

    def close(self) -> None:
        header: dict[str, Any] = {"__metadata__": {METADATA: json.dumps({"step": self._step})}}
        end = 0
        for name, like in self._like.items():
            shape = [self._rows, *like.shape[1:]]
            begin, end = end, end + math.prod(shape) * like.itemsize
            header[name] = {"dtype": _NAMES_OF_DTYPES[like.dtype], "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(self._path, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for number in range(len(self._like)):
                with open(self._folder / str(number), "rb") as file:
                    shutil.copyfileobj(file, out, 1 << 20)
                (self._folder / str(number)).unlink()
        self._folder.rmdir()


class _ParquetWriter:
    def __init__(self, path: Path, step: int) -> None:
        self._path, self._step = path, step
        self._writer: pq.ParquetWriter | None = None

    def write(self, columns: Mapping[str, Tensor]) -> None:
        rows = pa.table({name: _to_arrow(column, fixed=True) for name, column in columns.items()})
        if self._writer is None:
            schema = rows.schema.with_metadata({METADATA: json.dumps({"step": self._step})})
            # Ids and floats hardly repeat: dictionaries would only be built to be given up.
            self._writer = pq.ParquetWriter(self._path, schema, compression="zstd", use_dictionary=False)
        self._writer.write_table(rows, row_group_size=max(1, len(rows)))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _OrcWriter:
    def __init__(self, path: Path, step: int) -> None:
        self._step = step
        # A stripe is read as a whole, and may take several times as much memory as it has bytes in the file.
        self._writer = pyarrow.orc.ORCWriter(str(path), compression="zstd", stripe_size=PIECE_BYTES // 4)

    def write(self, columns: Mapping[str, Tensor]) -> None:
        columns = {**columns, STEP: torch.full((len(columns["ids"]),), self._step)}
        self._writer.write(pa.table({name: _to_arrow(column, fixed=False) for name, column in columns.items()}))

    def close(self) -> None:
        self._writer.close()


_WRITERS: dict[str, type] = {"safetensors": _SafetensorsWriter, "parquet": _ParquetWriter, "orc": _OrcWriter}


def _to_arrow(column: Tensor, fixed: bool) -> pa.Array:
    """A column as Arrow holds it: numbers, or lists of ``fixed`` size or of any."""
    if column.dtype in (torch.float16, torch.bfloat16):
        column = column.float()
    if column.dim() == 1:
        return pa.array(column.numpy())
    values, width = pa.array(column.contiguous().numpy().reshape(-1)), column.shape[1]
    if fixed:
        return pa.FixedSizeListArray.from_arrays(values, width)
    offsets = np.arange(len(column) + 1, dtype=np.int32) * width
    return pa.ListArray.from_arrays(pa.array(offsets), values)


# -------------------------------------------------------------------------------------------------------------- reading


class RowFile(Protocol):
    """One file of rows, or what is read like one."""

    path: str
    columns: list[str]
    """Their names."""
    step: int | None
    """The optimizer steps of its table, where the file says."""

    def read(self, names: Iterable[str], chosen: "Chosen | None" = None) -> Iterator[dict[str, Tensor]]:
        """Columns, piece by piece: numbers as [N], vectors as [N, W]; of the rows that are ``chosen``, or of all.

        Of pieces without any such row only ids are read.
        """


@dataclass(frozen=True)
class Chosen:
    """Which rows of a file to read."""

    column: str
    """That of ids."""
    shards: tuple[int, int]
    """Those whose ids are in virtual shards [first, last)."""

    def mask(self, ids_N: Tensor) -> Tensor:
        """bool [N]; all of ids that are none, of which their reader is to tell."""
        if ids_N.dim() != 1 or ids_N.is_floating_point():
            return torch.ones(len(ids_N), dtype=torch.bool)
        shard_N = virtual_shard(ids_N.to(torch.int64))
        return (shard_N >= self.shards[0]) & (shard_N < self.shards[1])

    def pick(self, piece: dict[str, Tensor]) -> dict[str, Tensor]:
        """The chosen rows of a piece."""
        mask_N = self.mask(piece[self.column])
        return piece if mask_N.all() else {name: values[mask_N] for name, values in piece.items()}


def read_pieces(
    pieces: Iterable[Callable[[list[str]], dict[str, Tensor]]], names: Iterable[str], chosen: Chosen | None
) -> Iterator[dict[str, Tensor]]:
    """`RowFile.read` of a file whose pieces can be read each for itself, whichever columns are wanted of it."""
    names = list(names)
    for read in pieces:
        if chosen is None:
            yield read(names)
            continue
        found = read([chosen.column])
        if chosen.mask(found[chosen.column]).any():
            yield chosen.pick(found | read([name for name in names if name != chosen.column]))


def open_row_files(path: str | Path) -> list[RowFile]:
    """The files of rows at ``path``: a file, or all in a folder; TableFileError where there are none to read."""
    place = Path(path)
    if not place.exists():
        raise TableFileError(f"there is no file or folder '{path}'")
    files = _files_in(place) if place.is_dir() else [place]
    if not files:
        raise TableFileError(f"folder '{path}' holds no file that ends in .{', .'.join(FORMATS)}")
    if len({file.suffix for file in files}) > 1:
        raise TableFileError(f"folder '{path}' holds files of several formats; name the files, or part them")
    return [_open(file) for file in files]


def _files_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.removeprefix(".") in FORMATS)


def _open(file: Path) -> RowFile:
    kind = _READERS.get(file.suffix.removeprefix("."))
    if kind is None:
        raise TableFileError(f"file '{file}' ends in none of .{', .'.join(FORMATS)}, so its format is not known")
    try:
        opened: RowFile = kind(file)
    except (OSError, pa.ArrowException, SafetensorError) as error:
        raise TableFileError(f"file '{file}' cannot be read: {error}") from error
    return opened


class _SafetensorsFile:
    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._file = safe_open(path, framework="pt")
        self.columns = list(self._file.keys())
        self.step = _step_of((self._file.metadata() or {}).get(METADATA))

    def read(self, names: Iterable[str], chosen: Chosen | None = None) -> Iterator[dict[str, Tensor]]:
        names = list(names)
        return read_pieces(cut_slices({name: self._file.get_slice(name) for name in names}, self.path), names, chosen)


def cut_slices(slices: Mapping[str, Any], path: str) -> Iterator[Callable[[list[str]], dict[str, Tensor]]]:
    """Tensors of safetensors files in pieces of PIECE_BYTES; TableFileError where they are not equally long."""
    lengths = {name: (column.get_shape() or [0])[0] for name, column in slices.items()}
    if len(set(lengths.values())) > 1:
        raise TableFileError(f"file '{path}': its tensors have unequal numbers of rows: {lengths}")
    rows = next(iter(lengths.values()), 0)
    row_bytes = sum(8 * int(np.prod(column.get_shape()[1:])) for column in slices.values())
    size = max(1, PIECE_BYTES // max(row_bytes, 1))

    def read(begin: int, names: list[str]) -> dict[str, Tensor]:
        return {name: slices[name][begin : begin + size] for name in names}

    return (partial(read, begin) for begin in range(0, rows, size))


class _ParquetFile:
    def __init__(self, path: Path) -> None:
        self.path = str(path)
        # Otherwise all of a row group is fetched before the first of its rows.
        self._file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
        self.columns = self._file.schema_arrow.names
        metadata = self._file.schema_arrow.metadata or {}
        self.step = _step_of(metadata.get(METADATA.encode()))

    def read(self, names: Iterable[str], chosen: Chosen | None = None) -> Iterator[dict[str, Tensor]]:
        names = list(names)
        for group in range(self._file.num_row_groups):
            if chosen is None or any(
                chosen.mask(piece[chosen.column]).any() for piece in self._read(group, [chosen.column])
            ):
                for piece in self._read(group, names):
                    yield piece if chosen is None else chosen.pick(piece)

    def _read(self, group: int, names: list[str]) -> Iterator[dict[str, Tensor]]:
        """A row group in pieces: others' writers make them of any size."""
        for batch in self._file.iter_batches(1 << 16, row_groups=[group], columns=names):
            yield {name: _to_tensor(batch.column(name), name, self.path) for name in names}


class _OrcFile:
    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._file = pyarrow.orc.ORCFile(path)
        self.columns = self._file.schema.names
        self.step = None
        if STEP in self.columns and self._file.nrows:
            self.step = int(self._file.read_stripe(0, columns=[STEP]).column(0)[0].as_py())

    def read(self, names: Iterable[str], chosen: Chosen | None = None) -> Iterator[dict[str, Tensor]]:
        stripes = (partial(self._read, stripe) for stripe in range(self._file.nstripes))
        return read_pieces(stripes, names, chosen)

    def _read(self, stripe: int, names: list[str]) -> dict[str, Tensor]:
        rows = self._file.read_stripe(stripe, columns=names)
        return {name: _to_tensor(rows.column(name), name, self.path) for name in names}


_READERS: dict[str, type] = {"safetensors": _SafetensorsFile, "parquet": _ParquetFile, "orc": _OrcFile}


def _step_of(metadata: str | bytes | None) -> int | None:
    return None if metadata is None else int(json.loads(metadata)["step"])


def _to_tensor(column: pa.Array, name: str, path: str) -> Tensor:
    """Numbers as [N], lists of one length as [N, W]."""
    where = f"column '{name}' of '{path}'"
    if column.null_count:
        raise TableFileError(f"{where} has {column.null_count} missing values; leave those rows out of the file")
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return _numbers(column, where)
    values = column.flatten()
    if values.null_count:
        raise TableFileError(f"{where} has {values.null_count} missing numbers in its lists; fill them in the file")
    width = len(values) // max(len(column), 1)
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    if (lengths != width).any():
        row = int(np.flatnonzero(lengths != lengths[0])[0])
        raise TableFileError(
            f"{where} has lists of {lengths[0]} and of {lengths[row]} numbers; vectors of one table are equally long"
        )
    return _numbers(values, where).view(len(column), width)


def _numbers(column: pa.Array, where: str) -> Tensor:
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise TableFileError(f"{where} is {column.type}, need numbers; strings become ids by the hash of their column")
    values = column.to_numpy(zero_copy_only=False)
    if values.dtype == np.uint64:
        values = values.view(np.int64)  # all 64 bits of an id count, whatever they are taken for
    elif values.dtype in (np.uint32, np.uint16):
        values = values.astype(np.int64)
    return torch.from_numpy(np.array(values))


def check_columns(file: RowFile, wanted: Iterable[str]) -> None:
    """TableFileError where a file lacks a column."""
    for name in wanted:
        if name not in file.columns:
            raise TableFileError(f"file '{file.path}' has no column '{name}'{did_you_mean(name, file.columns)}")
