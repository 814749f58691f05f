"""The plan of a schema's transforms, made once: which features go through which kind of transform together.

A feature's transforms run in the order declared. Those at one depth that are of one kind and take one dtype run as one
call: 26 features that begin with a modulo are one step. A single feature is a group of one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from recis_lightning.schema import Bucketize, Clip, Column, Feature, Log1p, Modulo, Schema, Transform


@dataclass(frozen=True, kw_only=True)
class Step:
    """One call: transforms of one kind, for one or more features whose values have one dtype."""

    kind: type[Transform]
    depth: int
    """Which of a feature's transforms, from 0."""
    dtype: torch.dtype
    """What the values are before it: int64 or float32."""
    features: tuple[Feature, ...]
    transforms: tuple[Transform, ...]
    """One for each feature."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a batch must hold for a column that features read."""

    column: str
    reader: str
    """The first feature that reads it."""
    dtype: torch.dtype
    is_ragged: bool
    """Ids, lists and weights are Ragged; one number a row is a tensor [B]."""


def plan_entries(schema: Schema) -> tuple[Entry, ...]:
    """The batch entries that all features read, in the order of the columns."""
    readers: dict[str, str] = {}
    for feature in schema.features:
        for name in (feature.column or feature.name, feature.weights):
            if name is not None:
                readers.setdefault(name, feature.name)
    weights = {feature.weights for feature in schema.features}
    return tuple(
        Entry(
            column=column.name,
            reader=readers[column.name],
            dtype=column_dtype(schema, column),
            is_ragged=schema.is_id_column(column.name) or column.layout == "list" or column.name in weights,
        )
        for column in schema.input_columns
    )


def plan_transforms(schema: Schema) -> tuple[Step, ...]:
    """The steps of all features, in an order in which they can run."""
    groups: dict[tuple[int, str, torch.dtype], list[tuple[Feature, Transform]]] = {}
    for feature in schema.features:
        dtype = column_dtype(schema, schema.column_of(feature))
        for depth, transform in enumerate(feature.transforms):
            groups.setdefault((depth, transform.kind, dtype), []).append((feature, transform))
            dtype = result_dtype(transform, dtype)
    return tuple(
        Step(
            kind=type(members[0][1]),
            depth=depth,
            dtype=dtype,
            features=tuple(feature for feature, _ in members),
            transforms=tuple(transform for _, transform in members),
        )
        for (depth, _, dtype), members in sorted(groups.items(), key=lambda group: group[0][0])
    )


def column_dtype(schema: Schema, column: Column) -> torch.dtype:
    """What a batch carries a column as: ids are int64, all else float32."""
    return torch.int64 if schema.is_id_column(column.name) else torch.float32


def result_dtype(transform: Transform, dtype: torch.dtype) -> torch.dtype:
    """What a transform makes of a dtype."""
    if isinstance(transform, Modulo | Bucketize):
        return torch.int64
    return torch.float32 if isinstance(transform, Log1p) else dtype


def integer_bounds(clip: Clip) -> tuple[int | None, int | None]:
    """The integers inside a clip's bounds: low 0.5, high 9.5 -> 1, 9. Clipping integers to them is the same."""
    return None if clip.low is None else math.ceil(clip.low), None if clip.high is None else math.floor(clip.high)


def integer_boundaries(boundaries: Sequence[float]) -> list[int]:
    """The integers that reach boundaries: 0.5, 3 -> 1, 3. An integer reaches both or neither."""
    return [math.ceil(boundary) for boundary in boundaries]
