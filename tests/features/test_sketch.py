"""The quantile sketch: exact while small, inside its own bound when large, the same each time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recis_lightning.features.sketch import QuantileSketch

SHARES = [i / 20 for i in range(21)]


def sketch_of(values: np.ndarray, size: int, pieces: int = 7) -> QuantileSketch:
    sketch = QuantileSketch(size)
    for piece in np.array_split(values.astype(np.float32), pieces):
        sketch.add(piece)
    return sketch


def worst_rank_error(sketch: QuantileSketch, values: np.ndarray) -> float:
    """By how much the wanted rank lies outside the ranks that the found value has, in values."""
    found, ordered = sketch.quantiles(SHARES), np.sort(values.astype(np.float32))
    wanted = np.ceil(np.array(SHARES) * len(values))
    first, last = np.searchsorted(ordered, found, "left") + 1, np.searchsorted(ordered, found, "right")
    return float(np.maximum(first - np.maximum(wanted, 1), wanted - last).max())


def test_quantiles_of_few_values_are_those_values():
    sketch = sketch_of(np.array([4, 1, 3, 2]), size=16)
    assert sketch.quantiles([0, 0.25, 0.5, 0.51, 1]).tolist() == [1, 1, 2, 3, 4]
    assert sketch.rank_error == 0


@pytest.mark.parametrize("kind", ["uniform", "normal", "lognormal", "few", "sorted", "falling"])
@pytest.mark.parametrize("count", [100, 5_000, 60_000])
def test_ranks_are_within_the_bound(kind, count):
    random = np.random.default_rng(count)
    draws = {
        "uniform": lambda: random.random(count),
        "normal": lambda: random.standard_normal(count),
        "lognormal": lambda: random.lognormal(0, 3, count),
        "few": lambda: random.integers(0, 5, count),
        "sorted": lambda: np.arange(count),
        "falling": lambda: -np.arange(count),
    }
    values = draws[kind]()
    sketch = sketch_of(values, size=256)
    assert sketch.count == count
    assert worst_rank_error(sketch, values) <= sketch.rank_error
    assert sketch.rank_error <= count * np.log2(max(2, count / 256)) / (2 * 256)


@given(values=st.lists(st.integers(-9, 9), min_size=1, max_size=200), size=st.sampled_from([2, 4, 16]))
def test_least_and_largest_are_exact_and_quantiles_never_fall(values, size):
    sketch = sketch_of(np.array(values), size, pieces=3)
    found = sketch.quantiles(SHARES)
    assert (found[0], found[-1]) == (min(values), max(values))
    assert np.all(np.diff(found) >= 0)
    assert worst_rank_error(sketch, np.array(values)) <= sketch.rank_error


def test_memory_is_bounded():
    sketch = sketch_of(np.random.default_rng(0).random(100_000), size=64, pieces=100)
    assert sum(len(level) for level in sketch._levels if level is not None) <= 64 * 12


def test_no_values_and_nan_are_refused():
    sketch = QuantileSketch()
    with pytest.raises(ValueError, match="there are no values; nothing can be fitted"):
        sketch.quantiles([0.5])
    with pytest.raises(ValueError, match="values hold NaN, which has no rank"):
        sketch.add(np.array([np.nan], np.float32))
