"""What cannot be meant in features and sequences: names that are not declared, cycles, transforms of the wrong kind."""

import math
import re
from collections.abc import Iterator, Mapping

from recis_lightning.schema.declarations import Column, Feature, SequenceGroup
from recis_lightning.schema.flow import Flow, Value, carries_floats, is_feature
from recis_lightning.schema.names import did_you_mean
from recis_lightning.schema.sections import Section
from recis_lightning.schema.transforms import (
    Bucketize,
    Clip,
    Cross,
    Custom,
    Lookup,
    MinMax,
    Modulo,
    MultiHash,
    Quantile,
    Reduce,
    TimeGap,
    Transform,
    Truncate,
    Vector,
    Vocabulary,
    ZScore,
)


def check_features(sections: Mapping[str, Section], id_columns: frozenset[str]) -> Iterator[str]:
    """Every mistake of the features, in the order declared."""
    features = sections["features"].declared
    flow = Flow(sections["columns"].declared, features, id_columns)
    read = {name for feature in features.values() if feature is not None for name in feature.inputs}
    for feature in features.values():
        if feature is not None:
            yield from _check_feature(feature, sections, flow)
            if feature.internal and feature.name not in read and sections["features"].complete:
                yield f"feature '{feature.name}' is internal, but is no feature's input; name it in one, or drop it"
    for cycle in dict.fromkeys(tuple(sorted(set(cycle))) for cycle in flow.cycles):
        path = next(path for path in flow.cycles if tuple(sorted(set(path))) == cycle)
        yield f"features {' -> '.join(repr(name) for name in path)} read each other in a cycle; drop one of the inputs"


def _check_feature(feature: Feature, sections: Mapping[str, Section], flow: Flow) -> Iterator[str]:
    where = f"feature '{feature.name}'"
    columns, tables = sections["columns"], sections["tables"]
    yield from _check_names(feature, where, sections)
    if feature.table is not None and tables.lacks(feature.table):
        hint = did_you_mean(feature.table, tables.declared)
        yield f"{where} looks up table '{feature.table}', which is not declared{hint}"
    if feature.tower is not None and sections["towers"].lacks(feature.tower):
        hint = did_you_mean(feature.tower, sections["towers"].declared)
        yield f"{where} goes through tower '{feature.tower}', which is not declared{hint}"
    column = None if feature.inputs else columns.declared.get(feature.column or feature.name)
    if feature.tower is not None:
        yield from _check_tower_feature(feature, column)
    else:
        yield from _check_transforms(feature, flow)
        yield from _check_end(feature, column, flow)
    if feature.weights is not None:
        yield from _check_weights(feature, column, columns, flow)


def _check_names(feature: Feature, where: str, sections: Mapping[str, Section]) -> Iterator[str]:
    columns, features = sections["columns"], sections["features"]
    if feature.inputs and feature.column is not None:
        yield f"{where} has a column and inputs; name the column among the inputs"
    if not feature.inputs:
        name = feature.column or feature.name
        if columns.lacks(name):
            yield f"{where} reads column '{name}', which is not declared{did_you_mean(name, columns.declared)}"
        return
    if not feature.transforms:
        yield f"{where} has inputs, but no transform that takes them; add one, such as cross"
    for name in feature.inputs:
        if columns.lacks(name) and features.lacks(name):
            hint = did_you_mean(name, [*features.declared, *columns.declared])
            yield f"{where} takes '{name}', which is no feature and no column{hint}"
        elif columns.lacks(name) and name == feature.name:
            yield f"features '{name}' -> '{name}' read each other in a cycle; drop one of the inputs"
        other = features.declared.get(name) if is_feature(name, feature, features.declared) else None
        if other is not None and other.tower is not None:
            yield f"{where} takes '{name}', which goes through a tower; transforms come before towers"


# --------------------------------------------------------------------------------------------------- the transforms


def _check_transforms(feature: Feature, flow: Flow) -> Iterator[str]:
    """Follow what the values are from the columns through each transform."""
    problems = {index: lines for index, _, lines in flow.steps(feature)}
    for index, transform in enumerate(feature.transforms):
        step = f"feature '{feature.name}', transforms[{index}] ({transform.kind})"
        yield from (f"{step}{line}" for line in _find_bad_options(transform))
        yield from (f"{step} {line}" for line in problems.get(index, ()))


