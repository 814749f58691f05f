"""What models read off a schema when they are built, and how they take their inputs.

B batch rows, F fields (embedded features), D embedding width, I numbers of the dense features, T tasks.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from recis_lightning.errors import UserError
from recis_lightning.ragged import Ragged, stack_features
from recis_lightning.schema import Schema


class ModelError(UserError, ValueError):
    """A schema that a model can't be built on: what it declares, what the model needs, what to do."""


Inputs = Mapping[str, Tensor | Ragged]


def pooled_widths(schema: Schema, model: str) -> dict[str, int]:
    """The width of each feature that comes as a vector, from a table or a tower, by name.

    ModelError where one keeps its sequence.
    """
    sequences = [feature.name for feature in schema.vector_features if feature.pooling == "none"]
    if sequences:
        raise ModelError(
            f"{model} takes one vector a row, but {_quote(sequences)} keep their sequences (pooling: none); "
            "pool them by sum, mean or sqrtn, or choose a model that reads sequences"
        )
    return {feature.name: schema.width_of(feature) for feature in schema.vector_features}


def shared_width(widths: Mapping[str, int], model: str) -> int:
    """The one width of all fields. ModelError, listing who has which, where they differ."""
    by_width: dict[int, list[str]] = {}
    for name, width in widths.items():
        by_width.setdefault(width, []).append(name)
    if len(by_width) != 1:
        found = "; ".join(f"{width}: {_quote(names)}" for width, names in sorted(by_width.items()))
        raise ModelError(f"{model} multiplies embeddings with each other, so they share one dim; found dim {found}")
    return next(iter(by_width))


def dense_names(schema: Schema) -> list[str]:
    """The names of the dense features, in the order declared."""
    return [feature.name for feature in schema.dense_features]


def dense_width(schema: Schema) -> int:
    """How many numbers a row's dense features are together: one each, or the dim of a vector."""
    return sum(schema.width_of(feature) for feature in schema.dense_features)


def task_names(schema: Schema, model: str) -> list[str]:
    """The names of the tasks. ModelError where there are none."""
    if not schema.tasks:
        raise ModelError(f"{model} gives one logit a task, but the schema declares no tasks; add one with a label")
    return [task.name for task in schema.tasks]


def join_dense(inputs: Inputs, names: Sequence[str], dtype: torch.dtype) -> Tensor:
    """Dense features side by side, in the dtype of the model: [B, 1] and vectors [B, dim] -> [B, I]."""
    return torch.cat([_tensor(inputs, name) for name in names], dim=1).to(dtype)


def stack_fields(inputs: Inputs, names: Sequence[str], dtype: torch.dtype) -> Tensor:
    """Pooled embeddings of one width, in the dtype of the model: F times [B, D] -> [B, F, D]."""
    return stack_features([_tensor(inputs, name) for name in names]).to(dtype)


def by_task(logits_BT: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
    """[B, T] -> [B] by task name."""
    return dict(zip(tasks, logits_BT.unbind(1), strict=True))


def _tensor(inputs: Inputs, name: str) -> Tensor:
    entry = inputs[name]
    assert isinstance(entry, Tensor), f"feature '{name}' arrives as {type(entry).__name__}"  # pooled, says the schema
    return entry


def _quote(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
