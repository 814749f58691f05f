"""What a text adds, above all for items that nobody has seen: ids alone beside ids with text, over seeds.

    python recipes/cold_start.py synthetic                                    # the synthetic click log
    RECIS_DATA=<folder> python recipes/cold_start.py ml1m                     # MovieLens 1M
    RECIS_DATA=<folder> python recipes/cold_start.py ml1m --model <folder>    # beside it a pretrained model, frozen

Each seed holds out other items, and trains every variant on the same rows. Writes a table, a plot and a JSON file to
runs/cold_start.
"""

import argparse
import copy
import json
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import movielens
import numpy as np
import torch
import yaml
from lightning.pytorch import Trainer, seed_everything
from matplotlib import pyplot as plt
from rich.console import Console
from rich.table import Table

from recis_lightning.data.datamodule import OrcDataModule
from recis_lightning.data.hold_out import hold_out
from recis_lightning.data.synthetic.generator import is_written, write_click_log
from recis_lightning.data.train_tokenizer import train_tokenizer
from recis_lightning.models import DeepFM
from recis_lightning.schema import Schema
from recis_lightning.training import RecModule

RECIPES = {"synthetic": "synthetic_text_ctr.yaml", "ml1m": "ml1m_text.yaml"}
IDS, TEXT, PRETRAINED = "ids alone", "ids + text", "ids + pretrained"
console = Console(width=106)  # what the table needs


@dataclass(frozen=True, kw_only=True)
class Result:
    """One training: AUCs on rows whose items were trained on, and on rows whose items were not."""

    variant: str
    seed: int
    seen: float
    held_out: float
    seconds: float
    trained_share: float
    """Of the tower's parameters."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Folders of a data set parted by item."""

    train: Path
    seen: Path
    held_out: Path
    tokenizer: Path


