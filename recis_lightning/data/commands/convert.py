"""`recis data convert`: files of many formats into ORC to train on.

recis data convert log/*.csv.gz --out log/orc --types "user=int64,tags=list<int64>" --partition-by time
recis data convert log.csv --out log/orc --schema recipe.yaml     types as a recipe declares its columns
recis data convert day_*.gz --format criteo --out criteo --partition-by file
recis data convert ml-1m --format movielens --out ml1m           ml1m/ratings, ml1m/movies, ml1m/users
recis data convert reviews_Beauty_5.json.gz meta_Beauty.json.gz --format amazon --out beauty
"""

import argparse
import glob
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from recis_lightning.data.check import stored_type
from recis_lightning.data.commands.synth import read_schema
from recis_lightning.data.convert.public_data import read_amazon, read_criteo, read_movielens
from recis_lightning.data.convert.tables import (
    PART_ROWS,
    STRIPE_BYTES,
    SUFFIXES,
    Converted,
    Named,
    Partition,
    convert,
    total_bytes,
    write_tables,
)
from recis_lightning.data.convert.text_files import OnBytes, TextOptions
from recis_lightning.data.errors import DataError
from recis_lightning.schema import Schema

PUBLIC = ("criteo", "movielens", "amazon")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("paths", nargs="+", metavar="FILE", help="files, globs, or folders of files")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where to write ORC files")
    formats = (*dict.fromkeys(SUFFIXES.values()), *PUBLIC)
    parser.add_argument("--format", choices=formats, help="how the files are read (default: by their names)")
    parser.add_argument(
        "--types", action="append", default=[], metavar="NAME=TYPE,...", help="of columns; others are guessed"
    )
    parser.add_argument("--schema", type=Path, metavar="YAML", help="take types from this recipe's (or file's) columns")
    parser.add_argument("--delimiter", help="between fields (default: a comma, in .tsv and .txt a tab)")
    parser.add_argument("--names", metavar="NAME,...", help="of the columns, where files have no header")
    parser.add_argument("--list-separator", default="|", help="between the values of a list (default %(default)s)")
    parser.add_argument("--null", action="append", default=[""], metavar="TEXT", help="stands for a missing value")
    parser.add_argument(
        "--partition-by", metavar="COLUMN", help="a folder for each day of a column of times; `file`: for each file"
    )
    parser.add_argument("--unit", choices=("s", "ms", "us", "ns"), default="s", help="of times that are integers")
    parser.add_argument(
        "--stripe-mb", type=float, default=STRIPE_BYTES / 2**20, help="megabytes a stripe (default %(default)g)"
    )
    parser.add_argument("--part-rows", type=int, default=PART_ROWS, help="rows a file (default %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Convert, and print what was written."""
    console, start = Console(), time.perf_counter()
    if args.part_rows < 1 or args.stripe_mb <= 0:
        raise DataError(f"part-rows is {args.part_rows}, stripe-mb {args.stripe_mb:g}; both must be above 0")
    partition = None
    if args.partition_by is not None:
        partition = Partition(None if args.partition_by == "file" else args.partition_by, args.unit)
    sizes = {"stripe_bytes": int(args.stripe_mb * 2**20), "part_rows": args.part_rows}
    paths = [Path(args.paths[0])] if args.format == "movielens" else find_inputs(args.paths)
    total = sum(path.stat().st_size for path in _files_of(paths))
    with _bar(console, f"writing {args.out}", total) as on_bytes:
        try:
            if args.format in PUBLIC:
                done = _convert_public(args.format, paths, args.out, partition, sizes, on_bytes)
            else:
                options = _text_options(args, paths)
                done = convert(
                    paths,
                    args.out,
                    kind=args.format,
                    options=options,
                    partition=partition,
                    on_bytes=on_bytes,
                    **sizes,
                )
        except FileExistsError as error:
            raise DataError(str(error)) from error
    console.print(_describe(args.out, done, total, time.perf_counter() - start))
    for note, count in done.notes.items():
        console.print(f"{count:,} times: {note}")
    return 0


def find_inputs(entries: Sequence[str]) -> list[Path]:
    """The files that paths, globs and folders name, sorted within each; DataError where one names none."""
    found: list[Path] = []
    for entry in entries:
        path = Path(entry)
        if path.is_dir():
            inside = sorted(each for each in path.rglob("*") if each.is_file() and set(each.suffixes) & set(SUFFIXES))
        else:
            inside = [path] if path.exists() else sorted(map(Path, glob.glob(entry, recursive=True)))
        if not inside:
            raise DataError(f"{entry} names no file to convert ({', '.join(SUFFIXES)}); name files, globs or folders")
        found += inside
    total_bytes(found)
    return found


def _files_of(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        yield from ([each for each in path.iterdir() if each.is_file()] if path.is_dir() else [path])


def _text_options(args: argparse.Namespace, paths: Sequence[Path]) -> TextOptions:
    is_tabbed = args.format == "tsv" or (args.format is None and set(paths[0].suffixes) & {".tsv", ".txt"})
    types = {} if args.schema is None else types_of(read_schema(args.schema))
    types |= parse_types(",".join(args.types))
    return TextOptions(
        delimiter=(args.delimiter or ("\t" if is_tabbed else ",")).replace("\\t", "\t"),
        names=args.names.split(",") if args.names else (),
        list_separator=args.list_separator,
        nulls=args.null,
        types=types,
    )


def types_of(schema: Schema) -> dict[str, pa.DataType]:
    """What files that fit a schema hold, of columns that are no parts of others."""
    columns = {column.source or column.name: column for column in schema.columns}
    return {name: stored_type(column) for name, column in columns.items() if "." not in name}


_TYPES = {"date": pa.date32(), "timestamp": pa.timestamp("ns"), "binary": pa.binary()}


def parse_types(text: str) -> dict[str, pa.DataType]:
    """Types from text: "user=int64,tags=list<float32>"; DataError for what is none."""
    types = {}
    for entry in filter(None, text.split(",")):
        name, _, kind = entry.partition("=")
        try:
            types[name.strip()] = _parse_type(kind.strip())
        except ValueError as error:
            raise DataError(
                f"--types {entry}: {kind!r} is no type; write {name or 'NAME'}=int64, float32, string, bool, "
                "timestamp, date, or list<one of these>"
            ) from error
    return types


def _parse_type(kind: str) -> pa.DataType:
    if kind.startswith("list<") and kind.endswith(">"):
        return pa.list_(_parse_type(kind[5:-1]))
    return _TYPES.get(kind) or pa.type_for_alias(kind)


def _convert_public(
    kind: str, paths: list[Path], out: Path, partition: Partition | None, sizes: dict[str, int], on_bytes: OnBytes
) -> Converted:
    if kind == "movielens" and not paths[0].is_dir():
        raise DataError(f"{paths[0]} is no folder; name that of an unpacked MovieLens set, such as ml-1m")
    readers: dict[str, Callable[[], Iterator[Named]]] = {
        "criteo": lambda: read_criteo(paths, on_bytes),
        "movielens": lambda: read_movielens(paths[0], on_bytes),
        "amazon": lambda: read_amazon(paths, on_bytes),
    }
    done = Converted()
    write_tables(readers[kind](), out, done, partition=partition, **sizes)
    return done


@contextmanager
def _bar(console: Console, title: str, total: int) -> Iterator[OnBytes]:
    """Show a bar of bytes read; yields the function that moves it on."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


def _describe(out: Path, done: Converted, nbytes: int, seconds: float) -> Table:
    rows = sum(done.rows.values())
    written = sum(path.stat().st_size for folder in done.rows for path in folder.glob("*.orc"))
    title = f"{rows:,} rows, {nbytes / 1e6:.1f} MB read, {written / 1e6:.1f} MB written in {done.files} files, "
    table = Table(f"in {out}", "rows", title=f"{title}{seconds:.1f} s")
    folders = list(done.rows.items())
    for folder, count in folders[:20]:
        table.add_row(str(folder.relative_to(out)), f"{count:,}")
    if len(folders) > 20:
        table.add_row(f"and {len(folders) - 20} more", f"{sum(count for _, count in folders[20:]):,}")
    return table
