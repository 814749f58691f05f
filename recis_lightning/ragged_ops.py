"""Operations on ragged rows in plain torch, on any device: cut, sort out, join, reduce, and make dense.

All take empty rows, rows of nothing but empty rows, and no rows at all; offsets are int64; weights go where their
values go. Results depend on values and weights differentiably: what is cut away gets a zero gradient.

    truncate([[1, 2, 3], [], [4]], 2)  ->  [[1, 2], [], [4]]

B rows, E entries of the outermost rows, N values, S places of a dense row, D width of a value.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from recis_lightning.ragged import Ragged

Reduction = Literal["sum", "mean", "max", "min"]


def row_of(offsets_B1: Tensor, count: int) -> Tensor:
    """The row of each of ``count`` entries: offsets [0, 2, 2, 3] -> [0, 0, 2]."""
    rows = torch.arange(len(offsets_B1) - 1, device=offsets_B1.device)
    return torch.repeat_interleave(rows, offsets_B1.diff(), output_size=count)


def offsets_of(lengths_B: Tensor) -> Tensor:
    """Where rows of these lengths begin, and where the last one ends: [2, 0, 1] -> [0, 2, 2, 3], int64."""
    return F.pad(lengths_B.to(torch.int64).cumsum(0), (1, 0))


def _entries(ragged: Ragged) -> int:
    """How many entries the outermost rows have: values, or where lists are nested, inner rows."""
    return len(ragged.inner_offsets[0]) - 1 if ragged.inner_offsets else len(ragged.values)


def _take(ragged: Ragged, kept_E: Tensor, offsets_B1: Tensor) -> Ragged:
    """Rows at ``offsets_B1`` over the entries numbered ``kept_E``, with all that lies in them."""
    inner = []
    for offsets in ragged.inner_offsets:
        lengths = offsets.diff()[kept_E]
        ends = offsets_of(lengths)
        # The entries of the next level: those of each kept row, from the row's start on.
        start = offsets[:-1][kept_E] - ends[:-1]
        total = int(ends[-1])
        kept_E = torch.arange(total, device=offsets.device) + torch.repeat_interleave(start, lengths, output_size=total)
        inner.append(ends)
    weights = None if ragged.weights is None else ragged.weights[kept_E]
    return Ragged(ragged.values[kept_E], offsets_B1, weights, tuple(inner))


def _keep(ragged: Ragged, is_kept_E: Tensor) -> Ragged:
    """The rows without the entries that are not kept, in their order."""
    kept = is_kept_E.nonzero()[:, 0]
    return _take(ragged, kept, offsets_of(is_kept_E.to(torch.int64))[ragged.offsets])


def truncate(ragged: Ragged, length: int, side: Literal["left", "right"] = "right") -> Ragged:
    """Cut rows to ``length`` entries, on the side named: [[1, 2, 3], [4]] to 2 -> [[1, 2], [4]]; left [[2, 3], [4]].

    Of nested rows whole inner rows are cut: [[[1], [2, 3], [4]]] to 2 -> [[[1], [2, 3]]]. ValueError for a negative
    length, or another side.
    """
    if length < 0 or side not in ("left", "right"):
        raise ValueError(f"length is {length}, side '{side}'; give at least 0, and left or right")
    count = _entries(ragged)
    row_E = row_of(ragged.offsets, count)
    place_E = torch.arange(count, device=ragged.device)
    if side == "right":
        return _keep(ragged, place_E - ragged.offsets[:-1][row_E] < length)
    return _keep(ragged, ragged.offsets[1:][row_E] - place_E <= length)


def top_k(ragged: Ragged, k: int, scores: Tensor | None = None) -> Ragged:
    """The k entries of each row with the largest scores, the largest first: scores [[.1, .9, .5]], k 2 -> 2nd, 3rd.

    ``scores`` are [E], the weights where none are given; of equal ones the first counts more, NaN more than any number.
    ValueError for a negative k, or scores of another count.
    """
    scores = ragged.weights if scores is None else scores
    count = _entries(ragged)
    if k < 0 or scores is None or scores.shape != (count,):
        found = "no scores and no weights" if scores is None else f"scores {list(scores.shape)}"
        raise ValueError(f"k is {k} with {found} for {count} entries; give k >= 0, and one score an entry")
    row_E = row_of(ragged.offsets, count)
    by_score = scores.argsort(descending=True, stable=True)
    order = by_score[row_E[by_score].argsort(stable=True)]  # rows in turn, and within a row by score
    place_E = torch.arange(count, device=ragged.device) - ragged.offsets[:-1][row_E]
    return _take(ragged, order[place_E < k], offsets_of(ragged.lengths.clamp(max=k)))


def unique(ragged: Ragged, weights: Literal["first", "sum"] = "first") -> Ragged:
    """Each value of a row once, where it first stood: [[5, 7, 5], [5]] -> [[5, 7], [5]].

    A value keeps the weight of its first place, or gets the sum of all of them. ValueError for values that are not [N],
    nested rows, or another rule for weights.
    """
    if ragged.inner_offsets or ragged.values.dim() != 1 or weights not in ("first", "sum"):
        raise ValueError(
            f"values {list(ragged.values.shape)}, {len(ragged.inner_offsets)} inner levels, weights '{weights}'; "
            "give unnested values [N], and first or sum"
        )
    count = len(ragged.values)
    row_N = row_of(ragged.offsets, count)
    by_value = ragged.values.argsort(stable=True)
    order = by_value[row_N[by_value].argsort(stable=True)]
    sorted_values, sorted_rows = ragged.values[order], row_N[order]
    is_new = torch.ones(count, dtype=torch.bool, device=ragged.device)
    is_new[1:] = (sorted_values[1:] != sorted_values[:-1]) | (sorted_rows[1:] != sorted_rows[:-1])
    is_kept = torch.zeros_like(is_new)
    is_kept[order[is_new]] = True
    kept = _keep(ragged, is_kept)
    if ragged.weights is None or weights == "first":
        return kept
    group_N = is_new.to(torch.int64).cumsum(0) - 1
    sums = ragged.weights.new_zeros(len(kept.values)).index_add(0, group_N, ragged.weights[order])
    # The groups are in the order of values, the kept ones in the order of places.
    return Ragged(kept.values, kept.offsets, sums[order[is_new].argsort()])


def concat(parts: Sequence[Ragged], dim: Literal[0, 1] = 1) -> Ragged:
    """Put rows behind rows: dim 1, [[1], [2]] and [[3], []] -> [[1, 3], [2]]; dim 0 -> [[1], [2], [3], []].

    All parts are nested equally deep, have values of one dtype and width, weights or none; along dim 1 they have one
    number of rows. ValueError where they do not.
    """
    if not parts or dim not in (0, 1):
        raise ValueError(f"{len(parts)} parts along dim {dim}; give at least one part, and dim 0 or 1")
    kinds = {
        (len(part.inner_offsets), part.weights is None, part.values.dtype, *part.values.shape[1:]) for part in parts
    }
    rows = {len(part) for part in parts}
    if len(kinds) > 1 or (dim == 1 and len(rows) > 1):
        found = "; ".join(
            f"{len(part)} rows, {len(part.inner_offsets)} inner levels, {part.values.dtype} {list(part.values.shape)}, "
            f"{'no ' if part.weights is None else ''}weights"
            for part in parts
        )
        raise ValueError(f"the parts are unlike: {found}; give parts of one kind, and along dim 1 of as many rows")
    weights = [part.weights for part in parts if part.weights is not None]
    joined = Ragged(
        torch.cat([part.values for part in parts]),
        _join_offsets([part.offsets for part in parts]),
        torch.cat(weights) if weights else None,
        tuple(map(_join_offsets, zip(*(part.inner_offsets for part in parts), strict=True))),
    )
    if dim == 0 or len(parts) == 1:
        return joined
    # Row r of part p is row p * B + r of the joined ones: take the entries in the order of r, then p.
    count, total = len(parts[0]), _entries(joined)
    row_E = row_of(joined.offsets, total)
    order = (row_E % max(count, 1)).argsort(stable=True)
    lengths_B = torch.stack([part.lengths for part in parts]).sum(0)
    return _take(joined, order, offsets_of(lengths_B))


def _join_offsets(parts: Sequence[Tensor]) -> Tensor:
    return offsets_of(torch.cat([offsets.diff() for offsets in parts]))


def segment_reduce(ragged: Ragged, reduction: Reduction = "sum") -> Tensor | Ragged:
    """Make one value of each innermost row: [[1, 2], [], [4]] sum -> [3, 0, 4], mean [1.5, 0, 4], max [2, 0, 4].

    Values are [N, ...]; with weights sum is that of weight * value, and mean divides it by the sum of weights; max and
    min leave weights out. An empty row, and a mean over weights that sum up to 0, give 0. Returns [B, ...], or of
    nested rows a Ragged of one level less. Gradients of max and min are shared evenly among equal values. ValueError
    for another reduction, and for a mean, or weights, of integers.
    """
    if reduction not in ("sum", "mean", "max", "min"):
        raise ValueError(f"there is no reduction '{reduction}'; there are: sum, mean, max, min")
    is_weighted = ragged.weights is not None and reduction in ("sum", "mean")
    if (is_weighted or reduction == "mean") and not ragged.values.is_floating_point():
        raise ValueError(
            f"values are {ragged.values.dtype}, need floats for a mean or with weights; convert them first"
        )
    offsets, values_N = ragged.innermost_offsets, ragged.values
    row_N, rows = row_of(offsets, len(values_N)), len(offsets) - 1
    if is_weighted:
        assert ragged.weights is not None
        values_N = values_N * _spread(ragged.weights.to(values_N.dtype), values_N)
    zeros = values_N.new_zeros(rows, *values_N.shape[1:])
    if reduction in ("max", "min"):
        index = _spread(row_N, values_N).expand_as(values_N)
        reduced = zeros.scatter_reduce(0, index, values_N, "a" + reduction, include_self=False)
    else:
        reduced = zeros.index_add(0, row_N, values_N)
    if reduction == "mean":
        reduced = _divide(reduced, ragged, row_N, offsets)
    if not ragged.inner_offsets:
        return reduced
    return Ragged(reduced, ragged.offsets, None, ragged.inner_offsets[:-1])


def _divide(sums: Tensor, ragged: Ragged, row_N: Tensor, offsets: Tensor) -> Tensor:
    totals = offsets.diff().to(sums.dtype)
    if ragged.weights is not None:
        totals = sums.new_zeros(len(sums)).index_add(0, row_N, ragged.weights.to(sums.dtype))
    # Divided by 1 where there is nothing to divide by: 0 / 0 would put NaN into the gradient, even if it is masked.
    is_empty = totals == 0
    means = sums / _spread(torch.where(is_empty, 1, totals), sums)
    return torch.where(_spread(is_empty, sums), 0, means)


def _spread(tensor_N: Tensor, like: Tensor) -> Tensor:
    """[N] -> [N, 1, ...], to go with ``like``."""
    return tensor_N.reshape(-1, *[1] * (like.dim() - 1))


def to_dense(ragged: Ragged, padding: float = 0, lengths: Sequence[int] | None = None) -> Tensor:
    """Dense [B, S, ...] with ``padding`` behind short rows, one S for each level: [[[1], [2, 3]], []] -> [2, 2, 2].

    S are ``lengths``, outermost first, or the longest rows where none are given. ValueError where a row is longer:
    truncate first.
    """
    levels = (ragged.offsets, *ragged.inner_offsets)
    longest = [int(offsets.diff().max()) if len(offsets) > 1 else 0 for offsets in levels]
    widths = longest if lengths is None else list(lengths)
    if len(widths) != len(levels) or any(found > width for found, width in zip(longest, widths, strict=True)):
        raise ValueError(f"the longest rows of the levels are {longest}, lengths {widths}; truncate first or give more")
    places: list[Tensor] = []
    entry = torch.arange(len(ragged.values), device=ragged.device)
    for offsets in reversed(levels):
        row = row_of(offsets, int(offsets[-1]))[entry]
        places.insert(0, entry - offsets[:-1][row])
        entry = row
    dense = ragged.values.new_full((len(ragged), *widths, *ragged.values.shape[1:]), padding)
    return dense.index_put((entry, *places), ragged.values)


def from_dense(dense: Tensor, padding: float | None = None) -> Ragged:
    """Rows of dense [B, S, ...] without ``padding`` at their ends: [[1, 0, 2, 0], [0, 0, 0, 0]], 0 -> [[1, 0, 2], []].

    Without ``padding`` rows keep all S values. A value of more than one number is padding where all of them are.
    ValueError for fewer than two dimensions.
    """
    if dense.dim() < 2:
        raise ValueError(f"the tensor is {list(dense.shape)}, need [B, S, ...]")
    is_value = torch.ones(dense.shape[:2], dtype=torch.bool, device=dense.device)
    if padding is not None:
        is_value = (dense != padding).flatten(2).any(2) if dense.dim() > 2 else dense != padding
    place = torch.arange(1, dense.shape[1] + 1, device=dense.device)
    lengths_B = (is_value * place).amax(1) if dense.shape[1] else place.new_zeros(len(dense))
    return Ragged.from_padded(dense, lengths_B)


def tile(ragged: Ragged, length: int) -> Tensor:
    """The first ``length`` values of each row side by side, zeros behind: [[1, 2], [3]] to 2 -> [[1, 2], [3, 0]].

    Values are [N, D] or [N]; returns [B, length * D]. For a window at the end of the rows, truncate on the left first.
    """
    if ragged.inner_offsets:
        raise ValueError(
            f"{len(ragged.inner_offsets)} inner levels; tile takes unnested rows, reduce the inner ones first"
        )
    return to_dense(truncate(ragged, length), lengths=[length]).flatten(1)
