"""Pack the rows of a window by column, shuffled, without nulls, into a Block, of which batches are cut.

R rows of the block, I id columns, F dense columns, L list columns of one dtype, D numbers of a vector
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from recis_lightning.data.columns import (
    NO_BITS,
    Selection,
    cut_columns,
    extract_columns,
    filler_of,
    find_fault,
    to_buffers,
    to_list_buffers,
)
from recis_lightning.data.errors import DataError
from recis_lightning.data.manifest import Manifest
from recis_lightning.data.memory import BufferPool
from recis_lightning.data.plan import Piece, Window
from recis_lightning.data.sources import find_unequal, lengths_of
from recis_lightning.schema import Column
from triton_ops.pack import types
from triton_ops.pack.op import Kernels, kernels
from triton_ops.pack.types import ListColumn

_NO_FLAGS = np.empty(0, np.uint8)  # for dense columns, where a missing value is an error and not a flag


@dataclass(frozen=True)
class Problem:
    """What is wrong with the row at a place of a block: an error for the first batch that reaches it."""

    place: int
    error: DataError


@dataclass(frozen=True)
class Block:
    """A window's rows in the order in which batches take them: where columns lie, in memory of its own or Arrow's."""

    window: Window
    addresses: NDArray[np.int64]
    """One behind the other: of I int64 [R], of I uint8 [R] (1 where there is an id; address 0 where none is missing),
    of F float32 [R], and for the list columns of each dtype of L int64 [R + 1], their offsets, and of L int64 [R],
    which say where each row's values lie.
    """
    vectors: tuple[NDArray[np.float32], ...]  # [R, D] each
    kept_R1: NDArray[np.int64] | None
    """Where rows were left out: how many before each place are still there; the memory holds those alone."""
    nbytes: int
    owners: Sequence[Any]
    """What holds the memory."""
    problem: Problem | None


class WindowPacker:
    """Packs windows of one data set into blocks."""

    def __init__(self, manifest: Manifest, selection: Selection) -> None:
        self._manifest, self._selection = manifest, selection
        self._pool = BufferPool()

    def begin(self, window: Window, order: NDArray[np.int64] | None) -> "Packing":
        """A block to be: row order[k] of the window comes to place k, without an order row k."""
        return Packing(self._manifest, self._selection, window, order, self._pool)


@dataclass(frozen=True)
class _Rows:
    """Rows of one stripe and where in the block they go, by rising place."""

    piece: Piece
    rows: NDArray[np.uint32]
    places: NDArray[np.uint32]
    is_whole: bool
    """They are the whole block, in the order of the stripe."""


def _split(window: Window, order: NDArray[np.int64] | None, pack: Kernels) -> Iterator[_Rows]:
    """The rows of each piece."""
    bounds = np.cumsum([0, *(piece.rows for piece in window.pieces)])
    if order is None:
        rows = places = np.arange(window.rows, dtype=np.uint32)
        rows = np.concatenate([places[: piece.rows] for piece in window.pieces])
    else:
        rows, places = pack.group_rows(order, bounds)
    for index, piece in enumerate(window.pieces):
        own = slice(bounds[index], bounds[index + 1])
        is_whole = order is None and len(window.pieces) == 1
        yield _Rows(piece, rows[own] + np.uint32(piece.first), places[own], is_whole)


class Packing:
    """A block under construction: `add` its pieces, from several threads in any order, then `finish` it."""

    def __init__(
        self,
        manifest: Manifest,
        selection: Selection,
        window: Window,
        order: NDArray[np.int64] | None,
        pool: BufferPool,
    ) -> None:
        self._manifest, self._selection, self._window, self._pack = manifest, selection, window, kernels()
        self._rows = list(_split(window, order, self._pack))
        ids, dense, rows = len(selection.ids), len(selection.dense), window.rows
        # One piece of memory, wider types first so that all of it is aligned. Pages that are not written cost nothing.
        memory = pool.take(rows * (8 * ids + 4 * dense + ids))
        ids_end, dense_end = 8 * ids * rows, (8 * ids + 4 * dense) * rows
        self._ids_IR = memory[:ids_end].view(torch.int64).view(ids, rows).numpy()
        self._dense_FR = memory[ids_end:dense_end].view(torch.float32).view(dense, rows).numpy()
        self._present_IR = memory[dense_end:].view(ids, rows).numpy()
        self._ids_I, self._dense_F = _addresses(self._ids_IR), _addresses(self._dense_FR)
        self._misses_I, self._has_flags_I = np.zeros(ids, np.bool_), np.zeros(ids, np.bool_)
        self._vectors = [
            pool.take(4 * rows * (column.dim or 1)).view(torch.float32).view(rows, -1).numpy()
            for column in selection.vectors
        ]
        self._lists = (
            _ListPacking(selection.word_lists, rows, np.int64, self._pack),
            _ListPacking(selection.float_lists, rows, np.float32, self._pack),
            _ListPacking(selection.byte_lists, rows, np.uint8, self._pack),
        )
        self._owners: list[Any] = [memory]
        self._nbytes = len(memory) + sum(vector_RD.nbytes for vector_RD in self._vectors)
        self._skipped: list[NDArray[np.uint32]] = []
        self._problem: Problem | None = None
        self._lock = Lock()

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return self._window.pieces

    def add(self, index: int, batch: pa.RecordBatch) -> None:
        """Put the rows of a piece, which lie in this stripe, where they belong."""
        rows = self._rows[index]
        arrays = extract_columns(batch, self._selection)
        self._compare_weights(arrays, rows)  # before they are cut, which would hide it
        arrays = cut_columns(arrays, self._selection)
        for number, column in enumerate(self._selection.ids):
            self._place_ids(arrays, rows, column, number)
        for number, column in enumerate(self._selection.dense):
            self._place_dense(arrays, rows, column, number)
        for column, target_RD in zip(self._selection.vectors, self._vectors, strict=True):
            self._place_vectors(arrays, rows, column, target_RD)
        for lists in self._lists:
            for number, column in enumerate(lists.columns):
                self._place_lists(arrays, rows, column, lists, number)

    def fail(self, index: int, error: DataError) -> None:
        """A piece can't be read: an error for the first batch that needs it, those before can still be had."""
        self._note(int(self._rows[index].places[0]), error)

    def skip(self, index: int) -> None:
        """Leave the rows of a piece out."""
        with self._lock:
            self._skipped.append(self._rows[index].places)

    def finish(self) -> Block:
        kept_R1 = self._leave_out() if self._skipped else None
        present_I = np.where(self._misses_I, _addresses(self._present_IR), 0)
        lists = [addresses for each in self._lists for addresses in each.finish()]
        addresses = np.concatenate([self._ids_I, present_I, self._dense_F, *lists])
        owners = (*self._owners, self._lists)
        nbytes = self._nbytes + sum(each.nbytes for each in self._lists)
        return Block(self._window, addresses, tuple(self._vectors), kept_R1, nbytes, owners, self._problem)

    def _leave_out(self) -> NDArray[np.int64]:
        """Close the gaps of skipped rows; gives how many rows are kept before each place."""
        keep_R = np.ones(self._window.rows, np.bool_)
        keep_R[np.concatenate(self._skipped)] = False
        if keep_R.any():  # else nothing was placed, nor taken as it lies
            self._ids_IR, self._present_IR, self._dense_FR = (
                np.compress(keep_R, array, axis=1) for array in (self._ids_IR, self._present_IR, self._dense_FR)
            )
            self._ids_I, self._dense_F = _addresses(self._ids_IR), _addresses(self._dense_FR)
            self._owners = [self._ids_IR, self._present_IR, self._dense_FR]
        self._vectors = [vector_RD[keep_R] for vector_RD in self._vectors]
        for lists in self._lists:
            lists.leave_out(keep_R)
        return np.concatenate([[0], np.cumsum(keep_R)])

    def _place_ids(self, arrays: Mapping[str, pa.Array], rows: _Rows, column: Column, number: int) -> None:
        source, has_bad_strings = _buffers_of(arrays, column)
        target, present = self._ids_IR[number], self._present_IR[number]
        if self._take_as_it_lies(source, rows, target.dtype, self._ids_I, number):
            return
        if column.default is None and (len(source.validity) or isinstance(source, ListColumn)):
            with self._lock:
                if not self._has_flags_I[number]:
                    present[:] = 1
                    self._has_flags_I[number] = True
        scan = self._pack.place_singles(source, rows.rows, rows.places, target, present, filler_of(column))
        if scan.missing and column.default is None:
            self._misses_I[number] = True
        self._note_faults(arrays, rows, column, scan.long > 0, has_bad_strings)

    def _place_dense(self, arrays: Mapping[str, pa.Array], rows: _Rows, column: Column, number: int) -> None:
        source, has_bad_strings = _buffers_of(arrays, column)
        target = self._dense_FR[number]
        if self._take_as_it_lies(source, rows, target.dtype, self._dense_F, number):
            return
        scan = self._pack.place_singles(source, rows.rows, rows.places, target, _NO_FLAGS, filler_of(column))
        is_missing = scan.missing > 0 and column.default is None
        self._note_faults(arrays, rows, column, is_missing or scan.unfit > 0 or scan.long > 0, has_bad_strings)

    def _place_vectors(
        self, arrays: Mapping[str, pa.Array], rows: _Rows, column: Column, target_RD: NDArray[np.float32]
    ) -> None:
        source, has_bad_strings = to_list_buffers(arrays[column.name], column)
        lengths, dim = lengths_of(arrays[column.name])[rows.rows], target_RD.shape[1]
        # What is of another length is left out: it would be written over others.
        whole, offsets = lengths == dim, np.arange(0, target_RD.size + 1, dim)
        default = filler_of(column)
        scan = self._pack.place_lists(
            source, rows.rows[whole], rows.places[whole], offsets, target_RD.reshape(-1), default
        )
        if not whole.all():
            target_RD[rows.places[~whole]] = column.default if column.default is not None else 0
        is_short = bool((lengths[~whole] > 0).any()) or (column.default is None and not whole.all())
        are_certain = is_short or scan.unfit > 0 or (scan.missing > 0 and default is None)
        self._note_faults(arrays, rows, column, are_certain, has_bad_strings)

    def _take_as_it_lies(
        self,
        source: types.Column | ListColumn,
        rows: _Rows,
        dtype: np.dtype,
        addresses: NDArray[np.int64],
        number: int,
    ) -> bool:
        """Let batches copy from the stripe itself, where it has what they take in the order in which they take it."""
        if not rows.is_whole or isinstance(source, ListColumn) or len(source.validity) or source.values.dtype != dtype:
            return False
        addresses[number] = source.values.ctypes.data + rows.piece.first * dtype.itemsize
        self._owners.append(source.values)
        return True

    def _place_lists(
        self, arrays: Mapping[str, pa.Array], rows: _Rows, column: Column, lists: "_ListPacking", number: int
    ) -> None:
        source, has_bad_strings = to_list_buffers(arrays[column.name], column)
        has_faults = lists.add(number, source, rows)
        is_long = column.layout == "optional_list" and bool((lists.lengths(number)[rows.places] > 1).any())
        self._note_faults(arrays, rows, column, is_long, has_bad_strings or has_faults)

    # -------------------------------------------------------------------------------------------------------- problems

    def _note(self, place: int, error: DataError) -> None:
        """Keep the problem of the least place."""
        with self._lock:
            if self._problem is None or place < self._problem.place:
                self._problem = Problem(place, error)

    def _note_faults(
        self, arrays: Mapping[str, pa.Array], rows: _Rows, column: Column, are_certain: bool, are_possible: bool
    ) -> None:
        """Look for the first row with a fault, the slow way; where faults are but possible, others may have them."""
        if not (are_certain or are_possible):
            return
        array = arrays[column.name]
        for row, place in zip(rows.rows.tolist(), rows.places.tolist(), strict=True):
            fault = find_fault(array[row].as_py(), column, self._selection)
            if fault is not None:
                everywhere = " (as in all rows of this stripe)" if array.null_count == len(array) else ""
                self._note_row(rows.piece, row, place, column, fault.replace("is missing", f"is missing{everywhere}"))
                return
        if are_certain:
            raise AssertionError(f"column '{column.name}' has a fault that is not found")

    def _note_row(self, piece: Piece, row: int, place: int, column: Column, fault: str) -> None:
        where = self._manifest.describe_row(piece.stripe, row)
        role = self._selection.roles[column.name]
        self._note(place, DataError(f"{where}: column '{column.name}', {role}, {fault}"))

    def _compare_weights(self, arrays: Mapping[str, pa.Array], rows: _Rows) -> None:
        """Every row needs as many weights as ids."""
        for ids, weights in self._selection.weights:
            left, right = arrays[ids], arrays[weights]
            wrong = np.flatnonzero(find_unequal(left, right)[rows.rows])
            if not len(wrong):
                continue
            row, place = int(rows.rows[wrong[0]]), int(rows.places[wrong[0]])
            counts = [int(lengths_of(array)[row]) for array in (right, left)]
            inner = " (but not in each of its lists)" if counts[0] == counts[1] else ""
            fault = (
                f"has {counts[0]} weights for {counts[1]} ids in column '{ids}'{inner}; write one weight for each id"
            )
            self._note_row(rows.piece, row, place, self._selection.column(weights), fault)


