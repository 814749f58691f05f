"""The steps of a feature plan that look at rows, or change them: each transforms all its features in one call.

B batch rows, N values of a feature, K features, M listed ids of all features.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from recis_lightning.features.hashes import find_hashes
from recis_lightning.features.plan import Step
from recis_lightning.features.state import Misfit, State, Values, as_rows, row_of, values_of
from recis_lightning.features.steps import splits_of
from recis_lightning.features.vocabularies import hash_string, read_vocabulary
from recis_lightning.ragged import Ragged
from recis_lightning.schema import (
    Cross,
    Lookup,
    MultiHash,
    Overlap,
    Reduce,
    SequenceGroup,
    TimeGap,
    Truncate,
    Vector,
    Vocabulary,
)
from triton_ops import row_transform as ops
from triton_ops import transform as value_ops


class RowStep(nn.Module):
    """One transform of the rows of some features."""

    launches: ClassVar[int] = 1

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.inputs, self.targets = [call.inputs for call in step.calls], step.targets

    def run(self, state: State) -> None:
        """Put the results into the state; Misfit for the first row that has none."""
        results = self.transform([[state.get(source) for source in inputs] for inputs in self.inputs])
        for target, result in zip(self.targets, results, strict=True):
            state.put(target, result)

    def transform(self, calls: Sequence[Sequence[Values]]) -> list[Values]:
        """The result of each call from its inputs."""
        raise NotImplementedError


def _checks() -> bool:
    """Whether values are looked at: not where a graph is traced."""
    return not torch.compiler.is_compiling()


def _rows(entry: Values) -> ops.Rows:
    """The innermost rows."""
    ragged = as_rows(entry)
    return ops.Rows(ragged.values, ragged.innermost_offsets, ragged.weights)


class MultiHashStep(RowStep):
    """One of several cheap hashes of an id, or all of them in its place."""

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        self.hashes = [find_hashes(each) for each in step.transforms if isinstance(each, MultiHash)]

    def transform(self, calls: Sequence[Sequence[Values]]) -> list[Values]:
        rows = [as_rows(inputs[0]) for inputs in calls]
        hashed = value_ops.multi_hash([each.values for each in rows], self.hashes)
        return [repeat(*each) for each in zip(rows, hashed, map(len, self.hashes), strict=True)]


def repeat(rows: Ragged, values: Tensor, times: int) -> Ragged:
    """So many values in the place of each: [[7], []] with values [1, 2], 2 times -> [[1, 2], []]."""
    if times == 1:
        return rows.with_values(values)
    weights = None if rows.weights is None else rows.weights.repeat_interleave(times)
    if not rows.inner_offsets:
        return Ragged(values, rows.offsets * times, weights)
    return Ragged(values, rows.offsets, weights, (*rows.inner_offsets[:-1], rows.inner_offsets[-1] * times))


class VocabularyStep(RowStep):
    """The place of an id in a list."""

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        lists = [read_vocabulary(call) for call in step.calls]
        orders = [each.argsort() for each in lists]
        self.splits = splits_of(lists)
        self.unknown = [
            0 if each.unknown == "drop" else each.unknown for each in step.transforms if isinstance(each, Vocabulary)
        ]
        pairs = list(zip(lists, orders, strict=True))
        self.register_buffer("sorted_M", torch.cat([ids[order] for ids, order in pairs]), persistent=False)
        self.register_buffer("places_M", torch.cat(orders), persistent=False)

    def transform(self, calls: Sequence[Sequence[Values]]) -> list[Values]:
        rows = [as_rows(inputs[0]) for inputs in calls]
        sorted_M, places_M = cast(Tensor, self.sorted_M), cast(Tensor, self.places_M)
        places = value_ops.vocabulary([each.values for each in rows], sorted_M, places_M, self.splits, self.unknown)
        found = [each.with_values(values) for each, values in zip(rows, places, strict=True)]
        return [
            each if unknown else drop(each, each.values >= 0) for each, unknown in zip(found, self.unknown, strict=True)
        ]


def drop(rows: Ragged, keep_N: Tensor) -> Ragged:
    """The rows with some of their values alone: [[1, 2], [3]] with keep [0, 1, 0] -> [[2], []]."""
    before = torch.cat([keep_N.new_zeros(1, dtype=torch.int64), keep_N.cumsum(0)])
    offsets = before[rows.innermost_offsets]
    weights = None if rows.weights is None else rows.weights[keep_N]
    if not rows.inner_offsets:
        return Ragged(rows.values[keep_N], offsets, weights)
    return Ragged(rows.values[keep_N], rows.offsets, weights, (*rows.inner_offsets[:-1], offsets))


class CrossStep(RowStep):
    """Every combination of ids of two or more inputs."""

    launches = 2  # repeats are dropped, then ids are combined

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        self.max_ids = [each.max_ids for each in step.transforms if isinstance(each, Cross)]

    def transform(self, calls: Sequence[Sequence[Values]]) -> list[Values]:
        try:
            results = ops.cross([[_rows(entry) for entry in inputs] for inputs in calls], self.max_ids)
        except ops.RowError as error:
            most = self.max_ids[error.column]
            need = f"at most max_ids {most}; truncate the inputs, or raise max_ids"
            raise Misfit(error.column, error.found, need, row=error.row) from None
        return [Ragged(*result) for result in results]


class LookupStep(RowStep):
    """What a row's map holds for a key."""

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        self.transforms = [each for each in step.transforms if isinstance(each, Lookup)]
        self.as_number = [call.result.form == "number" for call in step.calls]
        self.keys = [
            hash_string(each.key, kind) if isinstance(each.key, str) and kind else each.key
            for each, kind in ((call.transform, call.values[-2].hashed_by) for call in step.calls)
            if isinstance(each, Lookup)
        ]

    def transform(self, calls: Sequence[Sequence[Values]]) -> list[Values]:
        ids = [self._ids(k, inputs) for k, inputs in enumerate(calls)]
        if _checks():
            for k, inputs in enumerate(calls):
                _check_aligned(k, as_rows(inputs[-2]), as_rows(inputs[-1]))
        places = ops.find_keys([(_rows(each), _rows(inputs[-2])) for each, inputs in zip(ids, calls, strict=True)])
        return [self._take(k, ids[k], as_rows(inputs[-1]).values, places[k]) for k, inputs in enumerate(calls)]

    def _ids(self, k: int, inputs: Sequence[Values]) -> Ragged:
        if self.transforms[k].key is None:
            return as_rows(inputs[0])
        keys = as_rows(inputs[0])
        return as_rows(torch.full((len(keys),), cast(int, self.keys[k]), dtype=torch.int64, device=keys.device))

    def _take(self, k: int, ids: Ragged, values: Tensor, places_N: Tensor) -> Values:
        missing = self.transforms[k].missing
        if missing == "error" and _checks() and bool((places_N < 0).any()):
            place = int((places_N < 0).nonzero()[0])
            found = f"has no key {int(ids.values[place])} in its map"
            need = "every key in it; say missing: <number>, or missing: drop"
            raise Misfit(k, found, need, row=row_of(ids, place))
        fill = missing if isinstance(missing, int | float) else 0
        # One value more, for what is not found.
        padded = torch.cat([values, values.new_full((1,), fill)])
        taken = padded[torch.where(places_N < 0, len(values), places_N)]
        if missing == "drop":
            return drop(ids.with_values(taken), places_N >= 0)
        return taken if self.as_number[k] else ids.with_values(taken)


