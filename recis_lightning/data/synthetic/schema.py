"""Make ORC files that fit any schema, so that a recipe runs where its real files are not.

    synthesize(schema, "data/train", rows=10_000)
    synthesize(schema, "data/valid", rows=1_000, split=1)   # other rows of the same hidden truth

Every column gets its declared type and layout: a list column has null, empty and long rows, an `optional_list` holds
one value or, where it is missing, none. Values are missing only where the schema lets them: ids, and columns with a
default. Labels depend on the features, so that a model has something to learn.

B rows of a block, N values of a column in it.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recis_lightning.data.check import ARROW_TYPES
from recis_lightning.data.errors import DataError
from recis_lightning.data.files.orc_writer import PartWriter
from recis_lightning.data.sources import UNIT_NS
from recis_lightning.data.synthetic.generator import NOUNS, SCALES, ZIPF_EXPONENT, sigmoid, to_ids
from recis_lightning.schema import Column, Schema, Vector

Values = NDArray[Any]
Floats = NDArray[np.float64]

BLOCK_ROWS = 1 << 14
VOCABULARY = 1_000  # values of an id column, zipf over them
LARGEST = {"int8": 100, "bool": 1}  # the wider types hold all that is drawn
MISSING = 0.1  # of the values that may be missing
TOKENS = 100  # ids of a token-id column, where the schema does not tell its model's vocabulary
LONGEST = 8  # list
WRITTEN_AS = ARROW_TYPES | {"timestamp": pa.timestamp("ns"), "decimal": pa.decimal128(18, 2)}


def synthesize(
    schema: Schema,
    out_dir: str | Path,
    rows: int,
    seed: int = 0,
    *,
    split: int = 0,
    parts: int = 2,
    on_rows: Callable[[int], None] | None = None,
) -> list[Path]:
    """Write ``rows`` rows with all columns of ``schema`` as ORC part files in ``out_dir``; returns their paths.

    A pure function of its arguments. ``seed`` decides what hides behind the labels, ``split`` which rows are drawn from
    it. ``on_rows`` is told after each block how many rows were written. FileExistsError where ``out_dir`` holds ORC
    files already.
    """
    _check_sources(schema)
    if rows < 1 or parts < 1:
        raise DataError(f"rows is {rows}, parts is {parts}; need at least one of each")
    with PartWriter(out_dir, part_rows=-(-rows // parts)) as writer:
        for block, start in enumerate(range(0, rows, BLOCK_ROWS)):
            count = min(BLOCK_ROWS, rows - start)
            writer.write(_draw_block(schema, count, seed, np.random.default_rng([seed, split, block])))
            if on_rows:
                on_rows(count)
    return writer.paths


def _draw_block(schema: Schema, count: int, seed: int, rng: np.random.Generator) -> pa.Table:
    task_columns = {column.name for column in schema.label_columns if not schema.is_id_column(column.name)}
    weighted = _weighted_with(schema)
    layouts: dict[str, _Rows] = {}
    arrays: dict[str, pa.Array] = {}
    signals: list[Floats] = []
    for column in schema.columns:
        if column.name in task_columns:
            continue
        # Ids and their weights have one layout between them.
        layout = layouts.setdefault(weighted.get(column.name, column.name), _draw_rows(schema, column, count, rng))
        values_N, signal_N = _draw_values(schema, column, layout.values, seed, rng)
        arrays[column.name] = _arrange(column, layout, values_N)
        signals.append(layout.first(signal_N))
    signal_B = np.sum(signals, axis=0) / np.sqrt(max(1, len(signals))) if signals else np.zeros(count)
    arrays |= _draw_task_columns(schema, signal_B, rng)
    return _assemble(schema.columns, arrays)


def _check_sources(schema: Schema) -> None:
    for column in schema.columns:
        parts = (column.source or "").split(".")[1:]
        if len(parts) > 1 or (parts and (column.split is not None or column.layout not in ("scalar", "list"))):
            raise DataError(
                f"column '{column.name}' comes from '{column.source}', for which no data can be made up; "
                "that is for fields of structs, and keys and values of lists"
            )


def _assemble(columns: Sequence[Column], arrays: Mapping[str, pa.Array]) -> pa.Table:
    """The columns of the file: those declared, and those that others are parts of."""
    parts: dict[str, dict[str, pa.Array]] = {}
    for column in columns:
        name, _, part = (column.source or column.name).partition(".")
        parts.setdefault(name, {}).setdefault(part, arrays[column.name])
    return pa.table({name: its[""] if "" in its else _join_parts(its) for name, its in parts.items()})


def _join_parts(parts: Mapping[str, pa.Array]) -> pa.Array:
    """A struct of the parts, or lists of structs of parts that are lists."""
    parts = {name: parts[name] for name in sorted(parts)}  # key before value, which are told by their place
    first, *others = parts.values()
    if not pa.types.is_list(first.type):
        return pa.StructArray.from_arrays([first, *others], list(parts))
    entries = pa.StructArray.from_arrays([each.values for each in (first, *others)], list(parts))
    return pa.ListArray.from_arrays(first.offsets, entries, mask=first.is_null())


def _weighted_with(schema: Schema) -> dict[str, str]:
    """Name a group for each column that is as long as others: (a, w), (b, w) -> a, b and w are in one group."""
    group: dict[str, str] = {}
    parts: dict[str, list[str]] = {}
    for column in schema.columns:
        if column.source and "." in column.source and column.layout == "list":
            parts.setdefault(column.source.split(".")[0], []).append(column.name)
    for columns in (*schema.aligned_columns, *map(tuple, parts.values())):
        old = {group.get(name, name) for name in columns}
        group |= dict.fromkeys([*columns, *(name for name, its in group.items() if its in old)], columns[0])
    return group


class _Rows:
    """How many values each row has: ``lengths_B``, and which rows are null."""

    def __init__(self, lengths_B: NDArray[np.int64], null_B: NDArray[np.bool_]) -> None:
        self.null_B = null_B
        self.offsets_B1 = np.concatenate([[0], np.cumsum(lengths_B)])

    @property
    def values(self) -> int:
        return int(self.offsets_B1[-1])

    def first(self, signal_N: Floats) -> Floats:
        """A row's first value, 0 where it has none."""
        filled_B = np.diff(self.offsets_B1) > 0
        first_B = np.zeros(len(filled_B))
        first_B[filled_B] = signal_N[self.offsets_B1[:-1][filled_B]]
        return first_B


