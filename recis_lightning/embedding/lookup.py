"""One group's share of a step: ids of its features -> rows -> pooled or sequence tensors, and gradients back to the rows.

N ids of all features of the group, B rows of a feature, D row width, U unique rows, K features.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recis_lightning.embedding.check import check_input, explain_offsets
from recis_lightning.ragged import Ragged
from recis_lightning.schema import Feature
from recis_lightning.tables import PendingGrad, TableGroup
from triton_ops.gather_pool import PooledGrad, gather_pool, pool_coefficients, pool_grads


def _is_plain(feature: Feature) -> bool:
    """Whether the ids of a row are summed as they are."""
    return feature.pooling == "sum" and feature.weights is None


def _run_of(feature: Feature) -> int:
    """Features are looked up in three runs: plain sums, sums with coefficients, sequences. One torch call serves each."""
    return 2 if feature.pooling == "none" else 0 if _is_plain(feature) else 1


class Joined(NamedTuple):
    """What the features of a group hold, one behind the other."""

    ids_N: Tensor
    splits: list[int]
    """Where each feature's ids begin, and where the last one's end: K + 1."""
    offsets: Tensor
    """The features' offsets, counted from the first id of all: B + 1 of them for each."""
    offset_splits: list[int]
    """Where each feature's offsets begin, and where the last one's end: K + 1."""

    def offsets_of(self, feature: int) -> Tensor:
        return self.offsets[self.offset_splits[feature] : self.offset_splits[feature + 1]]


class GroupLookup:
    """Looks up the features that belong to one group of tables: all of them with one call for each step of the way."""

    def __init__(self, group: TableGroup, features: Sequence[Feature]) -> None:
        self.group = group
        self.features = sorted(features, key=_run_of)
        number = {table.name: table.number for table in group}
        self.tables = [number[str(feature.table)] for feature in self.features]
        self.runs = [sum(_run_of(feature) < run for feature in self.features) for run in range(4)]
        """Where the plain, the weighted and the sequence features begin, and their number."""

    def __call__(
        self, inputs: Mapping[str, Tensor | Ragged], anchor: Tensor, insert: bool
    ) -> Iterator[tuple[str, Tensor | Ragged]]:
        """The output of each of its features, by name."""
        parts = [check_input(feature, inputs) for feature in self.features]
        joined = join(self.features, parts)
        rows_N = self.group.lookup(joined.ids_N, torch.tensor(joined.splits), torch.tensor(self.tables), insert)
        outputs = _Gather.apply(anchor, rows_N, joined, self._coefficients(parts), self, insert)
        for feature, part, output in zip(self.features, parts, outputs, strict=True):
            yield feature.name, part.with_values(output) if feature.pooling == "none" else output

    def _coefficients(self, parts: Sequence[Ragged]) -> Tensor | None:
        """What each id of the weighted features counts in its row, one feature behind the other; None without any."""
        coefficients = []
        for feature, part in list(zip(self.features, parts, strict=True))[self.runs[1] : self.runs[2]]:
            found = pool_coefficients(part.offsets, feature.pooling, part.weights, self.group.dtype)
            assert found is not None, "only a plain sum has none"
            coefficients.append(found)
        return torch.cat(coefficients) if coefficients else None


def join(features: Sequence[Feature], parts: Sequence[Ragged]) -> Joined:
    """Put ids and offsets behind one another; ValueError where a feature's offsets do not fit its ids."""
    splits = [0, *accumulate(len(part.values) for part in parts)]
    offset_splits = [0, *accumulate(len(part.innermost_offsets) for part in parts)]
    offsets = torch.empty(offset_splits[-1], dtype=torch.int64)
    for index, part in enumerate(parts):
        torch.add(part.innermost_offsets, splits[index], out=offsets[offset_splits[index] : offset_splits[index + 1]])
    bounds = torch.tensor([position for end in offset_splits[1:] for position in (end - 1, end)][:-1])
    expected = [position for end in splits[1:] for position in (end, end)][:-1]
    fits = offsets[bounds].tolist() == expected and int(offsets[0]) == 0 and int(offsets.diff().min()) >= 0
    if not fits:
        explain_offsets(features, parts)
    return Joined(torch.cat([part.values for part in parts]), splits, offsets, offset_splits)


