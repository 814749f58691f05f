"""RecModule: columns -> features -> embeddings -> network -> losses and metrics, as a LightningModule.

    module = RecModule(schema, network=DeepFM)
    trainer = Trainer(strategy="recis_sharded", accelerator="cpu", devices=1, max_epochs=1)
    trainer.fit(module, OrcDataModule(schema, train="log/train", validation="log/valid"))

B batch rows, N ids, D row width.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, cast

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from recis_lightning.embedding import EmbeddingCollection
from recis_lightning.embedding.route import Request
from recis_lightning.features import FeatureEngine
from recis_lightning.features.id_dropout import IdDropout
from recis_lightning.optim import CompositeOptimizer, SparseOptimizer, clip_grad_norm, clip_grad_value
from recis_lightning.ragged import Batch, Ragged
from recis_lightning.schema import Schema, Task, did_you_mean, find_changed_hashes, find_changed_transforms
from recis_lightning.tables import DynamicTable
from recis_lightning.towers.collection import TowerCollection
from recis_lightning.training.callbacks import CommitLoader, EvictIds, TableStatistics, is_logged
from recis_lightning.training.checkpoint import READER, load_checkpoint, load_dense, load_tables
from recis_lightning.training.compiled import Compiled, CompiledFeatures
from recis_lightning.training.day_table import DayTable
from recis_lightning.training.factories import describe, restore
from recis_lightning.training.files import CheckpointError
from recis_lightning.training.interrupt import SaveOnInterrupt
from recis_lightning.training.objectives import (
    TargetChecks,
    TaskMetrics,
    check_logits,
    check_targets,
    groups_of,
    mean_loss,
    scores_of,
    targets_of,
)
from recis_lightning.training.progress import Throughput
from recis_lightning.training.run_record import RunRecord
from recis_lightning.training.schedules import DeclaredSchedules
from recis_lightning.training.sources import SourceMetrics, losses_by_source
from recis_lightning.training.strategy import ShardedStrategy
from recis_lightning.training.towers import TowerReport, parameter_groups, schedules_of
from recis_lightning.training.warm_start import BeginWarm
from triton_ops.index import SHARDS
from triton_ops.transfer import Arriving

STAGES = ("val", "test")
FACTORIES = ("network", "dense_optimizer", "lr_scheduler")


class RecModule(LightningModule):
    """Trains the network that ``network(schema)`` builds on the embeddings and dense features of ``schema``.

    The network maps {feature: Tensor [B, D] | Ragged} to {task: logits [B]}. Tables are updated by the optimizers that
    the schema declares, all other parameters by ``dense_optimizer``. ``lr_scheduler`` drives the learning rates of
    both, each from its own first value, once a step. ``seed`` is that of the tables' first values; the network draws
    its own from torch's generator (`seed_everything`). ``compile`` runs transforms and network through torch.compile,
    each as one graph: true, or the name of another backend than inductor. ``warm_start`` are the places to take first
    weights and rows from, where no checkpoint is loaded: each a `warm_start.WarmStart`, or a mapping of its options.

    Logged are train/loss, of every ``log_every_n_steps``-th batch and the last of an epoch; val/loss, val/auc,
    val/logloss, val/ne, val/calibration and the same of test, and of tasks with a ``group`` val/gauc; with several
    tasks val/<task>/auc and so on beside the weighted sum val/loss. Where data come from several sources, each is
    logged for itself besides: train/source/<source>/loss, val/source/<source>/auc.
    """

    def __init__(
        self,
        schema: Schema,
        network: Callable[[Schema], nn.Module],
        dense_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = torch.optim.Adam,
        lr_scheduler: Callable[[Optimizer], LRScheduler | ReduceLROnPlateau] | None = None,
        seed: int = 0,
        compile: bool | str = False,
        warm_start: list[Any] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(network, nn.Module):
            raise TypeError(
                f"network is a {type(network).__name__}, need what builds one from the schema: "
                f"network={type(network).__name__}, or partial({type(network).__name__}, ...)"
            )
        self.schema = schema
        self.dense_optimizer, self.lr_scheduler = dense_optimizer, lr_scheduler
        factories = {"network": network, "dense_optimizer": dense_optimizer, "lr_scheduler": lr_scheduler}
        self.save_hyperparameters(
            {name: describe(factory) for name, factory in factories.items()} | {"seed": seed, "compile": compile}
        )
        self.id_dropout = IdDropout(schema)
        self.features = FeatureEngine(schema)
        self.embedding = EmbeddingCollection(schema, seed=seed)
        self.towers = TowerCollection(schema)
        self.network = network(schema)
        self.metrics = nn.ModuleDict({stage: nn.ModuleList(map(TaskMetrics, schema.tasks)) for stage in STAGES})
        self._by_source = {stage: SourceMetrics(schema.tasks) for stage in STAGES}
        self._backend = "inductor" if compile is True else compile
        self._compiled: tuple[CompiledFeatures, Compiled] | None = None
        self._rows = 1
        self._stop = SaveOnInterrupt()
        self._targets = TargetChecks()
        self._callbacks = [CommitLoader(), EvictIds(), TableStatistics(), Throughput(), RunRecord(), DayTable()]
        self._callbacks.append(self._stop)
        if schema.towers:
            self._callbacks.insert(1, TowerReport())
        self._warm = BeginWarm(warm_start or [])
        if warm_start or any(table.pretrained for table in schema.tables):
            self._callbacks.insert(1, self._warm)

    @property
    def tables(self) -> Mapping[str, DynamicTable]:
        """The tables of embeddings by name."""
        return self.embedding.tables

    # ---------------------------------------------------------------------------------------------------- the model

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The logits [B] of each task."""
        return self.logits(self._inputs(batch), batch.size)

    def _inputs(self, batch: Batch) -> dict[str, Tensor | Ragged]:
        """Dense features, embeddings in the place of ids, and what towers make of theirs."""
        columns = self.id_dropout(batch)
        inputs = self._compile()[0](columns) if self._backend else self.features(columns)
        return {**inputs, **self.embedding(inputs), **self.towers(inputs)}

    def _compile(self) -> tuple[CompiledFeatures, Compiled]:
        if self._compiled is None:
            assert isinstance(self._backend, str)
            self._compiled = CompiledFeatures(self.features, self._backend), Compiled(self.network, self._backend)
        return self._compiled

    def logits(self, inputs: Mapping[str, Tensor | Ragged], rows: int) -> dict[str, Tensor]:
        """The logits [B] of each task, from what `features` and `embedding` give of ``rows`` rows."""
        # In the dtype of the parameters: rows are float32 or float64 as declared, whatever the precision of the rest.
        dtype = cast(torch.dtype, self.dtype)
        # A graph that is being traced takes the network itself in.
        is_compiled = self._backend and not torch.compiler.is_compiling()
        network = self._compile()[1] if is_compiled else self.network
        outputs = network({name: _to_dtype(value, dtype) for name, value in inputs.items()})
        return {task.name: check_logits(task, outputs, rows) for task in self.schema.tasks}

    def scores(self, inputs: Mapping[str, Tensor | Ragged], rows: int) -> dict[str, Tensor]:
        """The scores [B] of each task, as `logits`: probabilities for bce, values for mse."""
        logits = self.logits(inputs, rows)
        return {task.name: scores_of(task, logits[task.name]) for task in self.schema.tasks}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._rows = batch.size
        targets = {}
        for task in self.schema.tasks:
            label_B, weight_B = targets_of(task, batch)
            self._targets.check(task, label_B, weight_B)
            targets[task.name] = label_B, weight_B
        weights = self._weights_of_ranks([weight_B for _, weight_B in targets.values()])
        logits = self(batch)
        losses = {
            task.name: self.task_loss(task, logits[task.name], *targets[task.name], weight)
            for task, weight in zip(self.schema.tasks, weights, strict=True)
        }
        total = self._weighted_sum(losses)
        if self._is_logged():
            self._log_losses(total, losses)
            for name, loss in losses_by_source(self.schema.tasks, batch, logits, self._weighted_sum).items():
                self.log(f"train/source/{name}/loss", loss, sync_dist=True)
        return total

    def task_loss(self, task: Task, logits_B: Tensor, label_B: Tensor, weight_B: Tensor, total: Tensor) -> Tensor:
        """What a task is trained on, a number; override it for losses that no task declares.

        Rows that do not count have weight 0. Dividing by ``total``, not by the sum of weights, makes the mean over
        ranks that over rows. Validation's loss stays the declared one.
        """
        return mean_loss(task, logits_B, label_B, weight_B, total)

    def _weights_of_ranks(self, weights: Sequence[Tensor]) -> Tensor:
        """What each task's losses are divided by: the weight of all ranks' rows, over the number of ranks.

        Ranks also tell each other with it whether one of them has been asked to stop.
        """
        own = torch.stack([weight_B.double().sum() for weight_B in weights])
        route, requested = self.embedding.route, own.new_full((1,), float(self._stop.requested))
        sums = route.sum(torch.cat([own, requested]))
        self._stop.agreed = Arriving(sums[-1])
        return sums[:-1] / route.world_size

    def _is_logged(self) -> bool:
        """Whether this batch's loss is logged: `log` costs as much as the forward of a small model."""
        trainer = self._trainer
        if trainer is None:
            return False
        return is_logged(trainer, trainer.global_step + 1) or trainer.is_last_batch

    def _weighted_sum(self, losses: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([task.weight * losses[task.name] for task in self.schema.tasks if task.name in losses]).sum()

    def _log_losses(self, total: Tensor, losses: Mapping[str, Tensor]) -> None:
        self.log("train/loss", total, prog_bar=True, sync_dist=True)
        if len(losses) > 1:
            self.log_dict({f"train/{name}/loss": loss for name, loss in losses.items()}, sync_dist=True)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._measure("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._measure("test", batch)

    def _measure(self, stage: str, batch: Batch) -> None:
        self._rows = batch.size
        logits = self(batch)
        for metrics in self._metrics(stage):
            label_B, weight_B = targets_of(metrics.task, batch)
            check_targets(metrics.task, label_B, weight_B)
            metrics.update(logits[metrics.task.name], label_B, weight_B, groups_of(metrics.task, batch))
        self._by_source[stage].update(batch, logits)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def _log_metrics(self, stage: str) -> None:
        losses: dict[str, Tensor] = {}
        for metrics in self._metrics(stage):
            values = metrics.compute()
            metrics.reset()
            if "loss" in values:
                losses[metrics.task.name] = values.pop("loss")
            self._log_task(stage, metrics.task.name, values, losses)
        if losses:
            self.log(f"{stage}/loss", self._weighted_sum(losses), prog_bar=True, sync_dist=True, batch_size=1)
        for source, task, values in self._by_source[stage].finish():
            place = f"{stage}/source/{source}" + (f"/{task.name}" if len(self.schema.tasks) > 1 else "")
            for name, value in values.items():
                self.log(f"{place}/{name}", value, sync_dist=True, batch_size=1)

    def _log_task(self, stage: str, task: str, values: Mapping[str, Tensor], losses: Mapping[str, Tensor]) -> None:
        place = stage
        if len(self.schema.tasks) > 1:
            place = f"{stage}/{task}"
            values = {**values, **({"loss": losses[task]} if task in losses else {})}
        for name, value in values.items():
            # Metrics are the same on all ranks as it is; sync_dist says so to Lightning, which asks for it, and they
            # weigh the same: a rank without rows in the last batch would weigh nothing.
            self.log(f"{place}/{name}", value, prog_bar=name == "auc", sync_dist=True, batch_size=1)

    def _metrics(self, stage: str) -> Iterator[TaskMetrics]:
        yield from cast(Iterable[TaskMetrics], self.metrics[stage])

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The scores [B] of each task: probabilities for bce, values for mse."""
        return self.scores(self._inputs(batch), batch.size)

    @torch.no_grad()
    def catalogue(
        self, ids: Tensor | None = None, *, table: str | None = None, chunk: int = 65_536
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Embeddings to rank or to export, in pieces: yields (ids [N], rows [N, D]) of at most ``chunk`` ids.

        ``ids`` are int64 [any], the whole table where none are given; unknown ones get zeros. ``table`` may be left
        out where there is one. Nothing is inserted, and the rows are copies.

        Of several ranks all iterate to the end, each over any ids it likes; without ids each gets those that it holds.
        """
        chosen = self._table(table)
        if ids is None:
            yield from _whole_table(chosen, chunk)
            return
        route = self.embedding.route
        pieces_of_ranks = torch.zeros(route.world_size, dtype=torch.int64)
        pieces_of_ranks[route.rank] = -(-len(ids) // chunk)
        for number in range(int(route.sum(pieces_of_ranks).max())):
            piece = ids[number * chunk : (number + 1) * chunk].to(chosen.device)
            request = Request(chosen.group, piece, torch.tensor([0, len(piece)]), torch.tensor([chosen.number]))
            (fetched,) = route.fetch([request], insert=False)
            if len(piece):
                yield piece, fetched.weight.index_select(0, fetched.rows)

    def _table(self, name: str | None) -> DynamicTable:
        if name is None and len(self.tables) == 1:
            return next(iter(self.tables.values()))
        if name is None or name not in self.tables:
            raise ValueError(f"table {name!r} is not declared{did_you_mean(str(name), self.tables)}")
        return self.tables[name]

    # ------------------------------------------------------------------------------------------------- optimisation

    def configure_optimizers(self) -> Any:
        groups: Any = parameter_groups(self, self.towers)  # an optimizer takes parameters or groups of them
        dense = self.dense_optimizer(groups) if groups else None
        sparse = SparseOptimizer(self.embedding.groups, self.embedding.route.sum)
        optimizer = CompositeOptimizer(dense, sparse)
        schedulers: list[dict[str, Any]] = []
        if self.lr_scheduler is not None:
            scheduler = self.lr_scheduler(optimizer)
            is_plateau = isinstance(scheduler, ReduceLROnPlateau)
            when = {"monitor": getattr(scheduler, "monitor", "val/loss")} if is_plateau else {"interval": "step"}
            schedulers.append({"scheduler": scheduler, **when})
        if schedules := schedules_of(self.towers) | optimizer.sparse.schedules:
            schedulers.append({"scheduler": DeclaredSchedules(optimizer, schedules), "interval": "step"})
        return [optimizer], schedulers

    def fsdp_modules(self) -> list[nn.Module]:
        """What FSDP2 cuts over the ranks, innermost first: the modules that together hold all trained parameters.

        Each comes together as a whole when it is called. Override it to name parts of a large network, its layers; but
        none of a tower, which calls its layers as often as the texts of a rank need, where ranks wait for each other.
        """
        return [*self.towers, self.network]

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip dense gradients and the summed ones of rows as those of one model: their joint norm, or each value."""
        if not gradient_clip_val:
            return
        composite = cast(CompositeOptimizer, getattr(optimizer, "optimizer", optimizer))  # LightningOptimizer wraps it
        clip = clip_grad_value if gradient_clip_algorithm == "value" else clip_grad_norm
        clip(composite, gradient_clip_val)

    # ----------------------------------------------------------------------------------------------- the host's hooks

    def setup(self, stage: str) -> None:
        if not isinstance(self.trainer.strategy, ShardedStrategy):
            found = getattr(self.trainer.strategy, "strategy_name", None) or type(self.trainer.strategy).__name__
            raise MisconfigurationException(
                f"strategy '{found}' knows nothing of tables: it would train them, and lose them in every checkpoint. "
                'Write Trainer(strategy="recis_sharded", accelerator="cpu", devices=1), '
                "in a recipe trainer: {strategy: recis_sharded}"
            )
        if stage == "fit" and not self.schema.tasks:
            raise MisconfigurationException("the schema declares no task; there is nothing to train on")

    def configure_callbacks(self) -> list[Callback]:
        # Not again what an earlier stage of this trainer has attached; Lightning would say that it replaces them.
        return [callback for callback in self._callbacks if callback not in self.trainer.callbacks]  # type: ignore[attr-defined]

    def log(self, *args: Any, **options: Any) -> None:
        """As in Lightning, with the rows of the running batch as batch_size, which Lightning would guess wrong."""
        if options.get("batch_size") is None:
            options["batch_size"] = max(self._rows, 1)  # of nothing Lightning can't take a mean
        super().log(*args, **options)

    def checkpoint_files(self) -> dict[str, bytes]:
        """What a checkpoint holds for others to read: the LoRA weights of towers, as peft writes them."""
        files = {tower.name: tower.adapter_files() for tower in self.towers}
        return {f"towers/{name}/{file}": data for name, its in files.items() for file, data in its.items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["schema"] = self.schema.to_dict()
        optimizers = self._trainer.optimizers if self._trainer is not None else []
        if (dense := getattr(optimizers[0] if optimizers else None, "dense", None)) is not None:
            # Torch numbers the parameters of an optimizer; a model with others finds their state by their names.
            names = {id(parameter): name for name, parameter in self.named_parameters()}
            checkpoint["dense_optimizer"] = type(dense).__name__
            checkpoint["dense_parameters"] = [names[id(p)] for group in dense.param_groups for p in group["params"]]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Warn of transforms that are not those the checkpoint was trained with: other boundaries mean other ids.

        CheckpointError for columns whose strings are hashed otherwise: there all ids are others.
        """
        self._warm.is_done = True  # all is the checkpoint's
        if "schema" not in checkpoint:
            return
        saved = Schema.from_dict(checkpoint["schema"])
        if hashes := find_changed_hashes(saved.columns, self.schema.columns):
            listed = "\n".join(f"  - {change}" for change in hashes)
            raise CheckpointError(
                f"the checkpoint's rows belong to other ids than those this model reads:\n{listed}\n"
                "Give the hash it was trained with, or start without a checkpoint."
            )
        changes = find_changed_transforms(saved.features, self.schema.features)
        if changes:
            listed = "\n".join(f"  - {change}" for change in changes)
            warnings.warn(
                f"transforms have changed since the checkpoint was written, and its weights know the old:\n{listed}",
                stacklevel=2,
            )

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str, map_location: Any = None, strict: bool = True, **arguments: Any
    ) -> Self:
        """The module that wrote the checkpoint, with its weights and rows; ``arguments`` replace those it was made of.

        Raises CheckpointError where the checkpoint is damaged, or an argument can't be imported and is not given.
        """
        checkpoint = load_checkpoint(str(checkpoint_path))
        schema = arguments.pop("schema", None) or Schema.from_dict(checkpoint["schema"])
        saved = {key: value for key, value in checkpoint["hyper_parameters"].items() if key not in arguments}
        factories = {name: restore(saved[name], name) for name in FACTORIES if name in saved}
        module = cls(schema, **{**saved, **factories, **arguments})
        state = checkpoint["state_dict"].values()
        dtypes = {value.dtype for value in state if isinstance(value, Tensor) and value.is_floating_point()}
        if len(dtypes) == 1 and module.dtype not in dtypes:  # as it is, a tower may keep weights in a dtype of its own
            module.to(dtypes.pop())
        module.on_load_checkpoint(checkpoint)
        load_dense(module, checkpoint, strict)
        load_tables(module.tables, checkpoint[READER])
        return module if map_location is None else module.to(map_location)


def _to_dtype(value: Tensor | Ragged, dtype: torch.dtype) -> Tensor | Ragged:
    """Numbers in another dtype; rows of integers stay what they are."""
    if isinstance(value, Ragged):
        return value.with_values(_in_dtype(value.values, dtype))
    return _in_dtype(value, dtype)


def _in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _whole_table(table: DynamicTable, chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
    step = max(1, SHARDS * chunk // max(len(table), 1) // 2)
    for first in range(0, SHARDS, step):
        rows = table.export(first, min(first + step, SHARDS))
        yield from zip(rows.ids.split(chunk), rows.weight.split(chunk), strict=True)
