"""What a model reads and what it keeps: columns, features, tables and tasks, declared once, in Python or YAML.

    columns:
      - {name: label, dtype: float32}
      - {name: "c{1..26}", dtype: int64}                 # a pattern declares c1, c2, ... c26
    tables:
      - {name: "c{1..26}", dim: 16, initializer: {kind: normal, std: 0.01}, optimizer: {kind: adagrad, lr: 0.05}}
    features:
      - {name: "c{1..26}", table: "c{1..26}", pooling: sum}
    tasks:
      - {name: ctr, label: label}

`Schema.from_dict` reads such a mapping and reports every mistake in it in one `SchemaError`.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args, get_origin

from recis_lightning import schema_policies, schema_towers
from recis_lightning.schema_policies import ADMISSIONS, EVICTIONS, Admission, Always, Eviction
from recis_lightning.schema_towers import Lora, Schedule, Tower


class SchemaError(ValueError):
    """Every mistake found in a schema, one to a line."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        super().__init__(f"the schema has {count}:\n" + "\n".join(f"  - {problem}" for problem in problems))


# ------------------------------------------------------------------------- kinds: optimizers, initialisers, transforms


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
    """weight -= lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps) on touched rows, as torch.optim.SparseAdam."""

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


# ---------------------------------------------------------------------------------------------------- the declarations

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
    """The type of its values in the file, checked before training. Batches carry ids as int64, all else as float32."""
    layout: Layout = "scalar"
    """`list` for list columns; `optional_list` for lists of length 0 or 1, where the empty list is a missing value."""
    hash: Literal["farm", "murmur"] | None = None
    """How strings become signed 64-bit ids while reading: FarmHash Fingerprint64, or MurmurHash64A with seed 0."""
    parse: Literal["int64", "float32"] | None = None
    """Read strings as numbers; a string that is none is an error that names file and row."""
    tokenizer: str | None = None
    """Read strings as lists of token ids, by a tokenizer.json; a missing or empty string is an empty list."""
    max_length: int | None = None
    """Cut what the tokenizer gives to so many ids, special ones included."""
    default: float | int | None = None
    """Stands for a missing value. Without one a missing id is no id, and a missing dense value or label is an error."""


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One input of the model: a column, its transforms, and for ids the table to look up and how to pool."""

    name: str
    """Its name, or a pattern that runs in step with `column` and `table`."""
    column: str | None = None
    """The column it reads; its own name where none is given."""
    table: str | None = None
    """The table its ids are looked up in; none for a dense feature."""
    tower: str | None = None
    """The tower that its token ids go through, in place of a table."""
    pooling: Pooling = "sum"
    """How the embeddings of a row's ids become one: sum, mean, sqrtn (sum / sqrt(count)); none keeps the sequence."""
    weights: str | None = None
    """A list column of float weights, one for each id."""
    transforms: tuple[Transform, ...] = ()
    """Applied in order: log1p, {kind: clip, low: 0, high: 9}, {kind: modulo, divisor: 1000}, {kind: bucketize, ...}."""

    @property
    def is_dense(self) -> bool:
        """Whether it is one number a row: looked up in no table, and for no tower."""
        return self.table is None and self.tower is None


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
    capacity: int | None = None
    """How many ids it may hold. At its capacity an eviction that keeps to it makes room; without one, a new id is an
    error."""
    admission: Admission = Always()
    """Which ids get a row when training looks them up: always, counter, probability, bloom, read_only."""
    eviction: tuple[Eviction, ...] = ()
    """Which ids it forgets, one policy or several: age, ttl, lru, lfu, l2_norm, score."""


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
    """Expand one pair of braces: `c{1..3}` -> c1, c2, c3; `{user,item}_id` -> user_id, item_id; `d{08..10}` -> d08, ...

    A name without braces stands for itself. Raises ValueError where braces do not pair, or name nothing.
    """
    match = _BRACES.search(pattern)
    before, inside, after = (pattern[: match.start()], match[1], pattern[match.end() :]) if match else (pattern, "", "")
    parts = _list_parts(inside) if match else [""]
    if not parts or re.search("[{}]", before + after):
        raise ValueError(f"pattern '{pattern}' names nothing; write one {{1..26}} or one {{user,item}}")
    return [before + part + after for part in parts]