class _ListPacking:
    """List columns of one dtype under construction: how long rows are, and where in their stripes they lie."""

    def __init__(self, columns: Sequence[Column], rows: int, dtype: type[np.generic], pack: Kernels) -> None:
        self.columns, self._dtype, self._pack = columns, np.dtype(dtype), pack
        self._offsets_LR = np.zeros((len(columns), rows + 1), np.int64)
        self._starts_LR = np.zeros((len(columns), rows), np.int64)
        self._sources: list[ListColumn] = []

    def add(self, index: int, source: ListColumn, rows: _Rows) -> bool:
        """Take a column's rows; whether some row of their stripe has a fault."""
        source, has_faults = self._make_ready(source, self.columns[index])
        self._pack.place_starts(source, rows.rows, rows.places, self.lengths(index), self._starts_LR[index])
        self._sources.append(source)
        return has_faults

    @property
    def nbytes(self) -> int:
        values = sum(source.values.nbytes for source in self._sources)
        return self._offsets_LR.nbytes + self._starts_LR.nbytes + values

    def leave_out(self, keep_R: NDArray[np.bool_]) -> None:
        """Keep some rows only, before `finish`."""
        lengths_LR = np.compress(keep_R, self._offsets_LR[:, 1:], axis=1)
        self._offsets_LR = np.pad(lengths_LR, ((0, 0), (1, 0)))
        self._starts_LR = np.compress(keep_R, self._starts_LR, axis=1)

    def lengths(self, index: int) -> NDArray[np.int64]:
        """Values of each row of a column, before `finish`."""
        return self._offsets_LR[index, 1:]

    def _make_ready(self, source: ListColumn, column: Column) -> tuple[ListColumn, bool]:
        """Values without nulls, of the dtype of the batch: as they are where they are so already."""
        if not len(source.value_validity) and source.values.dtype == self._dtype:
            return source, False
        every = np.arange(len(source.values), dtype=np.uint32)
        values = np.empty(len(every), self._dtype)
        singles = types.Column(source.values, source.value_validity)
        scan = self._pack.place_singles(singles, every, every, values, _NO_FLAGS, filler_of(column))
        has_faults = scan.unfit > 0 or (scan.missing > 0 and column.default is None)
        return source._replace(values=values, value_validity=NO_BITS), has_faults

    def finish(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Addresses of each column's offsets and of its rows' starts."""
        np.cumsum(self._offsets_LR, axis=1, out=self._offsets_LR)
        return _addresses(self._offsets_LR), _addresses(self._starts_LR)


def _addresses(array: NDArray[Any]) -> NDArray[np.int64]:
    """Where each row of an array lies."""
    return array.ctypes.data + array.strides[0] * np.arange(len(array), dtype=np.int64)


def _buffers_of(arrays: Mapping[str, pa.Array], column: Column) -> tuple[types.Column | ListColumn, bool]:
    to_column = to_buffers if column.layout == "scalar" else to_list_buffers
    return to_column(arrays[column.name], column)
