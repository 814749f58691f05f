"""Tables of checkpoints out to files and in from files, without a model.

export_saved_table("x.ckpt", "item", "item.parquet")
import_into_checkpoint("x.ckpt", "item", "item.parquet", "y.ckpt")
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recis_lightning.schema import Schema, did_you_mean
from recis_lightning.tables import DynamicTable, TableGroup, TableSlice, import_table
from recis_lightning.tables.transfer import Written, write_rows
from recis_lightning.training.checkpoint import load_table, read_rows, save_table
from recis_lightning.training.files import CheckpointError, DirectoryReader, DirectoryWriter
from triton_ops.index import SHARDS


@dataclass(frozen=True)
class Imported:
    """What was imported."""

    rows: int
    """Ids that the files held."""
    before: int
    after: int
    """Ids of the table before and after."""


def saved_table(reader: DirectoryReader, name: str) -> DynamicTable:
    """An empty table as the checkpoint's schema declares it; CheckpointError where it holds none of this name."""
    schema, saved = reader.manifest["schema"], reader.manifest["tables"]
    if name not in saved:
        raise CheckpointError(f"checkpoint '{reader.path}' holds no table '{name}'{did_you_mean(name, saved)}")
    if schema is None:
        raise CheckpointError(
            f"checkpoint '{reader.path}' holds no schema, so its tables are not known; a RecModule writes one"
        )
    return TableGroup([Schema.from_dict(schema).table(name)])[0]


def export_saved_table(
    checkpoint: str,
    name: str,
    out: str | Path,
    *,
    format: str | None = None,
    shards: tuple[int, int] = (0, SHARDS),
    ids: tuple[int, int] | None = None,
    optimizer: bool = True,
) -> Written:
    """Write a table of a checkpoint to files, a part of it in memory at a time: see `tables.export_table`."""
    reader = DirectoryReader(checkpoint)
    like = saved_table(reader, name).export(0, 0)
    pieces: Iterator[TableSlice] = read_rows(reader, name, *shards)
    step = reader.manifest["tables"][name]["step"]
    return write_rows(pieces, like, out, format, step, ids=ids, optimizer=optimizer)


def import_into_checkpoint(
    checkpoint: str,
    table_name: str,
    path: str | Path,
    out: str,
    *,
    replace: bool = False,
    **options: Any,
) -> Imported:
    """Write ``out``, a checkpoint like ``checkpoint`` whose table ``table_name`` holds what the files at ``path`` say.

    With ``replace`` the table holds nothing else; without, ids that the files do not name stay as they are. ``options``
    are those of `tables.import_table`. The table is in memory meanwhile; everything else is copied file by file.
    CheckpointError where ``out`` is ``checkpoint``, or a checkpoint is damaged.
    """
    if Path(out).absolute() == Path(checkpoint).absolute():
        raise CheckpointError(f"'{out}' is what is read; write to another place, and move it there when you like it")
    reader = DirectoryReader(checkpoint)
    table = saved_table(reader, table_name)
    entry = reader.manifest["tables"][table_name]
    load_table(table, reader, entry)
    before = len(table)
    if replace:
        table.clear()
    rows = import_table(table, path, **options)
    writer = DirectoryWriter(out)
    writer.begin()
    own = {part["file"] for part in entry["parts"]}
    for file, about in reader.manifest["files"].items():
        if file not in own:
            writer.add(file, reader.read(file), rows=about.get("rows"))
    tables = {**reader.manifest["tables"], table_name: save_table(writer, table, (0, SHARDS), with_optimizer=True)}
    made = ("format", "version", "checksum", "files")
    writer.commit({key: value for key, value in reader.manifest.items() if key not in made} | {"tables": tables})
    return Imported(rows, before, len(table))
