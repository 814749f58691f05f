"""Read the rows of a window and pack them by column, shuffled, without nulls: a Block, of which batches are cut.

R rows of the block, I id columns, F dense columns, L list columns of one dtype, N their values
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import orc

from recis_lightning.data.columns import BadString, Selection, to_column, to_list_column
from recis_lightning.data.errors import DataError
from recis_lightning.data.manifest import Manifest
from recis_lightning.data.plan import Piece, Window
from recis_lightning.schema import Column
from triton_ops.pack import op as pack
from triton_ops.pack.types import NOWHERE, ListColumn, Scan

_NO_FLAGS = np.empty(0, np.uint8)  # dense columns: what is missing is an error, not a flag


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
    """What is wrong with the row at a position of a block: an error for the first batch that reaches it."""

    position: int
    error: DataError


@dataclass(frozen=True)
class Block:
    """A window's rows, in the order in which batches take them."""

    window: Window
    ids_IR: NDArray[np.int64]
    present_IR: NDArray[np.uint8]
    complete_I: NDArray[np.bool_]
    dense_FR: NDArray[np.float32]
    id_lists: Lists
    float_lists: Lists
    problem: Problem | None


class WindowReader:
    """Reads windows of one data set; safe to call from several threads."""

    def __init__(self, manifest: Manifest, selection: Selection) -> None:
        self.manifest, self.selection = manifest, selection

    def read(self, window: Window, positions: NDArray[np.int64], check_cancelled: Callable[[], None]) -> Block:
        """Decode a window's stripes and put row i at positions[i]; calls ``check_cancelled`` before each stripe."""
        packing = _Packing(self.manifest, self.selection, window, positions)
        first = 0
        for piece in window.pieces:
            check_cancelled()
            packing.add(piece, positions[first : first + piece.rows], self._decode)
            first += piece.rows
        return packing.finish()

    def _decode(self, piece: Piece) -> pa.RecordBatch:
        file, stripe = self.manifest.locate(piece.stripe)
        try:
            batch = orc.ORCFile(file.path).read_stripe(stripe, columns=self.selection.names)
        except (OSError, pa.ArrowException) as error:
            where = self.manifest.describe_rows(piece.stripe, 0, file.stripe_rows[stripe])
            raise DataError(f"{where}: can't be decoded ({error}); copy or write the file again") from error
        if batch.num_rows != file.stripe_rows[stripe]:
            raise DataError(
                f"{file.path}, stripe {stripe}: has {batch.num_rows} rows, had {file.stripe_rows[stripe]} when the run "
                "began; leave files alone while they are read"
            )
        return batch


