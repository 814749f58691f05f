"""`recis data synth`: write the synthetic click log, or files that fit a recipe's schema.

recis data synth log --rows 1000000 --seed 0                      log/train, log/valid, log/truth.json
recis data synth made --schema recipes/criteo_deepfm.yaml         made/train, made/valid, made/test
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from recis_lightning.data.errors import DataError
from recis_lightning.data.synthetic.generator import write_click_log
from recis_lightning.data.synthetic.schema import synthesize
from recis_lightning.data.synthetic.truth import Reachable
from recis_lightning.schema import Schema

LOG_ROWS, SCHEMA_ROWS = 1_000_000, 20_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--rows", type=int, help=f"training rows (default {LOG_ROWS}; {SCHEMA_ROWS} with --schema)")
    parser.add_argument("--validation-rows", type=int, help="validation rows (default a tenth of --rows)")
    parser.add_argument("--seed", type=int, default=0, help="rows are a function of sizes and seed (default 0)")
    parser.add_argument("--schema", type=Path, metavar="YAML", help="fit this recipe's (or file's) schema instead")


def run(args: argparse.Namespace) -> int:
    """Write what the arguments ask for and print what was written; DataError or SchemaError where that can't be."""
    try:
        _write(args, Console())
    except (FileExistsError, FileNotFoundError) as error:
        raise DataError(str(error)) from error
    return 0


def _write(args: argparse.Namespace, console: Console) -> None:
    rows = args.rows if args.rows is not None else SCHEMA_ROWS if args.schema else LOG_ROWS
    validation_rows = args.validation_rows if args.validation_rows is not None else max(1, rows // 10)
    if args.schema is None:
        with progress(console, f"writing {args.out}", rows + validation_rows) as on_rows:
            best = write_click_log(
                args.out, rows=rows, validation_rows=validation_rows, seed=args.seed, on_rows=on_rows
            )
        console.print(_describe_files(args.out))
        console.print(describe_best(best))
        return
    schema = read_schema(args.schema)
    sizes = {"train": rows, "valid": validation_rows, "test": validation_rows}
    with progress(console, f"writing {args.out}", sum(sizes.values())) as on_rows:
        for split, (name, count) in enumerate(sizes.items()):
            synthesize(schema, args.out / name, count, args.seed, split=split, on_rows=on_rows)
    console.print(_describe_files(args.out))


def read_schema(path: Path) -> Schema:
    """Read the schema of a recipe (`data.schema`, with or without `init_args`) or of a YAML file that is one."""
    return read_recipe(path)[0]


def read_recipe(path: Path) -> tuple[Schema, dict[str, Any]]:
    """A recipe's schema, without the numbers of its fits, and its other settings of data."""
    settings: Any = yaml.safe_load(path.read_text())
    data: dict[str, Any] = {}
    for key in ("data", "init_args", "schema"):
        if isinstance(settings, dict) and key in settings:
            settings = settings[key]
            if key != "schema" and isinstance(settings, dict):
                data = settings
    if isinstance(settings, str):  # a recipe that names a schema's file
        return read_recipe(Path(settings))[0], data
    if not isinstance(settings, dict) or "columns" not in settings:
        raise DataError(
            f"{path} holds no schema; give a recipe with data.schema, or a file with columns, features, ..."
        )
    return Schema.from_dict({key: value for key, value in settings.items() if key != "fits"}), data


@contextmanager
def progress(console: Console, title: str, rows: int) -> Iterator[Callable[[int], None]]:
    """Show a bar of rows written; yields the function that moves it on."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(title, total=rows)
        yield lambda count: bar.advance(task, count)


def _describe_files(out: Path) -> Table:
    table = Table("folder", "files", "MB", title=f"ORC files in {out}")
    for folder in sorted(path for path in out.iterdir() if path.is_dir()):
        sizes = [path.stat().st_size for path in folder.glob("*.orc")]
        table.add_row(folder.name, str(len(sizes)), f"{sum(sizes) / 1e6:.1f}")
    return table


def describe_best(best: dict[str, Reachable]) -> Table:
    """A table of what the true probabilities score."""
    table = Table("validation rows", "number", "positive", "AUC", "logloss", title="best reachable")
    names = {"all": "all", "seen_often": "all ids seen 20 times in training", "conversion": "clicked (conversion)"}
    for name, reachable in best.items():
        rate, auc, logloss = f"{reachable.rate:.1%}", f"{reachable.auc:.4f}", f"{reachable.logloss:.4f}"
        table.add_row(names[name], f"{reachable.rows:,}", rate, auc, logloss)
    return table