def _list_parts(inside: str) -> list[str]:
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if numbers:
        width = len(numbers[1]) if numbers[1].startswith("0") else 0  # 08..10 -> 08, 09, 10
        return [str(number).zfill(width) for number in range(int(numbers[1]), int(numbers[2]) + 1)]
    parts = [part.strip() for part in inside.split(",")]
    return parts if all(parts) else []


def _expand_declaration(declaration: Any, fields: Sequence[str]) -> list[Any]:
    """Expand the patterns of several fields in step: name `c{1..2}`, table `t{1..2}` -> (c1, t1), (c2, t2)."""
    expansions = {name: expand(value) for name in fields if (value := getattr(declaration, name)) is not None}
    count = len(expansions["name"])
    for name, values in expansions.items():
        if len(values) not in (1, count):
            raise ValueError(f"'{name}' expands to {len(values)} names, 'name' to {count}; let them run in step")
    return [
        dataclasses.replace(
            declaration, **{name: values[index if len(values) > 1 else 0] for name, values in expansions.items()}
        )
        for index in range(count)
    ]


# -------------------------------------------------------------------------------------------------------------- reading


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint for an error message: `; did you mean 'pooling'?`, or what there is."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    listed = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"; there are: {listed}" if known else "; there are none"


@dataclass(frozen=True)
class _Unread:
    """In the place of a declaration that can't be read: what refers to it by name is right, and not reported."""

    name: str | None


def _read_section(section: str, items: Any, problems: list[str]) -> list[Any]:
    if not isinstance(items, Sequence) or isinstance(items, str):
        problems.append(f"section '{section}' is {items!r}; write a list")
        return [_Unread(None)]
    declared: list[Any] = []
    for index, item in enumerate(items):
        declaration = _read(_SECTIONS[section][0], item, _label(section, index, item), problems)
        name = item.get("name") if isinstance(item, Mapping) else None
        declared.append(declaration or _Unread(name if isinstance(name, str) else None))
    return declared


def _label(section: str, index: int, item: Any) -> str:
    name = item.get("name") if isinstance(item, Mapping) else getattr(item, "name", None)
    return f"{section[:-1]} '{name}'" if name else f"{section}[{index}]"


def _read(cls: type, settings: Any, where: str, problems: list[str]) -> Any:
    """Build a declaration from a mapping; None, and a line in ``problems``, where options are unknown or missing."""
    if isinstance(settings, cls):
        return settings
    if not isinstance(settings, Mapping):
        problems.append(f"{where} is {settings!r}; write a mapping with {', '.join(_field_types(cls)) or 'no options'}")
        return None
    types, before = _field_types(cls), len(problems)
    values: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in types:
            problems.append(f"{where}: unknown option '{key}'{did_you_mean(str(key), types)}")
        elif (cls, key) in _NESTED:
            values[key] = _NESTED[cls, key](value, f"{where}.{key}", problems)
        else:
            values[key] = _read_value(value, types[key])
    required = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
    problems += [f"{where}: '{name}' is missing" for name in required if name not in settings]
    return cls(**values) if len(problems) == before else None


def _field_types(cls: type) -> dict[str, Any]:
    return {field.name: field.type for field in dataclasses.fields(cls)}


def _read_value(value: Any, annotation: Any) -> Any:
    """Lists become tuples; '1e-3', which YAML 1.1 takes for a string, becomes the number that was meant."""
    if isinstance(value, list):
        return tuple(_read_value(item, annotation) for item in value)
    if isinstance(value, str) and "float" in str(annotation):
        return float(value) if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value) else value
    return value


