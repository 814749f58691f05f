"""FeatureEngine: from the columns of a batch to the inputs of embeddings and models.

B batch rows, N values of a feature.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recis_lightning.features.custom_step import CustomStep
from recis_lightning.features.misfit import Misfit, Values, as_rows, values_of
from recis_lightning.features.plan import Call, Entry, Step, plan_entries, plan_transforms
from recis_lightning.features.row_steps import (
    CrossStep,
    LookupStep,
    OverlapStep,
    ReduceStep,
    RowStep,
    SequenceStep,
    TimeGapStep,
    TruncateStep,
    VectorStep,
)
from recis_lightning.features.steps import (
    BucketizeStep,
    ClipStep,
    HashStep,
    Log1pStep,
    ModuloStep,
    MultiHashStep,
    QuantileStep,
    StandardizeStep,
    ValueStep,
    VocabularyStep,
)
from recis_lightning.ragged import Ragged
from recis_lightning.schema import Feature, Schema, did_you_mean, find_unfitted

STEPS: dict[str, type[ValueStep] | type[RowStep]] = {
    "log1p": Log1pStep,
    "clip": ClipStep,
    "z_score": StandardizeStep,
    "min_max": StandardizeStep,
    "quantile": QuantileStep,
    "bucketize": BucketizeStep,
    "modulo": ModuloStep,
    "hash": HashStep,
    "multi_hash": MultiHashStep,
    "vocabulary": VocabularyStep,
    "cross": CrossStep,
    "lookup": LookupStep,
    "truncate": TruncateStep,
    "time_gap": TimeGapStep,
    "overlap": OverlapStep,
    "vector": VectorStep,
    "reduce": ReduceStep,
    "custom": CustomStep,
}


def make_steps(plan: Sequence[Step]) -> nn.ModuleList:
    """The modules that run planned steps."""
    return nn.ModuleList(STEPS[step.kind.kind](step) for step in plan)


class FeatureEngine(nn.Module):
    """Run the transforms a schema declares: column c1 of ids [[12], []] with modulo 10 -> feature c1 [[2], []].

    Takes a batch by column name: id columns as Ragged int64, lists of numbers as Ragged float32, all others as float32
    [B]. Gives by feature name: for features of tables and towers Ragged ids int64, with weights where they are
    declared; for dense features float32 [B, 1], or [B, dim] for vectors. What needs no transform is passed on without a
    copy.

    Raises ValueError where the batch does not fit the schema, and where a transform has no result for a value: it
    names feature, transform, column and row. Raises ValueError when it is made of a schema with a transform that lacks
    its fitted numbers.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        unfitted = list(find_unfitted(schema.features))
        if unfitted:
            hint = "run `recis features fit --config RECIPE`, and name the file it writes in the schema: fits"
            raise ValueError("\n".join([*unfitted, hint]))
        self._prepare(schema)
        self.plan = plan_transforms(schema)
        self.steps = make_steps(self.plan)

    def _prepare(self, schema: Schema) -> None:
        self.entries = plan_entries(schema)
        self.features = schema.features
        self.column_of = {each.name: schema.column_of(each).name for each in schema.features if not each.inputs}
        self.sequences = SequenceStep(schema.sequences)

    def forward(self, batch: Mapping[str, Tensor | Ragged]) -> dict[str, Tensor | Ragged]:
        values = self.run(batch)
        single: dict[int, Tensor] = {}
        return {each.name: _finish(each, values[each.name], single) for each in self.features if not each.internal}

    def run(self, batch: Mapping[str, Tensor | Ragged]) -> dict[str, Values]:
        """What all features are behind their transforms, internal ones too."""
        columns: dict[str, Values] = {entry.column: _read(batch, entry) for entry in self.entries}
        if self.sequences.sequences:
            columns = self.sequences(columns)
        values = {each.name: self._start(each, columns) for each in self.features if not each.inputs}
        for step, module in zip(self.plan, self.steps, strict=True):
            values |= self._run(step, module, {"column": columns, "feature": values})
        return values

    def _start(self, feature: Feature, columns: Mapping[str, Values]) -> Values:
        """The column a feature reads, with the weights it names."""
        entry = columns[self.column_of[feature.name]]
        if feature.column_weights is None:
            return entry
        ids, weights = as_rows(entry), columns[feature.column_weights]
        return Ragged(ids.values, ids.offsets, _weights_for(feature, ids, weights), ids.inner_offsets)

    def _run(self, step: Step, module: Any, known: Mapping[str, Mapping[str, Values]]) -> dict[str, Values]:
        inputs = [[known[what][name] for what, name in call.inputs] for call in step.calls]
        try:
            results = module(inputs)
        except Misfit as misfit:
            raise ValueError(self._describe(step.calls[misfit.call], misfit)) from None
        return {feature.name: result for feature, result in zip(step.features, results, strict=True)}

    def _describe(self, call: Call, misfit: Misfit) -> str:
        source = " x ".join(self._source(what, name) for what, name in call.inputs)
        return (
            f"feature '{call.feature.name}', transforms[{call.index}] ({call.transform.kind}): {source}, "
            f"row {misfit.row} of the batch {misfit.found}, need {misfit.need}"
        )

    def _source(self, what: str, name: str) -> str:
        is_column = what == "column" or name in self.column_of
        return f"column '{self.column_of.get(name, name)}'" if is_column else f"'{name}'"


def _read(batch: Mapping[str, Tensor | Ragged], entry: Entry) -> Tensor | Ragged:
    if entry.column not in batch:
        hint = did_you_mean(entry.column, batch)
        raise ValueError(f"the batch has no column '{entry.column}', which feature '{entry.reader}' reads{hint}")
    found = batch[entry.column]
    if isinstance(found, Ragged) != entry.is_ragged or values_of(found).dtype != entry.dtype:
        raise ValueError(
            f"column '{entry.column}' arrives as {type(found).__name__} of {values_of(found).dtype}, "
            f"need {'Ragged' if entry.is_ragged else 'Tensor'} of {entry.dtype}; was it read with another schema?"
        )
    return found


def _finish(feature: Feature, value: Values, single: dict[int, Tensor]) -> Tensor | Ragged:
    """What the model gets; ``single`` keeps the offsets of rows of one value, which many features share."""
    if feature.is_dense:
        numbers = values_of(value)
        return numbers[:, None] if numbers.dim() == 1 else numbers
    if isinstance(value, Tensor):
        count = value.shape[0]
        if torch.compiler.is_compiling():  # a number as a key would tie the graph to this number of rows
            return Ragged(value, torch.arange(count + 1, device=value.device))
        if count not in single:
            single[count] = torch.arange(count + 1, device=value.device)
        return Ragged(value, single[count])
    rows = value
    if feature.weights is None and rows.weights is not None:  # those of an input, which were not asked for
        return Ragged(rows.values, rows.offsets, None, rows.inner_offsets)
    return rows


def _weights_for(feature: Feature, ids: Ragged, weights: Tensor | Ragged) -> Tensor:
    assert isinstance(weights, Ragged)  # _read has seen to it
    pairs = [(ids.offsets, weights.offsets), *zip(ids.inner_offsets, weights.inner_offsets, strict=True)]
    # On other devices counts alone are compared: equality would wait for the device at every batch. In a graph nothing
    # is: it can't depend on values, and who calls it has compared.
    is_graph = torch.compiler.is_compiling()
    matches = is_graph or (
        len(ids.values) == len(weights.values)
        and all(left is right or left.device.type != "cpu" or torch.equal(left, right) for left, right in pairs)
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
