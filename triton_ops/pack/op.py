"""Pack Arrow's columns: place rows of a stripe into a window's block, then append spans of blocks to a batch.

All of it works on host memory, on the NumPy arrays that lie over Arrow's buffers. Functions trust their callers on
shapes, since they are called for every column of every stripe: positions and offsets beyond an array's end would reach
outside its memory. `positions` are where rows go in the block; `default` None means that missing stays missing.

R rows of a block, I id columns, F dense columns, L list columns
"""

from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray

from triton_ops.dispatch import choose
from triton_ops.pack import cpu, reference
from triton_ops.pack.types import Column, ListColumn, Scan

_IMPLEMENTATIONS: dict[str, ModuleType] = {"reference": reference, "cpu": cpu}
_HOST = torch.device("cpu")


def _implementation() -> ModuleType:
    return _IMPLEMENTATIONS[choose("pack", _HOST)]


def place_values(
    column: Column,
    first: int,
    positions: NDArray[np.int64],  # [n], in [0, R)
    target: NDArray[np.generic],  # [R], int64 or float32
    present: NDArray[np.uint8],  # [R], ones at first; or empty
    default: float | None = None,
) -> Scan:
    """Put rows [first, first + n) where they belong: 7, null, 9 to positions 2, 0, 1 -> [default, 9, 7].

    Under a null the target gets the default, or 0, and ``present`` 0 where no default is given. Integers go to int64 or
    float32, floats to float32.
    """
    return _implementation().place_values(column, first, positions, target, present, default)


def place_optionals(
    column: ListColumn,
    first: int,
    positions: NDArray[np.int64],
    target: NDArray[np.generic],
    present: NDArray[np.uint8],
    default: float | None = None,
) -> Scan:
    """`place_values` of lists of at most one value: [7], [], [9] to positions 2, 0, 1 -> [default, 9, 7].

    A null list, an empty one and a null inside are all missing; longer lists give their first value and are reported.
    """
    return _implementation().place_optionals(column, first, positions, target, present, default)


def place_lengths(
    column: ListColumn,
    first: int,
    positions: NDArray[np.int64],  # [n], in [0, R)
    lengths: NDArray[np.int64],  # [R]
) -> None:
    """Put the lengths of rows [first, first + n) where they belong: [5, 6], null, [7] to 2, 0, 1 -> [0, 1, 2]."""
    _implementation().place_lengths(column, first, positions, lengths)


def place_lists(
    column: ListColumn,
    first: int,
    positions: NDArray[np.int64],  # [n], in [0, R)
    target_offsets: NDArray[np.int64],  # [R] or [R + 1], where each row's values begin in the target
    target: NDArray[np.generic],  # [N], int64 or float32
    default: float | None = None,
) -> Scan:
    """Put the values of rows [first, first + n) where they belong: [5, 6], [7] to 1, 0, offsets [0, 1] -> [7, 5, 6].

    A null inside a list gets the default, or 0, and is counted as missing.
    """
    return _implementation().place_lists(column, first, positions, target_offsets, target, default)


def count_present(
    present_IR: NDArray[np.uint8],
    complete_I: NDArray[np.bool_],  # columns that miss nothing; their rows of present are not looked at
    first: int,
    last: int,
    counts_I: NDArray[np.int64],
) -> None:
    """Add to ``counts_I`` how many ids rows [first, last) have: present [[1, 0, 1]] -> [2]."""
    _implementation().count_present(present_IR, complete_I, first, last, counts_I)


def append_rows(
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
    """Append rows [first, last) of a block to a batch: ids 5, missing, 6 behind 2 values -> 5, 6, offsets 2, 3, 3, 4.

    Offsets may be left out (-1) only where none of the batch's rows misses an id.
    """
    _implementation().append_rows(
        ids_IR,
        present_IR,
        complete_I,
        dense_FR,
        first,
        last,
        words,
        floats,
        values_I,
        offsets_I,
        dense_F,
        row,
        filled_I,
    )


def append_lists(
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
    """Append rows [first, last) of list columns to a batch: [5, 6], [] behind 2 values -> 5, 6, offsets 2, 4, 4."""
    _implementation().append_lists(
        offsets_LR, values, starts_L, first, last, words, typed, values_L, offsets_L, row, filled_L
    )