class _Gather(torch.autograd.Function):
    """Rows to outputs, and backward the outputs' gradients to the group's pending ones.

    Rows are no parameters, so that no optimizer, no DDP and no state_dict sees them. Autograd is entered through
    ``anchor``, a leaf that requires a gradient and never gets one.
    """

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, rows_N: Tensor, joined: Joined, coefficients: Tensor | None,
                lookup: GroupLookup, record: bool) -> tuple[Tensor, ...]:  # fmt: skip
        ctx.save_for_backward(rows_N, coefficients)
        ctx.joined, ctx.lookup, ctx.record = joined, lookup, record
        ctx.set_materialize_grads(False)
        plain, weighted, sequence, end = lookup.runs
        return (
            *_pool(lookup, joined, rows_N, plain, weighted, None),
            *_pool(lookup, joined, rows_N, weighted, sequence, coefficients),
            *_sequences(lookup, joined, rows_N, sequence, end),
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[None, ...]:
        rows_N, coefficients = ctx.saved_tensors
        leave_pending(ctx.lookup, ctx.joined, rows_N, coefficients, grads, ctx.record)
        return (None,) * 6


def _pool(lookup: GroupLookup, joined: Joined, rows_N: Tensor, first: int, end: int,
          coefficients: Tensor | None) -> Iterator[Tensor]:  # fmt: skip
    """The pooled [B, D] of features ``first`` to ``end``, which all have coefficients or have none."""
    if first == end:
        return
    begin, stop = joined.splits[first], joined.splits[end]
    offsets = joined.offsets[joined.offset_splits[first] : joined.offset_splits[end]]
    # The offsets of two features, B + 1 each, make one empty bag between them: a row of the result that nobody reads.
    pooled = gather_pool(lookup.group.weight, rows_N[begin:stop], offsets - begin if begin else offsets, coefficients)
    starts = [split - joined.offset_splits[first] for split in joined.offset_splits[first : end + 1]]
    for start, next_start in zip(starts, starts[1:], strict=False):
        yield _alone(pooled, start, next_start - 1)


def _sequences(lookup: GroupLookup, joined: Joined, rows_N: Tensor, first: int, end: int) -> Iterator[Tensor]:
    """The embeddings [N, D] of features ``first`` to ``end``, not pooled."""
    if first == end:
        return
    splits = joined.splits[first : end + 1]
    gathered = lookup.group.weight.index_select(0, rows_N[splits[0] : splits[-1]])
    for start, stop in zip(splits, splits[1:], strict=False):
        yield _alone(gathered, start - splits[0], stop - splits[0])


def _alone(tensor: Tensor, begin: int, end: int) -> Tensor:
    """tensor[begin:end] over the same memory, but not as a view.

    Autograd forbids to change one of several views in place, and dropout or relu on a feature's output may do so.
    """
    width = tensor.shape[1]
    return tensor.new_empty(0).set_(tensor.untyped_storage(), begin * width, (end - begin, width), (width, 1))


def leave_pending(lookup: GroupLookup, joined: Joined, rows_N: Tensor, coefficients: Tensor | None,
                  grads: Sequence[Tensor | None], record: bool) -> None:  # fmt: skip
    """Sum the outputs' gradients by row and add them to what the group keeps for the optimizer.

    What no loss depends on has no gradient, and its rows are not touched; as of a parameter without one.
    """
    group = lookup.group
    used = [feature for feature, grad in enumerate(grads) if grad is not None]
    if len(used) < len(grads):
        rows_N = rows_N.clone()
        for feature in set(range(len(grads))).difference(used):
            rows_N[joined.splits[feature] : joined.splits[feature + 1]] = group.default_row
    rows_U, inverse_N = group.unique_rows(rows_N, record)
    parts = []
    for feature in used:
        begin, end = joined.splits[feature], joined.splits[feature + 1]
        offsets, counts = joined.offsets_of(feature), None
        if feature >= lookup.runs[2]:
            offsets = torch.arange(begin, end + 1)
        elif feature >= lookup.runs[1] and coefficients is not None:
            shift = joined.splits[lookup.runs[1]]
            counts = coefficients[begin - shift : end - shift]
        grad = grads[feature]
        assert grad is not None
        parts.append(PooledGrad(grad, offsets, counts))
    grads_UD = pool_grads(parts, inverse_N, group.buffers.take((len(rows_U), group.dim), group.dtype))
    group.pending.append(PendingGrad(rows_U, grads_UD, frozenset(lookup.tables[feature] for feature in used)))
