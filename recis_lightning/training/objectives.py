"""What a task's logits are trained on and measured by: which rows count, the loss, the metrics.

B batch rows.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

from recis_lightning.data.errors import DataError
from recis_lightning.metrics import AUC, Calibration, GroupedAUC, LogLoss, NormalizedEntropy
from recis_lightning.ragged import Ragged
from recis_lightning.schema import Task
from recis_lightning.tables.watch import Watch


def dense_column(batch: Mapping[str, Tensor | Ragged], name: str) -> Tensor:
    """A column of one number a row; ValueError where the batch carries it as lists or not at all."""
    column = batch.get(name)
    if isinstance(column, Tensor):
        return column
    found = "is not in the batch" if column is None else "holds lists"
    raise ValueError(f"column '{name}' {found}; need one number a row, as the data module gives for labels")


def targets_of(task: Task, batch: Mapping[str, Tensor | Ragged]) -> tuple[Tensor, Tensor]:
    """Labels and weights, both float [B]: a weight is 0 where ``where`` is 0, else the sample weight or 1.

    The label of a row that does not count is 0: it may be NaN in the batch, and 0 * NaN would reach the gradient.
    """
    label_B = dense_column(batch, task.label)
    weight_B = torch.ones_like(label_B) if task.sample_weight is None else dense_column(batch, task.sample_weight)
    if task.where is not None:
        weight_B = torch.where(dense_column(batch, task.where) != 0, weight_B, 0)
    return torch.where(weight_B != 0, label_B, 0), weight_B


def groups_of(
    task: Task, batch: Mapping[str, Tensor | Ragged], rows: slice = slice(None)
) -> tuple[Tensor, Tensor] | None:
    """The group of each row, int64 [B], and whether it has one; None for a task without groups."""
    if task.group is None:
        return None
    ids = batch.get(task.group)
    if not isinstance(ids, Ragged):
        found = "is not in the batch" if ids is None else "holds numbers"
        raise ValueError(f"task '{task.name}' is grouped by column '{task.group}', which {found}; need ids")
    has_group_B = ids.lengths > 0
    group_B = ids.values.new_zeros(len(ids)).masked_scatter_(has_group_B, ids.values)
    return group_B[rows], has_group_B[rows]


def mean_loss(task: Task, logits_B: Tensor, label_B: Tensor, weight_B: Tensor, total: Tensor | None = None) -> Tensor:
    """The mean loss of the rows that count: losses [1, 2, 9] with weights [1, 1, 0] -> 1.5; 0 where no row counts.

    ``total`` is the weight to divide by where that is not these rows' own: with several ranks, that of all their rows
    over the number of ranks, so that the mean over ranks is the mean over rows.
    """
    label_B, weight_B = label_B.to(logits_B), weight_B.to(logits_B)
    if task.loss == "bce":
        losses_B = F.binary_cross_entropy_with_logits(logits_B, label_B, reduction="none")
    else:
        losses_B = F.mse_loss(logits_B, label_B, reduction="none")
    total = weight_B.sum() if total is None else total.to(logits_B)
    return (losses_B * weight_B).sum() / torch.where(total > 0, total, 1)


def scores_of(task: Task, logits_B: Tensor) -> Tensor:
    """What is predicted: probabilities for bce, the logits themselves for mse."""
    return logits_B.sigmoid() if task.loss == "bce" else logits_B


def check_logits(task: Task, outputs: Mapping[str, Tensor], rows: int) -> Tensor:
    """The task's logits out of what a network returned; ValueError where they are not [B]."""
    logits_B = outputs.get(task.name)
    if logits_B is None:
        raise ValueError(
            f"the network returned {', '.join(map(repr, outputs)) or 'nothing'}, but no logits for task '{task.name}'; "
            "return a dictionary with an entry for each task"
        )
    if logits_B.shape != (rows,):
        # [B, 1] against labels [B] would broadcast to [B, B], and train on every pair.
        raise ValueError(
            f"the network's logits for task '{task.name}' have shape {list(logits_B.shape)}, need [{rows}]; "
            "take the last dimension away with squeeze(-1)"
        )
    return logits_B


