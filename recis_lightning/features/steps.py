"""The steps of a feature plan that take values one by one: each transforms all its features in one call.

N values of a feature, K features, M boundaries, knots or listed ids of all features.
"""

import itertools
from collections.abc import Sequence, Sized
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from recis_lightning.features.hashes import find_hashes
from recis_lightning.features.misfit import Misfit, Values, as_rows, row_of, values_of, with_values
from recis_lightning.features.plan import Step, integer_boundaries, integer_bounds
from recis_lightning.features.vocabularies import read_vocabulary
from recis_lightning.ragged import Ragged
from recis_lightning.schema import Bucketize, Clip, Cross, Hash, MinMax, Modulo, MultiHash, Quantile, Vocabulary, ZScore
from triton_ops import transform as ops

NUMBERS = "numbers; a missing value is a default of its column, not NaN"


class ValueStep(nn.Module):
    """One transform of every value of some features."""

    launches: ClassVar[int] = 1
    need: ClassVar[str] = "ids"

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.dtype = step.dtype

    def forward(self, calls: Sequence[Sequence[Values]]) -> list[Values]:
        entries = [inputs[0] for inputs in calls]
        inputs = [values_of(entry) for entry in entries]
        outputs = self.transform(inputs)
        if not torch.compiler.is_compiling():
            misfit = self.find_misfit(inputs, outputs)
            if misfit is not None:
                call, place = misfit
                raise Misfit(call, row_of(entries[call], place), f"gives {inputs[call][place].item()}", self.need)
        return list(map(self.finish, entries, outputs))

    def transform(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        raise NotImplementedError

    def find_misfit(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[int, int] | None:
        """The first feature and place without a result; None where all have one."""
        return None

    def finish(self, entry: Values, values: Tensor) -> Values:
        return with_values(entry, values)

    def keep_numbers(self, name: str, numbers: Tensor) -> None:
        # As bits, since Module.half() and precision bf16-true would move numbers that are kept as floats.
        bits = numbers.view(torch.int32) if numbers.is_floating_point() else numbers
        self.register_buffer(name, bits, persistent=False)

    def kept_floats(self, name: str) -> Tensor:
        return cast(Tensor, getattr(self, name)).view(torch.float32)


def _splits(parts: Sequence[Sized]) -> list[int]:
    return list(itertools.accumulate(map(len, parts), initial=0))


def _floats(inputs: Sequence[Tensor]) -> list[Tensor]:
    return [values.to(torch.float32) for values in inputs]


class Log1pStep(ValueStep):
    """log(1 + x), float32."""

    need = "numbers above -1; clip before it, or correct the data"

    def transform(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return ops.log1p(inputs)

    def find_misfit(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[int, int] | None:
        return ops.find_unfit(outputs, finite=True)


class ClipStep(ValueStep):
    """min(max(x, low), high) in the dtype of the values."""

    need = NUMBERS

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        self.bounds: list[tuple[float | None, float | None]] = [
            integer_bounds(each) if step.dtype == torch.int64 else (each.low, each.high)
            for each in step.transforms
            if isinstance(each, Clip)
        ]

    def transform(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return ops.clip(inputs, self.bounds)

    def find_misfit(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[int, int] | None:
        return ops.find_unfit(outputs, finite=False) if self.dtype == torch.float32 else None


class StandardizeStep(ValueStep):
    """z_score and min_max: (x - shift) / scale, float32."""

    need = "finite numbers; clip before it, or correct the data"

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        pairs = [_shift_and_scale(each) for each in step.transforms if isinstance(each, ZScore | MinMax)]
        self.keep_numbers("shift_scale_K2", torch.tensor(pairs, dtype=torch.float32))

    def transform(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return ops.standardize(_floats(inputs), self.kept_floats("shift_scale_K2"))

    def find_misfit(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[int, int] | None:
        return ops.find_unfit(outputs, finite=True)


def _shift_and_scale(transform: ZScore | MinMax) -> tuple[float, float]:
    if isinstance(transform, ZScore):
        assert transform.mean is not None  # the engine has seen to it that all is fitted
        assert transform.std is not None
        return transform.mean, transform.std
    assert transform.low is not None
    assert transform.high is not None
    return transform.low, transform.high - transform.low


class QuantileStep(ValueStep):
    """The share of values below, float32."""

    need = NUMBERS

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        knots = [each.knots for each in step.transforms if isinstance(each, Quantile)]
        self.splits = _splits(knots)
        self.keep_numbers("knots_M", torch.tensor([knot for each in knots for knot in each], dtype=torch.float32))

    def transform(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return ops.quantile(_floats(inputs), self.kept_floats("knots_M"), self.splits)

    def find_misfit(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[int, int] | None:
        return ops.find_unfit(outputs, finite=False)


class BucketizeStep(ValueStep):
    """How many boundaries a value reaches, int64. Floats are compared in float32, integers as integers."""

    need = NUMBERS

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        boundaries: list[Sequence[float]] = [each.boundaries for each in step.transforms if isinstance(each, Bucketize)]
        if step.dtype == torch.int64:
            boundaries = [integer_boundaries(each) for each in boundaries]
        self.splits = _splits(boundaries)
        self.keep_numbers(
            "boundaries_M", torch.tensor([each for part in boundaries for each in part], dtype=step.dtype)
        )

    def transform(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        kept = cast(Tensor, self.boundaries_M)
        return ops.bucketize(inputs, kept if self.dtype == torch.int64 else kept.view(torch.float32), self.splits)

    def find_misfit(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[int, int] | None:
        return ops.find_unfit(inputs, finite=False) if self.dtype == torch.float32 else None


class ModuloStep(ValueStep):
    """Ids read as unsigned, modulo a divisor."""

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        self.divisors = [each.divisor for each in step.transforms if isinstance(each, Modulo)]
        # What a hash or a cross made is read by nobody but the next transform.
        before = [call.feature.transforms[call.index - 1] if call.index else None for call in step.calls]
        self.in_place = all(isinstance(each, Hash | Cross) for each in before)

    def transform(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return ops.modulo(inputs, self.divisors, self.in_place)


class HashStep(ValueStep):
    """The hash of an id's 8 bytes."""

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        self.kinds = [each.algorithm for each in step.transforms if isinstance(each, Hash)]

    def transform(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return ops.hash_ids(inputs, self.kinds)


class MultiHashStep(ValueStep):
    """One of several cheap hashes of an id, or all of them in its place."""

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        self.hashes = [find_hashes(each) for each in step.transforms if isinstance(each, MultiHash)]

    def transform(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return ops.multi_hash(inputs, self.hashes)

    def finish(self, entry: Values, values: Tensor) -> Values:
        entry = as_rows(entry)
        times = len(values) // max(1, len(entry.values))
        if times <= 1:
            return Ragged(values, entry.offsets, entry.weights, entry.inner_offsets)
        weights = None if entry.weights is None else entry.weights.repeat_interleave(times)
        if not entry.inner_offsets:
            return Ragged(values, entry.offsets * times, weights)
        return Ragged(values, entry.offsets, weights, (*entry.inner_offsets[:-1], entry.inner_offsets[-1] * times))


class VocabularyStep(ValueStep):
    """The place of an id in a list."""

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        lists = [read_vocabulary(call) for call in step.calls]
        orders = [each.argsort() for each in lists]
        self.splits = _splits(lists)
        self.unknown = [
            0 if each.unknown == "drop" else each.unknown for each in step.transforms if isinstance(each, Vocabulary)
        ]
        pairs = list(zip(lists, orders, strict=True))
        self.register_buffer("sorted_M", torch.cat([ids[order] for ids, order in pairs]), persistent=False)
        self.register_buffer("places_M", torch.cat(orders), persistent=False)

    def transform(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        sorted_M, places_M = cast(Tensor, self.sorted_M), cast(Tensor, self.places_M)
        return ops.vocabulary(inputs, sorted_M, places_M, self.splits, self.unknown)

    def finish(self, entry: Values, values: Tensor) -> Values:
        return as_rows(entry).with_values(values)

    def forward(self, calls: Sequence[Sequence[Values]]) -> list[Values]:
        results = super().forward(calls)
        return [
            drop(result, values_of(result) >= 0) if unknown == 0 and isinstance(result, Ragged) else result
            for result, unknown in zip(results, self.unknown, strict=True)
        ]


def drop(rows: Ragged, keep_N: Tensor) -> Ragged:
    """The rows with some of their values alone: [[1, 2], [3]] with keep [0, 1, 0] -> [[2], []]."""
    before = torch.cat([keep_N.new_zeros(1, dtype=torch.int64), keep_N.cumsum(0)])
    offsets = before[rows.innermost_offsets]
    weights = None if rows.weights is None else rows.weights[keep_N]
    if not rows.inner_offsets:
        return Ragged(rows.values[keep_N], offsets, weights)
    return Ragged(rows.values[keep_N], rows.offsets, weights, (*rows.inner_offsets[:-1], offsets))
