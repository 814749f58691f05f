"""The steps of a feature plan that look at rows, or change them: each transforms all its features in one call.

B batch rows, N values of a feature, K features, M listed ids of all features.
"""

import abc
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple, cast

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


class RowStep(nn.Module, abc.ABC):
    """One transform of the rows of some features."""

    launches: ClassVar[int] = 1

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.inputs, self.targets = [call.inputs for call in step.calls], step.targets

    @property
    def needs(self) -> list[tuple[int, str]]:
        """The looks it takes at its rows, in the order of their notes in a graph: which call's, and what it needs."""
        return []

    def run(self, state: State) -> None:
        """Put the results into the state; Misfit for the first row that has none."""
        calls = [[state.get(source) for source in inputs] for inputs in self.inputs]
        results = self.transform(calls)
        if torch.compiler.is_compiling():
            self.note(state, calls, results)
        for target, result in zip(self.targets, results, strict=True):
            state.put(target, result)

    @abc.abstractmethod
    def transform(self, calls: Sequence[Sequence[Values]]) -> list[Values]:
        """The result of each call from its inputs."""

    def note(self, state: State, calls: Sequence[Sequence[Values]], results: Sequence[Values]) -> None:
        """Note in a graph what `transform` looks at and refuses outside of one."""


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
    places = keep_N.nonzero()[:, 0]  # once for both, so that a graph knows them to be equally many
    weights = None if rows.weights is None else rows.weights[places]
    if not rows.inner_offsets:
        return Ragged(rows.values[places], offsets, weights)
    return Ragged(rows.values[places], rows.offsets, weights, (*rows.inner_offsets[:-1], offsets))


class CrossStep(RowStep):
    """Every combination of ids of two or more inputs."""

    launches = 2  # repeats are dropped, then ids are combined

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        self.max_ids = [each.max_ids for each in step.transforms if isinstance(each, Cross)]

    @property
    def needs(self) -> list[tuple[int, str]]:
        return [(k, self._need(k)) for k in range(len(self.max_ids))]

    def _need(self, k: int) -> str:
        return f"at most max_ids {self.max_ids[k]}; truncate the inputs, or raise max_ids"

    def note(self, state: State, calls: Sequence[Sequence[Values]], results: Sequence[Values]) -> None:
        for result, most in zip(results, self.max_ids, strict=True):
            state.note(as_rows(result).lengths > most)

    def transform(self, calls: Sequence[Sequence[Values]]) -> list[Values]:
        try:
            results = ops.cross([[_rows(entry) for entry in inputs] for inputs in calls], self.max_ids)
        except ops.RowError as error:
            raise Misfit(error.column, error.found, self._need(error.column), row=error.row) from None
        return [Ragged(*result) for result in results]


ONE_VALUE = "one value for each key"
EVERY_KEY = "every key in it; say missing: <number>, or missing: drop"


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

    @property
    def needs(self) -> list[tuple[int, str]]:
        aligned = [(k, ONE_VALUE) for k in range(len(self.transforms))]
        return aligned + [(k, EVERY_KEY) for k, each in enumerate(self.transforms) if each.missing == "error"]

    def note(self, state: State, calls: Sequence[Sequence[Values]], results: Sequence[Values]) -> None:
        for inputs in calls:
            state.note(as_rows(inputs[-2]).lengths != as_rows(inputs[-1]).lengths)
        for k, inputs in enumerate(calls):
            if self.transforms[k].missing == "error":
                ids = self._ids(k, inputs)
                (places_N,) = ops.find_keys([(_rows(ids), _rows(inputs[-2]))])
                state.note(places_N < 0, ids)

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
            raise Misfit(k, found, EVERY_KEY, row=row_of(ids, place))
        fill = missing if isinstance(missing, int | float) else 0
        # One value more, for what is not found.
        padded = torch.cat([values, values.new_full((1,), fill)])
        # In a graph, rows with fewer values than keys have been noted, but it goes on.
        taken = padded[torch.where(places_N < 0, len(values), places_N).clamp(max=len(values))]
        if missing == "drop":
            return drop(ids.with_values(taken), places_N >= 0)
        return taken if self.as_number[k] else ids.with_values(taken)


