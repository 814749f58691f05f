"""What a model reads and what it keeps: columns, features, tables and tasks, declared once, in Python or YAML.

    columns:
      - {name: label, dtype: float32}
      - {name: "c{1..26}", dtype: int64}                 # a pattern declares c1, c2, ... c26
    tables:
      - {name: "c{1..26}", dim: 16, initializer: {kind: uniform, low: -0.05, high: 0.05}, optimizer: {kind: adagrad, lr: 0.05}}
    features:
      - {name: "c{1..26}", table: "c{1..26}", pooling: sum}
    tasks:
      - {name: ctr, label: label}

`Schema.from_dict` reads such a mapping and reports every mistake in it in one `SchemaError`.
"""

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin

Declared = TypeVar("Declared")


class SchemaError(ValueError):
    """Every mistake found in a schema, one to a line."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        super().__init__(f"the schema has {count}:\n" + "\n".join(f"  - {problem}" for problem in problems))


# ---------------------------------------------------------------------------- kinds: optimizers, initialisers, transforms


@dataclass(frozen=True, kw_only=True)
class Sgd:
    """weight -= lr * grad."""

    kind: ClassVar[str] = "sgd"
    lr: float = 0.01


@dataclass(frozen=True, kw_only=True)
class Adagrad:
    """sum += grad^2; weight -= lr * grad / (sqrt(sum) + eps), as torch.optim.Adagrad."""

    kind: ClassVar[str] = "adagrad"
    lr: float = 0.01
    eps: float = 1e-10
    initial_accumulator_value: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RowwiseAdagrad:
    """Adagrad with one accumulator a row: sum += mean(grad^2)."""

    kind: ClassVar[str] = "rowwise_adagrad"
    lr: float = 0.01
    eps: float = 1e-10
    initial_accumulator_value: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Adam:
    """weight -= lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps), as torch.optim.SparseAdam: touched rows only."""

    kind: ClassVar[str] = "adam"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """`Adam` after weight *= 1 - lr * weight_decay, touched rows only."""

    kind: ClassVar[str] = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2


@dataclass(frozen=True, kw_only=True)
class Constant:
    """Every first value is ``value``; `zeros` is its default."""

    kind: ClassVar[str] = "constant"
    value: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """First values uniform in [low, high)."""

    kind: ClassVar[str] = "uniform"
    low: float = -0.05
    high: float = 0.05


@dataclass(frozen=True, kw_only=True)
class Normal:
    """First values normal with ``mean`` and ``std``."""

    kind: ClassVar[str] = "normal"
    mean: float = 0.0
    std: float = 0.05


@dataclass(frozen=True, kw_only=True)
class TruncatedNormal:
    """Normal first values, conditioned on [mean + low * std, mean + high * std]."""

    kind: ClassVar[str] = "truncated_normal"
    mean: float = 0.0
    std: float = 0.05
    low: float = -2.0
    high: float = 2.0


@dataclass(frozen=True, kw_only=True)
class Log1p:
    """log(1 + x); negative x below -1 is an error at the batch that holds it."""

    kind: ClassVar[str] = "log1p"


@dataclass(frozen=True, kw_only=True)
class Clip:
    """min(max(x, low), high); one bound may be left out."""

    kind: ClassVar[str] = "clip"
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Modulo:
    """id mod divisor, the id read as unsigned 64-bit: -1 mod 10 is 5, since 2^64 - 1 ends in 5."""

    kind: ClassVar[str] = "modulo"
    divisor: int


@dataclass(frozen=True, kw_only=True)
class Bucketize:
    """How many boundaries are <= x, as torch.bucketize(right=True): boundaries [0, 10], x = 10 -> 2. Gives ids."""

    kind: ClassVar[str] = "bucketize"
    boundaries: tuple[float, ...]


SparseOptimizer = Sgd | Adagrad | RowwiseAdagrad | Adam | AdamW
Initializer = Constant | Uniform | Normal | TruncatedNormal
Transform = Log1p | Clip | Modulo | Bucketize


# ------------------------------------------------------------------------------------------------------- the declarations

Dtype = Literal["int8", "int16", "int32", "int64", "float32", "float64", "bool", "string"]
Layout = Literal["scalar", "list", "optional_list"]
Pooling = Literal["sum", "mean", "sqrtn", "none"]
Loss = Literal["bce", "mse"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the files, as it is stored there."""

    name: str
    """Its name, or a pattern: `c{1..26}` declares 26 columns."""
    dtype: Dtype
    """The type of its values in the file, checked before training. Batches carry integers as int64, floats as float32."""
    layout: Layout = "scalar"
    """`list` for list columns; `optional_list` for lists of length 0 or 1, where the empty list is a missing value."""
    hash: Literal["farm", "murmur"] | None = None
    """How strings become 64-bit ids while reading: FarmHash Fingerprint64 or MurmurHash64A (seed 0), as signed int64."""
    parse: Literal["int64", "float32"] | None = None
    """Read strings as numbers; a string that is none is an error that names file and row."""
    default: float | int | None = None
    """Stands for a missing value. Without one, a missing id is no id, and a missing dense value or label is an error."""


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One input of the model: a column, its transforms, and for ids the table to look up and how to pool."""

    name: str
    """Its name, or a pattern that runs in step with `column` and `table`."""
    column: str | None = None
    """The column it reads; its own name where none is given."""
    table: str | None = None
    """The table its ids are looked up in; none for a dense feature."""
    pooling: Pooling = "sum"
    """How the embeddings of a row's ids become one: sum, mean, sqrtn (sum / sqrt(count)); none keeps the sequence."""
    weights: str | None = None
    """A list column of float weights, one for each id."""
    transforms: tuple[Transform, ...] = ()
    """Applied in order: {kind: log1p}, {kind: clip, low: 0, high: 9}, {kind: modulo, divisor: 1000}, {kind: bucketize, ...}."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """One hash table of embeddings."""

    name: str
    """Its name, or a pattern."""
    dim: int
    """Width of a row."""
    dtype: Literal["float32", "float64"] = "float32"
    initializer: Initializer = Constant()
    """The first value of a row, a function of (seed, table, id) alone."""
    optimizer: SparseOptimizer = Adagrad()
    """How touched rows are updated."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One thing the model predicts and is judged by."""

    name: str
    label: str
    """The column of its label."""
    loss: Loss = "bce"
    """bce (binary cross-entropy on logits) or mse."""
    weight: float = 1.0
    """What its loss counts in the sum over tasks."""
    where: str | None = None
    """A column; only its non-zero rows count, as conversions count on clicked rows."""
    sample_weight: str | None = None
    """A column of weights, one a row."""


