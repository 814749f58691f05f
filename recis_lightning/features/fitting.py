"""Numbers of transforms, found by looking at data: means, ranges, quantiles, vocabularies.

    fitting = Fitting(schema)
    for batch in batches: fitting.add(batch)
    numbers = fitting.finish()          # {"price": {"0": {"kind": "quantile", "knots": [...]}}}

A transform that comes behind another one that is fitted waits for it: `Fitting.waiting` is then true, and what is found
so far goes into the schema before the next pass.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recis_lightning.features.engine import FeatureEngine, make_steps
from recis_lightning.features.plan import Source, Step, plan_transforms, sources_of
from recis_lightning.features.sketch import QuantileSketch
from recis_lightning.ragged import Ragged
from recis_lightning.schema import (
    Bucketize,
    Feature,
    MinMax,
    Quantile,
    Schema,
    Transform,
    Vocabulary,
    ZScore,
    find_unfitted,
    is_fitted,
)


class ZScoreFitter:
    """Mean and standard deviation (of all values, not of a sample), merged piece by piece in float64 (Chan 1979)."""

    def __init__(self, transform: ZScore) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def add(self, values: NDArray[Any]) -> None:
        numbers = values.astype(np.float64)
        if not len(numbers):
            return
        mean = float(numbers.mean())
        squares, count = float(((numbers - mean) ** 2).sum()), len(numbers)
        total, apart = self.count + count, mean - self.mean
        self.squares += squares + apart * apart * self.count * count / total
        self.mean += apart * count / total
        self.count = total

    def finish(self) -> dict[str, Any]:
        if not self.count or not self.squares > 0 or not np.isfinite(self.squares):
            raise ValueError(f"has {self.count} values around {self.mean:g} that do not vary; drop it, or give a std")
        return {"mean": self.mean, "std": (self.squares / self.count) ** 0.5}


class MinMaxFitter:
    """The least and the largest value."""

    def __init__(self, transform: MinMax) -> None:
        self.low, self.high = np.inf, -np.inf

    def add(self, values: NDArray[Any]) -> None:
        if len(values):
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    def finish(self) -> dict[str, Any]:
        if not self.low < self.high or not np.isfinite(self.high - self.low):
            raise ValueError(f"has values from {self.low:g} to {self.high:g}; drop it, or give low and high")
        return {"low": self.low, "high": self.high}


class QuantileFitter:
    """Values at equal shares: knots for quantile, boundaries for bucketize."""

    def __init__(self, transform: Quantile | Bucketize) -> None:
        self.transform, self.sketch = transform, QuantileSketch()

    def add(self, values: NDArray[Any]) -> None:
        self.sketch.add(values.astype(np.float32))

    def finish(self) -> dict[str, Any]:
        bound = {"rank_error": self.sketch.rank_error / max(1, self.sketch.count)}
        if isinstance(self.transform, Quantile):
            shares = [i / self.transform.count for i in range(self.transform.count + 1)]
            return {"knots": self._find(shares)} | bound
        assert self.transform.quantiles is not None
        shares = [i / self.transform.quantiles for i in range(1, self.transform.quantiles)]
        return {"boundaries": list(dict.fromkeys(self._find(shares)))} | bound

    def _find(self, shares: list[float]) -> list[float]:
        found = [float(value) for value in self.sketch.quantiles(shares)]
        if not np.isfinite(found).all():
            raise ValueError("has infinite values; clip before it, or correct the data")
        return found


class VocabularyFitter:
    """Ids by how often they occur, commonest first, equal ones by number. Counts are exact: memory grows with ids."""

    MERGE_AT = 1 << 22

    def __init__(self, transform: Vocabulary) -> None:
        self.transform = transform
        self._pieces: list[NDArray[np.int64]] = []
        self._pending = 0
        self.ids, self.counts = np.empty(0, np.int64), np.empty(0, np.int64)

    def add(self, values: NDArray[Any]) -> None:
        self._pieces.append(values.astype(np.int64))
        self._pending += len(values)
        if self._pending >= self.MERGE_AT:
            self._merge()

    def _merge(self) -> None:
        ids, counts = np.unique(np.concatenate([np.empty(0, np.int64), *self._pieces]), return_counts=True)
        joined, places = np.unique(np.concatenate([self.ids, ids]), return_inverse=True)
        self.counts = np.bincount(places, np.concatenate([self.counts, counts]), len(joined)).astype(np.int64)
        self.ids, self._pieces, self._pending = joined, [], 0

    def finish(self) -> dict[str, Any]:
        self._merge()
        kept = self.counts >= self.transform.min_count
        ids, counts = self.ids[kept], self.counts[kept]
        order = np.argsort(-counts, kind="stable")[: self.transform.max_size]
        if not len(order):
            raise ValueError(f"has no id that occurs {self.transform.min_count} times; lower min_count")
        return {"values": ids[order].tolist()}


Fitter = ZScoreFitter | MinMaxFitter | QuantileFitter | VocabularyFitter


def _make_fitter(transform: Transform) -> Fitter:
    if isinstance(transform, ZScore):
        return ZScoreFitter(transform)
    if isinstance(transform, MinMax):
        return MinMaxFitter(transform)
    if isinstance(transform, Vocabulary):
        return VocabularyFitter(transform)
    assert isinstance(transform, Quantile | Bucketize)
    return QuantileFitter(transform)


class Fitting(FeatureEngine):
    """One pass: runs the transforms that lie before those to fit, and looks at what comes out of them."""

    def __init__(self, schema: Schema) -> None:
        nn.Module.__init__(self)
        self._prepare(schema)
        ready = _ready(schema)
        self.targets = {name: index for name, index in ready.items() if index < len(schema.feature(name).transforms)}
        self.waiting = len(list(find_unfitted(schema.features))) > len(self.targets)
        # What the transform to fit gets: what its feature reads, or what the transforms before it have made of that.
        self.source_of = {
            name: Source("feature", name) if index else sources_of(schema, schema.feature(name))[0]
            for name, index in self.targets.items()
        }
        self.plan = tuple(_until(step, ready) for step in plan_transforms(schema) if _until(step, ready).calls)
        self.steps = make_steps(self.plan)
        self.fitters = {name: _make_fitter(schema.feature(name).transforms[at]) for name, at in self.targets.items()}

    @torch.no_grad()
    def add(self, batch: Mapping[str, Tensor | Ragged]) -> None:
        """Look at a batch."""
        state = self.run(batch)
        for name, fitter in self.fitters.items():
            fitter.add(state.values[self.source_of[name]].numpy())

    def finish(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The numbers of each transform, by feature and by its place; ValueError lists those that can't be fitted."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        problems = []
        for feature in self.features:
            if feature.name not in self.fitters:
                continue
            index = self.targets[feature.name]
            kind = feature.transforms[index].kind
            try:
                found[feature.name] = {str(index): {"kind": kind, **self.fitters[feature.name].finish()}}
            except ValueError as error:
                problems.append(f"feature '{feature.name}', transforms[{index}] ({kind}): {error}")
        if problems:
            raise ValueError("\n".join(problems))
        return found


def _ready(schema: Schema) -> dict[str, int]:
    """How many of a feature's transforms can run, for features all of whose inputs can."""
    ready: dict[str, int] = {}

    def count(feature: Feature) -> int | None:
        inputs = [each for each in schema.inputs_of(feature) if isinstance(each, Feature)]
        for each in inputs:
            if count(each) != len(each.transforms):
                return None
        places = (at for at, transform in enumerate(feature.transforms) if not is_fitted(transform))
        ready[feature.name] = next(places, len(feature.transforms))
        return ready[feature.name]

    for feature in schema.features:
        count(feature)
    return ready


def _until(step: Step, ready: Mapping[str, int]) -> Step:
    """The calls of a step that can run."""
    calls = tuple(call for call in step.calls if call.index < ready.get(call.feature.name, 0))
    return Step(kind=step.kind, depth=step.depth, dtype=step.dtype, calls=calls)
