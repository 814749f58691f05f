"""What values are on their way through a feature's transforms: ids or numbers, one a row, rows of several, or a vector.

Followed when a schema is read, so that a transform of the wrong kind is named before any data is.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from recis_lightning.schema.declarations import Column, Feature, Task
from recis_lightning.schema.transforms import (
    Bucketize,
    Clip,
    Cross,
    Custom,
    Hash,
    HashKind,
    Log1p,
    Lookup,
    MinMax,
    Modulo,
    MultiHash,
    OfIds,
    OfNumbers,
    Overlap,
    Quantile,
    Reduce,
    TimeGap,
    Transform,
    Truncate,
    Vector,
    Vocabulary,
    ZScore,
)

Form = Literal["number", "rows", "vector"]


@dataclass(frozen=True, kw_only=True)
class Value:
    """What a feature's values are at one point."""

    ids: bool
    """int64 ids or whole numbers, rather than float32."""
    form: Form
    source: str
    """Where they come from: column 'price'."""
    opaque: str = ""
    """How they became ids that are no numbers: hashed; or binary, for bytes, which are neither."""
    hashed_by: HashKind | None = None
    """The hash that made ids of strings, while they are what it made."""
    dim: int = 1
    weighted: bool = False


def carries_floats(column: Column) -> bool:
    return column.dtype in ("float32", "float64", "decimal") or column.parse == "float32"


def column_value(column: Column, is_ids: bool, as_rows: bool) -> Value:
    """What a batch carries a column as."""
    source = f"column '{column.name}'"
    if column.dtype == "binary":
        return Value(ids=False, form="rows", source=source, opaque="binary")
    if column.layout == "vector":
        return Value(ids=False, form="vector", source=source, dim=column.dim or 1)
    became = "hashed" if column.hash else "tokenized" if column.tokenizer else ""
    ids = (is_ids or bool(became)) and not carries_floats(column)
    rows = ids or column.has_rows or as_rows
    return Value(ids=ids, form="rows" if rows else "number", source=source, opaque=became, hashed_by=column.hash)


# ----------------------------------------------------------------------------------------------- how it is demanded


def reads(transform: Transform, position: int, inputs: int) -> Literal["ids", "numbers", None]:
    """How a transform wants its input at a position; None where it takes either."""
    if isinstance(transform, Modulo | Hash | MultiHash | Vocabulary | Cross | Overlap | TimeGap):
        return "ids"
    if isinstance(transform, Bucketize | ZScore | MinMax | Quantile | Vector | Reduce):
        return "numbers"
    if isinstance(transform, Lookup):
        return None if position == inputs - 1 else "ids"
    return transform.takes if isinstance(transform, Custom) else None


def find_id_columns(features: Sequence[Feature], tasks: Sequence[Task] = ()) -> frozenset[str]:
    """The columns that are read as ids: by a feature into a table as they are, or through a transform of ids; and
    those that tasks are grouped by."""
    by_name = {feature.name: feature for feature in features}
    readers: dict[str, list[tuple[Feature, int]]] = {}
    for feature in features:
        for position, name in enumerate(feature.inputs):
            readers.setdefault(name, []).append((feature, position))

    def demand(feature: Feature, position: int, path: tuple[str, ...]) -> str:
        for index, transform in enumerate(feature.transforms):
            wanted = reads(transform, position if index == 0 else 0, max(1, len(feature.inputs)))
            if wanted is not None:
                return wanted
        if feature.table is not None or feature.tower is not None:
            return "ids"
        if feature.name in path:  # a cycle, which is reported elsewhere
            return "numbers"
        asked = [demand(reader, at, (*path, feature.name)) for reader, at in readers.get(feature.name, ())]
        return "ids" if "ids" in asked else "numbers"

    found = {
        name
        for feature in features
        for position, name in enumerate(feature.inputs or (feature.column or feature.name,))
        if not is_feature(name, feature, by_name) and demand(feature, position, ()) == "ids"
    }
    return frozenset(found | {task.group for task in tasks if task.group is not None})


def is_feature(name: str, reader: Feature, features: Mapping[str, Feature | None]) -> bool:
    """Whether an input of ``reader`` names a feature: those come before columns, but none reads itself."""
    return bool(reader.inputs) and name in features and name != reader.name


# --------------------------------------------------------------------------------------------- what comes of it


def apply(transform: Transform, inputs: Sequence[Value]) -> tuple[Value, list[str]]:
    """What a transform makes of its inputs, and what is wrong with them."""
    problems = [*_find_wrong_counts(transform, inputs)]
    if not problems:
        problems += [line for at, value in enumerate(inputs) for line in _find_misuse(transform, at, inputs, value)]
    return _result(transform, inputs), problems


ARITY: dict[type, tuple[int, int | None, str]] = {
    Cross: (2, None, "two or more inputs"),
    TimeGap: (2, 2, "inputs [times, now]"),
    Overlap: (2, 2, "inputs [ids, ids to compare with]"),
    Custom: (1, None, "inputs"),
}


def _find_wrong_counts(transform: Transform, inputs: Sequence[Value]) -> Iterator[str]:
    low, high, need = ARITY.get(type(transform), (1, 1, "one input"))
    if isinstance(transform, Lookup):
        low = high = 3 if transform.key is None else 2
        need = "inputs [ids, keys, values]" if transform.key is None else "a key and inputs [keys, values]"
    if len(inputs) < low or (high is not None and len(inputs) > high):
        yield f"takes {need}, but gets {len(inputs)}"