OPTIMIZERS: dict[str, type] = {cls.kind: cls for cls in get_args(SparseOptimizer)}
INITIALIZERS: dict[str, type] = {cls.kind: cls for cls in get_args(Initializer)} | {"zeros": Constant}
TRANSFORMS: dict[str, type] = {cls.kind: cls for cls in get_args(Transform)}


# ------------------------------------------------------------------------------------------------------------- patterns

_BRACES = re.compile(r"\{([^{}]*)\}")


def expand(pattern: str) -> list[str]:
    """Expand one pair of braces: `c{1..3}` -> c1, c2, c3; `{user,item}_id` -> user_id, item_id; others as they are."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    inside = match.group(1)
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if numbers:
        parts = [str(number) for number in range(int(numbers[1]), int(numbers[2]) + 1)]
    else:
        parts = [part.strip() for part in inside.split(",")]
    if not parts or not all(parts) or _BRACES.search(pattern, match.end()):
        raise ValueError(f"pattern '{pattern}' names nothing; write one {{1..26}} or one {{user,item}}")
    return [pattern[: match.start()] + part + pattern[match.end() :] for part in parts]


def _expand_declaration(declaration: Declared, fields: Sequence[str]) -> Iterator[Declared]:
    """Expand the patterns of several fields in step: name `c{1..2}`, table `t{1..2}` -> (c1, t1), (c2, t2)."""
    assert dataclasses.is_dataclass(declaration)
    expansions = {name: expand(value) for name in fields if (value := getattr(declaration, name)) is not None}
    count = len(expansions["name"])
    for name, values in expansions.items():
        if len(values) not in (1, count):
            raise ValueError(f"'{name}' expands to {len(values)} names, 'name' to {count}; let them run in step")
    for index in range(count):
        changes = {name: values[index if len(values) > 1 else 0] for name, values in expansions.items()}
        yield dataclasses.replace(declaration, **changes)


# -------------------------------------------------------------------------------------------------------------- reading


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint for an error message: `; did you mean 'pooling'?`, or what there is."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    listed = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"; there are: {listed}" if known else "; there are none"


def _matches(value: Any, annotation: Any) -> bool:
    """Whether a plain value from YAML fits a field's annotation."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        return len(kinds) == len(value) and all(map(_matches, value, kinds))
    if arguments:  # a union
        return any(_matches(value, argument) for argument in arguments)
    if annotation is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return value is None if annotation is type(None) else isinstance(value, annotation)


