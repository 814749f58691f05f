"""Pack Arrow's columns: place rows of a stripe into a window's block, then append spans of blocks to a batch.

All of it works on host memory, for all columns of a kind in one call, which are named by address; whoever calls keeps
them alive meanwhile. The functions trust their callers, since they are called for every stripe and every batch: rows,
places and offsets beyond an array's end would reach outside its memory.

K columns, R rows of a block, P spans of rows of blocks, I id columns, F dense columns, L list columns
"""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from triton_ops.dispatch import choose
from triton_ops.pack import cpu, reference


class Kernels(Protocol):
    """What an implementation of packing offers."""

    def find_buffers(
        self,
        record: int,  # address of a record batch in Arrow's C data interface
        columns_K: NDArray[np.int64],  # which of its columns: numbers, lists of numbers, strings
        slots_K: NDArray[np.int64],  # which rows of the table they fill, all but the kind
        sources: NDArray[np.int64],  # [.., 6], a table of sources
    ) -> bool:
        """Look up where columns lie; False where one is a slice of another, whose bits need not begin at a byte.

        A column of strings is told as their bytes, how many strings there are, and their offsets.
        """

    def place_singles(
        self,
        sources_K6: NDArray[np.int64],  # a table of sources
        rows: NDArray[np.uint32],  # [n], row numbers in the columns
        places: NDArray[np.uint32],  # [n], in [0, R), rising
        targets_K: NDArray[np.int64],  # addresses of [R] of the dtype of the defaults
        presents_K: NDArray[np.int64],  # addresses of uint8 [R], ones at first; 0 where nothing is to be marked
        defaults_K: NDArray[np.generic],  # int64 or float32
    ) -> NDArray[np.int64]:
        """Put rows where they belong: of 7, null, 9 rows 2, 0, 1 to places 0, 1, 2 -> [9, 7, default]; gives scans.

        Where the value is null the target gets the default, and ``present`` 0. Of a list column at most one value a row
        is expected: a null or empty list, and a null inside, are missing; longer lists are counted. Integers go to
        int64 or float32, floats to float32.
        """

    def measure_lists(
        self,
        sources_L6: NDArray[np.int64],  # a table of sources
        rows: NDArray[np.uint32],  # [n], row numbers in the columns
        places: NDArray[np.uint32],  # [n], in [0, R), rising
        lengths_L: NDArray[np.int64],  # addresses of int64 [R]
        starts_L: NDArray[np.int64],  # addresses of int64 [R], each for the address of a row's values
    ) -> NDArray[np.int64]:
        """Say of rows how long they are and where they lie: of [5, 6], null, [7] rows 2, 0, 1 -> lengths 1, 2, 0.

        Gives [L, 2], the sum of the lengths, and how many rows are longer than one. The start of an empty row means
        nothing.
        """

    def place_lists(
        self,
        sources_L6: NDArray[np.int64],  # a table of sources
        rows: NDArray[np.uint32],  # [n], row numbers in the columns
        places: NDArray[np.uint32],  # [n], in [0, R), rising
        targets_L: NDArray[np.int64],  # addresses of room for all values, of the dtype of the defaults
        starts_L: NDArray[np.int64],  # addresses of int64 [R], each for the address of a row's values
        dims_L: NDArray[np.int64],  # 0, or how long every row should be
        defaults_L: NDArray[np.generic],  # int64, float32 or uint8
    ) -> NDArray[np.int64]:
        """Copy rows one behind the other, and say where: of [5, 6], [7] rows 1, 0 -> 7, 5, 6; gives scans.

        Rows of a declared length ``dim`` go to dim times their place instead, with no word where; those of another
        length are left out. A null inside a list gets the default.
        """

    def group_rows(
        self,
        order: NDArray[np.int64],  # [R], a permutation
        bounds: NDArray[np.int64],  # [P + 1], where each of P pieces begins among the R rows, and the end
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """Each piece's rows and their places in the order: 3, 0, 2, 1, bounds 0, 2, 4 -> 0, 1, 1, 0 at 1, 3, 0, 2."""

    def count_present(
        self,
        present_PI: NDArray[np.int64],  # addresses of uint8 [R], 1 where there is an id; 0 where none misses
        spans_P2: NDArray[np.int64],  # rows [first, last) of each span
        counts_I: NDArray[np.int64],
    ) -> None:
        """Add to ``counts_I`` how many ids the spans have: present [[1, 0, 1]], span 0 to 3 -> [2]."""

    def append_rows(
        self,
        ids_PI: NDArray[np.int64],  # addresses of int64 [R]
        present_PI: NDArray[np.int64],  # as for `count_present`
        dense_PF: NDArray[np.int64],  # addresses of float32 [R]
        spans_P2: NDArray[np.int64],  # rows [first, last) of each span
        words: NDArray[np.int64],  # the batch's buffer as int64
        floats: NDArray[np.float32],  # the same buffer as float32
        values_I: NDArray[np.int64],  # index in words of each column's values
        offsets_I: NDArray[np.int64],  # index in words of each column's offsets; -1: offsets are not written
        dense_F: NDArray[np.int64],  # index in floats of each column
    ) -> None:
        """Fill a batch with rows of P spans: ids 5, missing, 6 -> values 5, 6 and offsets 0, 1, 1, 2.

        Offsets may be left out (-1) only where none of the batch's rows misses an id.
        """

    def count_lists(
        self,
        lengths_PL: NDArray[np.int64],  # addresses of int64 [R]
        spans_P2: NDArray[np.int64],  # rows [first, last) of each span
        counts_L: NDArray[np.int64],
    ) -> None:
        """Add to ``counts_L`` how many values the spans' lists have: lengths 2, 1, span 1 to 2 -> [1]."""

    def append_lists(
        self,
        lengths_PL: NDArray[np.int64],  # addresses of int64 [R]
        starts_PL: NDArray[np.int64],  # addresses of int64 [R], each the address of a row's values
        spans_P2: NDArray[np.int64],  # rows [first, last) of each span
        words: NDArray[np.int64],  # the batch's buffer as int64
        typed: NDArray[np.generic],  # the same buffer as int64, float32 or uint8, what the values are
        values_L: NDArray[np.int64],  # index in typed of each column's values
        offsets_L: NDArray[np.int64],  # index in words of each column's offsets
    ) -> None:
        """Fill a batch with the lists of P spans: [5, 6], [] -> values 5, 6 and offsets 0, 2, 2."""


_IMPLEMENTATIONS: dict[str, Kernels] = {"reference": reference, "cpu": cpu}


def kernels() -> Kernels:
    """The implementation that runs: asked for once a window or batch, as asking takes as long as packing a column."""
    return _IMPLEMENTATIONS[choose("pack", torch.device("cpu"))]
