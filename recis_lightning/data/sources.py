"""What files have, as columns are declared: parts of structs, maps and pairs; split strings; times; cut and flat lists.

A file's type is followed along a source, `tags.key`:

    struct                  .name is a field
    list<X>                 the list of what X gives
    map<K, V>               .key and .value, lists
    list of two-field structs   .key and .value are the first and the second field, whatever their names
    string "7:0.5"          .key and .value are what stands before and behind the last ":"

All of it works on Arrow arrays of a stripe at once, and copies nothing but what it has to make anew.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recis_lightning.schema import Column

KEY, VALUE = "key", "value"

# Nanoseconds, or for units that Arrow stores, what one of them holds.
UNIT_NS = {
    "ns": 1,
    "us": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "minutes": 60 * 10**9,
    "hours": 3600 * 10**9,
    "days": 86_400 * 10**9,
}


def file_column(column: Column, names: Mapping[str, object]) -> tuple[str, tuple[str, ...]]:
    """The file's column that holds a column, and the parts to follow in it: tags.key -> tags, (key,)."""
    source = column.source or column.name
    if column.source is None or source in names:
        return source, ()
    name, *parts = source.split(".")
    return name, tuple(parts)


def extract(batch: pa.RecordBatch, column: Column) -> pa.Array:
    """A declared column's values: of its layout and plain types, timestamps as int64 in its unit, nothing cut yet."""
    name, parts = file_column(column, dict.fromkeys(batch.schema.names))
    array = _follow(batch.column(name), parts, column.split)
    if column.dtype == "binary":
        return _bytes_as_lists(array)
    return _to_plain(array, column)


# ------------------------------------------------------------------------------------------------------ following types


def follow_type(dtype: pa.DataType, parts: tuple[str, ...]) -> pa.DataType | None:
    """The type at the end of a source, None where it leads nowhere: map<int64, float> and (key,) -> list<int64>."""
    if not parts:
        return dtype
    first, rest = parts[0], parts[1:]
    if pa.types.is_map(dtype):
        child = {KEY: dtype.key_type, VALUE: dtype.item_type}.get(first)
        inner = None if child is None else follow_type(child, rest)
        return None if inner is None else pa.list_(inner)
    if pa.types.is_list(dtype):
        inner = follow_type(dtype.value_type, parts)
        return None if inner is None else pa.list_(inner)
    if pa.types.is_struct(dtype):
        index = _field_index(dtype, first)
        return None if index < 0 else follow_type(dtype.field(index).type, rest)
    is_pair = pa.types.is_string(dtype) and first in (KEY, VALUE) and not rest
    return dtype if is_pair else None


def _field_index(dtype: pa.StructType, name: str) -> int:
    index: int = dtype.get_field_index(name)
    if index < 0 and dtype.num_fields == 2 and name in (KEY, VALUE):
        return (KEY, VALUE).index(name)
    return index


def follow(array: pa.Array, parts: tuple[str, ...]) -> pa.Array:
    """The part of an array that a source leads to: structs {age: 3} and (age,) -> 3."""
    return _follow(array, parts, None)


def _follow(array: pa.Array, parts: tuple[str, ...], split: str | None) -> pa.Array:
    dtype = array.type
    if pa.types.is_string(dtype):
        if split is not None:
            array = _split(array, split)
        return _follow_pairs(array, parts[0]) if parts else array
    if not parts:
        return array
    if pa.types.is_map(dtype):
        child = array.keys if parts[0] == KEY else array.items
        return _as_list(array, _follow(child, parts[1:], split))
    if pa.types.is_list(dtype):
        return _as_list(array, _follow(array.values, parts, split))
    index = _field_index(dtype, parts[0])
    # Flattened, since a field's own array holds leftovers where the whole struct is null.
    return _follow(array.flatten()[index], parts[1:], split)


def _as_list(array: pa.Array, values: pa.Array) -> pa.ListArray:
    """Lists of other values of the same count; maps become lists."""
    assert array.offset == 0
    validity, offsets = array.buffers()[:2]
    return pa.Array.from_buffers(pa.list_(values.type), len(array), [validity, offsets], children=[values])


def _split(array: pa.StringArray, separator: str) -> pa.ListArray:
    """The lists that strings stand for; an empty string is an empty list, of which Arrow would make one of one."""
    empty = pc.equal(array, "")
    pieces = pc.split_pattern(pc.if_else(empty, pa.scalar(None, pa.string()), array), separator)
    offsets = np.frombuffer(pieces.buffers()[1], np.int32, len(pieces) + 1)
    return pa.ListArray.from_arrays(pa.array(offsets), pieces.values, mask=array.is_null())


def _follow_pairs(array: pa.Array, part: str) -> pa.Array:
    """The keys or values of strings "key:value"; a string without ":" is a key, whose value is missing."""
    if pa.types.is_list(array.type):
        return _as_list(array, _follow_pairs(array.values, part))
    pieces = pc.split_pattern(array, ":", max_splits=1, reverse=True)
    starts = np.frombuffer(pieces.buffers()[1], np.int32, len(pieces) + 1)
    missing = array.is_null().to_numpy(zero_copy_only=False)
    places = starts[:-1] if part == KEY else starts[:-1] + 1
    if part == VALUE:
        missing = missing | (np.diff(starts) < 2)
    return pieces.values.take(pa.array(np.where(missing, 0, places), mask=missing))


