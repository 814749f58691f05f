"""Text towers: a text computed once for all its rows of a batch, and a frozen tower's vectors from its cache.

Once: forward and backward of a LoRA tower over 1024 rows of 12 tokens of which a share is distinct, against the same
tower over every row; the gradients of the two are compared in float64 first. Cache: epochs of ids, network and a frozen
tower on the synthetic click log, with the Trainer; the first epoch computes each title and fills the cache. The losses
of all steps are compared with those of a run without a cache: they are equal to the bit.

R rows, U distinct ones.
"""

import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor

from recis_lightning.data.datamodule import OrcDataModule
from recis_lightning.data.synthetic.generator import ID_COLUMNS, write_click_log
from recis_lightning.data.train_tokenizer import train_tokenizer
from recis_lightning.models import DeepFM
from recis_lightning.ragged import Ragged
from recis_lightning.schema import Schema
from recis_lightning.schema.towers import Lora
from recis_lightning.towers.text import TextTower
from recis_lightning.training import RecModule
from tests.benchmarks.report import Result

VOCABULARY, TOKENS, ROWS = 512, 12, 1024
SHARES = (1.0, 0.5, 0.25, 0.1, 0.03)
RUNS = 5
LOG_ROWS, EPOCHS, BATCH = 20_000, 4, 1024


def bert(hidden: int, layers: int) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 32,
        "intermediate_size": 4 * hidden,
        "max_position_embeddings": 32,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def run() -> list[Result]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    try:
        return [*measure_once(), *measure_cache()]
    finally:
        torch.set_num_threads(threads)


# ------------------------------------------------------------------------------------------- once for each distinct row


def measure_once() -> Iterator[Result]:
    tower = TextTower(bert(128, 2), 16, train="lora", lora=Lora(rank=8, targets=("query", "value")))
    for share in SHARES:
        rows = draw_rows(share)
        difference = compare_gradients(tower, rows)
        assert difference <= 1e-6, f"the gradients differ by {difference}"
        # By turns, so that a change of the machine's speed meets both.
        times = [(seconds_of(step_once, tower, rows), seconds_of(step_every, tower, rows)) for _ in range(RUNS)]
        yield result(f"step of a tower, {share:.0%} of rows distinct", "every row through it", times, f"R {ROWS}")


def draw_rows(share: float) -> Ragged:
    """Rows of which ``share`` are distinct, each of TOKENS tokens."""
    generator = torch.Generator().manual_seed(0)
    distinct = int(ROWS * share)
    tokens = torch.randint(3, VOCABULARY, (distinct, TOKENS), generator=generator)
    chosen = torch.cat([torch.arange(distinct), torch.randint(distinct, (ROWS - distinct,), generator=generator)])
    return Ragged(tokens[chosen[torch.randperm(ROWS, generator=generator)]].flatten(), torch.arange(ROWS + 1) * TOKENS)


def step_once(tower: TextTower, rows: Ragged) -> None:
    tower(rows).square().sum().backward()


def step_every(tower: TextTower, rows: Ragged) -> None:
    tower.projection(tower.encode(rows)).square().sum().backward()


def seconds_of(step: Callable[[TextTower, Ragged], None], tower: TextTower, rows: Ragged) -> float:
    tower.zero_grad()
    start = time.perf_counter()
    step(tower, rows)
    return time.perf_counter() - start


def compare_gradients(tower: TextTower, rows: Ragged) -> float:
    """The greatest difference of the two ways' gradients, over the greatest gradient, in float64."""
    tower.double()
    found = [gradients(step, tower, rows) for step in (step_once, step_every)]
    tower.float()
    return ((found[0] - found[1]).abs().max() / found[1].abs().max()).item()


def gradients(step: Callable[[TextTower, Ragged], None], tower: TextTower, rows: Ragged) -> Tensor:
    tower.zero_grad()
    step(tower, rows)
    return torch.cat([parameter.grad.flatten() for parameter in tower.parameters() if parameter.grad is not None])


# ----------------------------------------------------------------------------------------------- a frozen cache


def measure_cache() -> Iterator[Result]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_click_log(folder / "log", rows=LOG_ROWS, validation_rows=1)
        train_tokenizer(folder / "log/train", "title", folder / "tokenizer.json", vocab_size=VOCABULARY)
        fit(folder, bert(32, 1), None, epochs=1)  # compiles what compiles on first use
        model = bert(256, 4)
        without, cached = (fit(folder, model, cache, EPOCHS) for cache in (None, folder / "cache"))
        assert without.losses == cached.losses, "a cache changed a loss"
        first, *later = cached.seconds
        shapes = f"{LOG_ROWS} rows of 8 ids and a title, batch {BATCH}, tower of {without.parameters / 1e6:.1f} M"
        yield result("epoch with a filled cache", "the first epoch", [(each, first) for each in later], shapes)
        pairs = list(zip(later, without.seconds[1:], strict=True))
        yield result("epoch with a filled cache", "the same epoch, no cache", pairs, shapes)


class Epochs(Callback):
    """Keeps the loss of each step and the seconds of each epoch."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.parameters = 0
        self._start = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(outputs["loss"].item())

    def on_train_epoch_end(self, *_: Any) -> None:
        self.seconds.append(time.perf_counter() - self._start)


def fit(folder: Path, model: dict[str, Any], cache: Path | None, epochs: int) -> Epochs:
    schema = make_schema(folder, model, cache)
    seed_everything(0, verbose=False)
    module, watch = RecModule(schema, network=DeepFM), Epochs()
    watch.parameters = sum(parameter.numel() for parameter in module.towers["title"].backbone.parameters())
    trainer = Trainer(
        strategy="recis_sharded",
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        callbacks=[watch],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(module, OrcDataModule(schema, train=folder / "log/train", batch_size=BATCH))
    return watch


def make_schema(folder: Path, model: dict[str, Any], cache: Path | None) -> Schema:
    ids = [column.name for column in ID_COLUMNS]
    tower = {"name": "title", "dim": 8, "model": model, "train": "frozen"}
    return Schema.from_dict(
        {
            "columns": [
                {"name": "click", "dtype": "float32"},
                *({"name": name, "dtype": "int64"} for name in ids),
                {"name": "title", "dtype": "string", "tokenizer": str(folder / "tokenizer.json"), "max_length": 32},
            ],
            "tables": [{"name": name, "dim": 8} for name in ids],
            "towers": [tower if cache is None else tower | {"cache": str(cache)}],
            "features": [*({"name": name, "table": name} for name in ids), {"name": "title", "tower": "title"}],
            "tasks": [{"name": "ctr", "label": "click"}],
        }
    )


def result(name: str, rival: str, times: list[tuple[float, float]], shapes: str) -> Result:
    ratios = [theirs / ours for ours, theirs in times]
    return Result(
        name=name,
        rival=rival,
        ratio=statistics.median(ratios),
        worst_ratio=min(ratios),
        ours=statistics.median(ours for ours, _ in times) * 1e3,
        theirs=statistics.median(theirs for _, theirs in times) * 1e3,
        unit="ms",
        shapes=shapes,
        threads=1,
    )
