"""What the pack functions take and give: a column's Arrow buffers, and what a placement met."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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
    """How many values of a placement were out of the ordinary."""

    missing: int
    """Values that are null, those included that the default stands for."""
    unfit: int
    """Numbers float32 can't stand for: whole ones beyond 2^24, and finite ones beyond its range."""
    long: int = 0
    """Lists of several values where at most one was asked for."""
