"""The steps of a feature plan as modules: each transforms the joined values of its features in one call.

N values of all features of a step, K features, M boundaries of all features; feature k owns values splits[k] to
splits[k + 1].
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from recis_lightning.features.plan import Step, integer_boundaries, integer_bounds
from recis_lightning.schema import Bucketize, Clip, Log1p, Modulo
from triton_ops.transform import bucketize, clip, modulo


class Log1pStep(nn.Module):
    """log(1 + x), float32 [N]."""

    need = "numbers above -1; clip before it, or correct the data"

    def __init__(self, step: Step) -> None:
        super().__init__()

    def forward(self, values_N: Tensor, splits: Sequence[int]) -> Tensor:
        return values_N.to(torch.float32).log1p()

    def first_misfit(self, values_N: Tensor, results_N: Tensor) -> int | None:
        """Where the first value without a result is: NaN, infinity, -1 or below."""
        return _first(results_N, lambda numbers: ~numbers.isfinite())


class ClipStep(nn.Module):
    """min(max(x, low), high) in the dtype of the values, [N]."""

    need = "numbers; a missing value is a default of its column, not NaN"

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.bounds: list[tuple[float | None, float | None]] = [
            integer_bounds(each) if step.dtype == torch.int64 else (each.low, each.high)
            for each in step.transforms
            if isinstance(each, Clip)
        ]

    def forward(self, values_N: Tensor, splits: Sequence[int]) -> Tensor:
        return clip(values_N, splits, self.bounds)

    def first_misfit(self, values_N: Tensor, results_N: Tensor) -> int | None:
        """Where the first NaN is, which clipping lets through."""
        return _first(results_N, torch.isnan) if results_N.is_floating_point() else None


class ModuloStep(nn.Module):
    """Ids read as unsigned, modulo a divisor, int64 [N]."""

    need = "ids"
    divisors_K: Tensor

    def __init__(self, step: Step) -> None:
        super().__init__()
        divisors = [transform.divisor for transform in step.transforms if isinstance(transform, Modulo)]
        self.register_buffer("divisors_K", torch.tensor(divisors, dtype=torch.int64), persistent=False)

    def forward(self, values_N: Tensor, splits: Sequence[int]) -> Tensor:
        return modulo(values_N, splits, self.divisors_K)

    def first_misfit(self, values_N: Tensor, results_N: Tensor) -> int | None:
        """None: every id has a remainder."""
        return None


class BucketizeStep(nn.Module):
    """How many boundaries a value reaches, int64 [N]. Floats are compared in float32, integers as integers."""

    need = "numbers; a missing value is a default of its column, not NaN"
    boundary_bits_M: Tensor

    def __init__(self, step: Step) -> None:
        super().__init__()
        boundaries = [transform.boundaries for transform in step.transforms if isinstance(transform, Bucketize)]
        if step.dtype == torch.int64:
            boundaries = [tuple(integer_boundaries(each)) for each in boundaries]
        self.dtype = step.dtype
        self.boundary_splits = list(itertools.accumulate(map(len, boundaries), initial=0))
        boundaries_M = torch.tensor([number for each in boundaries for number in each], dtype=step.dtype)
        # As bits, since Module.half() and precision bf16-true would move boundaries kept as floats.
        self.register_buffer("boundary_bits_M", boundaries_M.view(_BITS[step.dtype]), persistent=False)

    def forward(self, values_N: Tensor, splits: Sequence[int]) -> Tensor:
        return bucketize(values_N, splits, self.boundary_bits_M.view(self.dtype), self.boundary_splits)

    def first_misfit(self, values_N: Tensor, results_N: Tensor) -> int | None:
        """Where the first NaN is, which lies in no bucket."""
        return _first(values_N, torch.isnan) if values_N.is_floating_point() else None


def _first(numbers_N: Tensor, is_misfit: Callable[[Tensor], Tensor]) -> int | None:
    # NaN and infinity survive a sum, which is one fast pass; only where they may be is each number looked at.
    if bool(numbers_N.sum().isfinite()):
        return None
    places = is_misfit(numbers_N).nonzero()
    return int(places[0]) if len(places) else None


_BITS = {torch.int64: torch.int64, torch.float32: torch.int32}

AnyStep = Log1pStep | ClipStep | ModuloStep | BucketizeStep


def make_step(step: Step) -> AnyStep:
    """The module that runs a planned step."""
    modules: dict[type, type[AnyStep]] = {
        Log1p: Log1pStep,
        Clip: ClipStep,
        Modulo: ModuloStep,
        Bucketize: BucketizeStep,
    }
    return modules[step.kind](step)
