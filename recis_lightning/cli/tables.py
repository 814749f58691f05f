"""`recis tables inspect PATH`: what the tables of a checkpoint hold, as `DynamicTable.stats` tells it."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from recis_lightning.cli.explain import UsageError
from recis_lightning.schema import Schema, did_you_mean
from recis_lightning.tables import TableGroup
from recis_lightning.training.checkpoint import load_table
from recis_lightning.training.files import DirectoryReader

COLUMNS = (
    "table",
    "dim",
    "ids",
    "MB",
    "load",
    "inserted",
    "admitted",
    "refused",
    "evicted",
    "waiting",
    "probes",
    "norms",
)


def run(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("recis tables", description="Look into tables.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    inspect = commands.add_parser("inspect", help="what the tables of a checkpoint hold")
    inspect.add_argument("path", help="a checkpoint: *.ckpt/")
    inspect.add_argument("--table", action="append", default=[], help="only this table; may be given several times")
    given = parser.parse_args(arguments)
    print(inspect_checkpoint(given.path, given.table))
    return 0


def inspect_checkpoint(path: str, names: Sequence[str] = ()) -> str:
    """A line for each table of a checkpoint, or for those named; reads one table after the other into memory.

    Columns: ids held; memory of rows, optimizer state, index and admission; load of the index; since the table was
    cleared ids inserted, admitted and evicted, and occurrences of ids refused; ids waiting for admission; slots that a
    lookup reads, on average/at most; Euclidean norms of embeddings, least/mean/greatest.
    """
    reader = DirectoryReader(path)
    saved, schema = reader.manifest["tables"], reader.manifest["schema"]
    for name in names:
        if name not in saved:
            raise UsageError(f"checkpoint '{path}' holds no table '{name}'{did_you_mean(name, saved)}")
    if schema is None:
        raise UsageError(f"checkpoint '{path}' holds no schema, so its tables are not known; a RecModule writes one")
    lines = [COLUMNS, *_lines(reader, Schema.from_dict(schema), {name: saved[name] for name in names or saved})]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    aligned = (
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in lines
    )
    return "\n".join("  ".join(cells) for cells in aligned)


def _lines(reader: DirectoryReader, schema: Schema, saved: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, entry in saved.items():
        table = TableGroup([schema.table(name)])[0]
        load_table(table, reader, entry)
        stats = table.stats(scan=True)
        used = stats["row_bytes"] + stats["index_bytes"] + stats.get("admission_bytes", 0)
        counts = (f"{stats.get(event, 0):,}" for event in ("inserted", "admitted", "refused", "evicted", "waiting"))
        probes = f"{stats['probe_mean']:.2f}/{stats['probe_max']}"
        norms = "/".join(f"{stats[norm]:.3g}" for norm in ("norm_min", "norm_mean", "norm_max"))
        size, load = f"{used / 2**20:.1f}", f"{stats['load']:.2f}"
        yield name, str(table.dim), f"{stats['ids']:,}", size, load, *counts, probes, norms
