"""Which columns a loader reads, in what form a batch carries them, and how Arrow's arrays become what packing takes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from recis_lightning.data.errors import DataError
from recis_lightning.data.sources import cut, extract, file_column, flatten
from recis_lightning.data.tokens import tokenizer_of
from recis_lightning.schema import Column, Schema
from triton_ops.hash_bytes.op import hash_bytes
from triton_ops.pack import types


@dataclass(frozen=True)
class Selection:
    """The columns of a schema that are read, by the form they take in a batch."""

    ids: tuple[Column, ...]
    """At most one id a row: Ragged int64 of rows of length 0 or 1."""
    dense: tuple[Column, ...]
    """float32 [B]."""
    id_lists: tuple[Column, ...]
    """Ragged int64."""
    float_lists: tuple[Column, ...]
    """Ragged float32."""
    byte_lists: tuple[Column, ...]
    """Ragged uint8."""
    vectors: tuple[Column, ...]
    """float32 [B, dim]."""
    weights: tuple[tuple[str, str], ...]
    """Columns of ids and of their weights, which must be equally long in every row."""
    roles: dict[str, str]
    """What each column is for, for messages: the label of task 'ctr'."""

    @staticmethod
    def of(schema: Schema, labels: bool = True) -> "Selection":
        """What a model of this schema reads; without ``labels`` what `predict` needs."""
        names = {column.name for column in schema.input_columns}
        names |= {column.name for column in schema.label_columns} if labels else set()
        columns = [column for column in schema.columns if column.name in names]
        pairs = [(schema.column_of(f).name, f.column_weights) for f in schema.features if f.column_weights is not None]
        # Ids with weights take the form of lists even where there is at most one, so that both can be compared.
        as_lists = {name for pair in pairs for name in pair}
        for column in columns:
            if column.name in as_lists and column.layout == "optional_list" and column.default is not None:
                raise DataError(
                    f"column '{column.name}' has a default and goes with weights, which would be missing for it; leave "
                    "the default out, and rows without a value add nothing"
                )

        def of_form(lists: bool, ids: bool) -> tuple[Column, ...]:
            return tuple(
                column
                for column in columns
                if (column.has_rows or column.name in as_lists) == lists
                and column.dtype != "binary"
                and column.layout != "vector"
                and schema.is_id_column(column.name) == ids
            )

        return Selection(
            ids=of_form(lists=False, ids=True),
            dense=of_form(lists=False, ids=False),
            id_lists=of_form(lists=True, ids=True),
            float_lists=of_form(lists=True, ids=False),
            byte_lists=tuple(column for column in columns if column.dtype == "binary"),
            vectors=tuple(column for column in columns if column.layout == "vector"),
            weights=tuple(dict.fromkeys(pairs)),
            roles=_roles(schema),
        )

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.ids + self.dense + self.id_lists + self.float_lists + self.byte_lists + self.vectors

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    def file_columns(self, names: Mapping[str, object]) -> list[str]:
        """The columns to read of a file that has columns of these names, each once."""
        return list(dict.fromkeys(file_column(column, names)[0] for column in self.columns))

    @cached_property
    def levels(self) -> tuple[Column, ...]:
        """Lists that stand for the inner levels of nested ones: the lengths of their lists, row by row."""
        nested = [column for column in self.id_lists + self.float_lists if column.layout == "nested_list"]
        return tuple(level for column in nested for level in levels_of(column))

    @cached_property
    def plain(self) -> frozenset[str]:
        """The columns that files hold just as they are declared."""
        made = ("timestamp", "decimal", "binary")
        return frozenset(
            column.name
            for column in self.columns
            if column.source is None and column.split is None and column.dtype not in made
        )

    @cached_property
    def shaped(self) -> tuple[Column, ...]:
        """The columns that are cut, or flattened."""
        is_cut = (column.max_length is not None and column.tokenizer is None for column in self.columns)
        return tuple(
            column
            for column, cut_too in zip(self.columns, is_cut, strict=True)
            if cut_too or column.layout == "nested_list"
        )

    @property
    def word_lists(self) -> tuple[Column, ...]:
        """All that is packed as lists of int64."""
        return self.id_lists + self.levels

    def column(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)


def levels_of(column: Column) -> list[Column]:
    """Stand-ins for the inner levels of a nested column, outermost first."""
    return [Column(name=f"{column.name}[{level}]", dtype="int64", layout="list") for level in range(1, column.levels)]


def _roles(schema: Schema) -> dict[str, str]:
    roles = {
        column.name: f"an input of feature '{feature.name}'"
        for feature in schema.features
        for column in schema.columns_of(feature)
    }
    roles |= {
        feature.column_weights: f"the weights of feature '{feature.name}'"
        for feature in schema.features
        if feature.column_weights is not None
    }
    for task in schema.tasks:
        read = {"group": task.group, "sample_weight": task.sample_weight, "where": task.where, "label": task.label}
        for role, name in read.items():
            if name and not (role == "group" and name in roles):
                roles[name] = f"the {role} of task '{task.name}'"
    return roles


def filler_of(column: Column) -> float | None:
    """What stands for a missing number; a vector's default of several numbers stands for whole rows alone."""
    return None if isinstance(column.default, tuple) else column.default


def extract_column(batch: pa.RecordBatch, column: Column, selection: Selection) -> pa.Array:
    """A column as it is declared: parts of structs, pairs and maps found, times counted, nothing cut."""
    return batch.column(column.name) if column.name in selection.plain else extract(batch, column)


