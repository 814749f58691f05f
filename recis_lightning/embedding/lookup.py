"""One group's share of a step: ids of its features -> rows -> pooled or sequence tensors, and gradients back to rows.

N ids of all features of the group, B rows of a feature, D row width, K features, M ids of pooled features.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recis_lightning.embedding.check import check_input, describe, explain_offsets
from recis_lightning.embedding.route import Fetched, Request, Route
from recis_lightning.ragged import Ragged
from recis_lightning.ragged_ops import tile, truncate
from recis_lightning.schema import Feature
from recis_lightning.tables import PendingGrad, TableGroup
from recis_lightning.tables.pending import add_by_row
from triton_ops.gather_pool import (
    GradSums,
    JoinedOffsets,
    PooledGrad,
    gather_pool,
    gather_rows,
    join_coefficients,
    join_offsets,
    pool_coefficients,
)


def look_up(
    lookups: Sequence["GroupLookup"], inputs: Mapping[str, Tensor | Ragged], route: Route, anchor: Tensor, insert: bool
) -> Iterator[tuple[str, Tensor | Ragged]]:
    """The output of each feature of all groups, by name; ``anchor`` is a leaf that autograd enters by."""
    for lookup in lookups:
        lookup.group.begin_step()
    calls = [lookup.prepare(inputs) for lookup in lookups]
    fetched = route.fetch([call.request() for call in calls], insert)
    step = _Step(route, calls, fetched, insert)
    outputs = _Gather.apply(anchor, step)
    for call, own in zip(calls, step.split(outputs), strict=True):
        yield from call.named(own)


class GroupLookup:
    """Looks up the features that belong to one group of tables: all of them with one call for each step of the way."""

    def __init__(self, group: TableGroup, features: Sequence[Feature]) -> None:
        self.group = group
        self.features = sorted(features, key=_keeps_rows)
        self.pooled = sum(not _keeps_rows(feature) for feature in features)
        """How many features are summed up; they come first, in the order declared."""
        number = {table.name: table.number for table in group}
        self.tables = [number[str(feature.table)] for feature in self.features]

    def prepare(self, inputs: Mapping[str, Tensor | Ragged]) -> "_Call":
        """What a step needs to know of its inputs; ValueError, naming feature and table, where they don't fit."""
        parts = [_cut(feature, check_input(feature, inputs, self.group.device)) for feature in self.features]
        joined = join_offsets([part.innermost_offsets for part in parts], [len(part.values) for part in parts])
        if joined.misfit is not None:
            explain_offsets(self.features[joined.misfit], parts[joined.misfit])
        if joined.misfits is not None:
            self.group.watch.note("offsets", joined.misfits, self._explain_later)
        if joined.misfits is None:
            return _Call(self, parts, joined, self._coefficients(parts))
        poolings = [feature.pooling for feature in self.features[: self.pooled]]
        weights = [part.weights for part in parts[: self.pooled]]
        return _Call(self, parts, joined, join_coefficients(joined, poolings, weights, self.group.layout.read_dtype))

    def _explain_later(self, feature: int, step: int, _: int) -> ValueError:
        return ValueError(
            f"{describe(self.features[feature])}: at step {step} its offsets did not rise from 0 to the number of its "
            "ids; pass the offsets of these ids"
        )

    def _coefficients(self, parts: Sequence[Ragged]) -> Tensor | None:
        """What each id of the pooled features counts in its row, feature by feature; None where all count 1."""
        dtype, device = self.group.layout.read_dtype, self.group.device
        coefficients = [
            pool_coefficients(part.offsets, feature.pooling, part.weights, dtype, len(part.values))
            for feature, part in zip(self.features[: self.pooled], parts, strict=False)
        ]
        if all(found is None for found in coefficients):
            return None
        ones = (torch.ones(len(part.values), dtype=dtype, device=device) for part in parts)
        return torch.cat([one if found is None else found for found, one in zip(coefficients, ones, strict=False)])


def _keeps_rows(feature: Feature) -> bool:
    """Whether each id's row is an output of its own, and not part of a sum."""
    return feature.pooling in ("none", "tile")


def _cut(feature: Feature, part: Ragged) -> Ragged:
    """What of the ids is looked up: for tile no more than are laid side by side."""
    return part if feature.tile_length is None else truncate(part, feature.tile_length)


