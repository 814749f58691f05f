"""The plan of a schema's transforms, made once: which features go through which kind of transform together.

A feature's transforms run in the order declared, behind those of the features it reads. Those at one depth that are of
one kind and take one dtype run as one call: 26 features that begin with a modulo are one step. A single feature is a
group of one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch

from recis_lightning.schema import Clip, Column, Feature, Schema, Transform, Value


class Source(NamedTuple):
    """A column or a feature: where an input comes from, and a result goes."""

    what: Literal["column", "feature"]
    name: str


@dataclass(frozen=True, kw_only=True)
class Call:
    """One transform of one feature: its part of a step."""

    feature: Feature
    index: int
    """Which of the feature's transforms, from 0."""
    inputs: tuple[Source, ...]
    values: tuple[Value, ...]
    """What the inputs are."""
    result: Value

    @property
    def transform(self) -> Transform:
        return self.feature.transforms[self.index]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One call: transforms of one kind, for one or more features whose values have one dtype."""

    kind: type[Transform]
    depth: int
    """Behind how many other transforms it comes at least: for a feature that reads columns, which of its own it is."""
    dtype: torch.dtype
    """What the values of the first input are before it: int64 or float32."""
    calls: tuple[Call, ...]

    @cached_property
    def sources(self) -> tuple[Source, ...]:
        """The first input of each call."""
        return tuple(call.inputs[0] for call in self.calls)

    @cached_property
    def targets(self) -> tuple[Source, ...]:
        """Where the result of each call goes."""
        return tuple(Source("feature", call.feature.name) for call in self.calls)

    @property
    def features(self) -> tuple[Feature, ...]:
        return tuple(call.feature for call in self.calls)

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """One for each feature."""
        return tuple(call.transform for call in self.calls)


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
        for name in (*(column.name for column in schema.columns_of(feature)), feature.column_weights):
            if name is not None:
                readers.setdefault(name, feature.name)
    weights = {feature.column_weights for feature in schema.features}
    return tuple(
        Entry(
            column=column.name,
            reader=readers[column.name],
            dtype=column_dtype(schema, column),
            is_ragged=schema.is_id_column(column.name) or column.has_rows or column.name in weights,
        )
        for column in schema.input_columns
    )


def plan_transforms(schema: Schema) -> tuple[Step, ...]:
    """The steps of all features, in an order in which they can run."""
    groups: dict[tuple[int, str, torch.dtype], list[Call]] = {}
    for feature in schema.features:
        before, start = schema.values_of(feature), _start_depth(schema, feature)
        inputs: tuple[Source, ...] = sources_of(schema, feature)
        for index, transform in enumerate(feature.transforms):
            values, result = before[index], before[index + 1][0]
            call = Call(feature=feature, index=index, inputs=inputs, values=values, result=result)
            groups.setdefault((start + index, transform.kind, dtype_of(values[0])), []).append(call)
            inputs = (Source("feature", feature.name),)
    return tuple(
        Step(kind=type(calls[0].transform), depth=depth, dtype=dtype, calls=tuple(calls))
        for (depth, _, dtype), calls in sorted(groups.items(), key=lambda group: group[0][0])
    )


def sources_of(schema: Schema, feature: Feature) -> tuple[Source, ...]:
    """Where a feature's first inputs come from. One without inputs starts as its column, weights and all."""
    if not feature.inputs:
        return (Source("feature", feature.name),)
    return tuple(
        Source("feature" if isinstance(each, Feature) else "column", each.name) for each in schema.inputs_of(feature)
    )


def _start_depth(schema: Schema, feature: Feature) -> int:
    if not feature.inputs:
        return 0
    others = [each for each in schema.inputs_of(feature) if isinstance(each, Feature)]
    return max((_start_depth(schema, other) + len(other.transforms) for other in others), default=0)


def dtype_of(value: Value) -> torch.dtype:
    """The dtype of what a value is: ids are int64, bytes uint8, all else float32."""
    return torch.uint8 if value.opaque == "binary" else torch.int64 if value.ids else torch.float32


def column_dtype(schema: Schema, column: Column) -> torch.dtype:
    """What a batch carries a column as: ids are int64, bytes uint8, all else float32."""
    return (
        torch.uint8 if column.dtype == "binary" else torch.int64 if schema.is_id_column(column.name) else torch.float32
    )


def integer_bounds(clip: Clip) -> tuple[int | None, int | None]:
    """The integers inside a clip's bounds: low 0.5, high 9.5 -> 1, 9. Clipping integers to them is the same."""
    low = None if clip.low is None else max(math.ceil(clip.low), -(2**63))
    return low, None if clip.high is None else min(math.floor(clip.high), 2**63 - 1)


def integer_boundaries(boundaries: Sequence[float]) -> list[int]:
    """The integers that reach boundaries: 0.5, 3 -> 1, 3. An integer reaches both or neither."""
    return [math.ceil(boundary) for boundary in boundaries]