class _Packing:
    """The block under construction."""

    def __init__(self, manifest: Manifest, selection: Selection, window: Window, positions: NDArray[np.int64]) -> None:
        self.manifest, self.selection, self.window, self.positions = manifest, selection, window, positions
        rows = window.rows
        self.ids_IR = np.empty((len(selection.ids), rows), np.int64)
        self.present_IR = np.ones((len(selection.ids), rows), np.uint8)
        self.complete_I = np.ones(len(selection.ids), np.bool_)
        self.dense_FR = np.empty((len(selection.dense), rows), np.float32)
        self.id_lists = _ListPacking(selection.id_lists, rows, np.int64)
        self.float_lists = _ListPacking(selection.float_lists, rows, np.float32)
        self.problem: Problem | None = None

    def add(self, piece: Piece, positions: NDArray[np.int64], decode: Callable[[Piece], pa.RecordBatch]) -> None:
        """Decode a piece and place its rows; a stripe that can't be decoded is a problem of the first row it gives."""
        try:
            batch = decode(piece)
        except DataError as error:
            self._note(int(positions.min()), error)
            return
        for index, column in enumerate(self.selection.ids):
            scan = self._place(batch, piece, column, positions, self.ids_IR[index], self.present_IR[index])
            if scan.missing and column.default is None:
                self.complete_I[index] = False
        for index, column in enumerate(self.selection.dense):
            scan = self._place(batch, piece, column, positions, self.dense_FR[index], _NO_FLAGS)
            if scan.missing and column.default is None:
                self._note_row(scan.missing_at, column, _describe_missing(batch.column(column.name)))
        for lists in (self.id_lists, self.float_lists):
            for index, column in enumerate(lists.columns):
                self._place_lengths(batch, piece, lists, index, column, positions)

    def _place(
        self,
        batch: pa.RecordBatch,
        piece: Piece,
        column: Column,
        positions: NDArray[np.int64],
        target: NDArray[np.generic],
        present: NDArray[np.uint8],
    ) -> Scan:
        array = batch.column(column.name)
        if column.layout == "scalar":
            values, bad = to_column(array, column)
            scan = pack.place_values(values, piece.first, positions, target, present, column.default)
        else:
            lists, bad = to_list_column(array, column)
            scan = pack.place_optionals(lists, piece.first, positions, target, present, column.default)
        self._note_bad_strings(bad, piece, positions, column)
        self._note_scan(scan, column, batch)
        return scan

    def _place_lengths(
        self,
        batch: pa.RecordBatch,
        piece: Piece,
        lists: "_ListPacking",
        index: int,
        column: Column,
        positions: NDArray[np.int64],
    ) -> None:
        values, bad = to_list_column(batch.column(column.name), column)
        self._note_bad_strings(bad, piece, positions, column)
        lengths = lists.offsets_LR[index, 1:]
        pack.place_lengths(values, piece.first, positions, lengths)
        lists.pieces[index].append((values, piece.first, positions))
        if column.layout == "optional_list" and (long := positions[lengths[positions] > 1]).size:
            self._note_row(int(long.min()), column, _TOO_LONG)

    def finish(self) -> Block:
        for lists in (self.id_lists, self.float_lists):
            for column, scan in lists.finish():
                self._note_scan(scan, column, None)
                if scan.missing and column.default is None:
                    self._note_row(scan.missing_at, column, "holds a null inside a list; drop it, or declare a default")
        self._compare_weights()
        return Block(
            self.window,
            self.ids_IR,
            self.present_IR,
            self.complete_I,
            self.dense_FR,
            self.id_lists.lists,
            self.float_lists.lists,
            self.problem,
        )

    def _compare_weights(self) -> None:
        """Each list of weights must be as long as its list of ids."""
        for ids, weights in self.selection.weights:
            id_lengths, weight_lengths = self._lengths(ids), self._lengths(weights)
            different = np.flatnonzero(id_lengths != weight_lengths)
            if len(different):
                at = int(different[0])
                counts = f"{weight_lengths[at]} weights for {id_lengths[at]} ids of column '{ids}'"
                column = next(column for column in self.selection.columns if column.name == weights)
                self._note_row(at, column, f"has {counts}; write one weight an id")

    def _lengths(self, name: str) -> NDArray[np.int64]:
        for lists in (self.id_lists, self.float_lists):
            for index, column in enumerate(lists.columns):
                if column.name == name:
                    return np.diff(lists.lists.offsets_LR[index])
        raise AssertionError(name)

    # -------------------------------------------------------------------------------------------------------- problems

    def _note(self, position: int, error: DataError) -> None:
        if self.problem is None or position < self.problem.position:
            self.problem = Problem(position, error)

    def _note_row(self, position: int, column: Column, what: str) -> None:
        row = int(np.flatnonzero(self.positions == position)[0])
        for piece in self.window.pieces:
            if row < piece.rows:
                where = self.manifest.describe_row(piece.stripe, piece.first + row)
                role = self.selection.roles.get(column.name, "a column of the schema")
                self._note(position, DataError(f"{where}: column '{column.name}', {role}, {what}"))
                return
            row -= piece.rows

    def _note_bad_strings(
        self, bad: Sequence[BadString], piece: Piece, positions: NDArray[np.int64], column: Column
    ) -> None:
        inside = [entry for entry in bad if piece.first <= entry.row < piece.last]
        if inside:
            first = min(inside, key=lambda entry: int(positions[entry.row - piece.first]))
            what = f"holds {first.text!r}, which is no number ({column.parse}); mend it, or declare hash: farm for ids"
            self._note_row(int(positions[first.row - piece.first]), column, what)

    def _note_scan(self, scan: Scan, column: Column, batch: pa.RecordBatch | None) -> None:
        if scan.unfit_at != NOWHERE:
            what = (
                "holds a number that float32 can't stand for (a whole number beyond 2^24, or one beyond its range), "
                "and dense values are float32; scale it, or declare it as ids of a table"
            )
            self._note_row(scan.unfit_at, column, what)
        if scan.long_at != NOWHERE:
            self._note_row(scan.long_at, column, _TOO_LONG)


_TOO_LONG = "has several values in one row, but layout optional_list allows one; declare layout: list, or mend the data"


def _describe_missing(array: pa.Array) -> str:
    everywhere = " (as in all rows of this stripe)" if array.null_count == len(array) else ""
    return f"is missing{everywhere} and has no default; declare default: <number> in the schema, or drop such rows"


class _ListPacking:
    """List columns of one dtype under construction: lengths first, values once all lengths are known."""

    def __init__(self, columns: Sequence[Column], rows: int, dtype: type) -> None:
        self.columns, self.dtype = columns, dtype
        self.offsets_LR = np.zeros((len(columns), rows + 1), np.int64)
        self.pieces: list[list[tuple[ListColumn, int, NDArray[np.int64]]]] = [[] for _ in columns]

    def finish(self) -> list[tuple[Column, Scan]]:
        """Turn lengths into offsets and place the values; gives what each placement met."""
        np.cumsum(self.offsets_LR, axis=1, out=self.offsets_LR)
        ends = np.cumsum(self.offsets_LR[:, -1], dtype=np.int64)
        starts_L = np.concatenate([np.zeros(1, np.int64), ends])
        values: NDArray[Any] = np.empty(int(starts_L[-1]), self.dtype)
        scans = []
        for index, column in enumerate(self.columns):
            offsets, target = self.offsets_LR[index], values[starts_L[index] : starts_L[index + 1]]
            for source, first, positions in self.pieces[index]:
                scan = pack.place_lists(source, first, positions, offsets, target, column.default)
                scans.append((column, scan))
        self.pieces.clear()
        self.lists = Lists(self.offsets_LR, values, starts_L[:-1])
        return scans