def _check_aligned(call: int, keys: Ragged, values: Ragged) -> None:
    if len(keys.values) != len(values.values) or not torch.equal(keys.offsets, values.offsets):
        row = int((keys.lengths != values.lengths).nonzero()[0])
        found = f"has {int(keys.lengths[row])} keys and {int(values.lengths[row])} values"
        raise Misfit(call, found, ONE_VALUE, row=row)


class Cut(NamedTuple):
    """Which entries of each row stay."""

    starts_B: Tensor
    counts_B: Tensor


def cut_of(offsets_B1: Tensor, length: int, keep: str) -> Cut:
    """At most so many entries, the last or the first: offsets [0, 3], length 2, last -> starts [1], counts [2]."""
    counts_B = offsets_B1.diff().clamp(max=length)
    return Cut(offsets_B1[1:] - counts_B if keep == "last" else offsets_B1[:-1], counts_B)


def truncate(entries: Sequence[Ragged], cuts: Sequence[Cut]) -> list[Ragged]:
    """The entries of each outer row that stay, nested ones whole, weights with them; one call for all."""
    jobs: list[tuple[Tensor, Tensor, Tensor]] = []
    for entry, (starts_B, counts_B) in zip(entries, cuts, strict=True):
        for inner in entry.inner_offsets:
            jobs.append((inner.diff(), starts_B, counts_B))
            starts_B, counts_B = inner[starts_B], inner[starts_B + counts_B] - inner[starts_B]
        jobs.append((entry.values, starts_B, counts_B))
        if entry.weights is not None:
            jobs.append((entry.weights, starts_B, counts_B))
    pieces = iter(ops.take_ranges(*(list(part) for part in zip(*jobs, strict=True))) if jobs else [])
    return [_join(entry, pieces) for entry in entries]


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
        rows = [as_rows(inputs[0]) for inputs in calls]
        cuts = [cut_of(*each) for each in zip((each.offsets for each in rows), self.lengths, self.keeps, strict=True)]
        return [*truncate(rows, cuts)]


class SequenceStep:
    """Cuts the columns of sequences together, before any feature reads them."""

    def __init__(self, sequences: Sequence[SequenceGroup]) -> None:
        self.sequences = tuple(sequences)

    @property
    def looks(self) -> list[tuple[str, str]]:
        """What it looks at, in the order of its notes in a graph: where, and what is needed there."""
        return [
            (f"sequence '{each.name}'", f"as many entries in column '{name}' as in '{each.columns[0]}'")
            for each in self.sequences
            for name in each.columns[1:]
        ]

    def run(self, columns: Mapping[str, Values], state: State) -> dict[str, Values]:
        """All columns, those of sequences cut; ValueError where the columns of one are not equally long in a row."""
        names: list[str] = []
        cuts: list[Cut] = []
        for sequence in self.sequences:
            own = [as_rows(columns[name]) for name in sequence.columns]
            for name, entry in zip(sequence.columns[1:], own[1:], strict=True):
                if _checks():
                    self._check(sequence, name, own[0], entry)
                else:
                    state.note(own[0].lengths != entry.lengths)
            names += sequence.columns
            # All by the first: they are equally long, and in a graph their sizes are then known to be one.
            cuts += [cut_of(own[0].offsets, sequence.length, sequence.keep)] * len(own)
        cut = truncate([as_rows(columns[name]) for name in names], cuts)
        return {**columns, **dict(zip(names, cut, strict=True))}

    def _check(self, sequence: SequenceGroup, name: str, first: Ragged, entry: Ragged) -> None:
        if torch.equal(first.offsets, entry.offsets):
            return
        lengths = [first.lengths, entry.lengths]
        row = int((lengths[0] != lengths[1]).nonzero()[0])
        raise ValueError(
            f"sequence '{sequence.name}': row {row} of the batch has {int(lengths[0][row])} entries in column "
            f"'{sequence.columns[0]}', but {int(lengths[1][row])} in '{name}'; its columns need one entry each for "
            "every event"
        )


