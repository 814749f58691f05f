"""Tables out to files and in from files: `export_table(table, "item.parquet")`, `import_table(table, "item.parquet")`.

N rows of a piece, D row width.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from recis_lightning.tables.memory import reserve
from recis_lightning.tables.recis_files import find_recis_checkpoint
from recis_lightning.tables.row_files import (
    PIECE_BYTES,
    Chosen,
    RowFile,
    RowWriter,
    TableFileError,
    check_columns,
    open_row_files,
)
from recis_lightning.tables.table import DynamicTable, TableSlice
from triton_ops.index import SHARDS

log = logging.getLogger(__name__)

SLOT = "slot."  # how optimizer state is named among the columns of a file


@dataclass(frozen=True)
class Written:
    """What was exported."""

    rows: int
    files: tuple[Path, ...]


def export_table(
    table: DynamicTable,
    out: str | Path,
    *,
    format: str | None = None,
    shards: tuple[int, int] = (0, SHARDS),
    ids: tuple[int, int] | None = None,
    optimizer: bool = True,
) -> Written:
    """Write what a table holds: `export_table(table, "item.parquet", ids=(0, 1000))` writes ids 0 to 999.

    ``out`` is a file that ends in .safetensors, .parquet or .orc, or a folder that gets parts in ``format``; see
    `tables.row_files` for what is in them. ``shards`` and ``ids`` choose virtual shards and ids [low, high). Without
    ``optimizer``, only ids and embeddings are written. Rows are ordered by mix64(id) as unsigned; memory is bounded,
    whatever the table's size. Raises TableFileError where ``out`` does not serve.
    """
    pieces = (table.export(*piece) for piece in table.shard_ranges(PIECE_BYTES, *shards))
    return write_rows(pieces, table.export(0, 0), out, format, table.step, ids=ids, optimizer=optimizer)


def write_rows(
    pieces: Iterable[TableSlice],
    like: TableSlice,
    out: str | Path,
    format: str | None,
    step: int,
    *,
    ids: tuple[int, int] | None,
    optimizer: bool,
) -> Written:
    """Write slices, as `export_table`; ``like`` is an empty one of them, for a file without rows."""
    with RowWriter(out, format, step) as writer:
        for piece in pieces:
            if ids is not None:
                piece = piece.select((piece.ids >= ids[0]) & (piece.ids <= ids[1] - 1))
            if len(piece):
                writer.write(_columns(piece, optimizer))
        if not writer.files:
            writer.write(_columns(like, optimizer))
    return Written(writer.rows, tuple(writer.files))


def _columns(piece: TableSlice, optimizer: bool) -> dict[str, Tensor]:
    columns = {"ids": piece.ids, "weight": piece.weight}
    if optimizer:
        columns |= {"last_step": piece.last_step, "count": piece.count}
        columns |= {SLOT + name: slot for name, slot in piece.slots.items()}
    return columns


def import_table(
    table: DynamicTable,
    path: str | Path,
    *,
    name: str | None = None,
    ids: str = "ids",
    vector: str = "weight",
    optimizer: bool = True,
    shards: tuple[int, int] = (0, SHARDS),
) -> int:
    """Insert or overwrite the ids of files with what these hold of each; returns how many there were.

    ``path`` is a file or a folder that `export_table` wrote, a checkpoint folder of RecIS (``name`` is then the table's
    name there, the table's own where not given), or any safetensors, Parquet or ORC file whose columns ``ids`` and
    ``vector`` hold integers and lists of D floats. Floats are rounded to the table's dtype. What files do not hold is
    that of new rows; without ``optimizer`` that of the optimizer is not read. Only ids in virtual shards [first, last)
    of ``shards`` are taken. Admission is not asked.

    Raises TableFileError, naming file and table, where something does not fit, and TableFullError; the table then
    holds the pieces before.
    """
    recis = find_recis_checkpoint(path, name or table.name)
    files: list[RowFile] = [recis] if recis else open_row_files(path)
    return fill_table(table, files, ids=ids, vector=vector, optimizer=optimizer, shards=shards)


def fill_table(
    table: DynamicTable,
    files: Sequence[RowFile],
    *,
    ids: str = "ids",
    vector: str = "weight",
    optimizer: bool = True,
    shards: tuple[int, int] = (0, SHARDS),
    later: int = 0,
) -> int:
    """`import_table` from files that are open; ``later`` is added to the last steps that they tell."""
    seen = reserve((table.group.rows.capacity,), torch.bool)
    count = 0
    for file in files:
        check_columns(file, (ids, vector))
        names = [ids, vector, *_further_columns(table, file, vector, optimizer)]
        for piece in file.read(names, None if shards == (0, SHARDS) else Chosen(ids, shards)):
            if "last_step" in piece:
                piece["last_step"] = piece["last_step"] + later
            part = _as_slice(table, file, piece, ids, vector)
            try:
                rows = table.load(part).cpu()
            except ValueError as error:
                raise TableFileError(f"'{file.path}': {error}") from error
            repeated = seen[rows]
            if repeated.any():
                raise TableFileError(
                    f"table '{table.name}': id {int(part.ids[repeated][0])} comes twice in '{file.path}'; "
                    "keep one of it"
                )
            seen[rows] = True
            count += len(part)
        if optimizer and file.step is not None:
            # Rows may say that they were looked up in a step that this table has yet to make.
            table.step = max(table.step, file.step)
        elif any(name.startswith(SLOT) for name in names):
            log.warning(
                "'%s' does not tell how many steps the optimizer of table '%s' had made; it goes on from step %d",
                file.path, table.name, table.step,
            )  # fmt: skip
    return count


def _further_columns(table: DynamicTable, file: RowFile, vector: str, optimizer: bool) -> Iterator[str]:
    """What else of a file belongs to a table; TableFileError where that is the state of another optimizer."""
    if not optimizer or vector != "weight":
        return
    yield from (name for name in ("last_step", "count") if name in file.columns)
    found = {name.removeprefix(SLOT) for name in file.columns if name.startswith(SLOT)}
    wanted = set(table.group.state_slices)
    if found and wanted and found != wanted:
        raise TableFileError(
            f"'{file.path}' holds the optimizer state {', '.join(sorted(found))}; table '{table.name}' is updated by "
            f"{table.optimizer.kind}, with {', '.join(sorted(wanted))}: import it without optimizer state "
            "(--weights-only, reset_optimizer: true), or declare the optimizer that wrote it"
        )
    yield from (SLOT + name for name in sorted(found & wanted))


def _as_slice(table: DynamicTable, file: RowFile, piece: dict[str, Tensor], ids: str, vector: str) -> TableSlice:
    where = f"table '{table.name}'"
    ids_N, weight_ND = piece[ids], piece[vector]
    if ids_N.dim() != 1 or ids_N.is_floating_point():
        raise TableFileError(
            f"{where}: column '{ids}' of '{file.path}' is {ids_N.dtype} {list(ids_N.shape)}; ids are integers [N]"
        )
    if weight_ND.dim() != 2 or weight_ND.shape[1] != table.dim:
        found = f"vectors of {weight_ND.shape[1]}" if weight_ND.dim() == 2 else "single numbers"
        raise TableFileError(f"{where} has dim {table.dim}, column '{vector}' of '{file.path}' has {found}")
    finite_N = weight_ND.isfinite().all(dim=1)
    if not finite_N.all():
        raise TableFileError(
            f"{where}: the vector of id {int(ids_N[~finite_N][0])} in '{file.path}' has NaN or infinite numbers"
        )
    converted_ND = weight_ND.to(table.dtype)
    if not table.dtype.is_floating_point and (weight_ND.is_floating_point() or (converted_ND != weight_ND).any()):
        raise TableFileError(
            f"{where} holds {table.dtype}, column '{vector}' of '{file.path}' is {weight_ND.dtype} with values from "
            f"{weight_ND.min().item():g} to {weight_ND.max().item():g}, which do not all fit"
        )
    like = table.export(0, 0)
    slots = {name: piece[SLOT + name].to(slot.dtype) for name, slot in like.slots.items() if SLOT + name in piece}
    return table.complete(
        ids_N.to(torch.int64),
        converted_ND,
        slots or None,
        piece.get("last_step"),
        piece.get("count"),
    )
