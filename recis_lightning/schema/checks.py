"""What cannot be meant: every mistake of a schema, one line each."""

import re
from collections.abc import Iterable, Iterator, Mapping

from recis_lightning import schema_policies, schema_towers
from recis_lightning.schema.declarations import Column, Feature, Table, Task
from recis_lightning.schema.kinds import TruncatedNormal, Uniform
from recis_lightning.schema.names import did_you_mean
from recis_lightning.schema.reading import SECTIONS
from recis_lightning.schema.sections import Section
from recis_lightning.schema.transforms import Bucketize, Clip, Log1p, Modulo, Transform


def find_id_columns(features: Iterable[Feature]) -> frozenset[str]:
    def reads_ids(feature: Feature) -> bool:
        first = next((t for t in feature.transforms if isinstance(t, Modulo | Bucketize)), None)
        return not feature.is_dense and not isinstance(first, Bucketize)

    return frozenset(feature.column or feature.name for feature in features if reads_ids(feature))


def find_mistakes(sections: Mapping[str, Section]) -> Iterator[str]:
    columns, features, tables, towers, tasks = (
        [item for item in sections[name].declared.values() if item is not None] for name in SECTIONS
    )
    # Floats read as ids are reported where that is declared, not at every other reader of their column.
    id_columns = find_id_columns(features) - {column.name for column in columns if carries_floats(column)}
    looked_up, read = {feature.table for feature in features}, {feature.tower for feature in features}
    all_features_read = sections["features"].complete and len(features) == len(sections["features"].declared)
    for column in columns:
        yield from _check_column(column, column.name in id_columns)
    for feature in features:
        yield from _check_feature(feature, sections, id_columns)
    for table in tables:
        if table.name not in looked_up and all_features_read:
            yield f"table '{table.name}' is looked up by no feature; name it in one, or drop it"
        yield from _check_table(table)
    for tower in towers:
        if tower.name not in read and all_features_read:
            yield f"tower '{tower.name}' is named by no feature; name it in one, or drop it"
        yield from schema_towers.find_mistakes(tower)
    for task in tasks:
        yield from _check_task(task, sections["columns"], id_columns)


def _check_column(column: Column, holds_ids: bool) -> Iterator[str]:
    where = f"column '{column.name}'"
    ways = [name for name in ("hash", "parse", "tokenizer") if getattr(column, name) is not None]
    if column.dtype != "string" and ways:
        yield f"{where} is {column.dtype}; hash, parse and tokenizer are for strings"
    if column.dtype == "string" and len(ways) != 1:
        yield (
            f"{where} is a string; say hash: farm (or murmur) to get ids, parse: float32 (or int64) to get numbers, "
            "or tokenizer: <file> to get token ids"
        )
    if column.tokenizer is not None and column.layout != "scalar":
        yield f"{where} is a list of strings; a tokenizer is for one string a row"
    if column.max_length is not None and (column.tokenizer is None or column.max_length < 1):
        yield f"{where}: max_length is {column.max_length}; it cuts what a tokenizer gives, to at least 1"
    if column.default is None:
        return
    if column.hash or column.tokenizer:
        is_read = "hashed" if column.hash else "tokenized"
        yield f"{where} is {is_read}; a missing id is no id, so leave default out"
    elif holds_ids and not (isinstance(column.default, int) and -(2**63) <= column.default < 2**63):
        yield f"{where} holds ids, its default is {column.default!r}; give a 64-bit integer"


def carries_floats(column: Column) -> bool:
    return column.dtype in ("float32", "float64") or column.parse == "float32"


def _check_feature(feature: Feature, sections: Mapping[str, Section], id_columns: frozenset[str]) -> Iterator[str]:
    where = f"feature '{feature.name}'"
    columns, tables = sections["columns"], sections["tables"]
    name = feature.column or feature.name
    if columns.lacks(name):
        yield f"{where} reads column '{name}', which is not declared{did_you_mean(name, columns.declared)}"
    if feature.table is not None and tables.lacks(feature.table):
        hint = did_you_mean(feature.table, tables.declared)
        yield f"{where} looks up table '{feature.table}', which is not declared{hint}"
    if feature.tower is not None and sections["towers"].lacks(feature.tower):
        hint = did_you_mean(feature.tower, sections["towers"].declared)
        yield f"{where} goes through tower '{feature.tower}', which is not declared{hint}"
    column = columns.declared.get(name)
    if feature.tower is not None:
        yield from _check_tower_feature(feature, column)
    elif column is not None:
        yield from _check_transforms(feature, column)
        if feature.table is None:
            yield from _check_dense_feature(feature, column, id_columns)
    if feature.weights is not None:
        yield from _check_weights(feature, column, columns)


def _check_transforms(feature: Feature, column: Column) -> Iterator[str]:
    """Follow what the values are from the column through each transform to the table."""
    where = f"feature '{feature.name}'"
    floats = carries_floats(column)
    for index, transform in enumerate(feature.transforms):
        step = f"{where}, transforms[{index}] ({transform.kind})"
        yield from _check_options(step, transform)
        if isinstance(transform, Modulo) and floats:
            yield f"{step} works on ids, but gets floats from column '{column.name}'; put bucketize before it"
        if isinstance(transform, Log1p | Clip | Bucketize) and (column.hash or column.tokenizer):
            became = "hashed to" if column.hash else "tokenized to"
            yield f"{step} works on numbers, but column '{column.name}' is {became} ids"
        floats = isinstance(transform, Log1p) or (floats and isinstance(transform, Clip))
    if feature.table is not None and floats:
        yield (
            f"{where} looks up table '{feature.table}' with floats from column '{column.name}'; "
            "add bucketize, or drop the table"
        )