ONE_NOW = "one; give its column a default, or drop such rows"


def _lacks_now(times: Ragged, now: Ragged) -> Tensor:
    return (now.lengths != 1) & ((times.lengths > 0) | (now.lengths > 1))


class TimeGapStep(RowStep):
    """How long before now."""

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        self.units = [each.unit for each in step.transforms if isinstance(each, TimeGap)]

    @property
    def needs(self) -> list[tuple[int, str]]:
        return [(k, ONE_NOW) for k in range(len(self.units))]

    def note(self, state: State, calls: Sequence[Sequence[Values]], results: Sequence[Values]) -> None:
        for times, now in calls:
            state.note(_lacks_now(as_rows(times), as_rows(now)))

    def transform(self, calls: Sequence[Sequence[Values]]) -> list[Values]:
        times = [as_rows(inputs[0]) for inputs in calls]
        nows = [self._now(k, times[k], as_rows(inputs[1])) for k, inputs in enumerate(calls)]
        gaps = ops.time_gap([(_rows(each), now) for each, now in zip(times, nows, strict=True)], self.units)
        return [each.with_values(values) for each, values in zip(times, gaps, strict=True)]

    def _now(self, k: int, times: Ragged, now: Ragged) -> Tensor:
        if _checks():
            wrong = _lacks_now(times, now)
            if bool(wrong.any()):
                row = int(wrong.nonzero()[0])
                found = f"has {int(now.lengths[row])} values of now"
                raise Misfit(k, found, ONE_NOW, row=row)
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

    @property
    def needs(self) -> list[tuple[int, str]]:
        return [(k, self._need(k)) for k in range(len(self.transforms))]

    def _need(self, k: int) -> str:
        return f"{self.transforms[k].dim}{'; declare fill for empty ones' if self.transforms[k].fill is None else ''}"

    def transform(self, calls: Sequence[Sequence[Values]]) -> list[Values]:
        return [self._view(k, as_rows(inputs[0])) for k, inputs in enumerate(calls)]

    def note(self, state: State, calls: Sequence[Sequence[Values]], results: Sequence[Values]) -> None:
        for k, inputs in enumerate(calls):
            state.note(self._misfits(k, as_rows(inputs[0])))

    def _misfits(self, k: int, rows: Ragged) -> Tensor:
        wrong_B = rows.lengths != self.transforms[k].dim
        return wrong_B if self.transforms[k].fill is None else wrong_B & (rows.lengths > 0)

    def _view(self, k: int, rows: Ragged) -> Tensor:
        dim, fill = self.transforms[k].dim, self.transforms[k].fill
        if not _checks():
            return _gather_vectors(rows, dim, 0.0 if fill is None else fill)
        wrong_B = self._misfits(k, rows)
        if bool(wrong_B.any()):
            row = int(wrong_B.nonzero()[0])
            raise Misfit(k, f"has {int(rows.lengths[row])} numbers", self._need(k), row=row)
        if fill is None:
            return rows.values.view(-1, dim)
        vectors = torch.full((len(rows), dim), fill, dtype=rows.values.dtype, device=rows.device)
        return vectors.masked_scatter((rows.lengths > 0)[:, None], rows.values)


def _gather_vectors(rows: Ragged, dim: int, fill: float) -> Tensor:
    """The first numbers of each row, for a graph, which can't know that there are ``dim`` of them."""
    places = torch.arange(dim, device=rows.device)
    padded = torch.cat([rows.values, rows.values.new_full((1,), fill)])
    exists = places < rows.lengths[:, None]
    return padded[torch.where(exists, rows.offsets[:-1, None] + places, len(rows.values))]


class ReduceStep(RowStep):
    """One number of a row's several."""

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        transforms = [each for each in step.transforms if isinstance(each, Reduce)]
        self.hows, self.empties = [each.how for each in transforms], [each.empty for each in transforms]

    def transform(self, calls: Sequence[Sequence[Values]]) -> list[Values]:
        rows = [as_rows(inputs[0]) for inputs in calls]
        return [*ops.reduce([ops.Rows(values_of(each), each.offsets) for each in rows], self.hows, self.empties)]
