"""Where the columns of a stripe lie in memory, for kernels that take them all in one call.

Columns that files hold as they are declared are looked up in the stripe itself; the others (strings to hash or to
parse, small integers, times, what is cut or flattened) are made into plain numbers first. Both are found through
Arrow's C data interface, since an object for each column and buffer costs more than placing the rows of a small stripe.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from recis_lightning.data.columns import Selection, cut_columns, extract_column, to_numbers
from recis_lightning.data.memory import BufferPool
from recis_lightning.schema import Column
from triton_ops.hash_bytes.op import HashKind, hash_columns
from triton_ops.pack import types
from triton_ops.pack.op import kernels

_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


@dataclass(frozen=True)
class Located:
    """Where the columns of a stripe lie."""

    sources_K6: NDArray[np.int64]
    """A table of sources as `triton_ops.pack.types` tells, in the order of `Locator.columns`."""
    owners: Sequence[Any]
    """What holds the memory."""
    suspects: frozenset[str]
    """Columns of strings of which some are no numbers."""


class Locator:
    """Finds the columns of one selection in stripes."""

    def __init__(self, selection: Selection) -> None:
        self._selection, self._pool = selection, BufferPool()
        groups = (
            selection.ids,
            selection.dense,
            selection.word_lists,
            selection.float_lists,
            selection.byte_lists,
            selection.vectors,
        )
        self.columns = tuple(column for group in groups for column in group)
        ends = list(accumulate(map(len, groups)))
        self.ids, self.dense, self.word_lists, self.float_lists, self.byte_lists, self.vectors = (
            slice(end - len(group), end) for end, group in zip(ends, groups, strict=True)
        )
        slots = {column.name: slot for slot, column in enumerate(self.columns)}
        self._made = [column for column in selection.columns if not _is_as_stored(column, selection)]
        self._made_names = [column.name for column in self._made] + [column.name for column in selection.levels]
        self._made_slots = np.array([slots[name] for name in self._made_names], np.int64)
        stored = [column.name for column in self.columns if column.name not in self._made_names]
        self._stored, self._stored_slots = stored, np.array([slots[name] for name in stored], np.int64)
        hashed = [column for column in self.columns if column.name in stored and column.hash is not None]
        self._hashed: dict[HashKind, NDArray[np.int64]] = {
            kind: np.array([slots[column.name] for column in hashed if column.hash == kind], np.int64)
            for kind in dict.fromkeys(column.hash for column in hashed if column.hash is not None)
        }
        self._last: tuple[pa.Schema, NDArray[np.int64], NDArray[np.int64]] | None = None

    def locate(self, batch: pa.RecordBatch) -> Located:
        """Where the columns of a stripe lie, and those made of it."""
        sources_K6 = np.zeros((len(self.columns), 6), np.int64)
        columns, kinds = self._find_stored(batch.schema)
        sources_K6[self._stored_slots, types.KIND] = kinds
        owners = [_look_up(batch, columns, self._stored_slots, sources_K6)]
        owners += [self._hash(sources_K6, slots, kind, batch.num_rows) for kind, slots in self._hashed.items()]
        suspects: frozenset[str] = frozenset()
        if self._made:
            made, suspects = self._make(batch)
            sources_K6[self._made_slots, types.KIND] = [_kind_of(array.type) for array in made.columns]
            owners.append(_look_up(made, np.arange(len(self._made_names)), self._made_slots, sources_K6))
        return Located(sources_K6, owners, suspects)

    def _find_stored(self, schema: pa.Schema) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which columns of a stripe they are, and of what kind: as in the stripe before, as a rule."""
        last = self._last
        if last is None or not last[0].equals(schema):
            columns = np.array([schema.get_field_index(name) for name in self._stored], np.int64)
            kinds = np.array([_kind_of(schema.field(name).type) for name in self._stored], np.int64)
            last = self._last = schema, columns, kinds
        return last[1:]

    def _hash(self, sources_K6: NDArray[np.int64], slots: NDArray[np.int64], kind: HashKind, rows: int) -> Tensor:
        """Put hashes in the place of strings; gives what holds them."""
        hashes = self._pool.take(8 * len(slots) * rows)
        targets = hashes.data_ptr() + 8 * rows * np.arange(len(slots))
        strings = sources_K6[slots][:, [types.VALUES, types.OFFSETS, types.COUNT]]
        hash_columns(np.column_stack([strings, targets]), kind)
        sources_K6[slots, types.VALUES], sources_K6[slots, types.OFFSETS] = targets, 0
        return hashes

    def _make(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, frozenset[str]]:
        """Plain numbers, or lists of them, of all columns that are stored otherwise; and those with bad strings."""
        arrays = {column.name: extract_column(batch, column, self._selection) for column in self._made}
        arrays = cut_columns(arrays, self._selection)
        suspects = set()
        for column in self._made:
            arrays[column.name], is_suspect = to_numbers(arrays[column.name], column)
            if is_suspect:
                suspects.add(column.name)
        made = [arrays[name] for name in self._made_names]
        return pa.RecordBatch.from_arrays(made, self._made_names), frozenset(suspects)


def _is_as_stored(column: Column, selection: Selection) -> bool:
    """Whether files hold a column's numbers, or single strings of which numbers are made in place."""
    is_number = column.dtype in ("int64", "float32", "float64")
    is_hashed = column.dtype == "string" and column.hash is not None and column.layout == "scalar"
    return (is_number or is_hashed) and column.name in selection.plain and column not in selection.shaped


def _kind_of(dtype: pa.DataType) -> int:
    if pa.types.is_string(dtype):
        return types.INT64  # once it is hashed
    value = dtype.value_type if pa.types.is_list(dtype) else dtype
    return types.KINDS.index(np.dtype(value.to_pandas_dtype()))


def _look_up(
    batch: pa.RecordBatch, columns: NDArray[np.int64], slots: NDArray[np.int64], sources_K6: NDArray[np.int64]
) -> Any:
    """Fill the table's slots; gives what holds the memory."""
    batch.validate()  # offsets are followed without looking
    schema, array = batch.__arrow_c_array__()
    are_whole = kernels().find_buffers(_pointer_of(array, b"arrow_array"), columns, slots, sources_K6)
    assert are_whole, "a stripe's columns are slices of others"
    return array