def _check_aligned(call: int, keys: Ragged, values: Ragged) -> None:
    if len(keys.values) != len(values.values) or not torch.equal(keys.offsets, values.offsets):
        row = int((keys.lengths != values.lengths).nonzero()[0])
        found = f"has {int(keys.lengths[row])} keys and {int(values.lengths[row])} values"
        raise Misfit(call, found, "one value for each key", row=row)


def truncate(entries: Sequence[Ragged], lengths: Sequence[int], keeps: Sequence[str]) -> list[Ragged]:
    """At most so many entries of each outer row, nested ones whole, weights with them; one call for all."""
    jobs: list[tuple[Tensor, Tensor, Tensor]] = []
    shared: dict[tuple[int, int, str], tuple[Tensor, Tensor]] = {}
    for entry, length, keep in zip(entries, lengths, keeps, strict=True):
        # Columns that lie on the same offsets, as those of ids that miss nothing do, are cut by the same.
        starts_B, counts_B = shared.setdefault((id(entry.offsets), length, keep), _cut(entry.offsets, length, keep))
        for inner in entry.inner_offsets:
            jobs.append((inner.diff(), starts_B, counts_B))
            starts_B, counts_B = inner[starts_B], inner[starts_B + counts_B] - inner[starts_B]
        jobs.append((entry.values, starts_B, counts_B))
        if entry.weights is not None:
            jobs.append((entry.weights, starts_B, counts_B))
    pieces = iter(ops.take_ranges(*(list(part) for part in zip(*jobs, strict=True))) if jobs else [])
    return [_join(entry, pieces) for entry in entries]