def _read_kind(value: Any, kinds: Mapping[str, type], where: str, problems: list[str]) -> Any:
    """Read {kind: adagrad, lr: .05}, or just `adagrad`, into its class."""
    if isinstance(value, tuple(kinds.values())):
        return value
    settings = {"kind": value} if isinstance(value, str) else value
    if not isinstance(settings, Mapping) or not isinstance(settings.get("kind"), str):
        problems.append(f"{where} is {value!r}; write a mapping with a kind, one of {', '.join(kinds)}")
        return None
    kind = settings["kind"]
    if kind not in kinds:
        problems.append(f"{where}: unknown kind '{kind}'{did_you_mean(kind, kinds)}")
        return None
    return _read(kinds[kind], {key: item for key, item in settings.items() if key != "kind"}, where, problems)


def _read_kinds(value: Any, kinds: Mapping[str, type], where: str, problems: list[str]) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        problems.append(f"{where} is {value!r}; write a list")
        return ()
    return tuple(_read_kind(item, kinds, f"{where}[{index}]", problems) for index, item in enumerate(value))


def _read_evictions(value: Any, where: str, problems: list[str]) -> tuple[Any, ...]:
    """A list of them, or one alone."""
    alone = value is not None and not isinstance(value, list | tuple)
    return _read_kinds([value] if alone else value or (), EVICTIONS, where, problems)


def _read_model(value: Any, where: str, problems: list[str]) -> Any:
    """The config of a model may hold numbers that YAML 1.1 takes for strings: layer_norm_eps: 1e-12."""
    if isinstance(value, Mapping):
        return {key: _read_value(item, float) if isinstance(item, str) else item for key, item in value.items()}
    return value


_NESTED: dict[tuple[type, str], Callable[[Any, str, list[str]], Any]] = {
    (Table, "initializer"): lambda value, where, problems: _read_kind(value, INITIALIZERS, where, problems),
    (Table, "optimizer"): lambda value, where, problems: _read_kind(value, OPTIMIZERS, where, problems),
    (Table, "admission"): lambda value, where, problems: _read_kind(value, ADMISSIONS, where, problems),
    (Table, "eviction"): _read_evictions,
    (Feature, "transforms"): lambda value, where, problems: _read_kinds(value, TRANSFORMS, where, problems),
    (Tower, "model"): _read_model,
    (Tower, "lora"): lambda value, where, problems: _read(Lora, value, where, problems),
    (Tower, "schedule"): lambda value, where, problems: value and _read(Schedule, value, where, problems),
}

_SECTIONS: dict[str, tuple[type, tuple[str, ...]]] = {
    # section -> (class, the fields whose patterns run in step)
    "columns": (Column, ("name",)),
    "features": (Feature, ("name", "column", "table", "tower", "weights")),
    "tables": (Table, ("name",)),
    "towers": (Tower, ("name",)),
    "tasks": (Task, ("name", "label", "where", "sample_weight")),
}


# --------------------------------------------------------------------------------------------------------------- Schema


