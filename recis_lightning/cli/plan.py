"""`recis plan`: rows, memory and traffic of each rank, before anything runs.

recis plan --config recipe.yaml --devices 8 --nodes 4 --memory 80GB
recis plan --config recipe.yaml --data log/train                      rows and lengths as the data have them
recis plan --config recipe.yaml --rows item=1e9 --length history=50   or as you say
recis plan --config recipe.yaml --devices 4 --latency 50us --bandwidth 25Gbit/s   how long an exchange takes
"""

import argparse
import json
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as TextTable

from recis_lightning.cli.explain import UsageError
from recis_lightning.cli.run import quiet, read_recipe
from recis_lightning.data.commands.inspect import find_splits, read_profile
from recis_lightning.embedding.wire import PRECISIONS
from recis_lightning.schema import Schema, did_you_mean
from recis_lightning.training.plan import (
    ALL_TO_ALLS,
    ExchangeCosts,
    Plan,
    Workload,
    ids_of_features,
    make_plan,
    measure_dense,
    rows_of_tables,
)
from recis_lightning.training.strategy import ShardedStrategy

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
WORK = ("per_group", "per_id", "per_row", "per_byte")
SWEEP = (8, 16, 32, 64, 128, 256, 512, 1024)


def run(arguments: Sequence[str]) -> int:
    """Print the plan; 1 where it does not fit."""
    args = make_parser().parse_args(arguments)
    workload = read_workload(args)
    ranks = args.devices * args.nodes
    given = {"latency": args.latency, "bandwidth": args.bandwidth} | _assignments(args.work, WORK, "cost", float)
    costs = ExchangeCosts(**{name: value for name, value in given.items() if value is not None})
    plan = make_plan(workload, ranks, costs)
    others = [make_plan(workload, count, costs) for count in SWEEP] if args.sweep else []
    if args.json:
        plans = [plan, *others]
        print(json.dumps([each.as_dict() | {"fits": _fits(each, args.memory)} for each in plans], indent=1))
    else:
        # As wide as it takes where nobody looks: a file or a pipe must not lose columns.
        console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
        show(console, plan, args.memory, costs)
        if others:
            console.print(_sweep(others, args.memory))
    return 0 if _fits(plan, args.memory) else 1


def make_parser() -> argparse.ArgumentParser:
    text = "Reckon rows, memory and traffic of each rank before anything runs. Status 1 where it does not fit."
    parser = argparse.ArgumentParser("recis plan", description=text)
    parser.add_argument("--config", type=Path, required=True, metavar="YAML", help="the recipe")
    parser.add_argument("--devices", type=_count, default=1, metavar="N", help="ranks of a machine (default 1)")
    parser.add_argument("--nodes", type=_count, default=1, metavar="M", help="machines (default 1)")
    parser.add_argument("--memory", type=_size, metavar="SIZE", help="what a rank has for it all, such as 80GB")
    parser.add_argument("--rows", action="append", default=[], metavar="TABLE=COUNT", help="rows of a table: item=1e9")
    help_ = "values in a list column, on average: history=50"
    parser.add_argument("--length", action="append", default=[], metavar="COLUMN=MEAN", help=help_)
    parser.add_argument("--data", metavar="DIR", help="count distinct ids and measure lists in these files")
    parser.add_argument("--sample", type=int, metavar="ROWS", help="with --data, read about so many rows (default all)")
    parser.add_argument("--rows-as", choices=PRECISIONS, help="in which precision rows travel (default the recipe's)")
    parser.add_argument("--grads-as", choices=PRECISIONS, help="and their gradients")
    parser.add_argument(
        "--dense", choices=("ddp", "fsdp2"), help="how the dense part is trained (default the recipe's)"
    )
    default = ExchangeCosts()
    parser.add_argument(
        "--latency", type=_seconds, metavar="TIME", help=f"of an all-to-all (default {default.latency * 1e6:.0f}us)"
    )
    parser.add_argument(
        "--bandwidth",
        type=_rate,
        metavar="RATE",
        help=f"what a rank sends: 25Gbit/s, 3GB/s (default {default.bandwidth / 1e9:g}GB/s)",
    )
    help_ = f"seconds of work in an exchange: {', '.join(f'{name}={getattr(default, name):g}' for name in WORK)}"
    parser.add_argument("--work", action="append", default=[], metavar="COST=SECONDS", help=help_)
    parser.add_argument("--sweep", action="store_true", help=f"the same for {SWEEP[0]} to {SWEEP[-1]} ranks besides")
    parser.add_argument("--json", action="store_true", help="as JSON: a list of plans")
    return parser


def _count(text: str) -> int:
    """3 -> 3, 1e9 -> 1000000000."""
    try:
        number = float(text)
    except ValueError:
        number = 0.5
    if number < 1 or number != int(number):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(number)


