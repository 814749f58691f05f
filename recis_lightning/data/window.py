"""Pack the rows of a window by column, shuffled, without nulls, into a Block, of which batches are cut.

R rows of the block, I id columns, F dense columns, L list columns of one dtype, D numbers of a vector
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from recis_lightning.data.columns import (
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
from triton_ops.pack.op import Kernels, kernels
from triton_ops.pack.types import ListColumn

_NO_FLAGS = np.empty(0, np.uint8)  # for dense columns, where a missing value is an error and not a flag


@dataclass(frozen=True)
class Lists:
    """List columns of one dtype; row r of column l is values[starts_L[l] + offsets_LR[l, r] : ... [l, r + 1]]."""

    offsets_LR: NDArray[np.int64]  # [L, R + 1]
    values: NDArray[Any]
    starts_L: NDArray[np.int64]

    def count(self, first: int, last: int) -> NDArray[np.int64]:
        """Values of each column in rows [first, last)."""
        return self.offsets_LR[:, last] - self.offsets_LR[:, first]


@dataclass(frozen=True)
class Problem:
    """What is wrong with the row at a place of a block: an error for the first batch that reaches it."""

    place: int
    error: DataError


@dataclass(frozen=True)
class Block:
    """A window's rows, in the order in which batches take them."""

    window: Window
    ids_IR: NDArray[np.int64]
    present_IR: NDArray[np.uint8]
    complete_I: NDArray[np.bool_]
    dense_FR: NDArray[np.float32]
    word_lists: Lists
    float_lists: Lists
    byte_lists: Lists
    vectors: tuple[NDArray[np.float32], ...]  # [R, D] each
    problem: Problem | None


class WindowPacker:
    """Packs windows of one data set into blocks; safe to call from several threads."""

    def __init__(self, manifest: Manifest, selection: Selection) -> None:
        self._manifest, self._selection = manifest, selection
        self._pool = BufferPool()

    def pack(self, window: Window, order: NDArray[np.int64], stripes: Iterable[Future[pa.RecordBatch]]) -> Block:
        """Put row order[k] of the window at place k; ``stripes`` are those of its pieces, as they get decoded."""
        packing = _Packing(self._manifest, self._selection, window, self._pool, kernels())
        for rows, stripe in zip(_split(window, order), stripes, strict=True):
            try:
                batch = stripe.result()
            except DataError as error:
                packing.note(int(rows.places[0]), error)  # batches up to there can still be had
            else:
                packing.add(batch, rows)
        return packing.finish()


@dataclass(frozen=True)
class _Rows:
    """Rows of one stripe and where in the block they go, by rising place."""

    piece: Piece
    rows: NDArray[np.uint32]
    places: NDArray[np.uint32]


def _split(window: Window, order: NDArray[np.int64]) -> Iterator[_Rows]:
    if len(window.pieces) == 1:
        (piece,) = window.pieces
        yield _Rows(piece, (order + piece.first).astype(np.uint32), np.arange(len(order), dtype=np.uint32))
        return
    starts = np.cumsum([0, *(piece.rows for piece in window.pieces)])
    piece_of = np.searchsorted(starts[1:-1], order, side="right")
    places = np.argsort(piece_of, kind="stable").astype(np.uint32)
    for index, piece in enumerate(window.pieces):
        own = places[starts[index] : starts[index + 1]]
        yield _Rows(piece, (order[own] + (piece.first - starts[index])).astype(np.uint32), own)


