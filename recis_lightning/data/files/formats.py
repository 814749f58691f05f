"""Files by their format: ORC by stripes and Parquet by row groups, which are called stripes from here on.

Types are made plain while reading, so that a schema means the same for both: a large or fixed-size list is a list, a
dictionary of strings is strings, uint64 keeps its 64 bits as int64, narrower unsigned integers get the next width.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import orc

from recis_lightning.data.files.storage import open_input

Format = Literal["orc", "parquet"]
SUFFIXES = (".orc", ".parquet")
MAGIC: dict[bytes, Format] = {b"ORC": "orc", b"PAR1": "parquet"}

_PLAIN = {
    pa.large_string(): pa.string(),
    pa.string_view(): pa.string(),
    pa.large_binary(): pa.binary(),
    pa.binary_view(): pa.binary(),
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.int64(),
    pa.float16(): pa.float32(),
}


class StripeEntry(NamedTuple):
    """What a file's tail says of a stripe."""

    rows: int
    span: tuple[int, int] | None
    """First byte and number of bytes, where the tail tells them."""


def format_of(head: bytes) -> Format | None:
    """What a file with these first four bytes is; None for anything else."""
    return MAGIC.get(head) or MAGIC.get(head[:3])


def plain_type(dtype: pa.DataType) -> pa.DataType:
    """The type a column is read as: large_list<uint64> -> list<int64>."""
    if pa.types.is_dictionary(dtype):
        return plain_type(dtype.value_type)
    if pa.types.is_fixed_size_binary(dtype):
        return pa.binary()
    is_list = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if any(check(dtype) for check in is_list):
        value = plain_type(dtype.value_type)
        return dtype if pa.types.is_list(dtype) and value == dtype.value_type else pa.list_(value)
    if pa.types.is_map(dtype):
        key, item = plain_type(dtype.key_type), plain_type(dtype.item_type)
        return dtype if (key, item) == (dtype.key_type, dtype.item_type) else pa.map_(key, item)
    if pa.types.is_struct(dtype):
        fields = [(field.name, plain_type(field.type)) for field in dtype]
        return (
            dtype
            if all(kind == field.type for (_, kind), field in zip(fields, dtype, strict=True))
            else pa.struct(fields)
        )
    return _PLAIN.get(dtype, dtype)


def read_parquet_tail(path: str) -> tuple[list[StripeEntry], Mapping[str, pa.DataType]]:
    """The row groups, and the columns with the types they are read as."""
    metadata = pq.read_metadata(open_input(path))
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    return [_describe_group(group) for group in groups], {
        field.name: plain_type(field.type) for field in metadata.schema.to_arrow_schema()
    }


def _describe_group(group: pq.RowGroupMetaData) -> StripeEntry:
    columns = [group.column(index) for index in range(group.num_columns)]
    # The dictionary of a column lies before its data, where there is one.
    first = min((column.dictionary_page_offset or column.data_page_offset for column in columns), default=0)
    return StripeEntry(group.num_rows, (first, sum(column.total_compressed_size for column in columns)))


def read_stripe(
    path: str,
    kind: Format,
    stripe: int,
    columns: Sequence[str] | None = None,
    opened: Callable[[str], Any] = open_input,
) -> pa.RecordBatch:
    """One stripe, all columns or those named; OSError or ArrowException where it can't be decoded."""
    if kind == "orc":
        return orc.ORCFile(opened(path)).read_stripe(stripe, columns=None if columns is None else list(columns))
    with pq.ParquetFile(opened(path)) as file:
        # One thread, since stripes are what threads share out among each other.
        table = file.read_row_group(stripe, columns=None if columns is None else list(columns), use_threads=False)
    return _to_batch(table)


def _to_batch(table: pa.Table) -> pa.RecordBatch:
    arrays = []
    for column in table.columns:
        array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
        kind = plain_type(array.type)
        # uint64 above 2^63 wraps around, which keeps its bits.
        arrays.append(array if kind == array.type else array.cast(kind, safe=False))
    return pa.RecordBatch.from_arrays(arrays, table.column_names)
