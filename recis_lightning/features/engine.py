"""FeatureEngine: from the columns of a batch to the inputs of embeddings and models.

B batch rows, N values of a feature.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from recis_lightning.features.plan import Entry, Step, plan_entries, plan_transforms
from recis_lightning.features.steps import AnyStep, make_step
from recis_lightning.ragged import Ragged
from recis_lightning.schema import Feature, Schema, did_you_mean


class FeatureEngine(nn.Module):
    """Run the transforms a schema declares: column c1 of ids [[12], []] with modulo 10 -> feature c1 [[2], []].

    Takes a batch by column name: id columns as Ragged int64, lists of numbers as Ragged float32, all others as float32
    [B]. Gives by feature name: for features of tables and towers Ragged ids int64, with weights where they are
    declared; for dense features float32 [B, 1]. What needs no transform is passed on without a copy.

    Raises ValueError where the batch does not fit the schema, and where a transform has no result for a value: it
    names feature, transform, column and row.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.entries = plan_entries(schema)
        self.features = schema.features
        self.column_of = {feature.name: schema.column_of(feature).name for feature in schema.features}
        self.plan = plan_transforms(schema)
        self.steps = nn.ModuleList(make_step(step) for step in self.plan)

    def forward(self, batch: Mapping[str, Tensor | Ragged]) -> dict[str, Tensor | Ragged]:
        columns = {entry.column: _read(batch, entry) for entry in self.entries}
        values = {name: _values_of(columns[column]) for name, column in self.column_of.items()}
        for step, module in zip(self.plan, self.steps, strict=True):
            self._run(step, cast(AnyStep, module), values, columns)
        return {feature.name: self._finish(feature, values[feature.name], columns) for feature in self.features}

    def _run(
        self, step: Step, module: AnyStep, values: dict[str, Tensor], columns: Mapping[str, Tensor | Ragged]
    ) -> None:
        """Join the values of a step's features, transform them in one call, and cut them apart again."""
        inputs = [values[feature.name] for feature in step.features]
        lengths = [len(each) for each in inputs]
        splits = list(itertools.accumulate(lengths, initial=0))
        joined_N = torch.cat(inputs) if len(inputs) > 1 else inputs[0]
        results_N = module(joined_N, splits)
        if not torch.compiler.is_compiling():
            misfit = module.first_misfit(joined_N, results_N)
            if misfit is not None:
                self._refuse(step, module, joined_N, splits, misfit, columns)
        for feature, part in zip(step.features, results_N.split(lengths), strict=True):
            values[feature.name] = part

    def _refuse(
        self,
        step: Step,
        module: AnyStep,
        joined_N: Tensor,
        splits: Sequence[int],
        place: int,
        columns: Mapping[str, Tensor | Ragged],
    ) -> None:
        index = next(k for k in range(len(step.features)) if place < splits[k + 1])
        feature = step.features[index]
        column = self.column_of[feature.name]
        row = _row_of(columns[column], place - splits[index])
        raise ValueError(
            f"feature '{feature.name}', transforms[{step.depth}] ({step.kind.kind}): "
            f"column '{column}', row {row} of the batch gives {joined_N[place].item()}, need {module.need}"
        )

    def _finish(self, feature: Feature, values: Tensor, columns: Mapping[str, Tensor | Ragged]) -> Tensor | Ragged:
        if feature.is_dense:
            return values[:, None]
        entry = columns[self.column_of[feature.name]]
        if not isinstance(entry, Ragged):  # a number a row, bucketized: one id a row
            return Ragged(values, torch.arange(len(entry) + 1, device=values.device))
        weights = None if feature.weights is None else _weights_for(feature, entry, columns[feature.weights])
        return Ragged(values, entry.offsets, weights, entry.inner_offsets)


def _read(batch: Mapping[str, Tensor | Ragged], entry: Entry) -> Tensor | Ragged:
    if entry.column not in batch:
        hint = did_you_mean(entry.column, batch)
        raise ValueError(f"the batch has no column '{entry.column}', which feature '{entry.reader}' reads{hint}")
    found = batch[entry.column]
    if isinstance(found, Ragged) != entry.is_ragged or _values_of(found).dtype != entry.dtype:
        raise ValueError(
            f"column '{entry.column}' arrives as {type(found).__name__} of {_values_of(found).dtype}, "
            f"need {'Ragged' if entry.is_ragged else 'Tensor'} of {entry.dtype}; was it read with another schema?"
        )
    return found


def _values_of(entry: Tensor | Ragged) -> Tensor:
    return entry.values if isinstance(entry, Ragged) else entry


def _row_of(entry: Tensor | Ragged, place: int) -> int:
    """The outermost row that holds a value."""
    if isinstance(entry, Ragged):
        for offsets in [*reversed(entry.inner_offsets), entry.offsets]:
            place = int(torch.searchsorted(offsets, place, right=True)) - 1
    return place


def _weights_for(feature: Feature, ids: Ragged, weights: Tensor | Ragged) -> Tensor:
    assert isinstance(weights, Ragged)  # _read has seen to it
    pairs = [(ids.offsets, weights.offsets), *zip(ids.inner_offsets, weights.inner_offsets, strict=True)]
    # On other devices counts alone are compared: equality would wait for the device at every batch.
    matches = len(ids.values) == len(weights.values) and all(
        left is right or left.device.type != "cpu" or torch.equal(left, right) for left, right in pairs
    )
    if not matches:
        counts = list(zip(ids.lengths.tolist(), weights.lengths.tolist(), strict=True))
        row = next((row for row, (left, right) in enumerate(counts) if left != right), 0)
        raise ValueError(
            f"feature '{feature.name}': row {row} of the batch has {counts[row][0]} ids in column "
            f"'{feature.column or feature.name}', but {counts[row][1]} weights in '{feature.weights}'; "
            "give one weight to each id"
        )
    return weights.values
