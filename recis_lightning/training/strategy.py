"""The strategy `recis_sharded`: where a module's tables live, how they are saved, and how they come back.

    Trainer(strategy="recis_sharded", accelerator="cpu", devices=2)

Each rank holds the rows of a range of virtual shards, and the others fetch them (see `embedding.exchange`). The dense
part is trained as under DDP, which it subclasses; tables are neither parameters nor buffers, so that nothing of
Lightning or DDP copies or overwrites them. They lie where the Trainer trains: on CPUs or on GPUs, one for each rank;
anything else is refused when the Trainer is made.
"""

import inspect
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Literal

import torch.distributed as dist
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.seed import reset_seed
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from recis_lightning.embedding.exchange import Exchange, owned_shards
from recis_lightning.embedding.wire import PRECISIONS
from recis_lightning.embedding.wire import Precision as TravelPrecision
from recis_lightning.optim import unscale_rows
from recis_lightning.ragged import Batch
from recis_lightning.tables import DynamicTable
from recis_lightning.training.callbacks import CommitLoader, EvictIds
from recis_lightning.training.checkpoint import (
    READER,
    as_json,
    load_checkpoint,
    load_dense,
    load_tables,
    random_state,
    save_checkpoint,
    set_random_state,
)
from recis_lightning.training.dense_shards import cut_like, shard, whole
from recis_lightning.training.epochs import count_begun_epoch, reopen_cut_epoch
from recis_lightning.training.files import remove_directory
from recis_lightning.training.ranks import Ranks, connect, tell_started

_OF_PROCESSES = {
    "accelerator",
    "parallel_devices",
    "cluster_environment",
    "checkpoint_io",
    "precision_plugin",
    "process_group_backend",
    "timeout",
    "start_method",
}
_NO_DEFAULT = inspect.Parameter.empty
_DDP_DEFAULTS = {  # a recipe's parser gives all options that there are, with these
    name: option.default
    for owner in (DistributedDataParallel, DDPStrategy)
    for name, option in inspect.signature(owner).parameters.items()
}