def _find_misuse(transform: Transform, position: int, inputs: Sequence[Value], value: Value) -> Iterator[str]:
    wanted = reads(transform, position, len(inputs))
    if value.opaque == "binary":
        if not isinstance(transform, Custom):
            yield f"works on ids and numbers, but {value.source} is binary; put a custom transform before it"
        return
    if isinstance(transform, Log1p | Clip):
        wanted = "numbers"
    if wanted == "ids" and not value.ids:
        yield f"works on ids, but gets floats from {value.source}; put bucketize before it"
    if wanted == "numbers" and value.opaque:
        yield f"works on numbers, but {value.source} is {value.opaque} to ids"
    elif isinstance(transform, TimeGap) and value.opaque:
        yield f"works on times, but {value.source} is {value.opaque} to ids"
    if value.form == "vector" and not isinstance(transform, Custom):
        yield f"works on rows and numbers, but gets a vector from {value.source}; put it last"
    needs_rows = isinstance(transform, Truncate | Vector | Reduce) or (
        isinstance(transform, Lookup) and position >= len(inputs) - 2
    )
    if needs_rows and value.form == "number":
        yield f"works on rows of several values, but {value.source} has one number a row; declare layout: list"
    if isinstance(transform, Vector) and value.ids:
        yield f"works on floats, but {value.source} is read as ids"


def _result(transform: Transform, inputs: Sequence[Value]) -> Value:
    first = inputs[0] if inputs else Value(ids=False, form="number", source="nothing")
    if isinstance(transform, OfNumbers):
        keeps = isinstance(transform, Clip) and first.ids
        return replace(first, ids=keeps or isinstance(transform, Bucketize), opaque="")
    if isinstance(transform, OfIds):
        rows: Form = "rows" if isinstance(transform, MultiHash | Vocabulary) else first.form
        opaque = "" if isinstance(transform, Modulo) else "mapped" if isinstance(transform, Vocabulary) else "hashed"
        return replace(first, ids=True, form=rows, opaque=opaque, hashed_by=None)
    if isinstance(transform, Cross):
        source = " x ".join(value.source for value in inputs)
        weighted = any(value.weighted for value in inputs)
        return Value(ids=True, form="rows", source=source, opaque="crossed", weighted=weighted)
    if isinstance(transform, Lookup):
        values = inputs[-1] if inputs else first
        as_number = transform.key is not None and not values.ids and transform.missing != "drop"
        weighted = transform.key is None and first.weighted
        return replace(values, form="number" if as_number else "rows", weighted=weighted)
    if isinstance(transform, TimeGap):
        return replace(first, ids=True, form="rows", opaque="")
    if isinstance(transform, Overlap | Reduce):
        return Value(ids=False, form="number", source=first.source)
    if isinstance(transform, Vector):
        return Value(ids=False, form="vector", source=first.source, dim=transform.dim)
    if isinstance(transform, Custom):
        gives_ids = transform.gives == "ids"
        return Value(ids=gives_ids, form=transform.form, source=f"'{transform.class_path}'", dim=transform.dim or 1)
    return first


def follow(feature: Feature, inputs: Sequence[Value]) -> Iterator[tuple[int, Value, list[str]]]:
    """Each transform's number, what it gives, and what is wrong with what it gets."""
    for index, transform in enumerate(feature.transforms):
        value, problems = apply(transform, inputs)
        yield index, value, problems
        inputs = (value,)


class Flow:
    """What each feature's values are, through the features it reads, found on demand.

    ``columns`` and ``features`` are by name, None for what could not be read.
    """

    def __init__(
        self,
        columns: Mapping[str, Column | None],
        features: Mapping[str, Feature | None],
        id_columns: frozenset[str],
    ) -> None:
        self.columns, self.features, self.id_columns = columns, features, id_columns
        self._as_rows = {feature.column_weights for feature in features.values() if feature is not None}
        self._steps: dict[str, list[tuple[int, Value, list[str]]]] = {}
        self._results: dict[str, Value | None] = {}
        self._path: list[str] = []
        self.cycles: list[tuple[str, ...]] = []

    def column(self, name: str) -> Value | None:
        """What a column is read as; None where it is not known."""
        column = self.columns.get(name)
        return None if column is None else column_value(column, name in self.id_columns, name in self._as_rows)

    def inputs(self, feature: Feature) -> list[Value | None]:
        """What a feature's first transform gets; None for what is not known."""
        if not feature.inputs:
            found = self.column(feature.column or feature.name)
            return [found and replace(found, weighted=feature.weights is not None)]
        return [
            self.result(name) if is_feature(name, feature, self.features) else self.column(name)
            for name in feature.inputs
        ]

    def steps(self, feature: Feature) -> list[tuple[int, Value, list[str]]]:
        """The number of each transform, what it gives and what is wrong with what it gets; none where unknown."""
        self.result(feature.name)
        return self._steps[feature.name]

    def result(self, name: str) -> Value | None:
        """What a feature gives in the end; None where it is not known."""
        if name in self._path:
            self.cycles.append((*self._path[self._path.index(name) :], name))
            return None
        if name not in self._results:
            feature = self.features[name]
            self._path.append(name)
            inputs = [] if feature is None else self.inputs(feature)
            self._path.pop()
            known = [value for value in inputs if value is not None]
            self._steps[name] = list(follow(feature, known)) if feature and len(known) == len(inputs) else []
            last = self._steps[name][-1][1] if self._steps[name] else known[0] if known else None
            self._results[name] = last if len(known) == len(inputs) else None
        return self._results[name]