def _draw_rows(schema: Schema, column: Column, count: int, rng: np.random.Generator) -> _Rows:
    missing_B = rng.random(count) < MISSING
    if column.layout in ("list", "nested_list", "vector"):
        dim = column.dim or _vector_dim(schema, column)
        if dim is not None:
            return _Rows(np.full(count, dim), np.zeros(count, np.bool_))
        lengths_B = rng.integers(0, LONGEST + 1, count)
        return _Rows(np.where(missing_B, 0, lengths_B), missing_B)
    if not _may_miss(schema, column):
        missing_B[:] = False
    return _Rows((~missing_B).astype(np.int64), missing_B & (column.layout == "scalar"))


def _vector_dim(schema: Schema, column: Column) -> int | None:
    """How many numbers each list has, where a feature takes it for a vector."""
    readers = [feature for feature in schema.features if column in schema.columns_of(feature)]
    dims = [each.dim for feature in readers for each in feature.transforms if isinstance(each, Vector)]
    return dims[0] if dims else None


def _may_miss(schema: Schema, column: Column) -> bool:
    return schema.is_id_column(column.name) or column.default is not None or column.dtype == "binary"


def _arrange(column: Column, rows: _Rows, values_N: Values) -> pa.Array:
    """Lay values out as the file has them."""
    values = pa.array(values_N, WRITTEN_AS[column.dtype])
    if column.layout == "scalar":
        position_B = np.minimum(rows.offsets_B1[:-1], max(0, len(values_N) - 1))
        return values.take(pa.array(position_B, mask=rows.null_B))
    for _ in range(column.levels - 1 if column.layout == "nested_list" else 0):
        values = pa.ListArray.from_arrays(pa.array(np.arange(len(values) + 1), pa.int32()), values)
    offsets_B1 = pa.array(rows.offsets_B1.astype(np.int32))
    lists = pa.ListArray.from_arrays(offsets_B1, values, mask=pa.array(rows.null_B))
    return lists if column.split is None else pc.binary_join(lists, column.split)


def _draw_values(
    schema: Schema, column: Column, count: int, seed: int, rng: np.random.Generator
) -> tuple[Values, Floats]:
    """Draw values as the file has them, and what each adds to the signal behind the labels."""
    if schema.is_id_column(column.name) or column.hash:
        return _draw_ids(schema, column, count, seed, rng)
    if any(feature.column_weights == column.name for feature in schema.features):
        return _as_stored(column, rng.uniform(0.1, 2.0, count)), np.zeros(count)
    if column.dtype == "binary":
        return np.array([rng.bytes(length) for length in rng.integers(1, 64, count)], object), np.zeros(count)
    numbers_N = rng.exponential(10.0, count)  # positive and long-tailed, as counts and prices are
    signal_N = (np.minimum(numbers_N, 40.0) - 10.0) / 10.0
    return _as_stored(column, numbers_N), signal_N


