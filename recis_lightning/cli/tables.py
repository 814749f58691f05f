"""`recis tables`: what the tables of a checkpoint hold, and their rows out to files and in from files."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as TextTable

from recis_lightning.cli.explain import UsageError
from recis_lightning.schema import did_you_mean
from recis_lightning.training.checkpoint import load_table
from recis_lightning.training.files import DirectoryReader
from recis_lightning.training.table_files import export_saved_table, import_into_checkpoint, saved_table
from triton_ops.index import SHARDS

COLUMNS = ("table", "dim", "ids", "MB", "load", "inserted", "admitted", "refused", "evicted", "waiting", "probes")
NORMS = ("norm min", "p5", "median", "mean", "p95", "max")


def run(arguments: Sequence[str]) -> int:
    args = _parser().parse_args(arguments)
    status: int = args.run(args)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("recis tables", description="Look into tables, and move their rows.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    inspect = commands.add_parser("inspect", help="what the tables of a checkpoint hold")
    inspect.add_argument("path", help="a checkpoint: *.ckpt/")
    inspect.add_argument("--table", action="append", default=[], help="only this table; may be given several times")
    inspect.add_argument("--json", action="store_true", help="as JSON: {table: what DynamicTable.stats gives}")
    inspect.set_defaults(run=_inspect)
    export = commands.add_parser("export", help="write a table's rows to files")
    export.add_argument("checkpoint", metavar="CKPT", help="a checkpoint: *.ckpt/")
    export.add_argument("--table", required=True)
    export.add_argument("--out", required=True, help="a file *.safetensors, *.parquet or *.orc, or a folder for parts")
    export.add_argument("--format", choices=("safetensors", "parquet", "orc"), help="of the parts in a folder")
    export.add_argument(
        "--ids",
        type=_range,
        metavar="LOW:HIGH",
        help="only ids from LOW up to, not including, HIGH; --ids=-5:10 where LOW is negative",
    )
    export.add_argument("--shards", type=_range, metavar="FIRST:LAST", help=f"only these virtual shards of {SHARDS}")
    export.add_argument("--weights-only", action="store_true", help="ids and embeddings, no optimizer state or counts")
    export.set_defaults(run=_export)
    imported = commands.add_parser("import", help="write a checkpoint whose table holds the rows of files")
    imported.add_argument("checkpoint", metavar="CKPT", help="a checkpoint: *.ckpt/")
    imported.add_argument("--table", required=True)
    imported.add_argument("--from", required=True, dest="source", metavar="PATH",
                          help="files of `recis tables export`, or a checkpoint folder of RecIS")  # fmt: skip
    imported.add_argument("--name", help="the table's name in a checkpoint of RecIS, where it is another one")
    imported.add_argument("--id", default="ids", help="the column of ids (default %(default)s)")
    imported.add_argument("--vector", default="weight", help="the column of embeddings (default %(default)s)")
    imported.add_argument("--weights-only", action="store_true", help="leave optimizer state and counts out")
    imported.add_argument("--replace", action="store_true", help="forget what the table held before")
    imported.add_argument("--out", required=True, metavar="NEW.ckpt", help="the checkpoint to write")
    imported.set_defaults(run=_import)
    return parser


def _range(text: str) -> tuple[int, int]:
    """-5:10 -> (-5, 10); an open end is that of int64."""
    low, colon, high = text.partition(":")
    try:
        found = (int(low) if low else -(2**63)), (int(high) if high else 2**63)
    except ValueError:
        found = (0, -1)
    if not colon or found[0] > found[1]:
        raise argparse.ArgumentTypeError(f"{text!r} is no range; write LOW:HIGH, such as 0:1000, :0 or 1000:")
    return found


# -------------------------------------------------------------------------------------------------------------- moving


def _export(args: argparse.Namespace) -> int:
    shards = args.shards or (0, SHARDS)
    shards = max(shards[0], 0), min(shards[1], SHARDS)
    written = export_saved_table(
        args.checkpoint,
        args.table,
        args.out,
        format=args.format,
        shards=shards,
        ids=args.ids,
        optimizer=not args.weights_only,
    )
    place = args.out if len(written.files) == 1 else f"{args.out}, {len(written.files)} files"
    print(f"{place}: {written.rows:,} rows of table '{args.table}'")
    return 0


def _import(args: argparse.Namespace) -> int:
    imported = import_into_checkpoint(
        args.checkpoint,
        args.table,
        args.source,
        args.out,
        replace=args.replace,
        name=args.name,
        ids=args.id,
        vector=args.vector,
        optimizer=not args.weights_only,
    )
    print(
        f"{args.out}: table '{args.table}' took {imported.rows:,} rows; it held {imported.before:,} ids, and now "
        f"{imported.after:,}"
    )
    return 0


# ----------------------------------------------------------------------------------------------------------- inspecting


def _inspect(args: argparse.Namespace) -> int:
    stats = dict(inspect_checkpoint(args.path, args.table))
    if args.json:
        print(json.dumps(stats, indent=2))
        return 0
    # As wide as it takes where nobody looks: a file or a pipe must not lose columns.
    Console(width=None if sys.stdout.isatty() else 240).print(_as_table(stats))
    print(
        "refused: occurrences of ids; all else: ids. probes: slots that a lookup reads, on average/at most. "
        "norm: Euclidean norms of embeddings."
    )
    return 0


def inspect_checkpoint(path: str, names: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, what `DynamicTable.stats(scan=True)` gives, and dim) of the tables of a checkpoint, or of those named.

    Reads one table after the other into memory.
    """
    reader = DirectoryReader(path)
    saved = reader.manifest["tables"]
    for name in names:
        if name not in saved:
            raise UsageError(f"checkpoint '{path}' holds no table '{name}'{did_you_mean(name, saved)}")
    for name in names or saved:
        table = saved_table(reader, name)
        load_table(table, reader, saved[name])
        yield name, {"dim": table.dim, **table.stats(scan=True)}


def _as_table(stats: dict[str, dict[str, Any]]) -> TextTable:
    table = TextTable(box=box.SIMPLE_HEAD)
    for name in (*COLUMNS, *NORMS):
        table.add_column(name, justify="left" if name == "table" else "right", no_wrap=True)
    for name, found in stats.items():
        counts = (f"{found.get(event, 0):,}" for event in ("inserted", "admitted", "refused", "evicted", "waiting"))
        norms = (f"{found[f'norm_{norm}']:.3g}" for norm in ("min", "p5", "p50", "mean", "p95", "max"))
        size, load = f"{found['bytes'] / 2**20:.1f}", f"{found['load']:.2f}"
        probes = f"{found['probe_mean']:.2f}/{found['probe_max']}"
        table.add_row(name, str(found["dim"]), f"{found['ids']:,}", size, load, *counts, probes, *norms)
    return table
