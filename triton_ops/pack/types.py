"""What the pack functions take and give: tables that say where columns lie, and what a placement met.

K columns
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LARGEST_WHOLE = 2**24  # beyond it float32 skips whole numbers

VALUES, COUNT, VALUE_BITS, OFFSETS, BITS, KIND = range(6)
"""Columns of a table of sources, int64 [K, 6]: addresses (0 for what there is not), how many values, and of what kind.

OFFSETS and BITS are those of the rows of a list column, and 0 for one with a value a row."""

KINDS = (np.dtype(np.int64), np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.uint8))
INT64, FLOAT32, FLOAT64, UINT8 = range(4)

MISSING, UNFIT, LONG = range(3)
"""Columns of a table of scans, int64 [K, 3]: how many values of a placement were out of the ordinary.

MISSING are null, those included that the default stands for; UNFIT are numbers float32 can't stand for, whole ones
beyond 2^24 and finite ones beyond its range; LONG are lists of several values where at most one was asked for."""


class Column(NamedTuple):
    """Arrow's buffers of one value a row.

    What lies under a null is left over from other data and differs between two reads of the same file: only the bits of
    ``validity`` say what counts.
    """

    values: NDArray[np.generic]
    """int64, float32, float64 or uint8."""
    validity: NDArray[np.uint8]
    """One bit a value, lowest first; no bytes where nothing is null."""


class ListColumn(NamedTuple):
    """Arrow's buffers of a list column: row i holds values[offsets[i] : offsets[i + 1]], nothing where it is null."""

    values: NDArray[np.generic]
    value_validity: NDArray[np.uint8]
    offsets: NDArray[np.int32]
    validity: NDArray[np.uint8]


def _address(array: NDArray[np.generic]) -> int:
    return array.ctypes.data if len(array) else 0


def describe(columns: Sequence[Column | ListColumn]) -> NDArray[np.int64]:
    """The table of sources, int64 [K, 6], of arrays that must be kept while it is used."""
    rows = []
    for column in columns:
        kind = KINDS.index(column.values.dtype)
        values = _address(column.values), len(column.values)
        if isinstance(column, Column):
            rows.append((*values, _address(column.validity), 0, 0, kind))
        else:
            bits = _address(column.value_validity), _address(column.offsets), _address(column.validity)
            rows.append((*values, *bits, kind))
    return np.array(rows, np.int64).reshape(-1, 6)
