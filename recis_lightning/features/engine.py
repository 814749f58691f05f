"""FeatureEngine: from the columns of a batch to the inputs of embeddings and models.

B batch rows, N values of a feature.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from recis_lightning.features.custom_step import CustomStep
from recis_lightning.features.plan import Call, Entry, Source, Step, plan_entries, plan_transforms, sources_of
from recis_lightning.features.row_steps import (
    CrossStep,
    LookupStep,
    MultiHashStep,
    OverlapStep,
    ReduceStep,
    RowStep,
    SequenceStep,
    TimeGapStep,
    TruncateStep,
    VectorStep,
    VocabularyStep,
)
from recis_lightning.features.state import Misfit, State, Values, as_rows, row_of, values_of
from recis_lightning.features.steps import (
    BucketizeStep,
    ClipStep,
    HashStep,
    Log1pStep,
    ModuloStep,
    QuantileStep,
    StandardizeStep,
    ValueStep,
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
        read = {entry.column for entry in self.entries}
        groups = [
            replace(each, columns=tuple(name for name in each.columns if name in read)) for each in schema.sequences
        ]
        self.sequences = SequenceStep([each for each in groups if each.columns])
        inputs = [source for feature in schema.features for source in sources_of(schema, feature)]
        self.inputs = [source for source in dict.fromkeys(inputs) if source.what == "column"]
        pairs = [(feature, Source("feature", feature.name)) for feature in schema.features]
        self.starts = [pair for pair in pairs if not pair[0].inputs]
        self.outputs = [
            (feature.name, source, feature.is_dense, feature.weights is not None)
            for feature, source in pairs
            if not feature.internal
        ]

    def forward(self, batch: Mapping[str, Tensor | Ragged]) -> dict[str, Tensor | Ragged]:
        return self._finish(self.run(batch))

    def graph(self, batch: Mapping[str, Tensor | Ragged]) -> tuple[dict[str, Tensor | Ragged], Tensor]:
        """What `forward` gives, for a graph, which can't stop at a value; and int64 [C] what it would have stopped at.

        Misfit i is the first row that `looks[i]` refuses, or the number of rows where it refuses none.
        """
        state = self.run(batch)
        return self._finish(state), torch.stack(state.misfits) if state.misfits else torch.empty(0, dtype=torch.int64)

    @property
    def looks(self) -> list[tuple[str, str]]:
        """What transforms look at before they give a result: where, and what is needed there."""
        weighted = [feature for feature, _ in self.starts if feature.weights is not None]
        weights = [(f"feature '{each.name}'", f"a weight in '{each.weights}' for each id") for each in weighted]
        transforms = [
            (self._where(step.calls[call]), need)
            for step, module in zip(self.plan, self._typed_steps, strict=True)
            for call, need in module.needs
        ]
        return [*self.sequences.looks, *weights, *transforms]

    @property
    def _typed_steps(self) -> Iterable[ValueStep | RowStep]:
        return cast("Iterable[ValueStep | RowStep]", self.steps)

    def _finish(self, state: State) -> dict[str, Tensor | Ragged]:
        single: dict[int, Tensor] = {}
        return {
            name: _to_dense(state.values[source]) if is_dense else _to_rows(state, source, keeps_weights, single)
            for name, source, is_dense, keeps_weights in self.outputs
        }

    def run(self, batch: Mapping[str, Tensor | Ragged]) -> State:
        """What all features are behind their transforms, internal ones too."""
        state = self._start(batch)
        for step, module in zip(self.plan, self._typed_steps, strict=True):
            try:
                module.run(state)
            except Misfit as misfit:
                raise ValueError(self._describe(step.calls[misfit.call], misfit, state)) from None
        return state

    def _start(self, batch: Mapping[str, Tensor | Ragged]) -> State:
        """The columns, cut where they are sequences, and features that read one: as it, with the weights they name."""
        columns: dict[str, Values] = {entry.column: _read(batch, entry) for entry in self.entries}
        state = State()
        if self.sequences.sequences:
            columns = self.sequences.run(columns, state)
        for source in self.inputs:
            state.put(source, columns[source.name])
        for feature, source in self.starts:
            entry = columns[self.column_of[feature.name]]
            if feature.weights is not None:
                ids, weights = as_rows(entry), columns[feature.weights]
                if torch.compiler.is_compiling():
                    state.note(ids.lengths != as_rows(weights).lengths)
                entry = Ragged(ids.values, ids.offsets, _weights_for(feature, ids, weights), ids.inner_offsets)
            state.put(source, entry)
        return state

    def _describe(self, call: Call, misfit: Misfit, state: State) -> str:
        row = misfit.row if misfit.place is None else row_of(state.rows[call.inputs[0]], misfit.place)
        return f"{self._where(call)}, row {row} of the batch {misfit.found}, need {misfit.need}"

    def _where(self, call: Call) -> str:
        source = " x ".join(self._source(what, name) for what, name in call.inputs)
        return f"feature '{call.feature.name}', transforms[{call.index}] ({call.transform.kind}): {source}"

    def _source(self, what: str, name: str) -> str:
        is_column = what == "column" or name in self.column_of
        return f"column '{self.column_of.get(name, name)}'" if is_column else f"'{name}'"


def _read(batch: Mapping[str, Tensor | Ragged], entry: Entry) -> Tensor | Ragged:
    try:
        found = batch[entry.column]
    except KeyError:
        hint = did_you_mean(entry.column, batch)
        line = f"the batch has no column '{entry.column}', which feature '{entry.reader}' reads{hint}"
        raise ValueError(line) from None
    if isinstance(found, Ragged) is not entry.is_ragged or values_of(found).dtype != entry.dtype:
        raise ValueError(
            f"column '{entry.column}' arrives as {type(found).__name__} of {values_of(found).dtype}, "
            f"need {'Ragged' if entry.is_ragged else 'Tensor'} of {entry.dtype}; was it read with another schema?"
        )
    return found


def _to_dense(values: Tensor) -> Tensor:
    return values[:, None] if values.dim() == 1 else values


def _to_rows(state: State, source: Source, keeps_weights: bool, single: dict[int, Tensor]) -> Ragged:
    """What a table or tower gets; ``single`` keeps the offsets of rows of one value, which many features share."""
    values, rows = state.values[source], state.rows[source]
    if rows is None:
        count = values.shape[0]
        if torch.compiler.is_compiling():  # a number as a key would tie the graph to this number of rows
            return Ragged(values, torch.arange(count + 1, device=values.device))
        if count not in single:
            single[count] = torch.arange(count + 1, device=values.device)
        return Ragged.of_parts(values, single[count])
    if rows.values is values and (keeps_weights or rows.weights is None):
        return rows
    # Weights of an input that were not asked for are left out.
    return Ragged.of_parts(values, rows.offsets, rows.weights if keeps_weights else None, rows.inner_offsets)


def _weights_for(feature: Feature, ids: Ragged, weights: Tensor | Ragged) -> Tensor:
    assert isinstance(weights, Ragged)  # _read has seen to it
    pairs = [(ids.offsets, weights.offsets), *zip(ids.inner_offsets, weights.inner_offsets, strict=True)]
    # On other devices counts alone are compared: equality would wait for the device at every batch. In a graph nothing
    # is: it can't depend on values, and has noted where they differ.
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