@dataclass(frozen=True, kw_only=True)
class Schema:
    """All declarations of a job, patterns expanded and checked: SchemaError names every mistake at once."""

    columns: tuple[Column, ...]
    features: tuple[Feature, ...] = ()
    tables: tuple[Table, ...] = ()
    towers: tuple[Tower, ...] = ()
    tasks: tuple[Task, ...] = ()
    _by_name: Mapping[str, Mapping[str, Any]] = field(init=False, repr=False, compare=False)
    _id_columns: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        sections, problems = _resolve({section: getattr(self, section) for section in _SECTIONS})
        if problems:
            raise SchemaError(problems)
        for name, section in sections.items():
            object.__setattr__(self, name, tuple(section.declared.values()))
        object.__setattr__(self, "_by_name", {name: section.declared for name, section in sections.items()})
        object.__setattr__(self, "_id_columns", _find_id_columns(self.features))

    @staticmethod
    def from_dict(settings: "Mapping[str, Any] | Schema") -> "Schema":
        """Read the mapping that a YAML file holds; SchemaError lists every mistake in it."""
        if isinstance(settings, Schema):
            return settings
        if not isinstance(settings, Mapping):
            raise SchemaError([f"it is {settings!r}; write a mapping with {', '.join(_SECTIONS)}"])
        problems = [
            f"unknown section '{key}'{did_you_mean(str(key), _SECTIONS)}" for key in settings if key not in _SECTIONS
        ]
        declared = {section: _read_section(section, settings.get(section, ()), problems) for section in _SECTIONS}
        if "columns" not in settings:
            problems.append("section 'columns' is missing")
            declared["columns"] = [_Unread(None)]
        # What can be read is checked beside what cannot, so that one run shows every mistake.
        problems += _resolve(declared)[1]
        if problems:
            raise SchemaError(problems)
        return Schema(**{section: tuple(items) for section, items in declared.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, mappings and values, JSON- and YAML-friendly; `from_dict` reads it back to an equal schema."""
        return {section: [_to_plain(item) for item in getattr(self, section)] for section in _SECTIONS}

    def column(self, name: str) -> Column:
        return self._by_name["columns"][name]

    def feature(self, name: str) -> Feature:
        return self._by_name["features"][name]

    def table(self, name: str) -> Table:
        return self._by_name["tables"][name]

    def tower(self, name: str) -> Tower:
        return self._by_name["towers"][name]

    def task(self, name: str) -> Task:
        return self._by_name["tasks"][name]

    def column_of(self, feature: Feature) -> Column:
        """The column a feature reads."""
        return self.column(feature.column or feature.name)

    @property
    def dense_features(self) -> tuple[Feature, ...]:
        """Features without a table or tower: one number a row."""
        return tuple(feature for feature in self.features if feature.is_dense)

    @property
    def embedded_features(self) -> tuple[Feature, ...]:
        """Features looked up in a table."""
        return tuple(feature for feature in self.features if feature.table is not None)

    @property
    def tower_features(self) -> tuple[Feature, ...]:
        """Features whose token ids go through a tower."""
        return tuple(feature for feature in self.features if feature.tower is not None)

    @property
    def vector_features(self) -> tuple[Feature, ...]:
        """Features of which a network gets vectors: embedded ones and those of towers, in the order declared."""
        return tuple(feature for feature in self.features if not feature.is_dense)

    def width_of(self, feature: Feature) -> int:
        """The width of a feature's vectors: its table's or its tower's dim; 1 for a dense one."""
        if feature.tower is not None:
            return self.tower(feature.tower).dim
        return 1 if feature.table is None else self.table(feature.table).dim

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

        A column is read as ids where a feature with a table or tower takes it as it is, or by a modulo, rather than
        by a bucketize: integer columns of no such feature (labels, counts) are dense.
        """
        return name in self._id_columns


def _to_plain(declaration: Any) -> Any:
    if isinstance(declaration, tuple):
        return [_to_plain(item) for item in declaration]
    if not dataclasses.is_dataclass(declaration):
        return declaration
    kind = {"kind": declaration.kind} if hasattr(declaration, "kind") else {}
    return kind | {item.name: _to_plain(getattr(declaration, item.name)) for item in dataclasses.fields(declaration)}


def _find_id_columns(features: Iterable[Feature]) -> frozenset[str]:
    def reads_ids(feature: Feature) -> bool:
        first = next((t for t in feature.transforms if isinstance(t, Modulo | Bucketize)), None)
        return not feature.is_dense and not isinstance(first, Bucketize)

    return frozenset(feature.column or feature.name for feature in features if reads_ids(feature))


# ----------------------------------------------------------------------------------------------------------- the checks


@dataclass
class _Section:
    """One section's declarations by name, patterns expanded; None for one that could not be read."""

    declared: dict[str, Any] = field(default_factory=dict)
    complete: bool = True
    """False where something in it could not be read that may declare any name."""

    def lacks(self, name: str) -> bool:
        return self.complete and name not in self.declared


def _resolve(declared: Mapping[str, Sequence[Any]]) -> tuple[dict[str, _Section], list[str]]:
    """Expand the patterns of all declarations, and list every mistake in them."""
    problems: list[str] = []
    sections = {name: _resolve_section(name, declared[name], problems) for name in _SECTIONS}
    problems += _find_mistakes(sections)
    return sections, problems


def _resolve_section(name: str, items: Sequence[Any], problems: list[str]) -> _Section:
    section, (cls, patterns) = _Section(), _SECTIONS[name]
    for index, item in enumerate(items):
        where = _label(name, index, item)
        if not isinstance(item, cls | _Unread):
            problems.append(f"{where} is {item!r}, need a {cls.__name__}; Schema.from_dict reads plain mappings")
            item = _Unread(None)
        misfits = [] if isinstance(item, _Unread) else list(_find_misfits(where, item))
        if misfits:
            problems += misfits
            item = _Unread(item.name if isinstance(item.name, str) else None)
        if item.name is None:
            section.complete = False
            continue
        try:
            expanded = _expand_declaration(item, ("name",) if isinstance(item, _Unread) else patterns)
        except ValueError as error:
            problems.append(f"{where}: {error}")
            section.complete = False
            continue
        for declaration in expanded:
            if declaration.name in section.declared:
                problems.append(f"{name}: '{declaration.name}' is declared twice")
            section.declared.setdefault(declaration.name, None if isinstance(declaration, _Unread) else declaration)
    return section


def _find_misfits(where: str, declaration: Any) -> Iterator[str]:
    """Fields whose values are not of their type, kinds within included."""
    for name, annotation in _field_types(type(declaration)).items():
        value = getattr(declaration, name)
        if not _matches(value, annotation):
            yield f"{where}.{name} is {value!r}, need {_describe(annotation)}"
            continue
        inner = enumerate(value) if isinstance(value, tuple) else [("", value)]
        for index, item in inner:
            if dataclasses.is_dataclass(item):
                yield from _find_misfits(f"{where}.{name}[{index}]" if index != "" else f"{where}.{name}", item)


def _matches(value: Any, annotation: Any) -> bool:
    """Whether a value fits a field's annotation; an integer is a number, infinity is none."""
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
        return isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is str:
        return isinstance(value, str) and value != ""
    return isinstance(value, annotation)


_TYPE_NAMES = {int: "an integer", float: "a finite number", str: "a name", type(None): "nothing"}


def _describe(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f" of {len(arguments)}"
        return f"a tuple (a list in YAML){count}, each {_describe(arguments[0])}"
    if arguments:
        return " or ".join(_describe(argument) for argument in arguments)
    return _TYPE_NAMES.get(annotation, annotation.__name__)


def _find_mistakes(sections: Mapping[str, _Section]) -> Iterator[str]:
    columns, features, tables, towers, tasks = (
        [item for item in sections[name].declared.values() if item is not None] for name in _SECTIONS
    )
    # Floats read as ids are reported where that is declared, not at every other reader of their column.
    id_columns = _find_id_columns(features) - {column.name for column in columns if _carries_floats(column)}
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


def _carries_floats(column: Column) -> bool:
    return column.dtype in ("float32", "float64") or column.parse == "float32"


def _check_feature(feature: Feature, sections: Mapping[str, _Section], id_columns: frozenset[str]) -> Iterator[str]:
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
    floats = _carries_floats(column)
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
    if column.layout != "list" or column.hash or _carries_floats(column):
        yield (
            f"{where} goes through a tower, but column '{column.name}' holds no lists of token ids; "
            "give it dtype: string and a tokenizer, or write lists of integers"
        )


def _check_weights(feature: Feature, column: Column | None, columns: _Section) -> Iterator[str]:
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
    if not _carries_floats(weights) or weights.layout != column.layout or column.layout == "scalar":
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


def _check_task(task: Task, columns: _Section, id_columns: frozenset[str]) -> Iterator[str]:
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
