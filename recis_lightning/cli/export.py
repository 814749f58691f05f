"""`recis export`: a checkpoint as files that score without this package.

recis export --config recipe.yaml --ckpt run/checkpoints/last.ckpt --out exported
recis export --config recipe.yaml --ckpt run/checkpoints/last.ckpt --out exported --verify 10000
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from recis_lightning.cli.run import UsageError, quiet, read_recipe
from recis_lightning.data.datamodule import OrcDataModule
from recis_lightning.serving import export_model
from recis_lightning.serving.verify import Verdict, score_alone, verify
from recis_lightning.training import RecModule
from recis_lightning.training.checkpoint import READER, load_checkpoint, load_dense, load_tables

TOLERANCE = 1e-5


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "recis export", description="Write a checkpoint as files that score without this package."
    )
    parser.add_argument("--config", type=Path, metavar="YAML", help="the recipe; else what the checkpoint was made of")
    parser.add_argument("--ckpt", required=True, metavar="CKPT", help="the checkpoint, a folder")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where to write; must not exist yet")
    parser.add_argument(
        "--verify",
        type=int,
        default=0,
        metavar="ROWS",
        help="score so many validation rows of the recipe with the files alone and with the model, and compare",
    )
    return parser


def run(arguments: Sequence[str]) -> int:
    """Export, print sizes and load time, and compare; 1 where scores differ by more than 1e-5."""
    args = make_parser().parse_args(arguments)
    quiet()
    if args.verify and not args.config:
        raise UsageError("--verify needs the recipe's data; give --config")
    recipe = read_recipe(args.config) if args.config else None
    module = RecModule.load_from_checkpoint(args.ckpt) if recipe is None else _load(recipe.model, args.ckpt)
    console = Console()
    with console.status("tracing features and model, writing tables"):
        sizes = export_model(module, args.out)
    console.print(_describe(args.out, sizes))
    if recipe is None or not args.verify:
        _, seconds = score_alone(args.out, [])
        console.print(f"loads in {seconds['load']:.2f} s, after {seconds['import']:.2f} s of importing torch")
        return 0
    source = recipe.config["data"]["validation"]
    if source is None:
        raise UsageError("--verify reads the validation data, and the recipe has none; add data: {validation: ...}")
    keep = [column.name for column in module.schema.input_columns]
    verdict = verify(module, OrcDataModule(module.schema, predict=source, keep=keep), args.out, args.verify)
    console.print(describe_verdict(verdict))
    return int(max(verdict.largest.values()) > TOLERANCE)


def _load(module: RecModule, path: str) -> RecModule:
    checkpoint = load_checkpoint(path)
    load_dense(module, checkpoint)
    load_tables(module.tables, checkpoint[READER])
    return module


def _describe(folder: Path, sizes: Mapping[str, int]) -> Table:
    table = Table("file", "MB", title=f"written to {folder}")
    tables = [name for name in sizes if name.startswith("tables/")]
    for name, size in sizes.items():
        if name not in tables:
            table.add_row(name, f"{size / 1e6:.2f}")
    for kind in ("safetensors", "parquet"):
        chosen = [name for name in tables if name.endswith(kind)]
        table.add_row(f"tables/*.{kind} ({len(chosen)})", f"{sum(sizes[name] for name in chosen) / 1e6:.2f}")
    table.add_row("all", f"{sum(sizes.values()) / 1e6:.2f}")
    return table


def describe_verdict(verdict: Verdict) -> str:
    seconds = verdict.seconds
    differences = ", ".join(f"{task} {largest:.1e}" for task, largest in verdict.largest.items())
    return (
        f"loads in {seconds['load']:.2f} s, after {seconds['import']:.2f} s of importing torch; "
        f"{verdict.rows:,} rows scored in {seconds['score']:.2f} s\n"
        f"{verdict.unknown_ids:,} unknown ids and {verdict.missing_ids:,} missing ones among them; "
        f"largest difference to the model: {differences}"
    )
