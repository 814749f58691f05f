"""Pack Arrow's columns: place rows of a stripe into a window's block, then append spans of blocks to a batch.

All of it works on host memory, on the NumPy arrays that lie over Arrow's buffers. The functions trust their callers on
shapes, since they are called for every column of every stripe: rows, places and offsets beyond an array's end would
reach outside its memory. `default` None means that missing stays missing.

R rows of a block, I id columns, F dense columns, L list columns
"""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from triton_ops.dispatch import choose
from triton_ops.pack import cpu, reference
from triton_ops.pack.types import Column, ListColumn, Scan


class Kernels(Protocol):
    """What an implementation of packing offers."""

    def place_singles(
        self,
        column: Column | ListColumn,
        rows: NDArray[np.uint32],  # [n], row numbers in the column
        places: NDArray[np.uint32],  # [n], in [0, R)
        target: NDArray[np.generic],  # [R], int64 or float32
        present: NDArray[np.uint8],  # [R], ones at first; or empty
        default: float | None,
    ) -> Scan:
        """Put a column's rows where they belong: of 7, null, 9 rows 2, 0, 1 to places 0, 1, 2 -> [9, 7, default].

        Where the value is null the target gets the default, or 0, and ``present`` 0 where no default is given. Of a
        list column at most one value a row is expected: a null or empty list, and a null inside, are missing; longer
        lists are counted. Integers go to int64 or float32, floats to float32.
        """

    def place_lengths(
        self,
        column: ListColumn,
        rows: NDArray[np.uint32],  # [n], row numbers in the column
        places: NDArray[np.uint32],  # [n], in [0, R)
        lengths: NDArray[np.int64],  # [R]
    ) -> None:
        """Put the lengths of rows where they belong: of [5, 6], null, [7] rows 2, 0, 1 to places 0, 1, 2 -> 1, 2, 0."""

    def place_lists(
        self,
        column: ListColumn,
        rows: NDArray[np.uint32],  # [n], row numbers in the column
        places: NDArray[np.uint32],  # [n], in [0, R)
        target_offsets: NDArray[np.int64],  # [R] or [R + 1], where each place's values begin in the target
        target: NDArray[np.generic],  # [N], int64 or float32
        default: float | None,
    ) -> Scan:
        """Put the values of rows where they belong: of [5, 6], [7] rows 1, 0 to places 0, 1, offsets 0, 1 -> 7, 5, 6.

        A null inside a list gets the default, or 0, and is counted as missing.
        """

    def count_present(
        self,
        present_IR: NDArray[np.uint8],
        complete_I: NDArray[np.bool_],  # columns that miss nothing; their rows of present are not looked at
        first: int,
        last: int,
        counts_I: NDArray[np.int64],
    ) -> None:
        """Add to ``counts_I`` how many ids rows [first, last) have: present [[1, 0, 1]] -> [2]."""

    def append_rows(
        self,
        ids_IR: NDArray[np.int64],
        present_IR: NDArray[np.uint8],
        complete_I: NDArray[np.bool_],
        dense_FR: NDArray[np.float32],
        first: int,
        last: int,
        words: NDArray[np.int64],  # the batch's buffer as int64
        floats: NDArray[np.float32],  # the same buffer as float32
        values_I: NDArray[np.int64],  # index in words of each column's values
        offsets_I: NDArray[np.int64],  # index in words of each column's offsets; -1: offsets are not written
        dense_F: NDArray[np.int64],  # index in floats of each column
        row: int,  # rows of the batch that are filled already
        filled_I: NDArray[np.int64],  # values of each column that are filled already; counted on
    ) -> None:
        """Append rows [first, last) of a block: ids 5, missing, 6 behind 2 values -> 5, 6 and offsets 2, 3, 3, 4.

        Offsets may be left out (-1) only where none of the batch's rows misses an id.
        """

    def append_lists(
        self,
        offsets_LR: NDArray[np.int64],  # [L, R + 1]
        values: NDArray[np.generic],  # the values of all L columns, one behind the other
        starts_L: NDArray[np.int64],  # where each column's values begin
        first: int,
        last: int,
        words: NDArray[np.int64],  # the batch's buffer as int64
        typed: NDArray[np.generic],  # the same buffer as the dtype of values
        values_L: NDArray[np.int64],  # index in typed of each column's values
        offsets_L: NDArray[np.int64],  # index in words of each column's offsets
        row: int,  # rows of the batch that are filled already
        filled_L: NDArray[np.int64],  # values of each column that are filled already; counted on
    ) -> None:
        """Append rows [first, last) of list columns: [5, 6], [] behind 2 values -> 5, 6 and offsets 2, 4, 4."""


_IMPLEMENTATIONS: dict[str, Kernels] = {"reference": reference, "cpu": cpu}


def kernels() -> Kernels:
    """The implementation that runs: asked for once a window or batch, as asking takes as long as packing a column."""
    return _IMPLEMENTATIONS[choose("pack", torch.device("cpu"))]
