"""Losses and metrics of each source where data come from several: `batch.token` says which rows are whose.

B batch rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor

from recis_lightning.ragged import Batch
from recis_lightning.schema import Task
from recis_lightning.training.objectives import TaskMetrics, groups_of, mean_loss, targets_of


def source_spans(batch: Batch) -> dict[str, slice]:
    """The rows of each source in a batch: {"ads": 3, "feed": 1} -> ads [0, 3), feed [3, 4); none for one source."""
    spans, first = {}, 0
    for name, rows in batch.token.get("source_rows", {}).items():
        spans[name] = slice(first, first + rows)
        first += rows
    return spans


def losses_by_source(
    tasks: Sequence[Task], batch: Batch, logits: Mapping[str, Tensor], total: Callable[[Mapping[str, Tensor]], Tensor]
) -> dict[str, Tensor]:
    """The loss of each source's rows, ``total`` making one of the tasks'."""
    targets = {task.name: targets_of(task, batch) for task in tasks}
    losses = {}
    for name, rows in source_spans(batch).items():
        of_tasks = {
            task.name: mean_loss(
                task, logits[task.name].detach()[rows], targets[task.name][0][rows], targets[task.name][1][rows]
            )
            for task in tasks
        }
        losses[name] = total(of_tasks)
    return losses


class SourceMetrics:
    """The metrics of a stage, source by source; each is made when its first batch comes."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = tasks
        self._metrics: dict[str, list[TaskMetrics]] = {}

    def update(self, batch: Batch, logits: Mapping[str, Tensor]) -> None:
        """Take in a batch's rows, each with its source."""
        for name, rows in source_spans(batch).items():
            if name not in self._metrics:
                self._metrics[name] = [TaskMetrics(task).to(batch.device) for task in self._tasks]
            for metrics in self._metrics[name]:
                label_B, weight_B = targets_of(metrics.task, batch)
                groups = groups_of(metrics.task, batch, rows)
                metrics.update(logits[metrics.task.name][rows], label_B[rows], weight_B[rows], groups)

    def finish(self) -> Iterator[tuple[str, Task, dict[str, Tensor]]]:
        """Source, task and values by name; the next epoch begins anew."""
        for name, of_tasks in self._metrics.items():
            for metrics in of_tasks:
                yield name, metrics.task, metrics.compute()
                metrics.reset()
