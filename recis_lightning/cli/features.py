"""`recis features plan` and `recis features fit`.

recis features plan --config recipe.yaml                 which transforms run together, and in how many calls
recis features fit --config recipe.yaml                  means, quantiles, vocabularies -> recipe.fits.json
"""

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from recis_lightning.data.commands.synth import progress, read_recipe
from recis_lightning.data.datamodule import OrcDataModule
from recis_lightning.features.describe import describe_plan
from recis_lightning.features.fitting import Fitting
from recis_lightning.ragged import Batch
from recis_lightning.schema import FIT_FORMAT, Schema, SchemaError, find_unfitted, version_of

BATCH = 65_536


def run(arguments: list[str]) -> int:
    """Run a command line behind `recis features`."""
    parser = argparse.ArgumentParser("recis features", description="Plan and fit the transforms of a recipe.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, text, function in (
        ("plan", "show which transforms run together, in which order", _plan),
        ("fit", "find means, ranges, quantiles and vocabularies in the training data", _fit),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", type=Path, required=True, metavar="YAML", help="the recipe")
        command.set_defaults(function=function)
        if name == "fit":
            command.add_argument("--train", help="the data to look at (default: the recipe's data.train)")
            command.add_argument("--out", type=Path, metavar="JSON", help="default: the recipe's name with .fits.json")
    args = parser.parse_args(arguments)
    return args.function(args)


def _plan(args: argparse.Namespace) -> int:
    print(describe_plan(read_recipe(args.config)[0]))
    return 0


def _fit(args: argparse.Namespace) -> int:
    schema, data = read_recipe(args.config)
    train = args.train or data.get("train")
    if isinstance(train, Mapping):  # several sources: all their rows
        train = [path for paths in train.values() for path in ([paths] if isinstance(paths, str) else paths)]
    if train is None:
        raise SchemaError([f"{args.config} names no data.train to fit to; write it there, or give --train"])
    if not any(True for _ in find_unfitted(schema.features)):
        raise SchemaError([f"{args.config} has no transform to fit: all have their numbers"])
    out = args.out or args.config.with_suffix(".fits.json")
    numbers, rows = fit(schema, train, Console(), data.get("filter") or ())
    content = {"format": FIT_FORMAT, "version": version_of(numbers), "rows": rows, "train": train, "features": numbers}
    write_json(out, content)
    print(f"{sum(map(len, numbers.values()))} transforms fitted to {rows} rows, version {content['version']}: {out}")
    print(f"write into the schema: fits: {out}")
    return 0


def fit(
    schema: Schema, train: Any, console: Console, filter: Sequence[Sequence[Any]] = ()
) -> tuple[dict[str, dict[str, Any]], int]:
    """Numbers of all transforms that lack them, and the rows they are from: one pass over the rows that training keeps.

    Transforms that come behind other fitted ones take another pass.
    """
    numbers: dict[str, dict[str, Any]] = {}
    rows = 0
    while True:
        fitting, rows = Fitting(schema), 0
        # As validation, where rows are left out as for training; else labels may be missing.
        stage, source = ("validate", "validation") if filter else ("predict", "predict")
        data = OrcDataModule(schema, **{source: train}, filter=filter, batch_size=BATCH)
        data.setup(stage)
        loader: Any = data.val_dataloader() if filter else data.predict_dataloader()
        try:
            with progress(console, "fitting", loader.manifest.rows) as on_rows:
                for batch in _batches(loader):
                    fitting.add(batch)
                    rows += batch.size
                    on_rows(batch.size)
        finally:
            data.teardown(stage)
        try:
            found = fitting.finish()
        except ValueError as error:
            raise SchemaError(str(error).splitlines()) from error
        for name, entries in found.items():
            numbers.setdefault(name, {}).update(entries)
        if not fitting.waiting:
            return numbers, rows
        schema = schema.with_numbers(found)


def _batches(loader: Any) -> Iterator[Batch]:
    for batch in loader:
        yield batch
        loader.commit(batch.token)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file whole, or leave what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(aside, path)