class ShardedStrategy(DDPStrategy):
    """Trains hash-table embeddings, shared by all ranks, beside a dense part that each rank has a copy of.

    Ranks are processes: ``devices`` times ``num_nodes`` of the Trainer, which starts them, or those that torchrun or
    SLURM have started. Both parts are saved as one directory (see `training.checkpoint`), whose rows come back on any
    number of ranks, and on any device. Other options are those of `DDPStrategy`. Raises MisconfigurationException for a
    device that is neither CPU nor GPU.
    """

    strategy_name = "recis_sharded"

    def __init__(
        self,
        dense: Literal["ddp", "fsdp2"] = "ddp",
        rows_as: TravelPrecision = "full",
        grads_as: TravelPrecision = "full",
        **ddp_options: Any,
    ) -> None:
        """
        Args:
            dense: How the dense part is trained: a copy on each rank (ddp), or cut over the ranks with its gradients
                and optimizer state (fsdp2).
            rows_as: In which precision rows travel between ranks: full (that of their table), bf16 or fp16.
            grads_as: In which precision their gradients do.
            ddp_options: Options of `DDPStrategy`, among them ``timeout``: how long a rank waits for the others.
        """
        super().__init__(**ddp_options)
        for name, precision in (("rows_as", rows_as), ("grads_as", grads_as)):
            if precision not in PRECISIONS:
                raise MisconfigurationException(
                    f"recis_sharded: {name} is {precision!r}, need one of {', '.join(PRECISIONS)}"
                )
        if dense not in ("ddp", "fsdp2"):
            raise MisconfigurationException(f"recis_sharded: dense is {dense!r}, need ddp or fsdp2")
        of_ddp = ddp_options.keys() - _OF_PROCESSES
        given = [name for name in sorted(of_ddp) if ddp_options[name] != _DDP_DEFAULTS.get(name, _NO_DEFAULT)]
        if dense == "fsdp2" and given:
            raise MisconfigurationException(
                f"recis_sharded: {', '.join(given)}: options of DDP, and dense is fsdp2; leave them out"
            )
        self.dense = dense
        self._units: list[Any] = []
        self.seconds_saving = 0.0
        """Wall time spent in checkpoints so far, which is no time of training."""
        self.ranks = Ranks()
        """The processes of this run; one until they are connected."""
        self._travel = {"rows_as": rows_as, "grads_as": grads_as}
        self._owns_process_group = False
        self._store: dist.Store | None = None
        self._rows_group: Any = None
        self._random_state: dict[str, Any] | None = None

    @property
    def travel(self) -> dict[str, TravelPrecision]:
        """In which precisions rows and gradients travel: rows_as and grads_as."""
        return dict(self._travel)

    # --------------------------------------------------------------------------------------------------------- ranks

    def _configure_launcher(self) -> None:
        self._refuse_other_places()
        self._refuse_other_numbers()
        if self._processes > 1:
            super()._configure_launcher()
            if self.cluster_environment is not None and not self.cluster_environment.creates_processes_externally:
                tell_started()
        else:
            # Without a launcher Lightning runs here and now, and accepts notebooks, where it refuses subclasses of DDP.
            self._launcher = None

    @property
    def _processes(self) -> int:
        return max(self.num_nodes * self.num_processes, self.world_size)

    def _refuse_other_places(self) -> None:
        devices = {device.type for device in self.parallel_devices or ()}
        if devices - {"cpu", "cuda"}:
            raise MisconfigurationException(
                f"recis_sharded: tables exist on CPUs and GPUs, the accelerator is {', '.join(sorted(devices))}; "
                "write Trainer(accelerator='cpu', devices=1), in a recipe trainer: {accelerator: cpu, devices: 1}"
            )

    def _refuse_other_numbers(self) -> None:
        """Launchers start processes, and the Trainer says how many there are to be."""
        cluster, asked = self.cluster_environment, self.num_nodes * self.num_processes
        if cluster is not None and cluster.creates_processes_externally and cluster.world_size() != asked:
            raise MisconfigurationException(
                f"recis_sharded: {type(cluster).__name__} has started {cluster.world_size()} processes, and the "
                f"Trainer asks for devices {self.num_processes} x num_nodes {self.num_nodes} = {asked}; set these to "
                "what was started"
            )

    def setup_distributed(self) -> None:
        reset_seed()
        self.set_world_ranks()
        device = self.root_device
        of_rows = "nccl" if device.type == "cuda" else "gloo"
        self._process_group_backend = of_rows if self._processes > 1 else "gloo"  # alone it sends nothing
        if not dist.is_initialized():
            hook = sys.excepthook
            if self._processes == 1:
                # A store in memory: no port that may be taken, no address, no environment variable.
                dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=self._timeout)
                self._owns_process_group = True
            else:
                assert self.cluster_environment is not None
                self._store = connect(self.cluster_environment, self._process_group_backend, self._timeout, device)
            sys.excepthook = hook  # torch's own puts "[rank0]: " before each line, once more for each group
        if dist.get_world_size() != self._processes:
            raise MisconfigurationException(
                f"recis_sharded: a process group of {dist.get_world_size()} ranks is set up in this process, and the "
                f"Trainer asks for {self._processes}; set devices and num_nodes to what the launcher started"
            )
        if self._processes > 1 and self.ranks.world_size == 1:
            # Groups of their own: what ranks say of paths and failures waits for no batch, and rows wait for no dense
            # gradient, which DDP sends from hooks in an order that is not that of the exchange.
            timeout = self._timeout or timedelta(minutes=30)
            self.ranks = Ranks(dist.new_group(backend="gloo", timeout=timeout), self._store)
            self._rows_group = dist.new_group(backend=of_rows, timeout=timeout)

    def _share_tables(self) -> None:
        """Let each rank hold its share of the tables, and fetch from the others."""
        embedding: Any = getattr(self.lightning_module, "embedding", None)
        if embedding is not None and self.ranks.world_size > 1:
            embedding.shard(Exchange(self._rows_group, **self._travel, device=self.root_device))

    def _agree_on_versions(self, trainer: Trainer) -> None:
        """Let loggers number the run alike: each rank would look for a free number, and find those of others."""
        for logger in trainer.loggers:
            if hasattr(logger, "_version"):
                logger._version = self.ranks.broadcast(logger.version)

    def configure_ddp(self) -> None:
        """Wrap the module where there is another rank to share gradients with, and any to share."""
        assert self.model is not None
        if self.ranks.world_size == 1 or not any(parameter.requires_grad for parameter in self.model.parameters()):
            return
        if self.dense == "ddp":
            super().configure_ddp()
            return
        modules: list[nn.Module] = self.lightning_module.fsdp_modules()  # type: ignore[union-attr, operator]
        self._units = shard(modules, self.root_device)
        left = [
            name
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and not isinstance(parameter, DTensor)
        ]
        if left:
            raise MisconfigurationException(
                f"recis_sharded: {', '.join(left[:5])} belong to no module that fsdp_modules() names, and their "
                "gradients would differ between ranks; name their modules there"
            )

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Keep gradients of batches that are accumulated where they are, until the step's last one."""
        for unit in self._units:
            unit.set_requires_gradient_sync(False)
        with super().block_backward_sync():
            yield
        for unit in self._units:
            unit.set_requires_gradient_sync(True)

    def on_exception(self, exception: BaseException) -> None:
        super().on_exception(exception)
        self.ranks.stop_watching()
        if isinstance(exception, Exception):
            self.ranks.tell_failure(exception, self._killed_rank)

    def _killed_rank(self) -> str | None:
        """Which of the processes that this one has started was ended by a signal, and by which."""
        for place, process in enumerate(getattr(self.launcher, "procs", ()), start=1):
            if (status := process.poll()) is not None and status < 0:
                rank, name = self.node_rank * self.num_processes + place, signal.Signals(-status).name
                return f"rank {rank}: process {process.pid} was ended by {name}; killed, perhaps for want of memory"
        return None

    def teardown(self) -> None:
        self.ranks.stop_watching()
        embedding: Any = getattr(self.lightning_module, "embedding", None)
        # The host takes its module back to the CPU after every stage; tables of a GPU may not even fit there.
        with embedding.staying() if embedding is not None else nullcontext():
            super().teardown()
        self._units = []
        if self._owns_process_group:
            dist.destroy_process_group()
            self._owns_process_group = False

    # --------------------------------------------------------------------------------------------- precision, stages

    @property
    def precision_plugin(self) -> Precision:
        return super().precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, precision: Precision | None) -> None:
        if precision is not None:
            _keep_batches(precision)
        if (scaler := getattr(precision, "scaler", None)) is not None:
            unscale_rows(scaler)
        self._precision_plugin = precision

    def setup(self, trainer: Trainer) -> None:
        as_json(dict(trainer.lightning_module.hparams), "hyper_parameters")  # now, not at the first checkpoint
        # Any callback may save: before the first of them runs, the loader's position is to be right and the step's
        # evictions are to be over.
        first = (CommitLoader, EvictIds)
        trainer.callbacks.sort(key=lambda callback: not isinstance(callback, first))  # type: ignore[attr-defined]
        self._agree_on_versions(trainer)
        self._share_tables()
        # Lightning would ask rank 0 before every batch whether a signal has come; `SaveOnInterrupt` asks all ranks with
        # what they tell each other of a batch anyway.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        super().setup(trainer)
        self.ranks.watch()

    def on_train_start(self) -> None:
        # The last hook before the first batch: whatever drew numbers until here did so in the first run as well.
        super().on_train_start()
        if self._random_state is not None:
            set_random_state(self._random_state)
            self._random_state = None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        count_begun_epoch(self._trainer)

    # ------------------------------------------------------------------------------------------------- checkpoints

    @property
    def checkpoint_io(self) -> CheckpointIO:
        return super().checkpoint_io

    @checkpoint_io.setter
    def checkpoint_io(self, io: CheckpointIO) -> None:
        raise MisconfigurationException(
            f"recis_sharded writes checkpoints itself, tables included, and {type(io).__name__} would not; leave it out"
        )

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """True: tables are filled once they are where they will be trained."""
        return True

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: _PATH, storage_options: Any | None = None) -> None:
        if storage_options is not None:
            raise TypeError("recis_sharded takes no storage_options; configure fsspec for the URL's protocol")
        started = time.monotonic()
        self._refuse_lonely_save(filepath)
        self._warn_within_accumulation(filepath)
        files: dict[str, bytes] = getattr(self.lightning_module, "checkpoint_files", dict)()
        states = self.ranks.gather(random_state())
        save_checkpoint(
            checkpoint | {"random_states": states}, str(filepath), self._tables, files=files, ranks=self.ranks
        )
        self.seconds_saving += time.monotonic() - started

    def _refuse_lonely_save(self, filepath: _PATH) -> None:
        """All ranks save together; one that is about to end with an error would wait for the others without end."""
        if self.ranks.world_size > 1 and self._trainer.state.status == TrainerStatus.INTERRUPTED:
            raise MisconfigurationException(
                f"{filepath} is not saved: rank {self.ranks.rank} of {self.ranks.world_size} has failed, and all ranks "
                "have to save together; go on from the last checkpoint, and leave out save_on_exception"
            )

    @property
    def _tables(self) -> Mapping[str, DynamicTable]:
        return getattr(self.lightning_module, "tables", {})

    @property
    def _trainer(self) -> Trainer:
        assert self.lightning_module is not None
        return self.lightning_module.trainer

    def _warn_within_accumulation(self, filepath: _PATH) -> None:
        trainer = self._trainer
        if trainer.training and trainer.accumulate_grad_batches > 1 and trainer.fit_loop._should_accumulate():
            rank_zero_warn(
                f"{filepath} was saved between two optimizer steps: the gradients accumulated since the last one are "
                "not in it, and resuming from it differs by them; save by steps (every_n_train_steps) instead"
            )

    def load_checkpoint(self, checkpoint_path: _PATH, weights_only: bool | None = None) -> dict[str, Any]:
        # weights_only is None on the way that restores after set-up; nothing in our files needs it to be False.
        checkpoint = load_checkpoint(str(checkpoint_path))
        reopen_cut_epoch(checkpoint)
        states = checkpoint.get("random_states")
        if self._trainer.state.fn == TrainerFn.FITTING and states:
            # Ranks that the saved run did not have draw as its first one did.
            self._random_state = states[self.ranks.rank if self.ranks.rank < len(states) else 0]
        return checkpoint

    def lightning_module_state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = whole(super().lightning_module_state_dict())
        return state

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state: dict[str, Any] = whole(super().optimizer_state(optimizer))
        return state

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        states = []
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            dense = getattr(optimizer, "dense", None)
            states.append(state if dense is None else {**state, "dense": cut_like(state["dense"], dense)})
        super().load_optimizer_state_dict({"optimizer_states": states})

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        load_dense(self.lightning_module, checkpoint, strict)
        load_tables(self._tables, checkpoint[READER], *owned_shards(self.ranks.rank, self.ranks.world_size))

    def remove_checkpoint(self, filepath: _PATH) -> None:
        if self.is_global_zero:
            remove_directory(str(filepath))


def _keep_batches(precision: Precision) -> None:
    """Let a Batch through as it is: plugins that convert inputs rebuild mappings, which a packed batch is not.

    `RecModule` gives the network its inputs in the dtype of the module's parameters.
    """
    convert = precision.convert_input

    def convert_input(data: Any) -> Any:
        return data if isinstance(data, Batch) else convert(data)

    precision.convert_input = convert_input  # type: ignore[method-assign]
