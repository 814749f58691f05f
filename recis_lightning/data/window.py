"""Pack the rows of a window by column, shuffled, without nulls, into a Block, of which batches are cut.

R rows of the block, I id columns, F dense columns, L list columns of one dtype, D numbers of a vector
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from recis_lightning.data.buffers import Located, Locator
from recis_lightning.data.columns import Selection, cut_columns, extract_column, filler_of, find_fault
from recis_lightning.data.errors import DataError
from recis_lightning.data.files.manifest import Manifest
from recis_lightning.data.memory import BufferPool
from recis_lightning.data.plan import Piece, Window
from recis_lightning.data.sources import find_unequal, lengths_of
from recis_lightning.ragged import ALIGNMENT
from recis_lightning.schema import Column
from triton_ops.pack import types
from triton_ops.pack.op import Kernels, kernels


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
    of F float32 [R], and for the list columns of each dtype of L int64 [R], their lengths, and of L int64 [R], which
    say where each row's values lie.
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
        self._form, self._manifest, self._pool = _Form(selection), manifest, BufferPool()

    def begin(self, window: Window, order: NDArray[np.int64] | None) -> "Packing":
        """A block to be: row order[k] of the window comes to place k, without an order row k."""
        return Packing(self._manifest, self._form, window, order, self._pool)


class _Form:
    """What a selection of columns says of placing them, in the order in which kernels take them."""

    def __init__(self, selection: Selection) -> None:
        self.selection, self.locator = selection, Locator(selection)
        self.id_defaults_I = _defaults(selection.ids, np.dtype(np.int64))
        self.dense_defaults_F = _defaults(selection.dense, np.dtype(np.float32))
        self.word_defaults_L = _defaults(selection.word_lists, np.dtype(np.int64))
        self.float_defaults_L = _defaults(selection.float_lists, np.dtype(np.float32))
        self.byte_defaults_L = _defaults(selection.byte_lists, np.dtype(np.uint8))
        self.vector_defaults_V = _defaults(selection.vectors, np.dtype(np.float32))
        self.has_no_default = np.array([column.default is None for column in self.locator.columns], np.bool_)
        self.is_optional = np.array([column.layout == "optional_list" for column in self.locator.columns], np.bool_)


def _defaults(columns: Sequence[Column], dtype: np.dtype) -> NDArray[Any]:
    """What stands for a missing number, where nothing is declared a 0."""
    return np.array([dtype.type(filler_of(column) or 0) for column in columns], dtype)


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
        form: _Form,
        window: Window,
        order: NDArray[np.int64] | None,
        pool: BufferPool,
    ) -> None:
        self._manifest, self._form, self._window, self._pack = manifest, form, window, kernels()
        self._selection, self._pool = form.selection, pool
        self._rows = list(_split(window, order, self._pack))
        selection, rows = form.selection, window.rows
        ids, dense = len(selection.ids), len(selection.dense)
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
            _ListPacking(form.locator.word_lists, form.word_defaults_L, rows, pool),
            _ListPacking(form.locator.float_lists, form.float_defaults_L, rows, pool),
            _ListPacking(form.locator.byte_lists, form.byte_defaults_L, rows, pool),
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
        self._compare_weights(batch, rows)  # before they are cut, which would hide it
        found = self._form.locator.locate(batch)
        faulty_K = np.zeros(len(found.sources_K6), np.bool_)
        self._place_ids(found, rows, faulty_K)
        self._place_dense(found, rows, faulty_K)
        for lists in self._lists:
            if lists.count:
                self._place_lists(found, rows, lists, faulty_K)
        if self._vectors:
            self._place_vectors(found, rows, faulty_K)
        if rows.is_whole:
            with self._lock:  # batches copy from the stripe itself
                self._owners.append(found.owners)
                self._nbytes += batch.get_total_buffer_size()
        if faulty_K.any() or found.suspects:
            self._note_faults(batch, rows, faulty_K, found.suspects)

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
        lists = [addresses for each in self._lists for addresses in (each.lengths_L, each.starts_L)]
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

    def _place_ids(self, found: Located, rows: _Rows, faulty_K: NDArray[np.bool_]) -> None:
        own = self._form.locator.ids
        todo_I = self._take_as_it_lies(found.sources_K6[own], rows, np.dtype(np.int64), self._ids_I)
        sources, has_no_default = found.sources_K6[own][todo_I], self._form.has_no_default[own][todo_I]
        marked = has_no_default & ((sources[:, types.VALUE_BITS] != 0) | (sources[:, types.OFFSETS] != 0))
        if marked.any():
            with self._lock:
                new_I = todo_I[marked][~self._has_flags_I[todo_I[marked]]]
                self._present_IR[new_I] = 1
                self._has_flags_I[new_I] = True
        presents = np.where(marked, _addresses(self._present_IR)[todo_I], 0)
        defaults = self._form.id_defaults_I[todo_I]
        scans = self._pack.place_singles(sources, rows.rows, rows.places, self._ids_I[todo_I], presents, defaults)
        self._misses_I[todo_I[has_no_default & (scans[:, types.MISSING] > 0)]] = True
        faulty_K[own][todo_I] = scans[:, types.LONG] > 0

    def _place_dense(self, found: Located, rows: _Rows, faulty_K: NDArray[np.bool_]) -> None:
        own = self._form.locator.dense
        todo_F = self._take_as_it_lies(found.sources_K6[own], rows, np.dtype(np.float32), self._dense_F)
        sources, has_no_default = found.sources_K6[own][todo_F], self._form.has_no_default[own][todo_F]
        defaults, no_flags = self._form.dense_defaults_F[todo_F], np.zeros(len(todo_F), np.int64)
        scans = self._pack.place_singles(sources, rows.rows, rows.places, self._dense_F[todo_F], no_flags, defaults)
        faulty_K[own][todo_F] = _find_faulty(scans, has_no_default) | (scans[:, types.LONG] > 0)

    def _take_as_it_lies(
        self, sources_N6: NDArray[np.int64], rows: _Rows, dtype: np.dtype, addresses_N: NDArray[np.int64]
    ) -> NDArray[np.intp]:
        """Let batches copy from the stripe itself, where it has what they take in the order in which they take it.

        Gives the columns of which that can't be.
        """
        if not rows.is_whole:
            return np.arange(len(sources_N6))
        is_plain_N = (sources_N6[:, types.VALUE_BITS] == 0) & (sources_N6[:, types.OFFSETS] == 0)
        is_plain_N &= sources_N6[:, types.KIND] == types.KINDS.index(dtype)
        first = rows.piece.first * dtype.itemsize
        addresses_N[is_plain_N] = sources_N6[is_plain_N, types.VALUES] + first
        return np.flatnonzero(~is_plain_N)

    def _place_lists(self, found: Located, rows: _Rows, lists: "_ListPacking", faulty_K: NDArray[np.bool_]) -> None:
        own = lists.own
        sources_L6, where = found.sources_K6[own], (rows.rows, rows.places)
        counts_L2 = self._pack.measure_lists(sources_L6, *where, lists.lengths_L, lists.starts_L)
        copied_L = np.arange(lists.count)
        if rows.is_whole:
            is_plain_L = (sources_L6[:, types.VALUE_BITS] == 0) & (
                sources_L6[:, types.KIND] == types.KINDS.index(lists.dtype)
            )
            copied_L = np.flatnonzero(~is_plain_L)
        targets = lists.make_room(counts_L2[copied_L, 0])
        no_dims, defaults = np.zeros(len(copied_L), np.int64), lists.defaults_L[copied_L]
        starts = lists.starts_L[copied_L]
        scans = self._pack.place_lists(sources_L6[copied_L], *where, targets, starts, no_dims, defaults)
        faulty_K[own][copied_L] = _find_faulty(scans, self._form.has_no_default[own][copied_L])
        faulty_K[own] |= self._form.is_optional[own] & (counts_L2[:, 1] > 0)

    def _place_vectors(self, found: Located, rows: _Rows, faulty_K: NDArray[np.bool_]) -> None:
        own = self._form.locator.vectors
        sources_V6, where = found.sources_K6[own], (rows.rows, rows.places)
        lengths_VR, starts_VR = np.zeros((2, len(sources_V6), self._window.rows), np.int64)
        starts_V = _addresses(starts_VR)
        self._pack.measure_lists(sources_V6, *where, _addresses(lengths_VR), starts_V)
        targets_V = np.array([target_RD.ctypes.data for target_RD in self._vectors], np.int64)
        dims_V = np.array([target_RD.shape[1] for target_RD in self._vectors], np.int64)
        # What is of another length is left out: it would be written over others.
        scans = self._pack.place_lists(sources_V6, *where, targets_V, starts_V, dims_V, self._form.vector_defaults_V)
        columns = self._selection.vectors
        has_no_filler = np.array([filler_of(column) is None for column in columns], np.bool_)
        faulty_V = _find_faulty(scans, has_no_filler)
        for number, (column, target_RD) in enumerate(zip(columns, self._vectors, strict=True)):
            lengths = lengths_VR[number, rows.places]
            other = lengths != target_RD.shape[1]
            if other.any():
                target_RD[rows.places[other]] = column.default if column.default is not None else 0
                faulty_V[number] |= column.default is None or bool((lengths[other] > 0).any())
        faulty_K[own] = faulty_V

    # -------------------------------------------------------------------------------------------------------- problems

    def _note(self, place: int, error: DataError) -> None:
        """Keep the problem of the least place."""
        with self._lock:
            if self._problem is None or place < self._problem.place:
                self._problem = Problem(place, error)

    def _note_faults(
        self, batch: pa.RecordBatch, rows: _Rows, faulty_K: NDArray[np.bool_], suspects: frozenset[str]
    ) -> None:
        """Look for the first row with a fault, the slow way; of suspects, others than these rows may have them."""
        extracted = {each.name: extract_column(batch, each, self._selection) for each in self._selection.columns}
        arrays = cut_columns(extracted, self._selection)
        for column, is_faulty in zip(self._form.locator.columns, faulty_K.tolist(), strict=True):
            if is_faulty or column.name in suspects:
                self._note_fault(arrays[column.name], rows, column, is_faulty)

    def _note_fault(self, array: pa.Array, rows: _Rows, column: Column, is_certain: bool) -> None:
        for row, place in zip(rows.rows.tolist(), rows.places.tolist(), strict=True):
            fault = find_fault(array[row].as_py(), column, self._selection)
            if fault is not None:
                everywhere = " (as in all rows of this stripe)" if array.null_count == len(array) else ""
                self._note_row(rows.piece, row, place, column, fault.replace("is missing", f"is missing{everywhere}"))
                return
        if is_certain:
            raise AssertionError(f"column '{column.name}' has a fault that is not found")

    def _note_row(self, piece: Piece, row: int, place: int, column: Column, fault: str) -> None:
        where = self._manifest.describe_row(piece.stripe, row)
        role = self._selection.roles[column.name]
        self._note(place, DataError(f"{where}: column '{column.name}', {role}, {fault}"))

    def _compare_weights(self, batch: pa.RecordBatch, rows: _Rows) -> None:
        """Every row needs as many weights as ids."""
        for ids, weights in self._selection.weights:
            columns = (self._selection.column(name) for name in (ids, weights))
            left, right = (extract_column(batch, column, self._selection) for column in columns)
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
    """List columns of one dtype under construction: how long rows are, and where they lie."""

    def __init__(self, own: slice, defaults_L: NDArray[Any], rows: int, pool: BufferPool) -> None:
        self.own, self.defaults_L, self.dtype, self._pool = own, defaults_L, defaults_L.dtype, pool
        self.count = own.stop - own.start
        memory = pool.take(16 * self.count * rows)
        self._lengths_LR, self._starts_LR = memory.view(torch.int64).view(2, self.count, rows).numpy()
        self.lengths_L, self.starts_L = _addresses(self._lengths_LR), _addresses(self._starts_LR)
        self._owners: list[Tensor] = [memory]

    def make_room(self, counts_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Addresses of memory for so many values of each of some columns; it lasts as long as this."""
        nbytes_N = -(-counts_N * self.dtype.itemsize // ALIGNMENT) * ALIGNMENT
        memory = self._pool.take(int(nbytes_N.sum()))
        self._owners.append(memory)
        ends_N: NDArray[np.int64] = memory.data_ptr() + np.cumsum(nbytes_N)
        return ends_N - nbytes_N

    @property
    def nbytes(self) -> int:
        return sum(map(len, self._owners))

    def leave_out(self, keep_R: NDArray[np.bool_]) -> None:
        """Keep some rows only."""
        self._lengths_LR, self._starts_LR = (
            np.compress(keep_R, array_LR, axis=1) for array_LR in (self._lengths_LR, self._starts_LR)
        )
        self.lengths_L, self.starts_L = _addresses(self._lengths_LR), _addresses(self._starts_LR)


def _addresses(array: NDArray[Any]) -> NDArray[np.int64]:
    """Where each row of an array lies."""
    return array.ctypes.data + array.strides[0] * np.arange(len(array), dtype=np.int64)


def _find_faulty(scans_N3: NDArray[np.int64], has_no_default_N: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of which columns values are missing that may not, or are unfit."""
    found: NDArray[np.bool_] = (scans_N3[:, types.UNFIT] > 0) | (has_no_default_N & (scans_N3[:, types.MISSING] > 0))
    return found
