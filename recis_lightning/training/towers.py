"""What towers need of a run: parameter groups and schedules of their own, statistics, and caches written in time."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from recis_lightning.ragged import Batch
from recis_lightning.schema.schedules import Schedule
from recis_lightning.towers.collection import TowerCollection
from recis_lightning.training.callbacks import SteppedCallback


def parameter_groups(module: nn.Module, towers: TowerCollection) -> list[dict[str, Any]]:
    """The trained parameters of a module as an optimizer takes them: a group for each tower that has a learning rate.

    The first group holds all others, and is left out where there are none.
    """
    own = [group for tower in towers for group in tower.parameter_groups()]
    taken = {id(parameter) for group in own for parameter in group["params"]}
    rest = [p for p in module.parameters() if p.requires_grad and id(p) not in taken]
    return [{"params": rest}, *own] if rest else own


def schedules_of(towers: TowerCollection) -> dict[str, Schedule]:
    """The schedules of towers by the names of their parameter groups."""
    return {
        tower.group_name: tower.schedule for tower in towers if tower.schedule is not None and tower.parameter_groups()
    }


class TowerReport(SteppedCallback):
    """Logs towers/<name>/distinct, the share of rows with text that were the first of their kind in the batch.

    And, for a frozen tower, towers/<name>/computed: the share that went through the model. Both over the steps since
    they were last logged. Writes what caches hold in memory at the end of each epoch and of the run.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.is_logged(trainer):
            pl_module.log_dict(take_statistics(_towers(pl_module)))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _towers(pl_module).flush_caches()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        _towers(pl_module).flush_caches()


def _towers(module: LightningModule) -> TowerCollection:
    towers = module.towers
    assert isinstance(towers, TowerCollection)
    return towers


def take_statistics(towers: TowerCollection) -> dict[str, float]:
    """What `TowerReport` logs; counting begins anew."""
    shares = {}
    for tower in towers:
        counts = tower.take_statistics()
        if counts.rows:
            shares[f"towers/{tower.name}/distinct"] = counts.distinct / counts.rows
            shares[f"towers/{tower.name}/computed"] = counts.computed / counts.rows
    return shares
