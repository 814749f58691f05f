"""One group's share of a step: ids of its features -> rows -> pooled or sequence tensors, and gradients back to rows.

N ids of all features of the group, B rows of a feature, D row width, K features, M ids of pooled features.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recis_lightning.embedding.check import check_input, describe, explain_offsets
from recis_lightning.ragged import Ragged
from recis_lightning.schema import Feature
from recis_lightning.tables import PendingGrad, TableGroup
from triton_ops.gather_pool import (
    JoinedOffsets,
    PooledGrad,
    gather_pool,
    join_offsets,
    pool_coefficients,
    pool_grads,
)


class GroupLookup:
    """Looks up the features that belong to one group of tables: all of them with one call for each step of the way."""

    def __init__(self, group: TableGroup, features: Sequence[Feature]) -> None:
        self.group = group
        self.features = sorted(features, key=lambda feature: feature.pooling == "none")
        self.pooled = sum(feature.pooling != "none" for feature in features)
        """How many features are pooled; they come first, in the order declared."""
        number = {table.name: table.number for table in group}
        self.tables = [number[str(feature.table)] for feature in self.features]

    def __call__(
        self, inputs: Mapping[str, Tensor | Ragged], anchor: Tensor, insert: bool
    ) -> Iterator[tuple[str, Tensor | Ragged]]:
        """The output of each of its features, by name."""
        parts = [check_input(feature, inputs) for feature in self.features]
        joined = join_offsets([part.innermost_offsets for part in parts], [len(part.values) for part in parts])
        if joined.misfit is not None:
            explain_offsets(self.features[joined.misfit], parts[joined.misfit])
        ids_N = torch.cat([part.values for part in parts])
        rows_N = self.group.lookup(ids_N, torch.tensor(joined.splits), torch.tensor(self.tables), insert)
        call = _Call(self, joined, self._coefficients(parts), record=insert)
        outputs = call.features(_Gather.apply(anchor, rows_N, call))
        for feature, part, output in zip(self.features, parts, outputs, strict=True):
            yield feature.name, part.with_values(output) if feature.pooling == "none" else output

    def _coefficients(self, parts: Sequence[Ragged]) -> Tensor | None:
        """What each id of the pooled features counts in its row, feature by feature; None where all count 1."""
        coefficients = [
            pool_coefficients(part.offsets, feature.pooling, part.weights, self.group.dtype)
            for feature, part in zip(self.features[: self.pooled], parts, strict=False)
        ]
        if all(found is None for found in coefficients):
            return None
        ones = (torch.ones(len(part.values), dtype=self.group.dtype) for part in parts)
        return torch.cat([one if found is None else found for found, one in zip(coefficients, ones, strict=False)])


class _Call(NamedTuple):
    """What one lookup has found out about its inputs."""

    lookup: GroupLookup
    joined: JoinedOffsets
    coefficients_M: Tensor | None
    record: bool

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
            return torch.arange(self.joined.splits[first], self.joined.splits[end] + 1)[None]
        splits = self.joined.offset_splits
        return self.joined.offsets[splits[first] : splits[end]].view(end - first, -1)


class _Gather(torch.autograd.Function):
    """Rows to outputs, and backward the outputs' gradients to the group's pending ones.

    The outputs are, for each block of pooled features, one [B, K, D] and its K views [B, D]; then a [N, D] for each
    sequence. So a model may use the features, or all of them as they lie side by side, without a copy either way.

    Rows are no parameters, so that no optimizer, no DDP and no state_dict sees them. Autograd is entered through
    ``anchor``, a leaf that requires a gradient and never gets one.
    """

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, rows_N: Tensor, call: _Call) -> tuple[Tensor, ...]:
        ctx.save_for_backward(rows_N)
        ctx.call, ctx.erasures = call, call.lookup.group.erasures
        ctx.set_materialize_grads(False)
        return (*_pool(call, rows_N), *_sequences(call, rows_N))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[None, ...]:
        if ctx.erasures != ctx.call.lookup.group.erasures:
            raise RuntimeError(
                f"{describe(ctx.call.lookup.features[0])}: ids were erased or evicted between this lookup and its "
                "backward, and their rows may be others' by now; erase and evict after the optimizer's step"
            )
        _leave_pending(ctx.call, ctx.saved_tensors[0], grads)
        return None, None, None


def _pool(call: _Call, rows_N: Tensor) -> Iterator[Tensor]:
    group = call.lookup.group
    for first, end in call.blocks():
        offsets_KB1 = call.offsets_of(first, end)
        out = group.buffers.take((offsets_KB1.shape[1] - 1, end - first, group.dim), group.dtype)
        yield gather_pool(group.weight, rows_N, offsets_KB1, call.coefficients_of(first, end), out)
        yield from out.unbind(1)


def _sequences(call: _Call, rows_N: Tensor) -> Iterator[Tensor]:
    group, splits = call.lookup.group, call.joined.splits
    for begin, end in zip(splits[call.lookup.pooled : -1], splits[call.lookup.pooled + 1 :], strict=True):
        out = group.buffers.take((end - begin, group.dim), group.dtype)
        yield torch.index_select(group.weight, 0, rows_N[begin:end], out=out)


def _leave_pending(call: _Call, rows_N: Tensor, grads: Sequence[Tensor | None]) -> None:
    """Sum the features' gradients by row and leave them with the group for the optimizer.

    What no loss depends on has no gradient, and its rows are not touched; as of a parameter without one.
    """
    group, splits = call.lookup.group, call.joined.splits
    found = list(call.grads(grads))
    used = {feature for first, end, _ in found for feature in range(first, end)}
    unused = set(range(len(call.lookup.features))) - used
    if unused:
        rows_N = rows_N.clone()
        for feature in unused:
            rows_N[splits[feature] : splits[feature + 1]] = group.default_row
    rows_U, inverse_N = group.unique_rows(rows_N, call.record)
    parts = [
        PooledGrad(grad, call.offsets_of(first, end), call.coefficients_of(first, end)) for first, end, grad in found
    ]
    grads_UD = pool_grads(parts, inverse_N, group.buffers.take((len(rows_U), group.dim), group.dtype))
    group.leave(PendingGrad(rows_U, grads_UD, frozenset(call.lookup.tables[feature] for feature in used)))
