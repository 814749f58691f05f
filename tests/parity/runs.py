"""One parity run: the framework and the control on the same rows, from the same first values."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from recis_lightning.data.datamodule import OrcDataModule
from recis_lightning.models import DeepFM
from recis_lightning.ragged import Batch, Ragged
from recis_lightning.schema import Schema
from recis_lightning.training.module import RecModule
from tests.parity.control import Control, LazyAdamW, train_control

DENSE_LR = 1e-3
SPARSE_LR = 1e-2
CLIP_NORM = 0.05  # below the norms of these runs, so that it acts

SPARSE_OPTIMIZERS: dict[str, tuple[dict[str, Any], Callable[[list[nn.Parameter]], Any]]] = {
    # name -> (our declaration, the control's optimizer)
    "adagrad": (
        {"kind": "adagrad", "lr": SPARSE_LR},
        lambda parameters: torch.optim.Adagrad(parameters, lr=SPARSE_LR),
    ),
    "adamw_without_decay": (
        {"kind": "adamw", "lr": SPARSE_LR, "weight_decay": 0.0},
        lambda parameters: torch.optim.SparseAdam(parameters, lr=SPARSE_LR),
    ),
    "adamw": (
        {"kind": "adamw", "lr": SPARSE_LR, "weight_decay": 0.1},
        lambda parameters: LazyAdamW(parameters, lr=SPARSE_LR, weight_decay=0.1),
    ),
}


def deepfm_schema(sparse_optimizer: dict[str, Any], *, dtype: str, layout: str, file_float: str) -> Schema:
    """Criteo's 13 counts and 26 ids, each id with a row of width 8 and one of width 1, as RecIS's DeepFM example."""
    table = {"dtype": dtype, "optimizer": sparse_optimizer}
    return Schema.from_dict(
        {
            "columns": [
                {"name": "label", "dtype": file_float, "layout": layout},
                {"name": "i{1..13}", "dtype": file_float, "layout": layout, "default": 0},
                {"name": "c{1..26}", "dtype": "int64", "layout": layout},
            ],
            "tables": [
                {"name": "c{1..26}", "dim": 8, "initializer": {"kind": "normal", "std": 0.05}, **table},
                {
                    "name": "c{1..26}_bias",
                    "dim": 1,
                    "initializer": {"kind": "uniform", "low": -0.01, "high": 0.01},
                    **table,
                },
            ],
            "features": [
                {"name": "i{1..13}", "transforms": [{"kind": "clip", "low": 0}, {"kind": "log1p"}]},
                {"name": "c{1..26}", "table": "c{1..26}"},
                {"name": "c{1..26}_bias", "column": "c{1..26}", "table": "c{1..26}_bias"},
            ],
            "tasks": [{"name": "ctr", "label": "label"}],
        }
    )


def build_network(schema: Schema) -> nn.Module:
    return DeepFM(schema, hidden=[64, 16])


def build_data(schema: Schema, path: str | Path, batch_size: int) -> OrcDataModule:
    return OrcDataModule(schema, train=str(path), batch_size=batch_size, streams=2, seed=5)


class RecordLosses(pl.Callback):
    """Keeps every batch's loss, before the division by accumulate_grad_batches."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)


def read_ids(schema: Schema, data: OrcDataModule) -> dict[str, Tensor]:
    """Every id of every table in the training data, sorted."""
    data.setup("fit")
    seen: dict[str, list[Tensor]] = {table.name: [] for table in schema.tables}
    for batch in data.train_dataloader():
        for feature in schema.embedded_features:
            ragged = batch[schema.column_of(feature).name]
            assert isinstance(ragged, Ragged)
            assert feature.table is not None
            seen[feature.table].append(ragged.values.unique())
    return {name: torch.cat(parts).unique() for name, parts in seen.items()}


@cache
def ids_of_files(path: str, batch_size: int, layout: str, file_float: str) -> dict[str, Tensor]:
    """`read_ids` of all files of a folder, once for all runs on them."""
    schema = deepfm_schema({"kind": "sgd"}, dtype="float32", layout=layout, file_float=file_float)
    return read_ids(schema, build_data(schema, path, batch_size))


def first_values(module: RecModule, ids: dict[str, Tensor]) -> dict[str, Tensor]:
    """The value a fresh row of each id gets; read from a module of the same seed, which is thrown away."""
    tables = module.tables
    return {name: tables[name].weight(tables[name].find_or_insert(values)) for name, values in ids.items()}


@dataclass
class Outcome:
    ours: list[float]
    theirs: list[float]
    module: RecModule
    control: Control

    @property
    def greatest_loss_difference(self) -> float:
        assert len(self.ours) == len(self.theirs)
        return max(abs(a - b) for a, b in zip(self.ours, self.theirs, strict=True))

    @torch.no_grad()
    def greatest_weight_difference(self) -> float:
        """Over every row of every table and every dense weight."""
        differences = [0.0]
        for name, ids in self.control.ids.items():
            table = self.module.tables[name]
            rows = table.find(ids)
            touched = rows >= 0
            theirs = self.control.bags[name].weight[: len(ids)][touched]
            differences.append(float((table.weight(rows[touched]) - theirs).abs().max()))
        ours = dict(self.module.network.named_parameters())
        for name, parameter in self.control.network.named_parameters():
            differences.append(float((ours[name] - parameter).abs().max()))
        return max(differences)


def run(
    path: str | Path,
    folder: Path,
    optimizer: str,
    *,
    dtype: str,
    layout: str = "scalar",
    file_float: str = "float32",
    batch_size: int,
    steps: int = 100,
    accumulate: int = 1,
    clip: bool = False,
) -> Outcome:
    """Train both for ``steps`` optimizer steps on the same batches in the same order."""
    declaration, make_sparse = SPARSE_OPTIMIZERS[optimizer]
    schema = deepfm_schema(declaration, dtype=dtype, layout=layout, file_float=file_float)
    ids = ids_of_files(str(path), batch_size, layout, file_float)

    def build_module() -> RecModule:
        torch.manual_seed(3)
        return RecModule(schema, network=build_network, dense_optimizer=make_dense, seed=7)

    def make_dense(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=DENSE_LR)

    fresh = build_module()
    network = fresh.network.to(getattr(torch, dtype))
    control = Control(schema, network, ids, first_values(fresh, ids))
    module = build_module()
    record = RecordLosses()
    trainer = pl.Trainer(
        strategy="recis_sharded",
        accelerator="cpu",
        devices=1,
        precision="64-true" if dtype == "float64" else "32-true",
        max_steps=steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=CLIP_NORM if clip else None,
        limit_val_batches=0,
        callbacks=[record],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
    )
    trainer.fit(module, build_data(schema, path, batch_size))
    theirs = train_control(
        control,
        take(build_data(schema, path, batch_size), steps * accumulate),
        make_sparse,
        make_dense,
        accumulate=accumulate,
        max_norm=CLIP_NORM if clip else None,
    )
    return Outcome(record.losses, theirs, module, control)


def take(data: OrcDataModule, count: int) -> Iterator[Batch]:
    """The first ``count`` training batches."""
    data.setup("fit")
    for index, batch in enumerate(data.train_dataloader()):
        if index == count:
            return
        yield batch