def _check_options(step: str, transform: Transform) -> Iterator[str]:
    if isinstance(transform, Modulo) and not 1 <= transform.divisor < 2**63:
        yield f"{step}: divisor is {transform.divisor}, need at least 1 and less than 2^63"
    if isinstance(transform, Bucketize):
        boundaries = list(transform.boundaries)
        if boundaries != sorted(set(boundaries)) or not boundaries:
            yield f"{step}: boundaries {boundaries} are not rising; sort them, drop repeats, give at least one"
    if isinstance(transform, Clip):
        if transform.low is None and transform.high is None:
            yield f"{step}: neither low nor high is given"
        elif transform.low is not None and transform.high is not None and transform.low > transform.high:
            yield f"{step}: low {transform.low} is above high {transform.high}"


def _check_dense_feature(feature: Feature, column: Column, id_columns: frozenset[str]) -> Iterator[str]:
    where = f"feature '{feature.name}'"
    if column.hash or column.tokenizer:
        became, need = ("hashed to", "table") if column.hash else ("tokenized to", "tower")
        yield f"{where} is dense, but column '{column.name}' is {became} ids; name a {need}"
    if column.layout == "list":
        yield f"{where} is dense, but column '{column.name}' is a list; name a table, or declare layout: optional_list"
    if column.name in id_columns:
        yield (
            f"{where} is dense, but column '{column.name}' is read as ids by another feature; "
            "a column is one or the other"
        )
    for transform in feature.transforms:
        if isinstance(transform, Bucketize | Modulo):
            yield f"{where} is dense, but {transform.kind} gives ids; name a table, or drop it"
    if feature.pooling != "sum":
        yield f"{where} has pooling '{feature.pooling}' but no table; pooling is for embeddings"


def _check_tower_feature(feature: Feature, column: Column | None) -> Iterator[str]:
    where = f"feature '{feature.name}'"
    if feature.table is not None:
        yield f"{where} names table '{feature.table}' and tower '{feature.tower}'; declare a feature for each"
    for option in ("weights", "transforms"):
        if getattr(feature, option):
            yield f"{where} goes through a tower and has {option}; they are for tables and numbers"
    if feature.pooling != "sum":
        yield f"{where} has pooling '{feature.pooling}' and a tower; the tower has a pooling of its own"
    if column is None or column.tokenizer is not None:
        return
    if column.layout != "list" or column.hash or carries_floats(column):
        yield (
            f"{where} goes through a tower, but column '{column.name}' holds no lists of token ids; "
            "give it dtype: string and a tokenizer, or write lists of integers"
        )


def _check_weights(feature: Feature, column: Column | None, columns: Section) -> Iterator[str]:
    where = f"feature '{feature.name}'"
    if feature.is_dense:
        yield f"{where} has weights but no table; weights are for pooling"
    assert feature.weights is not None
    if columns.lacks(feature.weights):
        hint = did_you_mean(feature.weights, columns.declared)
        yield f"{where} takes weights from '{feature.weights}', which is not declared{hint}"
    weights = columns.declared.get(feature.weights)
    if weights is None or column is None:
        return
    if not carries_floats(weights) or weights.layout != column.layout or column.layout == "scalar":
        yield (
            f"{where} takes weights from '{weights.name}' ({weights.dtype}, {weights.layout}) "
            f"for ids in '{column.name}' ({column.layout}); both must be lists, the weights floats"
        )


_NOT_NEGATIVE = ("lr", "eps", "initial_accumulator_value", "weight_decay", "std")


def _check_table(table: Table) -> Iterator[str]:
    where = f"table '{table.name}'"
    if table.dim < 1:
        yield f"{where}: dim is {table.dim}, need at least 1"
    if re.search(r"[/\\]", table.name) or table.name in (".", ".."):
        yield f"{where}: a name is also a folder in checkpoints; leave out / and \\"
    for part in ("optimizer", "initializer"):
        declaration = getattr(table, part)
        for option in _NOT_NEGATIVE:
            if getattr(declaration, option, 0) < 0:
                yield f"{where}: {part} {option} is {getattr(declaration, option)}, need at least 0"
    betas = getattr(table.optimizer, "betas", ())
    if not all(0 <= beta < 1 for beta in betas):
        yield f"{where}: optimizer betas are {betas}, need 0 <= beta < 1"
    initializer = table.initializer
    if isinstance(initializer, Uniform | TruncatedNormal) and initializer.low >= initializer.high:
        yield f"{where}: initializer low {initializer.low} is not below high {initializer.high}"
    yield from schema_policies.find_mistakes(where, table.capacity, table.admission, table.eviction)


def _check_task(task: Task, columns: Section, id_columns: frozenset[str]) -> Iterator[str]:
    where = f"task '{task.name}'"
    if task.weight < 0:
        yield f"{where}: weight is {task.weight}, need at least 0"
    for option in ("label", "where", "sample_weight"):
        name = getattr(task, option)
        if name is None:
            continue
        if columns.lacks(name):
            hint = did_you_mean(name, columns.declared)
            yield f"{where} takes its {option} from '{name}', which is not declared{hint}"
        column = columns.declared.get(name)
        holds_ids = column is not None and (column.hash or column.tokenizer or name in id_columns)
        if column is not None and (holds_ids or column.layout == "list"):
            yield f"{where} takes its {option} from '{name}', which holds ids or lists; need one number a row"