def _cut(offsets: Tensor, length: int, keep: str) -> tuple[Tensor, Tensor]:
    counts_B = offsets.diff().clamp(max=length)
    return (offsets[1:] - counts_B if keep == "last" else offsets[:-1]), counts_B


def _join(entry: Ragged, pieces: Iterator[ops.Rows]) -> Ragged:
    """A ragged of the pieces of its parts, in the order of the jobs."""
    inner = [next(pieces) for _ in entry.inner_offsets]
    values = next(pieces)
    weights = None if entry.weights is None else next(pieces).values
    outer = inner[0].offsets if inner else values.offsets
    return Ragged(values.values, outer, weights, tuple(ops.to_offsets(lengths.values) for lengths in inner))


class TruncateStep(RowStep):
    """At most so many entries of a row."""

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        transforms = [each for each in step.transforms if isinstance(each, Truncate)]
        self.lengths, self.keeps = [each.length for each in transforms], [each.keep for each in transforms]

    def transform(self, calls: Sequence[Sequence[Values]]) -> list[Values]:
        return [*truncate([as_rows(inputs[0]) for inputs in calls], self.lengths, self.keeps)]


class SequenceStep(nn.Module):
    """Cuts the columns of sequences together, before any feature reads them."""

    def __init__(self, sequences: Sequence[SequenceGroup]) -> None:
        super().__init__()
        self.sequences = tuple(sequences)

    def forward(self, columns: dict[str, Values]) -> dict[str, Values]:
        """All columns, those of sequences cut; ValueError where the columns of one are not equally long in a row."""
        names, lengths, keeps = [], [], []
        for sequence in self.sequences:
            own = [name for name in sequence.columns if name in columns]
            if _checks():
                self._check(sequence, {name: as_rows(columns[name]) for name in own})
            names += own
            lengths += [sequence.length] * len(own)
            keeps += [sequence.keep] * len(own)
        cut = truncate([as_rows(columns[name]) for name in names], lengths, keeps)
        return columns | dict(zip(names, cut, strict=True))

    def _check(self, sequence: SequenceGroup, entries: dict[str, Ragged]) -> None:
        first, *others = entries.items()
        for name, entry in others:
            if torch.equal(first[1].offsets, entry.offsets):
                continue
            lengths = [first[1].lengths, entry.lengths]
            row = int((lengths[0] != lengths[1]).nonzero()[0])
            raise ValueError(
                f"sequence '{sequence.name}': row {row} of the batch has {int(lengths[0][row])} entries in column "
                f"'{first[0]}', but {int(lengths[1][row])} in '{name}'; its columns need one entry each for every event"
            )


