"""Full training on criteo1tb_80k beside plain PyTorch: 3 seeds, epoch chosen on the validation rows, mean test AUC.

    RECIS_DATA=<folder> python -m tests.benchmarks.parity

Framework and control share the first values, the row order and the dense network; they differ in everything between the
ids and the pooled embeddings, and in the optimizer of the rows. Writes build/bench/parity.json.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from recis_lightning.data.datamodule import OrcDataModule
from recis_lightning.metrics import AUC
from recis_lightning.ragged import Batch
from recis_lightning.schema import Schema
from recis_lightning.training.module import RecModule
from tests.parity.control import Control, train_control
from tests.parity.runs import DENSE_LR, SPARSE_OPTIMIZERS, build_network, deepfm_schema, first_values, read_ids

SEEDS = (0, 1, 2)
EPOCHS = 4
BATCH_SIZE = 512
TOLERANCE = 0.005
OPTIMIZER = "adagrad"


def main() -> int:
    root = os.environ.get("RECIS_DATA")
    if not root:
        sys.exit("RECIS_DATA names no data folder; set it to the folder that holds criteo1tb_80k")
    folder = Path(root) / "criteo1tb_80k"
    declaration, _ = SPARSE_OPTIMIZERS[OPTIMIZER]
    schema = deepfm_schema(declaration, dtype="float32", layout="scalar", file_float="float32")
    rows = [compare_seed(schema, folder, seed) for seed in SEEDS]
    ours = sum(row["ours"]["test_auc"] for row in rows) / len(rows)
    theirs = sum(row["theirs"]["test_auc"] for row in rows) / len(rows)
    print(f"mean test AUC: ours {ours:.5f}, plain PyTorch {theirs:.5f}, difference {ours - theirs:+.5f} "
          f"(allowed {TOLERANCE})")  # fmt: skip
    report = Path("build/bench/parity.json")
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps({"seeds": rows, "ours": ours, "theirs": theirs}, indent=2))
    print(f"written to {report}")
    return 0 if abs(ours - theirs) <= TOLERANCE else 1


def compare_seed(schema: Schema, folder: Path, seed: int) -> dict[str, Any]:
    ids = read_ids(schema, build_data(schema, folder, seed))
    fresh = build_module(schema, seed)
    first, network = first_values(fresh, ids), fresh.network
    control = Control(schema, network, ids, first)
    started = time.perf_counter()
    ours = train_ours(schema, folder, seed)
    middle = time.perf_counter()
    theirs = train_theirs(control, schema, folder, seed)
    row = {
        "seed": seed,
        "ours": best_on_validation(ours) | {"seconds": round(middle - started, 1)},
        "theirs": best_on_validation(theirs) | {"seconds": round(time.perf_counter() - middle, 1)},
    }
    print(row, flush=True)
    return row


def build_data(schema: Schema, folder: Path, seed: int) -> OrcDataModule:
    return OrcDataModule(
        schema,
        train=str(folder / "train"),
        validation=str(folder / "valid"),
        test=str(folder / "test"),
        batch_size=BATCH_SIZE,
        seed=seed,
    )


def build_module(schema: Schema, seed: int) -> RecModule:
    torch.manual_seed(seed)
    return RecModule(schema, network=build_network, dense_optimizer=dense_optimizer, seed=seed)


def dense_optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=DENSE_LR)


@torch.no_grad()
def score(logits_of: Callable[[Batch], Tensor], data: OrcDataModule) -> dict[str, float]:
    """Validation and test AUC of a model as it stands."""
    result = {}
    data.setup("validate")
    data.setup("test")
    for name, loader in (("valid_auc", data.val_dataloader()), ("test_auc", data.test_dataloader())):
        auc = AUC()
        for batch in loader:
            target = batch["label"]
            assert isinstance(target, Tensor)
            auc.update(logits_of(batch), target)
        result[name] = float(auc.compute())
    return result


class ScoreEpochs(pl.Callback):
    def __init__(self, data: OrcDataModule) -> None:
        self.data = data
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        module.eval()
        self.epochs.append(score(lambda batch: module(batch)["ctr"], self.data))
        module.train()


def train_ours(schema: Schema, folder: Path, seed: int) -> list[dict[str, float]]:
    scores = ScoreEpochs(build_data(schema, folder, seed))
    with tempfile.TemporaryDirectory() as run_folder:
        trainer = pl.Trainer(
            strategy="recis_sharded",
            accelerator="cpu",
            devices=1,
            max_epochs=EPOCHS,
            limit_val_batches=0,
            callbacks=[scores],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=run_folder,
        )
        trainer.fit(build_module(schema, seed), build_data(schema, folder, seed))
    return scores.epochs


def train_theirs(control: Control, schema: Schema, folder: Path, seed: int) -> list[dict[str, float]]:
    data = build_data(schema, folder, seed)
    data.setup("fit")
    epochs: list[dict[str, float]] = []
    loader = data.train_dataloader()
    _, make_sparse = SPARSE_OPTIMIZERS[OPTIMIZER]
    sparse, dense = make_sparse(list(control.bags.parameters())), dense_optimizer(control.network.parameters())
    for _ in range(EPOCHS):
        train_control(control, loader, lambda _: sparse, lambda _: dense)
        control.eval()
        epochs.append(score(control, data))
        control.train()
    return epochs


def best_on_validation(epochs: list[dict[str, float]]) -> dict[str, Any]:
    best = max(range(len(epochs)), key=lambda index: epochs[index]["valid_auc"])
    return {"epoch": best + 1, **epochs[best]}


if __name__ == "__main__":
    sys.exit(main())
