"""The steps of a feature plan that take values one by one and leave rows alone: all features of one in one call.

N values of a feature, K features, M boundaries or knots of all features.
"""

import abc
import itertools
from collections.abc import Sequence, Sized
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from recis_lightning.features.plan import Step, integer_boundaries, integer_bounds
from recis_lightning.features.state import Misfit, State
from recis_lightning.schema import Bucketize, Clip, Cross, Hash, MinMax, Modulo, Quantile, ZScore
from triton_ops import transform as ops

NUMBERS = "numbers; a missing value is a default of its column, not NaN"


class ValueStep(nn.Module, abc.ABC):
    """One transform of every value of some features."""

    launches: ClassVar[int] = 1
    need: ClassVar[str] = ""
    """What it needs of the numbers it looks at, for messages."""
    finite: ClassVar[bool] = False
    """Whether infinity is refused too, not NaN alone."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.dtype = step.dtype
        self.looks_at: Literal["inputs", "outputs"] | None = "outputs" if self.need else None
        self.sources, self.targets = step.sources, step.targets
        self.moves = [pair for pair in zip(self.sources, self.targets, strict=True) if pair[0] != pair[1]]

    @property
    def needs(self) -> list[tuple[int, str]]:
        """The looks it takes at its values, in the order of their notes in a graph: which call's, and what it needs."""
        return [] if self.looks_at is None else [(call, self.need) for call in range(len(self.sources))]

    def run(self, state: State) -> None:
        """Put the results into the state; Misfit for the first value that has none."""
        inputs = [state.values[source] for source in self.sources]
        outputs = self.transform(inputs)
        if self.looks_at is not None:
            looked_at = inputs if self.looks_at == "inputs" else outputs
            if torch.compiler.is_compiling():
                for source, values in zip(self.sources, looked_at, strict=True):
                    state.note(~values.isfinite() if self.finite else values.isnan(), state.rows[source])
            elif (misfit := ops.find_unfit(looked_at, self.finite)) is not None:
                call, place = misfit
                raise Misfit(call, f"gives {inputs[call][place].item()}", self.need, place=place)
        state.values.update(zip(self.targets, outputs, strict=True))
        for source, target in self.moves:
            state.rows[target] = state.rows[source]

    @abc.abstractmethod
    def transform(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The result of each call from its input."""

    def keep_numbers(self, name: str, numbers: Tensor) -> None:
        # As bits, since Module.half() and precision bf16-true would move numbers that are kept as floats.
        bits = numbers.view(torch.int32) if numbers.is_floating_point() else numbers
        self.register_buffer(name, bits, persistent=False)

    def kept_floats(self, name: str) -> Tensor:
        return cast(Tensor, getattr(self, name)).view(torch.float32)


def splits_of(parts: Sequence[Sized]) -> list[int]:
    return list(itertools.accumulate(map(len, parts), initial=0))


def _floats(inputs: Sequence[Tensor]) -> list[Tensor]:
    return [values.to(torch.float32) for values in inputs]


class Log1pStep(ValueStep):
    """log(1 + x), float32."""

    need = "numbers above -1; clip before it, or correct the data"
    finite = True

    def transform(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return ops.log1p(inputs)


class ClipStep(ValueStep):
    """min(max(x, low), high) in the dtype of the values."""

    need = NUMBERS

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        if step.dtype == torch.int64:
            self.looks_at = None
        self.bounds: list[tuple[float | None, float | None]] = [
            integer_bounds(each) if step.dtype == torch.int64 else (each.low, each.high)
            for each in step.transforms
            if isinstance(each, Clip)
        ]

    def transform(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return ops.clip(inputs, self.bounds)


class StandardizeStep(ValueStep):
    """z_score and min_max: (x - shift) / scale, float32."""

    need = "finite numbers; clip before it, or correct the data"
    finite = True

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        pairs = [_shift_and_scale(each) for each in step.transforms if isinstance(each, ZScore | MinMax)]
        self.keep_numbers("shift_scale_K2", torch.tensor(pairs, dtype=torch.float32))

    def transform(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return ops.standardize(_floats(inputs), self.kept_floats("shift_scale_K2"))


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
        self.splits = splits_of(knots)
        self.keep_numbers("knots_M", torch.tensor([knot for each in knots for knot in each], dtype=torch.float32))

    def transform(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return ops.quantile(_floats(inputs), self.kept_floats("knots_M"), self.splits)


class BucketizeStep(ValueStep):
    """How many boundaries a value reaches, int64. Floats are compared in float32, integers as integers."""

    need = NUMBERS

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        self.looks_at = "inputs" if step.dtype == torch.float32 else None
        boundaries: list[Sequence[float]] = [each.boundaries for each in step.transforms if isinstance(each, Bucketize)]
        if step.dtype == torch.int64:
            boundaries = [integer_boundaries(each) for each in boundaries]
        self.splits = splits_of(boundaries)
        self.keep_numbers(
            "boundaries_M", torch.tensor([each for part in boundaries for each in part], dtype=step.dtype)
        )

    def transform(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        kept = cast(Tensor, self.boundaries_M)
        return ops.bucketize(inputs, kept if self.dtype == torch.int64 else kept.view(torch.float32), self.splits)


class ModuloStep(ValueStep):
    """Ids read as unsigned, modulo a divisor."""

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        self.divisors = [each.divisor for each in step.transforms if isinstance(each, Modulo)]
        # What a hash or a cross made is read by nobody but the next transform.
        before = [call.feature.transforms[call.index - 1] if call.index else None for call in step.calls]
        self.in_place = all(isinstance(each, Hash | Cross) for each in before)

    def transform(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        if not self.in_place or torch.compiler.is_compiling():
            return ops.modulo(inputs, self.divisors)
        ops.modulo_(inputs, self.divisors)
        return list(inputs)


class HashStep(ValueStep):
    """The hash of an id's 8 bytes."""

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        self.kinds = [each.algorithm for each in step.transforms if isinstance(each, Hash)]

    def transform(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return ops.hash_ids(inputs, self.kinds)