def _draw_ids(schema: Schema, column: Column, count: int, seed: int, rng: np.random.Generator) -> tuple[Values, Floats]:
    # Columns that share a table share their ids.
    tables = [f.table for f in schema.embedded_features if column in schema.columns_of(f)]
    name = tables[0] if tables and tables[0] else column.name
    key = zlib.crc32(name.encode())
    size = min(VOCABULARY, LARGEST.get(column.dtype, VOCABULARY) + 1, _smallest_vocabulary(schema, column))
    cumulated_V = np.cumsum(np.arange(1.0, size + 1) ** -ZIPF_EXPONENT)
    ranks_N = np.searchsorted(cumulated_V, rng.random(count) * cumulated_V[-1], side="right")
    signal_N = np.random.default_rng([seed, key]).standard_normal(size)[ranks_N]
    if column.tokenizer:
        return _write_texts(size, key)[ranks_N], signal_N
    if any(schema.column_of(feature).name == column.name for feature in schema.tower_features):
        return _as_stored(column, ranks_N), signal_N  # token ids: small, or no model has embeddings for them
    if column.hash:
        return np.array([f"{name}-{rank}" for rank in ranks_N.tolist()], object), signal_N
    wide = column.dtype == "int64" or column.parse == "int64"
    return _as_stored(column, to_ids(key & 0xFFFF, ranks_N, seed) if wide else ranks_N), signal_N


def _smallest_vocabulary(schema: Schema, column: Column) -> int:
    """Below which token ids are known to all models that read them; texts may be any number."""
    names = {f.tower for f in schema.tower_features if schema.column_of(f).name == column.name and not column.tokenizer}
    models = [tower.model for tower in schema.towers if tower.name in names]
    sizes = [model.get("vocab_size", TOKENS) if isinstance(model, dict) else TOKENS for model in models]
    return min(sizes, default=VOCABULARY)


def _write_texts(count: int, key: int) -> Values:
    """As many texts of a few words: `superb tiny vintage camera`."""
    rng = np.random.default_rng([key, count])
    words = [np.array(scale)[rng.integers(len(scale), size=count)] for scale in (*SCALES[:3], NOUNS)]
    return np.array([" ".join(text) for text in zip(*words, strict=True)], object)


def _as_stored(column: Column, numbers_N: Values) -> Values:
    """Cast numbers to what the file holds: 12.5 -> 12.5, 12, True or "12.5"."""
    if column.dtype in ("float32", "float64"):
        return numbers_N.astype(column.dtype)
    if column.dtype == "decimal":
        return np.array([Decimal(round(number * 100)) / 100 for number in numbers_N.tolist()], object)
    if column.unit is not None:
        return (numbers_N.astype(np.int64) * UNIT_NS[column.unit]).astype("datetime64[ns]")
    if column.parse == "float32":
        return np.array([str(round(number, 3)) for number in numbers_N.tolist()], object)
    integers_N = np.minimum(numbers_N.astype(np.int64), LARGEST.get(column.dtype, np.iinfo(np.int64).max))
    return integers_N.astype(str).astype(object) if column.dtype == "string" else integers_N.astype(column.dtype)


def _draw_task_columns(schema: Schema, signal_B: Floats, rng: np.random.Generator) -> dict[str, pa.Array]:
    """Labels that follow the signal, and the columns of `where` and `sample_weight` beside them."""
    drawn: dict[str, Floats] = {}
    count = len(signal_B)
    for task in schema.tasks:
        if task.loss == "bce":
            labels_B = rng.random(count) < sigmoid(signal_B - 1.0)
            drawn[task.label] = labels_B.astype(np.float64)
        else:
            drawn[task.label] = np.maximum(0.0, 3.0 + signal_B + 0.3 * rng.standard_normal(count))
    for task in schema.tasks:
        if task.where:
            drawn.setdefault(task.where, rng.integers(0, 2, count).astype(np.float64))
        if task.sample_weight:
            drawn.setdefault(task.sample_weight, rng.integers(1, 4, count).astype(np.float64))
    every = _Rows(np.ones(count, np.int64), np.zeros(count, np.bool_))
    columns = {name: schema.column(name) for name in drawn}
    return {name: _arrange(columns[name], every, _as_stored(columns[name], values)) for name, values in drawn.items()}
