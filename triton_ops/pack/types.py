"""What the pack functions take and give: a column's Arrow buffers, and what a placement met."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NOWHERE = int(np.iinfo(np.int64).max)
LARGEST_WHOLE = 2**24  # beyond it float32 skips whole numbers


class Column(NamedTuple):
    """Arrow's buffers of one value a row.

    What lies under a null is left over from other data and differs between two reads of the same file: only the bits of
    ``validity`` say what counts.
    """

    values: NDArray[np.generic]
    """int64, float32 or float64."""
    validity: NDArray[np.uint8]
    """One bit a value, lowest first; no bytes where nothing is null."""


class ListColumn(NamedTuple):
    """Arrow's buffers of a list column: row i holds values[offsets[i] : offsets[i + 1]], nothing where it is null."""

    values: NDArray[np.generic]
    value_validity: NDArray[np.uint8]
    offsets: NDArray[np.int32]
    validity: NDArray[np.uint8]


class Scan(NamedTuple):
    """What a placement met: how many values were missing, and where each kind of trouble first shows, or NOWHERE."""

    missing: int
    """Missing values, those included that the default stands for."""
    missing_at: int
    unfit_at: int
    """A number float32 can't stand for: a whole one beyond 2^24, or a finite one beyond its range."""
    long_at: int
    """A list of several values where at most one was asked for."""