def _find_bad_options(transform: Transform) -> Iterator[str]:
    if isinstance(transform, Modulo) and not 1 <= transform.divisor < 2**63:
        yield f": divisor is {transform.divisor}, need at least 1 and less than 2^63"
    if isinstance(transform, Clip):
        if transform.low is None and transform.high is None:
            yield ": neither low nor high is given"
        elif transform.low is not None and transform.high is not None and transform.low > transform.high:
            yield f": low {transform.low} is above high {transform.high}"
    if isinstance(transform, Bucketize | Quantile | ZScore | MinMax):
        yield from _find_bad_numbers(transform)
    if isinstance(transform, MultiHash):
        yield from _find_bad_buckets(transform)
    if isinstance(transform, Vocabulary):
        yield from _find_bad_vocabulary(transform)
    limits = {Cross: "max_ids", Truncate: "length", TimeGap: "unit", Vector: "dim"}
    option = limits.get(type(transform))
    if option is not None and not 1 <= getattr(transform, option) < 2**31:
        yield f": {option} is {getattr(transform, option)}, need at least 1 and less than 2^31"
    if isinstance(transform, Custom):
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", transform.class_path):
            yield f": class_path is '{transform.class_path}'; write module.name"
        if (transform.form == "vector") != (transform.dim is not None) or (transform.dim or 1) < 1:
            yield f": form is {transform.form} and dim {transform.dim}; a vector has a dim of at least 1, others none"
    for option in ("missing", "key"):
        number = getattr(transform, option, None)
        if isinstance(transform, Lookup) and isinstance(number, int) and not -(2**63) <= number < 2**63:
            yield f": {option} is {number}, which is no 64-bit integer"


def _find_bad_numbers(transform: Bucketize | Quantile | ZScore | MinMax) -> Iterator[str]:
    if isinstance(transform, Bucketize):
        boundaries = list(transform.boundaries)
        if boundaries and boundaries != sorted(set(boundaries)) or not boundaries and transform.quantiles is None:
            yield f": boundaries {boundaries} are not rising; sort them, drop repeats, give at least one"
        if transform.quantiles is not None and not 2 <= transform.quantiles <= 10_000:
            yield f": quantiles is {transform.quantiles}, need 2 to 10000 buckets"
    elif isinstance(transform, Quantile):
        if transform.knots and (len(transform.knots) < 2 or list(transform.knots) != sorted(transform.knots)):
            yield f": knots {list(transform.knots)} fall; sort them, give at least two"
        if not 1 <= transform.count <= 10_000:
            yield f": count is {transform.count}, need 1 to 10000 pieces"
    else:
        names = ("mean", "std") if isinstance(transform, ZScore) else ("low", "high")
        given = [getattr(transform, name) for name in names]
        if (given[0] is None) != (given[1] is None):
            yield f": only one of {names[0]} and {names[1]} is given; give both, or neither and have them fitted"
        elif isinstance(transform, ZScore) and transform.std is not None and transform.std <= 0:
            yield f": std is {transform.std}, need more than 0"
        elif isinstance(transform, MinMax) and None not in given and not _is_above(transform.high, transform.low):
            yield f": low {transform.low} is not below high {transform.high}"


def _is_above(high: float | None, low: float | None) -> bool:
    return high is not None and low is not None and high > low and math.isfinite(high - low)


def _find_bad_buckets(transform: MultiHash) -> Iterator[str]:
    if not 1 <= len(transform.buckets) <= 4:
        yield f": {len(transform.buckets)} numbers of buckets; give one to four"
    if any(not 1 <= count < 2**40 for count in transform.buckets):
        yield f": buckets are {list(transform.buckets)}, need at least 1 and less than 2^40 each"
    if transform.index is not None and not 0 <= transform.index < len(transform.buckets):
        yield f": index is {transform.index}, but there are {len(transform.buckets)} hashes, counted from 0"


def _find_bad_vocabulary(transform: Vocabulary) -> Iterator[str]:
    if transform.values and transform.file is not None:
        yield ": values and a file are given; give one of them"
    seen: set[int | str] = set()
    for place, value in enumerate(transform.values):
        if value in seen:
            yield f": values[{place}] is {value!r} for a second time; drop one of them"
        seen.add(value)
    if isinstance(transform.unknown, int) and not 1 <= transform.unknown < 2**31:
        yield f": unknown is {transform.unknown}; give a number of ids, at least 1, or drop"
    if transform.min_count < 1 or (transform.max_size is not None and transform.max_size < 1):
        yield f": min_count is {transform.min_count}, max_size {transform.max_size}; need at least 1"


# ----------------------------------------------------------------------------------------------- what comes of them


def _check_end(feature: Feature, column: Column | None, flow: Flow) -> Iterator[str]:
    """Whether a feature's values fit where they go: a table, or the model as numbers."""
    where = f"feature '{feature.name}'"
    if feature.internal and feature.table is not None:
        yield f"{where} is internal, but looks up table '{feature.table}'; drop one of them"
    if feature.table is None and feature.pooling != "sum":
        yield f"{where} has pooling '{feature.pooling}' but no table; pooling is for embeddings"
    yield from _check_tile(feature)
    value = flow.result(feature.name)
    if value is None:
        return
    if (
        feature.table is not None
        and feature.pooling != "none"
        and column is not None
        and column.layout == "nested_list"
    ):
        yield (
            f"{where} pools column '{column.name}', which holds lists of lists; declare pooling: none, "
            "which keeps them all for the model"
        )
    if feature.table is not None and not value.ids:
        floats = f"floats from {value.source}"
        yield f"{where} looks up table '{feature.table}' with {floats}; add bucketize, or drop the table"
    if feature.is_dense:
        yield from _check_dense(feature, column, value, flow)