def _describe(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(str, get_args(annotation)))
    if get_args(annotation) and get_origin(annotation) is not tuple:
        return " or ".join(_describe(argument) for argument in get_args(annotation))
    return {type(None): "none"}.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _read_number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as a string, since it wants 1.0e-3; take it for the number that was meant."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value):
        return float(value)
    return value


def _read_kind(value: Any, kinds: Mapping[str, type], where: str, problems: list[str]) -> Any:
    """Read {kind: adagrad, lr: .05}, or just `adagrad`, into its class."""
    if isinstance(value, tuple(kinds.values())):
        return value
    settings = {"kind": value} if isinstance(value, str) else value
    if not isinstance(settings, Mapping) or "kind" not in settings:
        problems.append(f"{where} is {value!r}; write a mapping with a kind, one of {', '.join(kinds)}")
        return None
    kind = settings["kind"]
    if kind not in kinds:
        problems.append(f"{where}: unknown kind '{kind}'{did_you_mean(str(kind), kinds)}")
        return None
    return _read(kinds[kind], {key: item for key, item in settings.items() if key != "kind"}, where, problems)


def _read(cls: type, settings: Any, where: str, problems: list[str]) -> Any:
    """Build a declaration from a mapping, adding to ``problems`` what does not fit; None where it can't be built."""
    if isinstance(settings, cls):
        return settings
    if not isinstance(settings, Mapping):
        problems.append(f"{where} is {settings!r}; write a mapping with {', '.join(_field_types(cls))}")
        return None
    types = _field_types(cls)
    values, before = {}, len(problems)
    for key, value in settings.items():
        if key not in types:
            problems.append(f"{where}: unknown option '{key}'{did_you_mean(str(key), types)}")
            continue
        nested = _NESTED.get((cls, key))
        if nested is not None:
            values[key] = nested(value, f"{where}.{key}", problems)
            continue
        value = _read_number(tuple(map(_read_number, value)) if isinstance(value, list) else value)
        if _matches(value, types[key]):
            values[key] = value
        else:
            problems.append(f"{where}.{key} is {value!r}, need {_describe(types[key])}")
    required = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
    problems += [f"{where}: '{name}' is missing" for name in required if name not in settings]
    return cls(**values) if len(problems) == before else None


def _field_types(cls: type) -> dict[str, Any]:
    return {field.name: field.type for field in dataclasses.fields(cls)}


def _read_transforms(value: Any, where: str, problems: list[str]) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        problems.append(f"{where} is {value!r}; write a list")
        return ()
    return tuple(_read_kind(item, TRANSFORMS, f"{where}[{index}]", problems) for index, item in enumerate(value))


_NESTED: dict[tuple[type, str], Callable[[Any, str, list[str]], Any]] = {
    (Table, "initializer"): lambda value, where, problems: _read_kind(value, INITIALIZERS, where, problems),
    (Table, "optimizer"): lambda value, where, problems: _read_kind(value, OPTIMIZERS, where, problems),
    (Feature, "transforms"): _read_transforms,
}