def main() -> None:
    parser = argparse.ArgumentParser(description="Ids alone beside ids with text, on items seen and unseen.")
    parser.add_argument("data", choices=RECIPES)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the synthetic log")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", help="folder of a pretrained model with its tokenizer.json")
    parser.add_argument("--work", type=Path, default=Path("demo"), help="where data are made (default demo)")
    parser.add_argument("--out", type=Path, default=Path("runs/cold_start"), help="where results go")
    args = parser.parse_args()
    if args.model is not None and not Path(args.model, "tokenizer.json").is_file():
        parser.error(f"--model: there is no {args.model}/tokenizer.json; give the folder of a Hugging Face model")
    quiet()
    prepare = partial(prepare_synthetic, args.rows) if args.data == "synthetic" else prepare_movielens
    recipe = yaml.safe_load(Path(__file__).with_name(RECIPES[args.data]).read_text())
    results = list(compare(recipe, partial(prepare, args.work), args.seeds, args.model, args.work))
    console.print(describe(results))
    console.print(describe_tower(results), soft_wrap=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{args.data}.json").write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    print("Plot:", plot(results, args.out / f"{args.data}.png"))


def quiet() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")


# ---------------------------------------------------------------------------------------------------------------- data


def prepare_synthetic(rows: int, work: Path, seed: int) -> Data:
    """A log with a fifth of its items held out, other ones for each seed.

    A fifth, since clicks on items are so uneven that among fewer a single one may have half of the rows.
    """
    log, split = work / f"log{rows}", work / f"text{rows}" / str(seed)
    if not is_written(log, rows=rows, validation_rows=max(1, rows // 10)):
        shutil.rmtree(log, ignore_errors=True)
        write_click_log(log, rows=rows, validation_rows=max(1, rows // 10))
    shutil.rmtree(split, ignore_errors=True)
    for name in ("train", "valid"):
        hold_out(log / name, "item_id", split / name, share=0.2, seed=seed)
    tokenizer = split / "tokenizer.json"
    train_tokenizer(split / "train/seen", "title", tokenizer, vocab_size=512)
    return Data(
        train=split / "train/seen", seen=split / "valid/seen", held_out=split / "valid/held_out", tokenizer=tokenizer
    )


def prepare_movielens(work: Path, seed: int) -> Data:
    """MovieLens with a tenth of its movies held out, other ones for each seed."""
    split = work / "ml1m_text" / str(seed)
    shutil.rmtree(split, ignore_errors=True)
    movielens.prepare(split, seed)
    return Data(**{name: split / name for name in movielens.PARTS}, tokenizer=split / "tokenizer.json")


# ------------------------------------------------------------------------------------------------------------ training


def compare(
    recipe: dict[str, Any], prepare: Callable[[int], Data], seeds: int, model: str | None, work: Path
) -> Iterator[Result]:
    """Train every variant of a recipe for each seed."""
    for seed in range(seeds):
        data = prepare(seed)
        for variant, schema in variants(recipe["data"]["schema"], data, model, work).items():
            result = train(recipe, variant, Schema.from_dict(schema), data, seed)
            console.print(
                f"seed {seed}, {variant}: AUC {result.seen:.4f} on items seen, {result.held_out:.4f} on items never "
                f"seen, {result.seconds:.0f} s",
                soft_wrap=True,
            )
            yield result


def variants(schema: dict[str, Any], data: Data, model: str | None, work: Path) -> dict[str, dict[str, Any]]:
    """The recipe's schema, without its text, as it is, and with a pretrained model."""
    found = {IDS: without_text(schema), TEXT: with_tokenizer(schema, str(data.tokenizer))}
    if model is not None:
        pretrained = with_tokenizer(schema, f"{model}/tokenizer.json", max_length=64)
        (tower,) = pretrained["towers"]
        cache = str(work / "vectors")
        pretrained["towers"] = [
            {"name": tower["name"], "dim": tower["dim"], "model": model, "train": "frozen", "cache": cache}
        ]
        found[PRETRAINED] = pretrained
    return found


def without_text(schema: dict[str, Any]) -> dict[str, Any]:
    """Ids at their best: none are left out in training, for nothing could stand in for them."""
    kept = [column for column in schema["columns"] if "tokenizer" not in column]
    columns = [{key: value for key, value in column.items() if key != "dropout"} for column in kept]
    features = [feature for feature in schema["features"] if "tower" not in feature]
    return schema | {"columns": columns, "features": features, "towers": []}


def with_tokenizer(schema: dict[str, Any], tokenizer: str, **options: Any) -> dict[str, Any]:
    changed = copy.deepcopy(schema)
    for column in changed["columns"]:
        if "tokenizer" in column:
            column.update({"tokenizer": tokenizer} | options)
    return changed


def train(recipe: dict[str, Any], variant: str, schema: Schema, data: Data, seed: int) -> Result:
    """Fit as the recipe says, and score both sets of rows."""
    seed_everything(seed, verbose=False)
    network, optimizer = recipe["model"]["network"], recipe["model"]["dense_optimizer"]
    module = RecModule(
        schema,
        network=partial(DeepFM, **network["init_args"]),
        dense_optimizer=partial(torch.optim.Adam, **optimizer["init_args"]),
        seed=seed,
    )
    trainer = Trainer(
        strategy="recis_sharded",
        accelerator="cpu",
        devices=1,
        max_epochs=recipe["trainer"]["max_epochs"],
        default_root_dir=data.train.parent,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    rows = OrcDataModule(
        schema,
        train=data.train,
        validation=data.seen,
        test=data.held_out,
        batch_size=recipe["data"]["batch_size"],
        seed=seed,
    )
    started = time.perf_counter()
    trainer.fit(module, rows)
    seconds = time.perf_counter() - started
    return Result(
        variant=variant,
        seed=seed,
        seen=trainer.callback_metrics["val/auc"].item(),
        held_out=trainer.test(module, rows, verbose=False)[0]["test/auc"],
        seconds=seconds,
        trained_share=trained_share(module),
    )


def trained_share(module: RecModule) -> float:
    """How much of the towers' parameters is trained."""
    sizes = [(p.numel(), p.requires_grad) for tower in module.towers for p in tower.backbone.parameters()]
    return sum(size for size, trained in sizes if trained) / max(1, sum(size for size, _ in sizes))


# ------------------------------------------------------------------------------------------------------------- results


def group(results: list[Result]) -> dict[str, list[Result]]:
    return {name: [r for r in results if r.variant == name] for name in dict.fromkeys(r.variant for r in results)}


def describe(results: list[Result]) -> Table:
    """Means over seeds and standard deviations; gains are over ids alone, seed by seed."""
    table = Table("variant", title=f"AUC, mean and standard deviation over {len({r.seed for r in results})} seeds")
    for title in ("items seen", "items never seen", "gain, seen", "gain, never seen", "fit"):
        table.add_column(title, justify="right")
    groups = group(results)
    for name, runs in groups.items():
        cells = [spread([getattr(run, part) for run in runs]) for part in ("seen", "held_out")]
        for part in ("seen", "held_out"):
            gains = [getattr(run, part) - getattr(ids, part) for run, ids in zip(runs, groups[IDS], strict=True)]
            cells.append("" if name == IDS else spread(gains, "+"))
        table.add_row(name, *cells, f"{np.mean([run.seconds for run in runs]):.0f} s")
    return table


def describe_tower(results: list[Result]) -> str:
    shares = {result.variant: result.trained_share for result in results if result.variant != IDS}
    return "Trained of the tower's parameters: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items())


def spread(values: list[float], sign: str = "") -> str:
    deviation = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):{sign}.4f}{deviation}"


def plot(results: list[Result], path: Path) -> Path:
    """A bar for each variant with a dot for each seed, on items seen and never seen."""
    mpl.use("Agg")  # files only: this runs where there is no display
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for axis, part, title in zip(axes, ("seen", "held_out"), ("items seen", "items never seen"), strict=True):
        for place, (name, runs) in enumerate(group(results).items()):
            values = [getattr(run, part) for run in runs]
            axis.bar(place, np.mean(values), color=f"C{place}", alpha=0.6, label=name)
            axis.plot([place] * len(values), values, "o", color="black", markersize=3)
        axis.set(title=title, xticks=[])
    axes[0].set(ylabel="AUC", ylim=(0.5, max(max(run.seen, run.held_out) for run in results) + 0.03))
    axes[1].legend(loc="upper right", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


if __name__ == "__main__":
    main()