def _size(text: str) -> int:
    """80GB -> 80000000000, 80GiB -> 85899345920."""
    match = re.fullmatch(r"([\d.]+)\s*([a-zA-Z]*)", text.strip())
    if match is None or match[2].upper() not in UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 80GB or 80GiB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def _seconds(text: str) -> float:
    """50us -> 0.00005."""
    match = re.fullmatch(r"([\d.]+)\s*([um]?s)", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 50us or 0.05ms")
    return float(match[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[match[2]]


def _rate(text: str) -> float:
    """25Gbit/s -> 3125000000.0 bytes a second, as 3.125GB/s is; 25Gb/s is refused, which may be meant as either."""
    match = re.fullmatch(r"([\d.]+)\s*([KMG])(B|bit)/s", text.strip())
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no rate; write 3GB/s or 25Gbit/s")
    return float(match[1]) * {"K": 1e3, "M": 1e6, "G": 1e9}[match[2]] / (8 if match[3] == "bit" else 1)


# ------------------------------------------------------------------------------------------------ reading the workload


def read_workload(args: argparse.Namespace) -> Workload:
    """Recipe, options and data put together; UsageError where a number is missing."""
    quiet()
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)  # no number is drawn
    recipe = read_recipe(args.config)
    module, strategy = recipe.model, recipe.trainer.strategy
    schema: Schema = module.schema
    travel = strategy.travel if isinstance(strategy, ShardedStrategy) else {}
    dense = args.dense or getattr(strategy, "dense", "ddp")
    distinct, lengths = _measure(args) if args.data else ({}, {})
    lengths |= _assignments(args.length, [column.name for column in schema.columns], "column", float)
    given = _assignments(args.rows, [table.name for table in schema.tables], "table", _count)
    rows, problems = rows_of_tables(schema, given, distinct)
    ids, more = ids_of_features(schema, lengths)
    if problems + more:
        raise UsageError("the plan needs more than the recipe tells:\n  - " + "\n  - ".join(problems + more))
    return Workload(
        schema=schema,
        batch_size=recipe.config["data"]["batch_size"],
        rows=rows,
        ids=ids,
        dense=measure_dense(module, module.dense_optimizer, dense == "fsdp2"),
        rows_as=args.rows_as or travel.get("rows_as", "full"),
        grads_as=args.grads_as or travel.get("grads_as", "full"),
    )


def _assignments(texts: Sequence[str], known: Sequence[str], what: str, read: Any) -> dict[str, Any]:
    found = {}
    for text in texts:
        name, equals, number = text.partition("=")
        if not equals or name not in known:
            raise UsageError(f"{text!r} names no {what}{did_you_mean(name, known)}")
        try:
            found[name] = read(number)
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise UsageError(f"{text!r}: {number!r} is no number") from error
    return found


def _measure(args: argparse.Namespace) -> tuple[dict[str, int], dict[str, float]]:
    """Distinct values and mean lengths by column of the files."""
    profile = read_profile(find_splits(args.data)["train"], args.sample, Console(stderr=True))
    columns = profile.columns
    distinct = {name: its.distinct.estimate() for name, its in columns.items()}
    return distinct, {name: its.values / max(its.rows, 1) for name, its in columns.items()}


# ------------------------------------------------------------------------------------------------------------- showing


def _fits(plan: Plan, memory: int | None) -> bool:
    return not plan.problems and (memory is None or plan.bytes <= memory)


def show(console: Console, plan: Plan, memory: int | None, costs: ExchangeCosts) -> None:
    """The plan of a rank, how long its exchange takes, and whether it fits."""
    console.print(_tables(plan))
    ranks = f"{plan.world_size} rank{'s' if plan.world_size > 1 else ''}"
    console.print(
        f"{ranks}: {_gb(plan.bytes)} GB a rank, of which tables {_gb(plan.bytes - plan.dense - plan.buffers)}, dense "
        f"part {_gb(plan.dense)}, on the way {_gb(plan.buffers)}; each sends others at most {_mb(plan.sent)} MB a step"
    )
    if plan.world_size > 1:
        console.print(
            f"a step's exchange: {_ms(plan.exchange.total)} ms, of which {ALL_TO_ALLS} all-to-alls of "
            f"{_ms(costs.latency)} ms at {costs.bandwidth / 1e9:g} GB/s {_ms(plan.exchange.all_to_alls)}, work "
            f"{_ms(plan.exchange.work)}; waiting for the slowest rank comes on top"
        )
    for problem in plan.problems:
        console.print(f"cannot be: {problem}")
    if memory is not None and plan.bytes > memory:
        console.print(f"does not fit: {_gb(plan.bytes - memory)} GB more than the {_gb(memory)} GB of a rank")
    elif memory is not None:
        console.print(f"fits: {_gb(memory - plan.bytes)} GB of {_gb(memory)} GB a rank are left")


def _tables(plan: Plan) -> TextTable:
    shown = TextTable(box=box.SIMPLE_HEAD)
    for name in ("table", "rows", "a rank's", "bytes a row", "= weight", "state", "record", "index", "GB", "ids", "MB"):
        shown.add_column(name, justify="left" if name == "table" else "right", no_wrap=True)
    for table in plan.tables:
        parts = (f"{part:.0f}" for part in (table.weight, table.state, table.record, table.index))
        counts = f"{table.rows:,}", f"{table.rows_here:,}", f"{table.row_bytes:.0f}"
        shown.add_row(table.name, *counts, *parts, _gb(table.bytes), f"{table.unique:,}", _mb(table.sent))
    shown.caption = "GB: on a rank; ids: different ones that a rank looks up in a step, at most; MB: sent for them"
    shown.caption_justify = "left"
    return shown


def _sweep(plans: Sequence[Plan], memory: int | None) -> TextTable:
    shown = TextTable(box=box.SIMPLE_HEAD)
    for name in ("ranks", "GB a rank", "largest rows a rank", "MB sent a step", "ms a step", "fits"):
        shown.add_column(name, justify="right", no_wrap=True)
    for plan in plans:
        most = max((table.rows_here for table in plan.tables), default=0)
        fits = "yes" if _fits(plan, memory) else "no"
        shown.add_row(
            str(plan.world_size), _gb(plan.bytes), f"{most:,}", _mb(plan.sent), _ms(plan.exchange.total), fits
        )
    return shown


def _gb(count: int) -> str:
    return f"{count / 1e9:,.2f}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.2f}"


def _mb(count: int) -> str:
    return f"{count / 1e6:,.1f}"