_SECTIONS: dict[str, tuple[type, tuple[str, ...]]] = {
    # section -> (class, the fields whose patterns run in step)
    "columns": (Column, ("name",)),
    "features": (Feature, ("name", "column", "table", "weights")),
    "tables": (Table, ("name",)),
    "tasks": (Task, ("name", "label", "where", "sample_weight")),
}


# ---------------------------------------------------------------------------------------------------------------- Schema


@dataclass(frozen=True, kw_only=True)
class Schema:
    """All declarations of a job, patterns expanded and checked: SchemaError names every mistake at once."""

    columns: tuple[Column, ...]
    features: tuple[Feature, ...] = ()
    tables: tuple[Table, ...] = ()
    tasks: tuple[Task, ...] = ()
    _by_name: Mapping[str, Mapping[str, Any]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        problems: list[str] = []
        for section, (_, patterns) in _SECTIONS.items():
            expanded: list[Any] = []
            for index, declaration in enumerate(getattr(self, section)):
                try:
                    expanded += _expand_declaration(declaration, patterns)
                except ValueError as error:
                    problems.append(f"{section}[{index}]: {error}")
            object.__setattr__(self, section, tuple(expanded))
            names = [declaration.name for declaration in expanded]
            problems += [f"{section}: '{name}' is declared twice" for name in dict.fromkeys(names) if names.count(name) > 1]
        by_name = {section: {item.name: item for item in getattr(self, section)} for section in _SECTIONS}
        object.__setattr__(self, "_by_name", by_name)
        problems += _find_mistakes(self)
        if problems:
            raise SchemaError(problems)

    @staticmethod
    def from_dict(settings: "Mapping[str, Any] | Schema") -> "Schema":
        """Read the mapping that a YAML file holds; SchemaError lists every mistake in it."""
        if isinstance(settings, Schema):
            return settings
        problems: list[str] = []
        read: dict[str, tuple[Any, ...]] = {}
        for key, items in settings.items():
            if key not in _SECTIONS:
                problems.append(f"unknown section '{key}'{did_you_mean(str(key), _SECTIONS)}")
            elif not isinstance(items, Sequence) or isinstance(items, str):
                problems.append(f"section '{key}' is {items!r}; write a list")
            else:
                read[key] = tuple(
                    _read(_SECTIONS[key][0], item, _label(key, index, item), problems) for index, item in enumerate(items)
                )
        if "columns" not in settings:
            problems.append("section 'columns' is missing")
        if problems:
            # What could be read is checked as well, so that one run shows every mistake.
            parts = {key: tuple(item for item in items if item is not None) for key, items in read.items()}
            complete = all(len(parts[key]) == len(read[key]) for key in read) and "columns" in read
            if complete:
                try:
                    Schema(**parts)
                except SchemaError as error:
                    problems += error.problems
            raise SchemaError(problems)
        return Schema(**read)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, mappings and values, JSON- and YAML-friendly; `from_dict` reads it back to an equal schema."""
        return {section: [_to_plain(item) for item in getattr(self, section)] for section in _SECTIONS}

    def column(self, name: str) -> Column:
        return self._by_name["columns"][name]

    def feature(self, name: str) -> Feature:
        return self._by_name["features"][name]

    def table(self, name: str) -> Table:
        return self._by_name["tables"][name]

    def task(self, name: str) -> Task:
        return self._by_name["tasks"][name]

    def column_of(self, feature: Feature) -> Column:
        """The column a feature reads."""
        return self.column(feature.column or feature.name)

    @property
    def dense_features(self) -> tuple[Feature, ...]:
        """Features without a table."""
        return tuple(feature for feature in self.features if feature.table is None)

    @property
    def embedded_features(self) -> tuple[Feature, ...]:
        """Features looked up in a table."""
        return tuple(feature for feature in self.features if feature.table is not None)

    @property
    def input_columns(self) -> tuple[Column, ...]:
        """The columns that features read, in the order declared: what `predict` needs."""
        names = {self.column_of(feature).name for feature in self.features}
        names |= {feature.weights for feature in self.features if feature.weights}
        return tuple(column for column in self.columns if column.name in names)

    @property
    def label_columns(self) -> tuple[Column, ...]:
        """The columns that tasks read."""
        names = {name for task in self.tasks for name in (task.label, task.where, task.sample_weight) if name}
        return tuple(column for column in self.columns if column.name in names)

    def is_id_column(self, name: str) -> bool:
        """Whether a batch carries this column as ids (Ragged int64) rather than as dense float32 [B].

        A column is read as ids where a feature with a table takes it as it is, that is without a bucketize on the way;
        integer columns of no such feature (labels, counts) are dense.
        """
        return any(
            self.column_of(feature).name == name and not any(isinstance(t, Bucketize) for t in feature.transforms)
            for feature in self.embedded_features
        )


def _label(section: str, index: int, item: Any) -> str:
    name = item.get("name") if isinstance(item, Mapping) else getattr(item, "name", None)
    return f"{section[:-1]} '{name}'" if name else f"{section}[{index}]"


def _to_plain(declaration: Any) -> Any:
    if isinstance(declaration, tuple):
        return [_to_plain(item) for item in declaration]
    if not dataclasses.is_dataclass(declaration):
        return declaration
    kind = {"kind": declaration.kind} if hasattr(declaration, "kind") else {}
    return kind | {item.name: _to_plain(getattr(declaration, item.name)) for item in dataclasses.fields(declaration)}


# ------------------------------------------------------------------------------------------------------------- the checks


def _find_mistakes(schema: Schema) -> Iterator[str]:
    for column in schema.columns:
        yield from _check_column(column)
    for feature in schema.features:
        yield from _check_feature(schema, feature)
    for table in schema.tables:
        yield from _check_table(schema, table)
    for task in schema.tasks:
        yield from _check_task(schema, task)


def _check_column(column: Column) -> Iterator[str]:
    where = f"column '{column.name}'"
    if column.dtype != "string" and (column.hash or column.parse):
        yield f"{where} is {column.dtype}; hash and parse are for strings"
    if column.dtype == "string" and bool(column.hash) == bool(column.parse):
        yield f"{where} is a string; say hash: farm (or murmur) to get ids, or parse: float32 (or int64) to get numbers"
    if column.hash and column.default is not None:
        yield f"{where} is hashed; a missing id is no id, so leave default out"


def _check_feature(schema: Schema, feature: Feature) -> Iterator[str]:
    where = f"feature '{feature.name}'"
    columns = schema._by_name["columns"]
    name = feature.column or feature.name
    if name not in columns:
        yield f"{where} reads column '{name}', which is not declared{did_you_mean(name, columns)}"
        return
    column = columns[name]
    if feature.table is not None and feature.table not in schema._by_name["tables"]:
        yield f"{where} looks up table '{feature.table}', which is not declared{did_you_mean(feature.table, schema._by_name['tables'])}"
    carries_floats = column.dtype in ("float32", "float64") or column.parse == "float32"
    carries_ids = not carries_floats
    for index, transform in enumerate(feature.transforms):
        step = f"{where}, transforms[{index}] ({transform.kind})"
        if isinstance(transform, Modulo):
            if not carries_ids:
                yield f"{step} works on ids, but gets floats from column '{name}'; put bucketize before it"
            if transform.divisor < 1:
                yield f"{step}: divisor is {transform.divisor}, need at least 1"
        if isinstance(transform, Bucketize):
            if list(transform.boundaries) != sorted(set(transform.boundaries)):
                yield f"{step}: boundaries {list(transform.boundaries)} are not rising; sort them and drop repeats"
            carries_ids = True
        if isinstance(transform, Clip) and transform.low is not None and transform.high is not None:
            if transform.low > transform.high:
                yield f"{step}: low {transform.low} is above high {transform.high}"
        if isinstance(transform, Clip) and transform.low is None and transform.high is None:
            yield f"{step}: neither low nor high is given"
        if isinstance(transform, Log1p | Clip | Bucketize) and column.hash:
            yield f"{step} works on numbers, but column '{name}' is hashed to ids"
    if feature.table is not None and not carries_ids:
        yield f"{where} looks up table '{feature.table}' with floats from column '{name}'; add bucketize, or drop the table"
    if feature.table is None:
        yield from _check_dense_feature(schema, feature, column)
    elif column.default is not None and carries_floats is False and not isinstance(column.default, int):
        yield f"column '{name}' holds ids, its default is {column.default!r}; give an integer"
    yield from _check_weights(schema, feature, column)


def _check_dense_feature(schema: Schema, feature: Feature, column: Column) -> Iterator[str]:
    where = f"feature '{feature.name}'"
    if column.hash:
        yield f"{where} is dense, but column '{column.name}' is hashed to ids; name a table"
    if column.layout == "list":
        yield f"{where} is dense, but column '{column.name}' is a list; name a table, or declare layout: optional_list"
    if schema.is_id_column(column.name):
        yield f"{where} is dense, but column '{column.name}' is read as ids by another feature; a column is one or the other"
    if any(isinstance(transform, Bucketize) for transform in feature.transforms):
        yield f"{where} ends in ids (bucketize) but names no table"
    if feature.pooling != "sum":
        yield f"{where} has pooling '{feature.pooling}' but no table; pooling is for embeddings"


def _check_weights(schema: Schema, feature: Feature, column: Column) -> Iterator[str]:
    if feature.weights is None:
        return
    where = f"feature '{feature.name}'"
    columns = schema._by_name["columns"]
    if feature.weights not in columns:
        yield f"{where} takes weights from '{feature.weights}', which is not declared{did_you_mean(feature.weights, columns)}"
        return
    weights = columns[feature.weights]
    if weights.dtype not in ("float32", "float64") or weights.layout != column.layout or column.layout == "scalar":
        yield (
            f"{where} takes weights from '{weights.name}' ({weights.dtype}, {weights.layout}) for ids in '{column.name}' "
            f"({column.layout}); both must be lists, the weights floats"
        )
    if feature.table is None:
        yield f"{where} has weights but no table; weights are for pooling"


def _check_table(schema: Schema, table: Table) -> Iterator[str]:
    where = f"table '{table.name}'"
    if table.dim < 1:
        yield f"{where}: dim is {table.dim}, need at least 1"
    if not any(feature.table == table.name for feature in schema.features):
        yield f"{where} is looked up by no feature; name it in one, or drop it"
    if re.search(r"[/\\]", table.name) or table.name in (".", ".."):
        yield f"{where}: a name is also a folder in checkpoints; leave out / and \\"
    optimizer = table.optimizer
    if optimizer.lr < 0:
        yield f"{where}: optimizer lr is {optimizer.lr}, need at least 0"
    for beta in getattr(optimizer, "betas", ()):
        if not 0 <= beta < 1:
            yield f"{where}: optimizer betas are {optimizer.betas}, need 0 <= beta < 1"  # type: ignore[union-attr]
    initializer = table.initializer
    if isinstance(initializer, Uniform | TruncatedNormal) and initializer.low >= initializer.high:
        yield f"{where}: initializer low {initializer.low} is not below high {initializer.high}"
    if isinstance(initializer, Normal | TruncatedNormal) and initializer.std < 0:
        yield f"{where}: initializer std is {initializer.std}, need at least 0"


def _check_task(schema: Schema, task: Task) -> Iterator[str]:
    columns = schema._by_name["columns"]
    for option in ("label", "where", "sample_weight"):
        name = getattr(task, option)
        if name is None:
            continue
        if name not in columns:
            yield f"task '{task.name}' takes its {option} from '{name}', which is not declared{did_you_mean(name, columns)}"
            continue
        column = columns[name]
        if column.hash or column.layout == "list" or schema.is_id_column(name):
            yield f"task '{task.name}' takes its {option} from '{name}', which holds ids or lists; need one number a row"
