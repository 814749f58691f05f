"""`recis data stats`: what columns hold, as a table and as an HTML page with plots.

recis data stats log/train                                         quantiles and commonest values of each column
recis data stats log/train --html stats.html                       one file, with histograms
recis data stats log/train --by time --label click --html s.html   rows and mean label of each day besides
"""

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from recis_lightning.data.commands.inspect import describe_column, find_splits, read_profile, show
from recis_lightning.data.convert.tables import Partition, days_of
from recis_lightning.data.errors import DataError
from recis_lightning.data.files.formats import read_stripe
from recis_lightning.data.files.manifest import Manifest
from recis_lightning.data.inspect.profile import Profile, choose_stripes
from recis_lightning.data.inspect.report import QUANTILES, Day, commonest, count_days, quantiles_of, write_report
from recis_lightning.schema import did_you_mean


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("path", metavar="DIR", help="a folder of files, or one that has train/ inside")
    parser.add_argument("--rows", type=int, help="read about so many, evenly over the files (default: all)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots")
    parser.add_argument("--by", metavar="COLUMN", help="count rows by the day of this column of times")
    parser.add_argument("--unit", choices=("s", "ms", "us", "ns"), default="s", help="of times that are integers")
    parser.add_argument("--label", metavar="COLUMN", help="with --by, the mean of this column by day")


def run(args: argparse.Namespace) -> int:
    """Print the table, and write the page that is asked for."""
    console = Console()
    if args.label is not None and args.by is None:
        raise DataError("--label is for the mean by day; give --by COLUMN too")
    profile = read_profile(find_splits(args.path)["train"], args.rows, console)
    days = [] if args.by is None else read_days(profile.manifest, args.rows, args.by, args.unit, args.label)
    console.print(describe_values(profile))
    if days:
        console.print(_describe_days(days, args.label))
    if args.html is not None:
        args.html.parent.mkdir(parents=True, exist_ok=True)
        args.html.write_text(write_report(profile, args.path, days), encoding="utf-8")
        console.print(f"written: {args.html}", markup=False, highlight=False)
    return 0


def read_days(manifest: Manifest, rows: int | None, by: str, unit: str, label: str | None) -> list[Day]:
    """Rows and mean label of each day, in the order of days; DataError for columns that tell neither."""
    types = manifest.files[0].columns
    for name in filter(None, (by, label)):
        if name not in types:
            raise DataError(f"there is no column '{name}'{did_you_mean(name, types)}")
    if label is not None and not (pa.types.is_integer(types[label]) or pa.types.is_floating(types[label])):
        raise DataError(f"column '{label}' is {types[label]}, which has no mean; name a column of numbers")
    counts: dict[str, tuple[int, float]] = {}
    for stripe in choose_stripes(manifest, rows):
        file, index = manifest.locate(stripe)
        batch = read_stripe(file.path, file.format, index, list(dict.fromkeys(filter(None, (by, label)))))
        found = days_of(pa.Table.from_batches([batch]), Partition(by, unit), Path(file.path))  # type: ignore[arg-type]
        count_days(found, None if label is None else pc.cast(batch.column(label), pa.float64()), counts)
    return [Day(day, n, None if label is None else total / n) for day, (n, total) in sorted(counts.items())]


def describe_values(profile: Profile) -> Table:
    """A line for each column: quantiles of numbers, commonest values."""
    table = Table(title=f"{profile.manifest.rows:,} rows; quantiles and commonest values of a sample")
    headings = ("column", "type", "missing", "distinct", *(f"p{round(100 * at)}" for at in QUANTILES), "commonest")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("column", "type", "commonest") else "right")
    for its in profile.columns.values():
        name, kind, missing, distinct, *_ = describe_column(its)
        points = [show(value) for value in quantiles_of(its)] or [""] * len(QUANTILES)
        top = ", ".join(f"{value[:20]} {share:.0%}" for value, share in commonest(its, 3))
        table.add_row(name, kind, missing, distinct, *points, top)
    return table


def _describe_days(days: list[Day], label: str | None) -> Table:
    table = Table("day", "rows", *([] if label is None else [f"mean {label}"]))
    for day in days:
        table.add_row(day.day, f"{day.rows:,}", *([] if day.label is None else [show(day.label)]))
    return table
