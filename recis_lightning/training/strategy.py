"""The strategy `recis_sharded`: where a module's tables live, how they are saved, and how they come back.

    Trainer(strategy="recis_sharded", accelerator="cpu", devices=1)

The dense part is trained as under DDP, which it subclasses; tables are neither parameters nor buffers, so that nothing
of Lightning or DDP copies, moves or overwrites them. One process on a CPU is what tables exist for as yet; anything
else is refused when the Trainer is made.
"""

import sys
import time
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.seed import reset_seed
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

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
from recis_lightning.training.files import remove_directory


class ShardedStrategy(DDPStrategy):
    """Trains hash-table embeddings beside a dense part, and saves both as a directory (see `training.checkpoint`).

    Options are those of `DDPStrategy`. Raises MisconfigurationException for more than one process, or a device that is
    no CPU.
    """

    strategy_name = "recis_sharded"

    def __init__(self, **ddp_options: Any) -> None:
        super().__init__(**ddp_options)
        self.seconds_saving = 0.0
        """Wall time spent in checkpoints so far, which is no time of training."""
        self._owns_process_group = False
        self._random_state: dict[str, Any] | None = None

    # ------------------------------------------------------------------------------------------------- one process

    def _configure_launcher(self) -> None:
        self._refuse_other_places()
        # Without a launcher Lightning runs here and now, and accepts notebooks, where it refuses subclasses of DDP.
        self._launcher = None

    def _refuse_other_places(self) -> None:
        devices = {device.type for device in self.parallel_devices or ()}
        if devices - {"cpu"}:
            raise MisconfigurationException(
                f"recis_sharded: tables exist on CPUs only as yet, the accelerator is {', '.join(sorted(devices))}; "
                "write Trainer(accelerator='cpu', devices=1), in a recipe trainer: {accelerator: cpu, devices: 1}"
            )
        processes = max(self.num_nodes * self.num_processes, self.world_size)
        if processes > 1:
            raise MisconfigurationException(
                f"recis_sharded: tables exist on one process only as yet, and {processes} were asked for; "
                "write Trainer(devices=1, num_nodes=1), in a recipe trainer: {devices: 1}"
            )

    def setup_distributed(self) -> None:
        reset_seed()
        self.set_world_ranks()
        self._process_group_backend = "gloo"
        if not dist.is_initialized():
            hook = sys.excepthook
            # A store in memory: no port that may be taken, no address, no environment variable.
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=self._timeout)
            sys.excepthook = hook  # torch's own puts "[rank0]: " before each line, once more for each group
            self._owns_process_group = True
        elif dist.get_world_size() > 1:
            raise MisconfigurationException(
                f"recis_sharded: a process group of {dist.get_world_size()} ranks is set up in this process; "
                "tables exist on one process only as yet"
            )

    def configure_ddp(self) -> None:
        """Leave the module unwrapped: one rank has no gradients to share."""

    def teardown(self) -> None:
        super().teardown()
        if self._owns_process_group:
            dist.destroy_process_group()
            self._owns_process_group = False

    # --------------------------------------------------------------------------------------------- precision, stages

    @property
    def precision_plugin(self) -> Precision:
        return super().precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, precision: Precision | None) -> None:
        if getattr(precision, "scaler", None) is not None:
            raise MisconfigurationException(
                "recis_sharded: gradients of rows know no loss scaler as yet, they would stay scaled; "
                "write precision: bf16-mixed, which needs none"
            )
        if precision is not None:
            _keep_batches(precision)
        self._precision_plugin = precision

    def setup(self, trainer: Trainer) -> None:
        as_json(dict(trainer.lightning_module.hparams), "hyper_parameters")  # now, not at the first checkpoint
        # Any callback may save: before the first of them runs, the loader's position is to be right and the step's
        # evictions are to be over.
        first = (CommitLoader, EvictIds)
        trainer.callbacks.sort(key=lambda callback: not isinstance(callback, first))  # type: ignore[attr-defined]
        super().setup(trainer)

    def on_train_start(self) -> None:
        # The last hook before the first batch: whatever drew numbers until here did so in the first run as well.
        super().on_train_start()
        if self._random_state is not None:
            set_random_state(self._random_state)
            self._random_state = None

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
        self._warn_within_accumulation(filepath)
        files: dict[str, bytes] = getattr(self.lightning_module, "checkpoint_files", dict)()
        save_checkpoint(checkpoint | {"random_state": random_state()}, str(filepath), self._tables, files=files)
        self.seconds_saving += time.monotonic() - started

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
        if self._trainer.state.fn == TrainerFn.FITTING:
            self._random_state = checkpoint.get("random_state")
        return checkpoint

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        load_dense(self.lightning_module, checkpoint, strict)
        load_tables(self._tables, checkpoint[READER])

    def remove_checkpoint(self, filepath: _PATH) -> None:
        remove_directory(str(filepath))


def _keep_batches(precision: Precision) -> None:
    """Let a Batch through as it is: plugins that convert inputs rebuild mappings, which a packed batch is not.

    `RecModule` gives the network its inputs in the dtype of the module's parameters.
    """
    convert = precision.convert_input

    def convert_input(data: Any) -> Any:
        return data if isinstance(data, Batch) else convert(data)

    precision.convert_input = convert_input  # type: ignore[method-assign]
