"""A model and data small enough for every test of the host: two tables, a dense feature, dropout."""

import os
import signal
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor, nn

from recis_lightning.ragged import Batch, Ragged
from recis_lightning.schema import Schema
from recis_lightning.training import RecModule


def make_schema(dtype: str = "float32", kind: str = "adagrad", dim: int = 4, **task: Any) -> Schema:
    return Schema.from_dict(
        {
            "columns": [
                {"name": "user", "dtype": "int64"},
                {"name": "items", "dtype": "int64", "layout": "list"},
                {"name": "age", "dtype": "float32"},
                {"name": "label", "dtype": "float32"},
                {"name": "clicked", "dtype": "float32"},
            ],
            "tables": [
                {
                    "name": name,
                    "dim": dim,
                    "dtype": dtype,
                    "initializer": {"kind": "uniform", "low": -0.1, "high": 0.1},
                    "optimizer": {"kind": kind, "lr": 0.05},
                }
                for name in ("user", "item")
            ],
            "features": [
                {"name": "user", "table": "user"},
                {"name": "items", "table": "item", "pooling": "sum"},
                {"name": "age"},
            ],
            "tasks": [{"name": "ctr", "label": "label", **task}],
        }
    )


class SmallNet(nn.Module):
    def __init__(self, schema: Schema, hidden: int = 8, dropout: float = 0.5) -> None:
        super().__init__()
        width = sum(map(schema.width_of, schema.features))
        self.tasks = [task.name for task in schema.tasks]
        self.body = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.heads = nn.ModuleList(nn.Linear(hidden, 1) for _ in self.tasks)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        hidden = self.body(torch.cat(list(inputs.values()), dim=1))
        return {task: head(hidden).squeeze(-1) for task, head in zip(self.tasks, self.heads, strict=True)}


def make_module(schema: Schema | None = None, seed: int = 0, **options: Any) -> RecModule:
    torch.manual_seed(seed)
    defaults: dict[str, Any] = {"network": SmallNet, "dense_optimizer": partial(torch.optim.Adam, lr=0.01)}
    return RecModule(schema or make_schema(), seed=seed, **(defaults | options))


class MemoryLoader:
    """Batches made of their number alone, with the loader's side of the contract: length, state, commit, tokens."""

    def __init__(self, batches: int = 6, rows: int = 8, seed: int = 0, ids: int = 30) -> None:
        self.batches, self.rows, self.seed, self.ids = batches, rows, seed, ids
        self.committed = {"epoch": 0, "batch": 0}
        self.started = 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = self.committed["epoch"], self.committed["batch"]
        for index in range(first, self.batches):
            last = index + 1 == self.batches
            token = {"epoch": epoch + last, "batch": 0 if last else index + 1}
            yield make_batch(self.rows, hash((self.seed, epoch, index)) % 2**31, self.ids, token)

    def commit(self, token: Mapping[str, int]) -> None:
        self.committed = dict(token)

    def state_dict(self) -> dict[str, int]:
        return dict(self.committed)

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.committed = dict(state)


class ListLoader:
    """These batches; Lightning takes a bare list for several loaders."""

    def __init__(self, *batches: Batch) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


def make_batch(rows: int, seed: int = 0, ids: int = 30, token: Mapping[str, Any] | None = None) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    user = draw(ids, rows)
    items = [draw(ids, int(length)).tolist() for length in draw(4, rows)]
    label = (torch.rand(rows, generator=generator) < (user % 5 + 1) / 8).float()
    return Batch.pack(
        {
            "user": Ragged(user, torch.arange(rows + 1)),
            "items": Ragged.from_lists(items),
            "age": torch.rand(rows, generator=generator),
            "label": label,
            "clicked": (torch.rand(rows, generator=generator) < 0.5).float(),
        },
        rows,
        token,
    )


class Losses(Callback):
    """Keeps the loss of every batch, by the number of the batch over all epochs."""

    def __init__(self) -> None:
        self.by_batch: dict[int, float] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.by_batch[trainer.fit_loop.total_batch_idx] = outputs["loss"].item()


class InterruptAt(Callback):
    """Sends this process a SIGINT when a batch starts, as Ctrl-C would; batches are counted over all epochs."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            os.kill(os.getpid(), signal.SIGINT)


class OnRank(Callback):
    """Does something to one rank when it starts a batch."""

    def __init__(self, rank: int, batch: int, kind: str) -> None:
        self.rank, self.batch, self.kind = rank, batch, kind

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank != self.rank or trainer.fit_loop.total_batch_idx != self.batch:
            return
        if self.kind in ("sigterm", "kill"):
            os.kill(os.getpid(), signal.SIGTERM if self.kind == "sigterm" else signal.SIGKILL)
        elif self.kind == "save":
            trainer.state.status = TrainerStatus.INTERRUPTED
            trainer.save_checkpoint("lonely.ckpt")
        else:
            raise ValueError("row 7 is broken")


def make_trainer(root: Any, *callbacks: Callback, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "strategy": "recis_sharded",
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    }
    return Trainer(default_root_dir=str(root), callbacks=list(callbacks), **(defaults | options))


def table_bytes(module: RecModule) -> dict[str, bytes]:
    """Everything that a table holds, by table and array, as bytes."""
    found: dict[str, bytes] = {}
    for name, table in module.tables.items():
        rows = table.export()
        arrays = {
            "ids": rows.ids,
            "weight": rows.weight,
            "last_step": rows.last_step,
            "count": rows.count,
            **rows.slots,
        }
        found |= {f"{name}/{key}": value.contiguous().numpy().tobytes() for key, value in arrays.items()}
        found[f"{name}/step"] = str(table.step).encode()
    return found


def everything(module: RecModule) -> dict[str, bytes]:
    """All that is trained: tables, dense parameters."""
    dense = {name: value.numpy().tobytes() for name, value in module.state_dict().items()}
    return table_bytes(module) | dense