def _check_tile(feature: Feature) -> Iterator[str]:
    where = f"feature '{feature.name}'"
    if feature.pooling != "tile":
        if feature.tile_length is not None:
            yield f"{where} has a tile_length, and pooling is '{feature.pooling}'; write pooling: tile, or drop it"
    elif feature.tile_length is None or not 1 <= feature.tile_length < 2**31:
        yield f"{where} has pooling tile, and tile_length is {feature.tile_length}; need at least 1"
    elif feature.weights is not None:
        yield f"{where} has pooling tile and weights; weights are for sum, mean and sqrtn, or for pooling: none"


def _check_dense(feature: Feature, column: Column | None, value: Value, flow: Flow) -> Iterator[str]:
    where = f"feature '{feature.name}'"
    gives_ids = [transform.kind for transform in feature.transforms if _gives_ids(transform)]
    if value.ids and gives_ids:
        yield f"{where} is dense, but {gives_ids[-1]} gives ids; name a table, or drop it"
    elif column is not None and (column.hash or column.tokenizer) and (value.ids or value.form == "rows"):
        became, need = ("hashed to", "table") if column.hash else ("tokenized to", "tower")
        yield f"{where} is dense, but column '{column.name}' is {became} ids; name a {need}"
    elif column is not None and column.name in flow.id_columns and (value.ids or value.form == "rows"):
        yield (
            f"{where} is dense, but column '{column.name}' is read as ids by another feature; "
            "a column is one or the other"
        )
    elif value.ids:
        yield f"{where} is dense, but gets ids from {value.source}; name a table, or say internal: true"
    elif value.opaque == "binary":
        yield f"{where} is dense, but {value.source} is binary; make a vector of it by a custom transform"
    elif value.form == "rows" and column is not None and column.layout in ("list", "nested_list"):
        yield f"{where} is dense, but column '{column.name}' is a list; name a table, or declare layout: optional_list"
    elif value.form == "rows":
        yield f"{where} is dense, but gets rows of several numbers from {value.source}; add reduce"


def _gives_ids(transform: Transform) -> bool:
    kinds = Bucketize | Modulo | MultiHash | Vocabulary | Cross | TimeGap
    return isinstance(transform, kinds) or transform.kind == "hash"


def _check_tower_feature(feature: Feature, column: Column | None) -> Iterator[str]:
    where = f"feature '{feature.name}'"
    if feature.table is not None:
        yield f"{where} names table '{feature.table}' and tower '{feature.tower}'; declare a feature for each"
    for option in ("weights", "transforms", "inputs", "internal"):
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


def _check_weights(feature: Feature, column: Column | None, columns: Section, flow: Flow) -> Iterator[str]:
    where = f"feature '{feature.name}'"
    if feature.is_dense:
        yield f"{where} has weights but no table; weights are for pooling"
    assert feature.weights is not None
    if feature.inputs:
        value = flow.result(feature.name)
        if feature.weights != "inputs":
            yield f"{where} takes weights from '{feature.weights}'; with inputs, write weights: inputs for theirs"
        elif value is not None and not value.weighted:
            yield f"{where} has weights: inputs, but none of its inputs comes with weights; drop it"
        return
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
    elif any(isinstance(transform, Reduce | Vector | Custom) for transform in feature.transforms):
        yield f"{where} has weights, and a transform that gives rows of its own; drop one of them"


# --------------------------------------------------------------------------------------------------------- sequences


def check_sequence(sequence: SequenceGroup, columns: Section, taken: dict[str, str]) -> Iterator[str]:
    """Mistakes of one group; ``taken`` collects which group each column is in."""
    where = f"sequence '{sequence.name}'"
    if not 1 <= sequence.length < 2**31:
        yield f"{where}: length is {sequence.length}, need at least 1 and less than 2^31"
    if not sequence.columns:
        yield f"{where} names no columns; name the lists to cut together"
    for name in sequence.columns:
        column = columns.declared.get(name)
        if columns.lacks(name):
            yield f"{where} cuts column '{name}', which is not declared{did_you_mean(name, columns.declared)}"
        elif column is not None and column.layout not in ("list", "nested_list"):
            yield f"{where} cuts column '{name}', which is {column.layout}; only lists (layout: list) can be cut"
        if taken.setdefault(name, sequence.name) != sequence.name:
            yield f"{where} cuts column '{name}', which is cut by sequence '{taken[name]}' as well; name it in one"