class TimeGapStep(RowStep):
    """How long before now."""

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        self.units = [each.unit for each in step.transforms if isinstance(each, TimeGap)]

    def transform(self, calls: Sequence[Sequence[Values]]) -> list[Values]:
        times = [as_rows(inputs[0]) for inputs in calls]
        nows = [self._now(k, times[k], as_rows(inputs[1])) for k, inputs in enumerate(calls)]
        gaps = ops.time_gap([(_rows(each), now) for each, now in zip(times, nows, strict=True)], self.units)
        return [each.with_values(values) for each, values in zip(times, gaps, strict=True)]

    def _now(self, k: int, times: Ragged, now: Ragged) -> Tensor:
        if _checks():
            wrong = (now.lengths != 1) & ((times.lengths > 0) | (now.lengths > 1))
            if bool(wrong.any()):
                row = int(wrong.nonzero()[0])
                found = f"has {int(now.lengths[row])} values of now"
                raise Misfit(k, found, "one; give its column a default, or drop such rows", row=row)
        padded = torch.cat([now.values, now.values.new_zeros(1)])
        return padded[torch.where(now.lengths > 0, now.offsets[:-1], len(now.values))]


class OverlapStep(RowStep):
    """How many ids of one row are in another."""

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        self.measures = [each.measure for each in step.transforms if isinstance(each, Overlap)]

    def transform(self, calls: Sequence[Sequence[Values]]) -> list[Values]:
        counts = ops.count_common([(_rows(inputs[0]), _rows(inputs[1])) for inputs in calls])
        return [self._measure(*each) for each in zip(self.measures, counts, strict=True)]

    def _measure(self, measure: str, counts: tuple[Tensor, Tensor]) -> Tensor:
        common_B, distinct_B = counts
        if measure == "count":
            return common_B.to(torch.float32)
        if measure == "contains":
            return ((common_B == distinct_B) & (distinct_B > 0)).to(torch.float32)
        return common_B.to(torch.float32) / distinct_B.clamp(min=1).to(torch.float32)


class VectorStep(RowStep):
    """Lists of one length as vectors."""

    launches = 0  # the values as they lie, seen as [B, dim]

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        self.transforms = [each for each in step.transforms if isinstance(each, Vector)]

    def transform(self, calls: Sequence[Sequence[Values]]) -> list[Values]:
        return [self._view(k, as_rows(inputs[0])) for k, inputs in enumerate(calls)]

    def _view(self, k: int, rows: Ragged) -> Tensor:
        dim, fill = self.transforms[k].dim, self.transforms[k].fill
        if fill is None:
            if _checks():
                self._check(k, rows, rows.lengths != dim)
            return rows.values.view(-1, dim)
        empty_B = rows.lengths == 0
        if _checks():
            self._check(k, rows, ~empty_B & (rows.lengths != dim))
        vectors = torch.full((len(rows), dim), fill, dtype=rows.values.dtype, device=rows.device)
        return vectors.masked_scatter(~empty_B[:, None], rows.values)

    def _check(self, k: int, rows: Ragged, wrong_B: Tensor) -> None:
        if bool(wrong_B.any()):
            row = int(wrong_B.nonzero()[0])
            hint = "; declare fill for empty ones" if self.transforms[k].fill is None else ""
            raise Misfit(k, f"has {int(rows.lengths[row])} numbers", f"{self.transforms[k].dim}{hint}", row=row)


class ReduceStep(RowStep):
    """One number of a row's several."""

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        transforms = [each for each in step.transforms if isinstance(each, Reduce)]
        self.hows, self.empties = [each.how for each in transforms], [each.empty for each in transforms]

    def transform(self, calls: Sequence[Sequence[Values]]) -> list[Values]:
        rows = [as_rows(inputs[0]) for inputs in calls]
        return [*ops.reduce([ops.Rows(values_of(each), each.offsets) for each in rows], self.hows, self.empties)]
