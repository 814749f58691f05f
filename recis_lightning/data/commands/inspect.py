"""`recis data inspect`: what files hold, and a recipe to start from.

recis data inspect log                            a line for each column: type, missing, distinct, range
recis data inspect log --out recipe.yaml          and a recipe that trains: recis fit --config recipe.yaml
"""

import argparse
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.table import Table

from recis_lightning.data.commands.synth import progress
from recis_lightning.data.errors import DataError
from recis_lightning.data.files.manifest import Manifest, read_manifest
from recis_lightning.data.inspect.profile import ColumnProfile, Profile, choose_stripes, profile_files
from recis_lightning.data.inspect.starter import choose, write_recipe

SPLITS = {"train": ("train", "training"), "validation": ("valid", "validation", "val"), "test": ("test",)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("path", metavar="DIR", help="a folder of files, or one that has train/, valid/, test/ inside")
    parser.add_argument("--rows", type=int, help="read about so many, evenly over the files (default: all)")
    parser.add_argument("--out", type=Path, metavar="YAML", help="write a starter recipe")
    parser.add_argument("--label", action="append", default=[], metavar="COLUMN", help="what to learn; repeatable")


def run(args: argparse.Namespace) -> int:
    """Print the columns, and write the recipe that is asked for."""
    console = Console()
    if args.out is not None and args.out.exists():
        raise DataError(f"{args.out} exists; remove it, or write to another file")
    sources = find_splits(args.path)
    profile = read_profile(sources["train"], args.rows, console)
    console.print(describe(profile))
    if args.out is None:
        console.print("A recipe to start from: --out recipe.yaml")
        return 0
    choices = choose(profile, args.label)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(write_recipe(choices, sources, args.path, profile.manifest.rows))
    for name, reason in choices.left_out.items():
        console.print(f"left out {name}: {reason}", markup=False, highlight=False)
    tasks = ", ".join(f"{task['name']} ({task['label']})" for task in choices.tasks)
    console.print(
        f"{args.out}: {len(choices.features)} features, tasks {tasks}; recis fit --config {args.out}",
        markup=False,
        highlight=False,
    )
    return 0


def find_splits(path: str) -> dict[str, str]:
    """The paths of a recipe's data: the folders inside by their names, or the path itself to train on."""
    folder = Path(path)
    found = {
        split: str(folder / name) for split, names in SPLITS.items() for name in names[::-1] if (folder / name).is_dir()
    }
    if "train" in found:
        return found
    beside = {
        split: str(folder.parent / name)
        for split, names in SPLITS.items()
        for name in names
        if split != "train" and folder.name in SPLITS["train"] and (folder.parent / name).is_dir()
    }
    return {"train": path} | beside


def read_profile(path: str, rows: int | None, console: Console) -> Profile:
    """Profile the files of a path under a bar; DataError where some can't be read, or differ in their columns."""
    manifest, problems = read_manifest(path)
    problems += find_differences(manifest)
    if rows is not None and rows < 1:
        problems.append(f"rows is {rows}, need at least 1")
    if not manifest.files and not problems:
        problems.append(f"no file of {path} has any row; name other files")
    if problems:
        raise DataError(problems)
    total = sum(int(manifest.stripe_rows[stripe]) for stripe in choose_stripes(manifest, rows))
    with progress(console, f"reading {path}", total) as on_rows:
        return profile_files(manifest, max_rows=rows, on_rows=on_rows)


def find_differences(manifest: Manifest) -> list[str]:
    """Files whose columns are not those of the first, a line each."""
    if not manifest.files:
        return []
    first: Mapping[str, object] = manifest.files[0].columns
    problems = []
    for file in manifest.files[1:]:
        differing = [name for name in {**first, **file.columns} if file.columns.get(name) != first.get(name)]
        for name in differing:
            problems.append(
                f"{file.path}: column '{name}' is {file.columns.get(name, 'missing')}, in {manifest.files[0].path} "
                f"it is {first.get(name, 'missing')}; name files of one kind"
            )
    return problems


def describe(profile: Profile) -> Table:
    """A line for each column."""
    files, stripes = len(profile.manifest.files), len(profile.manifest.stripe_rows)
    read = "" if profile.rows == profile.manifest.rows else f", {profile.rows:,} of them read"
    table = Table(title=f"{profile.manifest.rows:,} rows in {files} files, {stripes} stripes{read}")
    for heading in ("column", "type", "missing", "distinct", "least", "mean", "largest", "length"):
        table.add_column(heading, justify="left" if heading in ("column", "type") else "right")
    for its in profile.columns.values():
        table.add_row(*describe_column(its))
    return table


def describe_column(its: ColumnProfile) -> list[str]:
    """The cells of a column's line."""
    column = its.column
    kind = {"scalar": "", "list": "list of ", "nested_list": "nested lists of "}[column.layout] + column.dtype
    missing = its.missing + its.missing_values + (its.empty if column.layout != "scalar" else 0)
    numbers = ["", "", ""]
    if its.low is not None and its.high is not None:
        as_text = show_time if column.dtype == "timestamp" else show
        numbers = [as_text(its.low), as_text(its.mean), as_text(its.high)]
    length = "" if its.longest is None else f"{its.shortest} to {its.longest}, mean {its.mean_length:.1f}"
    distinct = f"{'' if its.distinct.is_exact else '~'}{its.distinct.estimate():,}" if column.dtype != "binary" else ""
    source = f" ({column.source})" if column.source else ""
    share = f"{missing / max(1, its.rows):.1%}" if missing else ""
    return [column.name + source, kind, share, distinct, *numbers, length]


def show_time(seconds: float) -> str:
    """Seconds since 1970 as a time in UTC: 1735725600 -> 2025-01-01 10:00."""
    return (datetime(1970, 1, 1) + timedelta(seconds=seconds)).isoformat(" ", "minutes")


def show(number: float | int) -> str:
    """A number as people read it: 12345678 -> 12,345,678; 0.123456 -> 0.1235."""
    return f"{number:,}" if isinstance(number, int) and abs(number) < 10**9 else f"{number:.4g}"
