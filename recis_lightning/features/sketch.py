"""Quantiles of a stream in bounded memory, with a bound on their error that is known when they are read.

After Manku, Rajagopalan and Lindsay (1998): full buffers of one weight are merged in pairs, and every second value of
the merged is kept with twice the weight.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float32]


class QuantileSketch:
    """Keeps at most ``size`` values of each weight 1, 2, 4, ...; exact up to ``size`` values.

    Merging two buffers of weight w moves the rank of a value by at most w, so that n values have ranks within
    log2(n / size) / (2 * size) * n: .04 % of 10^9 values by default. No randomness: the same values in the same order
    give the same quantiles.
    """

    def __init__(self, size: int = 1 << 14) -> None:
        self.size = size
        self.count = 0
        self.rank_error = 0
        """By how much a rank may be off, in values."""
        self.low, self.high = np.float32(np.inf), np.float32(-np.inf)
        self._fresh: list[Numbers] = []
        self._fresh_count = 0
        self._levels: list[Numbers | None] = []
        self._odd: list[bool] = []

    def add(self, values_N: Numbers) -> None:
        """Take float32 values in; NaN is refused."""
        if not len(values_N):
            return
        if np.isnan(values_N).any():
            raise ValueError("values hold NaN, which has no rank; declare a default for what is missing")
        self.count += len(values_N)
        self.low, self.high = min(self.low, values_N.min()), max(self.high, values_N.max())
        self._fresh.append(values_N)
        self._fresh_count += len(values_N)
        if self._fresh_count >= self.size:
            fresh = np.concatenate(self._fresh)
            whole = len(fresh) // self.size * self.size
            for start in range(0, whole, self.size):
                self._insert(np.sort(fresh[start : start + self.size]), 0)
            self._fresh, self._fresh_count = [fresh[whole:].copy()], len(fresh) - whole

    def _insert(self, buffer: Numbers, level: int) -> None:
        while len(self._levels) <= level:
            self._levels.append(None)
            self._odd.append(False)
        held = self._levels[level]
        if held is None:
            self._levels[level] = buffer
            return
        self._levels[level] = None
        merged = np.sort(np.concatenate([held, buffer]), kind="stable")
        # By turns the odd and the even ones, so that errors cancel; the bound does not count on it.
        kept = merged[int(self._odd[level]) :: 2]
        self._odd[level] = not self._odd[level]
        self.rank_error += 1 << level
        self._insert(kept, level + 1)

    def quantiles(self, shares: Sequence[float]) -> Numbers:
        """The least value that this share of all values is not above: of 1, 2, 3, 4 for shares 0, .5, 1 -> 1, 2, 4.

        ValueError where there are no values.
        """
        if not self.count:
            raise ValueError("there are no values; nothing can be fitted to them")
        parts = [(np.concatenate(self._fresh), 1)] if self._fresh else []
        parts += [(held, 1 << level) for level, held in enumerate(self._levels) if held is not None]
        values = np.concatenate([part for part, _ in parts])
        weights = np.concatenate([np.full(len(part), weight) for part, weight in parts])
        order = np.argsort(values, kind="stable")
        ranks = np.cumsum(weights[order])
        places = np.searchsorted(ranks, np.ceil(np.asarray(shares) * self.count), side="left")
        found = values[order][np.minimum(places, len(values) - 1)]
        found = np.where(np.asarray(shares) <= 0, self.low, found)
        return np.where(np.asarray(shares) >= 1, self.high, found).astype(np.float32)