def _shape(feature: Feature, part: Ragged, output: Tensor) -> Tensor | Ragged:
    """What a model gets: of rows that were kept a sequence, or a tile."""
    if not _keeps_rows(feature):
        return output
    sequence = part.with_values(output)
    return sequence if feature.tile_length is None else tile(sequence, feature.tile_length)


class _Call(NamedTuple):
    """What one lookup has found out about its inputs."""

    lookup: GroupLookup
    parts: list[Ragged]
    joined: JoinedOffsets
    coefficients_M: Tensor | None

    def request(self) -> Request:
        ids_N = torch.cat([part.values for part in self.parts])
        return Request(self.lookup.group, ids_N, torch.tensor(self.joined.splits), torch.tensor(self.lookup.tables))

    def named(self, outputs: Sequence[Tensor]) -> Iterator[tuple[str, Tensor | Ragged]]:
        """Its outputs by feature."""
        for feature, part, output in zip(self.lookup.features, self.parts, self.features(outputs), strict=True):
            yield feature.name, _shape(feature, part, output)

    def outputs(self) -> int:
        """How many tensors `_Gather` gives for it."""
        blocks = list(self.blocks())
        return sum(1 + end - first for first, end in blocks) + len(self.lookup.features) - self.lookup.pooled

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Runs of pooled features of as many rows, which share one output: first and end; mostly there is one."""
        splits, first = self.joined.offset_splits, 0
        for end in range(1, self.lookup.pooled + 1):
            rows = splits[first + 1] - splits[first]
            if end == self.lookup.pooled or splits[end + 1] - splits[end] != rows:
                yield first, end
                first = end

    def features(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Of the outputs of `_Gather`, those of single features, in the order of features."""
        blocks, sequences = self._split(outputs)
        return [feature for block in blocks for feature in block[1:]] + sequences

    def grads(self, grads: Sequence[Tensor | None]) -> Iterator[tuple[int, int, Tensor]]:
        """Of the gradients of `_Gather`'s outputs, those there are: first feature, end, and [B, K, D] of these."""
        blocks, sequences = self._split(grads)
        for (first, end), (whole, *own) in zip(self.blocks(), blocks, strict=True):
            if whole is not None and all(grad is None for grad in own):
                yield first, end, whole
                continue
            shared = [None] * len(own) if whole is None else whole.unbind(1)
            for feature, one, other in zip(range(first, end), own, shared, strict=True):
                grad = one if other is None else other if one is None else one + other
                if grad is not None:
                    yield feature, feature + 1, grad[:, None]
        for feature, grad in enumerate(sequences, start=self.lookup.pooled):
            if grad is not None:
                yield feature, feature + 1, grad[:, None]

    def _split(self, tensors: Sequence[Any]) -> tuple[list[list[Any]], list[Any]]:
        """What belongs to each block, and to the sequences."""
        blocks, begin = [], 0
        for first, end in self.blocks():
            blocks.append(list(tensors[begin : begin + 1 + end - first]))
            begin += 1 + end - first
        return blocks, list(tensors[begin:])

    def coefficients_of(self, first: int, end: int) -> Tensor | None:
        if self.coefficients_M is None or first >= self.lookup.pooled:
            return None
        return self.coefficients_M[self.joined.splits[first] : self.joined.splits[end]]

    def offsets_of(self, first: int, end: int) -> Tensor:
        """Where the values of these features' outputs begin, [K, B + 1]: those of a row, or in a sequence each id."""
        if first >= self.lookup.pooled:
            begin, stop = self.joined.splits[first], self.joined.splits[end]
            return torch.arange(begin, stop + 1, device=self.joined.offsets.device)[None]
        splits = self.joined.offset_splits
        return self.joined.offsets[splits[first] : splits[end]].view(end - first, -1)


class _Step(NamedTuple):
    """One lookup of all groups."""

    route: Route
    calls: Sequence[_Call]
    fetched: Sequence[Fetched]
    record: bool

    def split(self, tensors: Sequence[Any]) -> list[Sequence[Any]]:
        """What belongs to each group, of what belongs to all."""
        ends = list(accumulate((call.outputs() for call in self.calls), initial=0))
        return [tensors[begin:end] for begin, end in zip(ends, ends[1:], strict=False)]