def cut_columns(arrays: Mapping[str, pa.Array], selection: Selection) -> dict[str, pa.Array]:
    """Lists cut to their lengths, and nested ones flattened, their levels beside them: of the columns given."""
    found = dict(arrays)
    for column in selection.shaped:
        if column.name not in found:
            continue
        array = found[column.name]
        if column.max_length is not None:
            array = cut(array, column.max_length, column.keep)
        if column.layout == "nested_list":
            *levels, array = flatten(array, column.levels)
            found |= {level.name: lengths for level, lengths in zip(levels_of(column), levels, strict=True)}
        found[column.name] = array
    return found


# ---------------------------------------------------------------------------------------------------- to plain numbers


def to_numbers(array: pa.Array, column: Column) -> tuple[pa.Array, bool]:
    """An array of int64, float32, float64 or uint8, or of lists of them, and whether some strings are no numbers.

    Strings are hashed or parsed (null where they are no numbers), and texts tokenized.
    """
    if column.tokenizer is not None:
        return tokenizer_of(column).encode_array(array), False
    if not pa.types.is_list(array.type):
        return _to_numbers(array, column)
    values, has_bad_strings = _to_numbers(array.values, column)
    assert array.offset == 0
    validity, offsets = array.buffers()[:2]
    return pa.Array.from_buffers(
        pa.list_(values.type), len(array), [validity, offsets], array.null_count, children=[values]
    ), has_bad_strings


def _to_numbers(array: pa.Array, column: Column) -> tuple[pa.Array, bool]:
    """An array of int64, float32 or float64."""
    if column.hash:
        return _hash_strings(array, column), False
    if column.parse:
        return _parse_strings(array, _parsed_type(column))
    if column.dtype in ("bool", "int8", "int16", "int32"):
        return pc.cast(array, pa.int64()), False
    return array, False


def _hash_strings(array: pa.Array, column: Column) -> pa.Array:
    assert array.offset == 0
    assert column.hash is not None
    validity, offsets, data = array.buffers()
    if not len(array):
        return pa.array([], pa.int64())
    text = _as_tensor(data if data is not None else pa.py_buffer(b""), pa.uint8())
    hashes = hash_bytes(text, _as_tensor(offsets, pa.int32())[: len(array) + 1], column.hash)
    return pa.Array.from_buffers(pa.int64(), len(array), [validity, pa.py_buffer(hashes.numpy())])


def _as_tensor(buffer: pa.Buffer, dtype: pa.DataType) -> torch.Tensor:
    # DLPack, since torch warns of every NumPy array that is read-only.
    count = buffer.size * 8 // dtype.bit_width
    return torch.from_dlpack(pa.Array.from_buffers(dtype, count, [None, buffer]))


def _parsed_type(column: Column) -> pa.DataType:
    # Floats as float64, since Arrow makes infinity of what is too large for float32, which is to be noticed.
    return pa.int64() if column.parse == "int64" else pa.float64()


def _parse_strings(array: pa.Array, dtype: pa.DataType) -> tuple[pa.Array, bool]:
    """The numbers that strings are, and whether some are none; these become null."""
    try:
        numbers = pc.cast(array, dtype)
    except pa.ArrowInvalid:
        pass
    else:
        if pa.types.is_integer(dtype) or not pc.any(pc.is_inf(numbers)).as_py():
            return numbers, False
    texts = array.to_pylist()
    found = {text: _parse_string(text, dtype) for text in set(texts)}
    has_bad = any(number is None and text is not None for text, number in found.items())
    return pa.array([found[text] for text in texts], dtype), has_bad


def _parse_string(text: str | None, dtype: pa.DataType) -> float | int | None:
    try:
        number = pc.cast(pa.scalar(text, pa.string()), dtype).as_py()
    except pa.ArrowInvalid:
        return None
    # Arrow makes infinity of 1e400, too; meant is only what is written so.
    is_too_large = isinstance(number, float) and math.isinf(number) and "inf" not in (text or "").lower()
    return None if is_too_large else number


# --------------------------------------------------------------------------------------------------------------- faults


def find_fault(value: Any, column: Column, selection: Selection) -> str | None:
    """What is wrong with the value of a row, in words with advice, or None: the slow way, once a fault is known."""
    if column.layout == "vector" and len(value or ()) != column.dim:
        if value:
            return f"holds {len(value)} numbers, a vector of dim {column.dim} is declared; mend the data, or the dim"
        if column.default is not None:
            return None
        return f"is missing and has no default; declare default: 0, or {column.dim} numbers, or leave such rows out"
    is_list = column in selection.id_lists + selection.float_lists + selection.vectors
    is_id = column in selection.ids + selection.id_lists
    if column.layout == "optional_list" and len(value or ()) > 1:
        return f"holds {len(value)} values, layout optional_list allows one; declare layout: list, or mend the data"
    items = [value] if column.layout == "scalar" else value or ([] if is_list else [None])
    for item in items:
        if item is None:
            if filler_of(column) is None and is_list:
                return "holds a null inside a list and has no default; declare default: <number>, or mend the data"
            if column.default is None and not is_id:
                return "is missing and has no default; declare default: <number> in the schema, or leave such rows out"
            continue
        number = _parse_string(item, _parsed_type(column)) if column.parse else item
        if number is None:
            return f"holds {item!r}, which is no number ({column.parse}); mend it, or declare hash: farm to read ids"
        if not is_id and _is_unfit(number):
            return (
                f"holds {number}, which float32 can't stand for (dense values are float32: whole numbers to 2^24, "
                f"others to 3.4e38); scale it, or look it up in a table as an id"
            )
    return None


def _is_unfit(number: float | int | str) -> bool:
    if isinstance(number, str):
        return False
    if isinstance(number, int):
        return abs(number) > types.LARGEST_WHOLE
    return math.isfinite(number) and abs(number) > float(np.finfo(np.float32).max)