# --------------------------------------------------------------------------------------------------------- plain values


def _to_plain(array: pa.Array, column: Column) -> pa.Array:
    if pa.types.is_list(array.type):
        inner = array.values
        values = _to_plain(inner, column)
        return array if values is inner else _as_list(array, values)
    if column.dtype == "timestamp":
        assert column.unit is not None
        return _count_time(array, column.unit)
    return pc.cast(array, pa.float64()) if column.dtype == "decimal" else array


def _count_time(array: pa.Array, unit: str) -> pa.Array:
    """Whole units since 1970, rounded down: half a second before it is -1 s."""
    stored = "days" if pa.types.is_date32(array.type) else "ms" if pa.types.is_date64(array.type) else array.type.unit
    width = pa.int32() if stored == "days" else pa.int64()
    counts = array.view(width).to_numpy(zero_copy_only=False) if not array.null_count else _raw(array, width)
    have, want = UNIT_NS[stored], UNIT_NS[unit]
    counts = counts.astype(np.int64)
    counts = counts // (want // have) if want >= have else counts * (have // want)
    validity = array.buffers()[0] if array.null_count else None
    return pa.Array.from_buffers(pa.int64(), len(array), [validity, pa.py_buffer(counts)])


def _raw(array: pa.Array, dtype: pa.DataType) -> NDArray[np.generic]:
    """The values of a primitive array, leftovers under nulls too."""
    assert array.offset == 0
    return np.frombuffer(array.buffers()[1], dtype.to_pandas_dtype(), len(array))


def _bytes_as_lists(array: pa.BinaryArray) -> pa.ListArray:
    assert array.offset == 0
    validity, offsets, data = array.buffers()
    data = data if data is not None else pa.py_buffer(b"")
    values = pa.Array.from_buffers(pa.uint8(), data.size, [None, data])
    return pa.Array.from_buffers(pa.list_(pa.uint8()), len(array), [validity, offsets], children=[values])


# ---------------------------------------------------------------------------------------------------------------- lists


def lengths_of(array: pa.Array) -> NDArray[np.int64]:
    """How many values each row of a list array has: [[1, 2], None, []] -> 2, 0, 0."""
    lengths: NDArray[np.int64] = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    return lengths.astype(np.int64)


def cut(array: pa.ListArray, length: int, keep: str) -> pa.ListArray:
    """At most so many entries of each row: [[1, 2, 3], [4]] to 2, the last -> [[2, 3], [4]]."""
    lengths = lengths_of(array)
    if not (lengths > length).any():
        return array
    offsets = np.frombuffer(array.buffers()[1], np.int32, len(array) + 1)
    kept = np.minimum(lengths, length)
    starts = offsets[:-1] + (lengths - kept if keep == "last" else 0)
    ends = np.cumsum(kept)
    places = np.arange(ends[-1]) + np.repeat(starts - (ends - kept), kept)
    bounds = pa.array(np.concatenate([[0], ends]), pa.int32())
    mask = array.is_null() if array.null_count else None
    return pa.ListArray.from_arrays(bounds, array.values.take(pa.array(places)), mask=mask)


def flatten(array: pa.ListArray, levels: int) -> list[pa.ListArray]:
    """Nested lists as flat ones: the lengths of each inner level, then the values.

    [[[1, 2], [3]], []] of 2 levels -> [[2, 1], []] and [[1, 2, 3], []].
    """
    array, parts = _compact(array), []
    for _ in range(levels - 1):
        inner = _compact(array.values)
        parts.append(_as_list(array, pa.array(lengths_of(inner))))
        outer_offsets, inner_offsets = (np.frombuffer(each.buffers()[1], np.int32) for each in (array, inner))
        # Bounds of rows in the values: those of a row's first and last list.
        bounds = inner_offsets[: len(inner) + 1][outer_offsets[: len(array) + 1]]
        validity = array.buffers()[0]
        buffers = [validity, pa.py_buffer(np.ascontiguousarray(bounds))]
        array = pa.Array.from_buffers(pa.list_(inner.type.value_type), len(array), buffers, children=[inner.values])
    return [*parts, array]


def find_unequal(left: pa.ListArray, right: pa.ListArray) -> NDArray[np.bool_]:
    """In which rows two list columns differ in their lengths, or nested ones in those of their lists."""
    unequal: NDArray[np.bool_] = lengths_of(left) != lengths_of(right)
    nested = [pa.types.is_list(array.type.value_type) for array in (left, right)]
    if not all(nested) or unequal.any():
        return unequal
    left, right = _compact(left), _compact(right)
    places = np.flatnonzero(find_unequal(left.values, right.values))
    bounds = np.frombuffer(left.buffers()[1], np.int32, len(left) + 1)
    unequal[np.searchsorted(bounds, places, side="right") - 1] = True
    return unequal


def _compact(array: pa.ListArray) -> pa.ListArray:
    """Lists of which the null ones hold no values; Arrow allows leftovers below them."""
    if not array.null_count:
        return array
    extents = np.diff(np.frombuffer(array.buffers()[1], np.int32, len(array) + 1))
    has_leftovers = (extents[array.is_null().to_numpy(zero_copy_only=False)] > 0).any()
    return array.take(pa.array(np.arange(len(array)))) if has_leftovers else array