class _Gather(torch.autograd.Function):
    """Rows to outputs, and backward the outputs' gradients to where the optimizer takes them; all groups at once.

    The outputs are, for each group and each block of its pooled features, one [B, K, D] and its K views [B, D]; then a
    [N, D] for each sequence. So a model may use the features, or all of them as they lie side by side, without a copy
    either way.

    Rows are no parameters, so that no optimizer, no DDP and no state_dict sees them. Autograd is entered through
    ``anchor``, a leaf that requires a gradient and never gets one.
    """

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, step: _Step) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*(fetched.rows for fetched in step.fetched))
        ctx.step, ctx.erasures = step, [call.lookup.group.erasures for call in step.calls]
        ctx.set_materialize_grads(False)
        outputs: list[Tensor] = []
        constant: list[Tensor] = []
        for call, fetched in zip(step.calls, step.fetched, strict=True):
            own = [*_pool(call, fetched), *_sequences(call, fetched)]
            outputs += own
            constant += own if call.lookup.group.is_frozen else []
        ctx.mark_non_differentiable(*constant)
        return tuple(outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[None, ...]:
        _ = ctx.saved_tensors  # raises for a second backward
        step: _Step = ctx.step
        ctx.step = None  # as autograd frees what it has saved: the graph may outlive the step
        for call, erasures in zip(step.calls, ctx.erasures, strict=True):
            if erasures != call.lookup.group.erasures:
                raise RuntimeError(
                    f"{describe(call.lookup.features[0])}: ids were erased or evicted between this lookup and its "
                    "backward, and their rows may be others' by now; erase and evict after the optimizer's step"
                )
        pending = [
            _sum_by_row(call, fetched, own, step.record)
            for call, fetched, own in zip(step.calls, step.fetched, step.split(grads), strict=True)
        ]
        step.route.leave(step.fetched, pending, step.record)
        return None, None


def _pool(call: _Call, fetched: Fetched) -> Iterator[Tensor]:
    group = call.lookup.group
    for first, end in call.blocks():
        offsets_KB1 = call.offsets_of(first, end)
        shape = offsets_KB1.shape[1] - 1, end - first, group.dim
        out = group.buffers.take(shape, group.layout.read_dtype)
        yield gather_pool(fetched.weight, fetched.rows, offsets_KB1, call.coefficients_of(first, end), out)
        yield from out.unbind(1)


def _sequences(call: _Call, fetched: Fetched) -> Iterator[Tensor]:
    """All sequences by one call, each a tensor of its own over the same memory."""
    group, splits = call.lookup.group, call.joined.splits[call.lookup.pooled :]
    if len(splits) < 2:
        return
    begin, end = splits[0], splits[-1]
    out_ND = group.buffers.take((end - begin, group.dim), group.layout.read_dtype)
    gather_rows(fetched.weight, fetched.rows[begin:end], out_ND)
    for first, last in zip(splits[:-1], splits[1:], strict=True):
        # Not as views, which autograd would take for one with the others.
        place = out_ND.storage_offset() + (first - begin) * group.dim
        shape = last - first, group.dim
        yield out_ND.new_empty(0).set_(out_ND.untyped_storage(), place, shape, (group.dim, 1))


def _sum_by_row(call: _Call, fetched: Fetched, grads: Sequence[Tensor | None], record: bool) -> PendingGrad | None:
    """The features' gradients summed by row.

    What no loss depends on has no gradient, and its rows are not touched; as of a parameter without one.
    """
    group, splits = call.lookup.group, call.joined.splits
    found = list(call.grads(grads))
    if not found:
        return None
    used = {feature for first, end, _ in found for feature in range(first, end)}
    unused = [
        slice(splits[feature], splits[feature + 1])
        for feature in range(len(call.lookup.features))
        if feature not in used
    ]
    rows_U, inverse_N = fetched.unique(unused, record)
    parts = [
        PooledGrad(grad, call.offsets_of(first, end), call.coefficients_of(first, end)) for first, end, grad in found
    ]
    counts_U = add_by_row(torch.ones_like(inverse_N), inverse_N, len(rows_U)) if group.averages else None
    tables = frozenset(call.lookup.tables[feature] for feature in used)
    pending = PendingGrad(rows_U, GradSums(parts, inverse_N), tables, counts_U)
    # On a device the optimizer sums them up on its way, and there is no [N, D] of what N ids may have touched.
    return pending if group.is_deferred else pending.summed(group.buffers)