def check_targets(task: Task, label_B: Tensor, weight_B: Tensor) -> None:
    """DataError where a label that counts is no probability, or a weight is negative: the loss would mean nothing."""
    if not len(label_B):
        return
    low, high = map(float, label_B.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(f"task '{task.name}': column '{task.label}' holds labels that are no finite numbers")
    if task.loss == "bce" and (low < 0 or high > 1):
        raise DataError(
            f"task '{task.name}': labels in column '{task.label}' reach from {low:g} to {high:g}, loss bce needs "
            "0 to 1; write labels as 0 and 1, or declare loss: mse"
        )
    if task.sample_weight is not None and not float(weight_B.min()) >= 0:
        raise DataError(
            f"task '{task.name}': column '{task.sample_weight}' holds weights down to {float(weight_B.min()):g}; "
            "need at least 0"
        )


class TargetChecks:
    """`check_targets` for training: on the CPU at once, on a GPU once it has told, since nobody waits for it."""

    def __init__(self) -> None:
        self._watch: Watch | None = None
        self._step = 0

    def check(self, task: Task, label_B: Tensor, weight_B: Tensor) -> None:
        """ValueError as `check_targets`; on a GPU of an earlier batch, by its number among those checked."""
        if label_B.device.type == "cpu":
            check_targets(task, label_B, weight_B)
        elif len(label_B):
            self.check_later(task, label_B, weight_B)

    def check_later(self, task: Task, label_B: Tensor, weight_B: Tensor) -> None:
        """Note what is wrong, and raise what was noted before and has arrived."""
        if self._watch is None or self._watch.device != label_B.device:
            self._watch = Watch(label_B.device)
        self._watch.raise_found()
        self._step += 1
        self._watch.begin_step(self._step)
        low, high = label_B.aminmax()
        is_off = ~((low >= 0) & (high <= 1)) if task.loss == "bce" else ~(low.isfinite() & high.isfinite())
        is_negative = ~(weight_B.min() >= 0)

        def explain(number: int, step: int, _: int) -> ValueError:
            if number:
                found = f"column '{task.sample_weight}' of batch {step} holds weights below 0, need at least 0"
            elif task.loss == "bce":
                found = f"labels in column '{task.label}' of batch {step} are not all from 0 to 1, as loss bce needs"
            else:
                found = f"column '{task.label}' of batch {step} holds labels that are no finite numbers"
            return ValueError(f"task '{task.name}': {found}; the batch was trained on, go back to a checkpoint before")

        self._watch.note(f"targets of {task.name}", torch.stack([is_off, is_negative]), explain)


OF_LOSS: dict[str, Callable[[], dict[str, nn.Module]]] = {
    "bce": lambda: {"auc": AUC(), "logloss": LogLoss(), "ne": NormalizedEntropy(), "calibration": Calibration()},
    "mse": dict,
}


class MeanLoss(Metric):
    """The mean of losses by weight, in float64: 1 with weight 2 and 4 with weight 1 -> 2. nan stays nan."""

    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        # torchmetrics' MeanMetric drops nan, or the weights, as nan_strategy says; neither may happen to a loss.
        for state in ("total", "weight"):
            self.add_state(state, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, loss: Tensor, weight: Tensor) -> None:
        self.total += loss.double() * weight.double()
        self.weight += weight.double()

    def compute(self) -> tuple[Tensor, Tensor]:
        """The mean, nan where nothing has weight, and the weight of all."""
        return self.total / self.weight, self.weight


class TaskMetrics(nn.Module):
    """The metrics of one task over a stage: loss, and for bce auc, logloss, ne (normalised entropy), calibration.

    Of a task with groups also gauc; rows without a group count in all the others.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task
        self.loss = MeanLoss()
        self.metrics = nn.ModuleDict(OF_LOSS[task.loss]())
        self.grouped = None if task.group is None else GroupedAUC()

    def update(
        self, logits_B: Tensor, label_B: Tensor, weight_B: Tensor, groups: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """Take in the rows of a batch that count; ``groups`` as `groups_of` gives them."""
        counts_B = weight_B != 0
        # Without any, too: other ranks may have some, and all of them compute together.
        logits, label, weight = logits_B.detach()[counts_B], label_B[counts_B], weight_B[counts_B]
        self.loss.update(mean_loss(self.task, logits.double(), label, weight), weight.double().sum())
        for metric in cast(Iterable[Metric], self.metrics.values()):
            metric.update(logits, label, weight if self.task.sample_weight else None)
        if self.grouped is not None and groups is not None:
            group_B, has_group_B = groups
            counts_B = counts_B & has_group_B
            self.grouped.update(logits_B.detach()[counts_B], label_B[counts_B], group_B[counts_B], weight_B[counts_B])

    def compute(self) -> dict[str, Tensor]:
        """Values by name; nothing where no row has counted."""
        if not self.loss.update_called:
            return {}
        loss, weight = self.loss.compute()
        values = {"loss": loss} | {name: metric.compute() for name, metric in self._metrics().items()}
        return values if float(weight) > 0 else {}

    def reset(self) -> None:
        for metric in (self.loss, *self._metrics().values()):
            metric.reset()

    def _metrics(self) -> dict[str, Metric]:
        grouped = {} if self.grouped is None else {"gauc": self.grouped}
        return cast(dict[str, Metric], dict(self.metrics.items()) | grouped)
