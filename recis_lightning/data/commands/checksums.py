"""`recis data manifest DIR` writes the checksums of a folder's files, `recis data verify DIR` reads all of it again."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from recis_lightning.data.errors import DataError
from recis_lightning.data.files.checksums import NAME, verify, write_checksums
from recis_lightning.data.files.manifest import read_manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", help=f"or a URL, s3://bucket/logs; its *.orc and *.parquet files, however deep; {NAME} lies in it"
    )


def run_manifest(args: argparse.Namespace) -> int:
    """Write the checksums."""
    console = Console()
    with _progress(console, "checksums", args.folder) as on_bytes:
        path = write_checksums(args.folder, on_bytes)
    console.print(f"written to {path}; training reads them with verify: once (the default) or always", soft_wrap=True)
    return 0


def run_verify(args: argparse.Namespace) -> int:
    """Read all files and hold them against their checksums; DataError lists every stripe that has changed."""
    console = Console()
    with _progress(console, "verify", args.folder) as on_bytes:
        right, problems = verify(args.folder, on_bytes)
    if problems:
        raise DataError(problems)
    console.print(f"{right} stripes are what was written")
    return 0


@contextmanager
def _progress(console: Console, title: str, folder: str) -> Iterator[Callable[[int], None]]:
    """Show a bar of bytes read; yields the function that moves it on."""
    manifest, _ = read_manifest(folder)
    total = sum(count for file in manifest.files for _, count in file.stripe_spans)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)
