"""`recis checkpoint`: what a checkpoint holds, whether its files are whole, and the same in other files."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table as TextTable

from recis_lightning.training.checkpoint import PART_BYTES
from recis_lightning.training.checkpoint_tools import describe, reshard, verify
from recis_lightning.training.files import DirectoryReader


def run(arguments: Sequence[str]) -> int:
    args = make_parser().parse_args(arguments)
    status: int = args.run(args)
    return status


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("recis checkpoint", description="Look into checkpoints, check them, rewrite them.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, function, text in (
        ("inspect", _inspect, "step, epoch, data position, tables and dense weights of a checkpoint"),
        ("verify", _verify, "read all files and hold them against their checksums; status 1 where one is bad"),
        ("reshard", _reshard, "the same checkpoint in fewer or more files; it trains on to the bit"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("path", help="a checkpoint: *.ckpt/, or a URL of one")
        command.set_defaults(run=function)
        if name == "inspect":
            command.add_argument("--json", action="store_true", help="as JSON")
        if name == "reshard":
            command.add_argument("--out", required=True, metavar="NEW.ckpt", help="where to write")
            help_ = "ranks that are to read it, none of which shares a file with another; 1 for the fewest files"
            command.add_argument("--parts", type=int, default=1, metavar="N", help=help_)
            help_ = "at most about so many in a file, and in memory (default %(default)s)"
            command.add_argument("--part-mb", type=int, default=PART_BYTES >> 20, metavar="MB", help=help_)
    return parser


def _inspect(args: argparse.Namespace) -> int:
    found = describe(args.path)
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    # As wide as it takes where nobody looks: a file or a pipe must not lose columns.
    console = Console(width=None if sys.stdout.isatty() else 240, highlight=False)
    by = ", ".join(f"{name} {version}" for name, version in found["written_by"].items())
    console.print(
        f"{args.path}: step {found['global_step']:,}, epoch {found['epoch']}, {found['bytes'] / 2**20:,.1f} MB in "
        f"{found['files']} files\nwritten by {found['world_size']} ranks, {by}, format {found['version']}"
        + ("" if found["has_optimizer"] else "; weights alone, without optimizer state"),
        soft_wrap=True,
    )
    console.print(f"data position: {json.dumps(found['position'])}", soft_wrap=True)
    console.print(_tables(found["tables"]))
    console.print(_dense(found["dense"]))
    return 0


def _tables(tables: dict[str, dict[str, Any]]) -> TextTable:
    shown = TextTable(box=box.SIMPLE_HEAD)
    for name in ("table", "rows", "MB", "files", "dim", "dtype", "optimizer", "state", "steps"):
        is_text = name in ("table", "dtype", "optimizer", "state")
        shown.add_column(name, justify="left" if is_text else "right", no_wrap=True)
    for name, of in tables.items():
        state = ", ".join(f"{slot} {dtype}" for slot, dtype in of["state"].items())
        size, counts = f"{of['bytes'] / 2**20:,.1f}", (str(of["files"]), str(of["dim"]))
        shown.add_row(
            name, f"{of['rows']:,}", size, *counts, of["dtype"], of["optimizer"] or "", state, f"{of['step']:,}"
        )
    return shown


def _dense(tensors: dict[str, dict[str, Any]]) -> TextTable:
    shown = TextTable("dense weight", "shape", "dtype", box=box.SIMPLE_HEAD)
    for name, about in tensors.items():
        shown.add_row(name, " x ".join(map(str, about["shape"])) or "1", about["dtype"])
    return shown


def _verify(args: argparse.Namespace) -> int:
    with _progress("verify", args.path) as on_bytes:
        problems = verify(args.path, on_bytes)
    for problem in problems:
        print(problem)
    if problems:
        print(f"{args.path}: {len(problems)} problems; go on from another checkpoint", file=sys.stderr)
        return 1
    manifest = DirectoryReader(args.path).manifest
    rows = sum(table["rows"] for table in manifest["tables"].values())
    print(f"{args.path}: {len(manifest['files'])} files and {rows:,} rows are what was written")
    return 0


def _reshard(args: argparse.Namespace) -> int:
    with _progress("reshard", args.path) as on_bytes:
        files = reshard(args.path, args.out, args.parts, args.part_mb << 20, on_bytes)
    listed = ", ".join(f"{name} {count}" for name, count in files.items())
    print(f"{args.out}: files of tables: {listed}")
    return 0


@contextmanager
def _progress(title: str, path: str) -> Iterator[Callable[[int], None]]:
    """Show a bar of bytes; yields the function that moves it on."""
    files = DirectoryReader(path, check_sizes=False).manifest["files"]
    total = sum(file["bytes"] for file in files.values())
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)