class _Packing:
    """A block under construction."""

    def __init__(
        self, manifest: Manifest, selection: Selection, window: Window, pool: BufferPool, pack: Kernels
    ) -> None:
        self._manifest, self._selection, self._window, self._pack = manifest, selection, window, pack
        ids, dense, rows = len(selection.ids), len(selection.dense), window.rows
        # One piece of memory, wider types first so that all of it is aligned.
        memory = pool.take(rows * (8 * ids + 4 * dense + ids))
        ids_end, dense_end = 8 * ids * rows, (8 * ids + 4 * dense) * rows
        self._ids_IR = memory[:ids_end].view(torch.int64).view(ids, rows).numpy()
        self._dense_FR = memory[ids_end:dense_end].view(torch.float32).view(dense, rows).numpy()
        self._present_IR = memory[dense_end:].view(ids, rows).numpy()
        self._present_IR[:] = 1
        self._complete_I = np.ones(ids, np.bool_)
        self._word_lists = _ListPacking(selection.word_lists, rows, torch.int64, pool, pack)
        self._float_lists = _ListPacking(selection.float_lists, rows, torch.float32, pool, pack)
        self._byte_lists = _ListPacking(selection.byte_lists, rows, torch.uint8, pool, pack)
        self._vectors = [
            pool.take(4 * rows * (column.dim or 1)).view(torch.float32).view(rows, -1).numpy()
            for column in selection.vectors
        ]
        self._problem: Problem | None = None

    def add(self, batch: pa.RecordBatch, rows: _Rows) -> None:
        """Place rows of a stripe."""
        batch = extract_columns(batch, self._selection)
        self._compare_weights(batch, rows)  # before they are cut, which would hide it
        batch = cut_columns(batch, self._selection)
        for index, column in enumerate(self._selection.ids):
            missing = self._place(batch, rows, column, self._ids_IR[index], self._present_IR[index])
            if missing and column.default is None:
                self._complete_I[index] = False
        for index, column in enumerate(self._selection.dense):
            missing = self._place(batch, rows, column, self._dense_FR[index], _NO_FLAGS)
            if missing and column.default is None:
                self._note_fault(batch, rows, column)
        for column, target in zip(self._selection.vectors, self._vectors, strict=True):
            self._place_vectors(batch, rows, column, target)
        for lists in (self._word_lists, self._float_lists, self._byte_lists):
            for index, column in enumerate(lists.columns):
                source, has_bad_strings = to_list_buffers(batch.column(column.name), column)
                lengths = lists.add(index, source, batch, rows)
                if has_bad_strings:
                    self._note_fault(batch, rows, column, certain=False)
                if column.layout == "optional_list" and (lengths[rows.places] > 1).any():
                    self._note_fault(batch, rows, column)

    def _place(
        self, batch: pa.RecordBatch, rows: _Rows, column: Column, target: NDArray[Any], present: NDArray[np.uint8]
    ) -> int:
        to_column = to_buffers if column.layout == "scalar" else to_list_buffers
        source, has_bad_strings = to_column(batch.column(column.name), column)
        scan = self._pack.place_singles(source, rows.rows, rows.places, target, present, filler_of(column))
        if has_bad_strings:
            self._note_fault(batch, rows, column, certain=False)
        if scan.unfit or scan.long:
            self._note_fault(batch, rows, column)
        return scan.missing

    def _place_vectors(
        self, batch: pa.RecordBatch, rows: _Rows, column: Column, target_RD: NDArray[np.float32]
    ) -> None:
        source, has_bad_strings = to_list_buffers(batch.column(column.name), column)
        lengths, dim = lengths_of(batch.column(column.name))[rows.rows], target_RD.shape[1]
        # What is of another length is left out: it would be written over others.
        whole, offsets = lengths == dim, np.arange(0, target_RD.size + 1, dim)
        default = filler_of(column)
        scan = self._pack.place_lists(
            source, rows.rows[whole], rows.places[whole], offsets, target_RD.reshape(-1), default
        )
        if not whole.all():
            target_RD[rows.places[~whole]] = column.default if column.default is not None else 0
        is_short = bool((lengths[~whole] > 0).any()) or (column.default is None and not whole.all())
        if has_bad_strings:
            self._note_fault(batch, rows, column, certain=False)
        if is_short or scan.unfit or (scan.missing and default is None):
            self._note_fault(batch, rows, column)

    def finish(self) -> Block:
        for lists in (self._word_lists, self._float_lists, self._byte_lists):
            for column, batch, rows in lists.finish():
                self._note_fault(batch, rows, column)
        return Block(
            window=self._window,
            ids_IR=self._ids_IR,
            present_IR=self._present_IR,
            complete_I=self._complete_I,
            dense_FR=self._dense_FR,
            word_lists=self._word_lists.lists,
            float_lists=self._float_lists.lists,
            byte_lists=self._byte_lists.lists,
            vectors=tuple(self._vectors),
            problem=self._problem,
        )

    # -------------------------------------------------------------------------------------------------------- problems

    def note(self, place: int, error: DataError) -> None:
        """Keep the problem of the least place."""
        if self._problem is None or place < self._problem.place:
            self._problem = Problem(place, error)

    def _note_fault(self, batch: pa.RecordBatch, rows: _Rows, column: Column, certain: bool = True) -> None:
        """Look for the first row with a fault, the slow way; not ``certain`` where only other rows may have one."""
        array = batch.column(column.name)
        for row, place in zip(rows.rows.tolist(), rows.places.tolist(), strict=True):
            fault = find_fault(array[row].as_py(), column, self._selection)
            if fault is not None:
                everywhere = " (as in all rows of this stripe)" if array.null_count == len(array) else ""
                self._note_row(rows.piece, row, place, column, fault.replace("is missing", f"is missing{everywhere}"))
                return
        if certain:
            raise AssertionError(f"column '{column.name}' has a fault that is not found")

    def _note_row(self, piece: Piece, row: int, place: int, column: Column, fault: str) -> None:
        where = self._manifest.describe_row(piece.stripe, row)
        role = self._selection.roles[column.name]
        self.note(place, DataError(f"{where}: column '{column.name}', {role}, {fault}"))

    def _compare_weights(self, batch: pa.RecordBatch, rows: _Rows) -> None:
        """Every row needs as many weights as ids."""
        for ids, weights in self._selection.weights:
            left, right = batch.column(ids), batch.column(weights)
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
    """List columns of one dtype under construction: lengths first, values once all lengths are known."""

    def __init__(
        self, columns: Sequence[Column], rows: int, dtype: torch.dtype, pool: BufferPool, pack: Kernels
    ) -> None:
        self.columns, self._dtype, self._pool, self._pack = columns, dtype, pool, pack
        self._offsets_LR = np.zeros((len(columns), rows + 1), np.int64)
        self._sources: list[list[tuple[ListColumn, pa.RecordBatch, _Rows]]] = [[] for _ in columns]

    def add(self, index: int, source: ListColumn, batch: pa.RecordBatch, rows: _Rows) -> NDArray[np.int64]:
        """Note the rows of a column; gives the lengths of all rows so far, by place."""
        lengths = self._offsets_LR[index, 1:]
        self._pack.place_lengths(source, rows.rows, rows.places, lengths)
        self._sources[index].append((source, batch, rows))
        return lengths

    def finish(self) -> Iterator[tuple[Column, pa.RecordBatch, _Rows]]:
        """Turn lengths into offsets and place the values; gives what has a fault in it."""
        np.cumsum(self._offsets_LR, axis=1, out=self._offsets_LR)
        starts_L = np.concatenate([np.zeros(1, np.int64), np.cumsum(self._offsets_LR[:, -1])])
        values = self._pool.take(int(starts_L[-1]) * self._dtype.itemsize).view(self._dtype).numpy()
        self.lists = Lists(self._offsets_LR, values, starts_L[:-1])
        for index, column in enumerate(self.columns):
            target = values[starts_L[index] : starts_L[index + 1]]
            for source, batch, rows in self._sources[index]:
                offsets = self._offsets_LR[index]
                scan = self._pack.place_lists(source, rows.rows, rows.places, offsets, target, filler_of(column))
                if scan.unfit or (scan.missing and column.default is None):
                    yield column, batch, rows
        self._sources.clear()
