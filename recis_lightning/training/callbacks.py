"""What a run does beside training at each step: it commits the loader's position, evicts ids, and measures tables.

`RecModule.configure_callbacks` adds `CommitLoader`, `EvictIds` and `TableStatistics` to every Trainer, with
`Throughput` (progress.py), `RunRecord` (run_record.py), `DayTable` and `SaveOnInterrupt` (interrupt.py).
`RunProgressBar` is the CLI's; pass it as a callback to have it from Python.
"""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from recis_lightning.ragged import Batch
from recis_lightning.tables import DynamicTable


class CommitLoader(Callback):
    """Tells the training loader which batch has been trained on, so that a checkpoint's position is right behind it.

    The strategy puts it before all other callbacks: any of them may save. It also brings the position back, which
    Lightning leaves out for checkpoints at the end of an epoch, and where something asked for the loader before the
    checkpoint was read. For this a loader reads its position with the first `next`, not with `iter`.
    """

    def __init__(self) -> None:
        self._position: dict[str, Any] | None = None
        self._restored: dict[str, Any] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._position = None  # of an earlier fit; a checkpoint is read after this

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loader: Any = trainer.train_dataloader
        if self._restored is not None and hasattr(loader, "commit"):
            loader.load_state_dict(self._restored)
        self._restored = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        loader: Any = trainer.train_dataloader
        if hasattr(loader, "commit"):
            loader.commit(batch.token)
            self._position = loader.state_dict()

    def state_dict(self) -> dict[str, Any]:
        return {"position": self._position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._position = self._restored = state_dict["position"]


def is_logged(trainer: Trainer, step: int) -> bool:
    """Whether Lightning hands on to loggers what is logged at an optimizer step; never where log_every_n_steps is 0."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and step % every == 0


class SteppedCallback(Callback):
    """Knows whether the batch that has just ended ended with an optimizer step, or only added to gradients."""

    _global_step = -1
    stepped = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self._global_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.stepped = trainer.global_step > self._global_step

    def is_logged(self, trainer: Trainer) -> bool:
        """Whether loggers get what is logged at this batch's end."""
        return self.stepped and is_logged(trainer, trainer.global_step)


class EvictIds(SteppedCallback):
    """Lets tables forget the ids that their evictions name, after each optimizer step that one of them is due at.

    Never between batches that are accumulated to one step, nor after a step that a loss scaler has skipped.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        embedding: Any = pl_module.embedding
        if self.stepped and not any(group.pending for group in embedding.groups):
            embedding.evict()


class TableStatistics(SteppedCallback):
    """Logs sparse/<table>/rows of every table, and sparse/rows and sparse/bytes of all together.

    Of tables with admission, eviction or a capacity also inserted, admitted, evicted (ids so far), refused (occurrences
    so far), and waiting (ids that are counted and not admitted). On several ranks these are sums over all of them, and
    there are exchange/bytes and exchange/seconds: what this rank has sent to others in a step, and how long it waited.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.is_logged(trainer):
            pl_module.log_dict(self._of_all_ranks(pl_module))

    def _of_all_ranks(self, pl_module: LightningModule) -> dict[str, float]:
        """Statistics of all ranks' rows, and what the exchange between them has cost since they were last logged."""
        found = table_statistics(pl_module.tables)  # type: ignore[arg-type]
        route: Any = pl_module.embedding.route  # type: ignore[union-attr]
        sums = route.sum(torch.tensor(list(found.values()), dtype=torch.float64)).tolist()
        return dict(zip(found, sums, strict=True)) | route.take_costs()


def table_statistics(tables: Mapping[str, DynamicTable]) -> dict[str, float]:
    """What `TableStatistics` logs, of these tables."""
    stats = {name: table.stats() for name, table in tables.items()}
    rows = {f"sparse/{name}/rows": float(table["ids"]) for name, table in stats.items()}
    used = sum(table["row_bytes"] + table["index_bytes"] + table.get("admission_bytes", 0) for table in stats.values())
    events = {
        f"sparse/{name}/{event}": float(stats[name][event])
        for name, table in tables.items()
        if table.has_policies
        for event in ("inserted", "admitted", "refused", "evicted", "waiting")
        if event in stats[name]
    }
    return rows | events | {"sparse/rows": sum(rows.values()), "sparse/bytes": float(used)}
