"""Learning rates that a schema schedules apart from the run's: those of towers and tables."""

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from recis_lightning.schema import Schedule


class DeclaredSchedules(LRScheduler):
    """Sets the learning rates of the groups that have a schedule, each from its first value; leaves the others alone.

    Stepped after the run's own scheduler, whose changes to these groups it overwrites.
    """

    def __init__(self, optimizer: Optimizer, schedules: Mapping[str, Schedule]) -> None:  # by the name of the group
        self.schedules = schedules
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        rates = []
        for group, first in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            schedule = self.schedules.get(group.get("name", ""))
            rates.append(group["lr"] if schedule is None else first * schedule.factor(self.last_epoch))
        return rates

    def state_dict(self) -> dict[str, Any]:
        """Where it is; what the schedules are is declared in the schema."""
        return {key: value for key, value in super().state_dict().items() if key != "schedules"}
