"""Schema: all declarations of a job, read, checked and found by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from recis_lightning.schema.checks import find_mistakes
from recis_lightning.schema.declarations import Column, Feature, SequenceGroup, Table, Task
from recis_lightning.schema.fits import Numbers, apply_fits, find_unfitted, read_fits
from recis_lightning.schema.flow import Flow, Value, find_id_columns, is_feature
from recis_lightning.schema.names import SchemaError, did_you_mean
from recis_lightning.schema.reading import SECTIONS, Unread, read_section, to_plain
from recis_lightning.schema.sections import Section, resolve_section
from recis_lightning.schema.towers import Tower
from recis_lightning.schema.transforms import Lookup


@dataclass(frozen=True, kw_only=True)
class Schema:
    """All declarations of a job, patterns expanded and checked: SchemaError names every mistake at once."""

    columns: tuple[Column, ...]
    features: tuple[Feature, ...] = ()
    tables: tuple[Table, ...] = ()
    towers: tuple[Tower, ...] = ()
    tasks: tuple[Task, ...] = ()
    sequences: tuple[SequenceGroup, ...] = ()
    _by_name: Mapping[str, Mapping[str, Any]] = field(init=False, repr=False, compare=False)
    _id_columns: frozenset[str] = field(init=False, repr=False, compare=False)
    _flow: Flow = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        sections, problems = _resolve({section: getattr(self, section) for section in SECTIONS})
        if problems:
            raise SchemaError(problems)
        for name, section in sections.items():
            object.__setattr__(self, name, tuple(section.declared.values()))
        object.__setattr__(self, "_by_name", {name: section.declared for name, section in sections.items()})
        object.__setattr__(self, "_id_columns", find_id_columns(self.features, self.tasks))
        by_name = self._by_name
        object.__setattr__(self, "_flow", Flow(by_name["columns"], by_name["features"], self._id_columns))

    @staticmethod
    def from_dict(settings: "Mapping[str, Any] | Schema") -> "Schema":
        """Read the mapping that a YAML file holds; SchemaError lists every mistake in it."""
        if isinstance(settings, Schema):
            return settings
        if not isinstance(settings, Mapping):
            raise SchemaError([f"it is {settings!r}; write a mapping with {', '.join(SECTIONS)}"])
        problems = [
            f"unknown section '{key}'{did_you_mean(str(key), SECTIONS)}"
            for key in settings
            if key not in SECTIONS and key != "fits"
        ]
        declared = {section: read_section(section, settings.get(section, ()), problems) for section in SECTIONS}
        if "columns" not in settings:
            problems.append("section 'columns' is missing")
            declared["columns"] = [Unread(None)]
        # What can be read is checked beside what cannot, so that one run shows every mistake.
        problems += _resolve(declared)[1]
        if problems:
            raise SchemaError(problems)
        schema = Schema(**{section: tuple(items) for section, items in declared.items()})
        return schema if settings.get("fits") is None else schema.with_fits(settings["fits"])

    def with_fits(self, fits: Any) -> "Schema":
        """The schema with fitted numbers put in, from a file's path or content; SchemaError where they do not fit."""
        numbers, problems = read_fits(fits)
        if problems:
            raise SchemaError(problems)
        fitted = self.with_numbers(numbers)
        lacking = [f"{line}; run `recis features fit` again" for line in find_unfitted(fitted.features)]
        if lacking:
            raise SchemaError(lacking)
        return fitted

    def with_numbers(self, numbers: Numbers) -> "Schema":
        """The schema with numbers of transforms put in, by feature and place; SchemaError where they do not fit."""
        features, problems = apply_fits(self.features, numbers)
        if problems:
            raise SchemaError(problems)
        return replace(self, features=tuple(features))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, mappings and values, JSON- and YAML-friendly; `from_dict` reads it back to an equal schema."""
        return {section: [to_plain(item) for item in getattr(self, section)] for section in SECTIONS}

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
        """The column a feature without inputs reads."""
        assert not feature.inputs, f"feature '{feature.name}' reads {feature.inputs}"
        return self.column(feature.column or feature.name)

    def inputs_of(self, feature: Feature) -> tuple[Feature | Column, ...]:
        """What a feature's first transform takes: features, and columns where no feature has that name."""
        features = self._by_name["features"]
        names = feature.inputs or (feature.column or feature.name,)
        return tuple(features[name] if is_feature(name, feature, features) else self.column(name) for name in names)

    def columns_of(self, feature: Feature) -> tuple[Column, ...]:
        """The columns a feature reads itself, those of its weights apart."""
        return tuple(each for each in self.inputs_of(feature) if isinstance(each, Column))

    def values_of(self, feature: Feature) -> tuple[tuple[Value, ...], ...]:
        """What a feature's values are: those of its inputs, then what each transform gives, alone in a tuple."""
        flow = self._flow
        inputs = tuple(value for value in flow.inputs(feature) if value is not None)
        return (inputs, *((value,) for _, value, _ in flow.steps(feature)))

    @property
    def aligned_columns(self) -> tuple[tuple[str, ...], ...]:
        """Groups of list columns that are equally long in every row: ids and weights, sequences, keys and values."""
        pairs = [(self.column_of(f).name, f.column_weights) for f in self.features if f.column_weights is not None]
        maps: list[tuple[str, ...]] = [
            tuple(each.name for each in self.inputs_of(feature)[-2:] if isinstance(each, Column))
            for feature in self.features
            if feature.transforms and isinstance(feature.transforms[0], Lookup)
        ]
        return tuple(dict.fromkeys([*pairs, *(sequence.columns for sequence in self.sequences), *maps]))

    @property
    def dense_features(self) -> tuple[Feature, ...]:
        """Features without a table or tower, for the model: one number a row, or a vector."""
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
        return tuple(feature for feature in self.features if feature.table is not None or feature.tower is not None)

    def width_of(self, feature: Feature) -> int:
        """The width of a feature's vectors: its table's or its tower's dim; that of a dense one is mostly 1."""
        if feature.tower is not None:
            return self.tower(feature.tower).dim
        if feature.table is None:
            return self.values_of(feature)[-1][0].dim
        return self.table(feature.table).dim * (feature.tile_length or 1)

    @property
    def input_columns(self) -> tuple[Column, ...]:
        """The columns that features read, in the order declared: what `predict` needs."""
        names = {column.name for feature in self.features for column in self.columns_of(feature)}
        names |= {feature.column_weights for feature in self.features if feature.column_weights}
        return tuple(column for column in self.columns if column.name in names)

    @property
    def label_columns(self) -> tuple[Column, ...]:
        """The columns that tasks read."""
        read = [name for task in self.tasks for name in (task.label, task.where, task.sample_weight, task.group)]
        return tuple(column for column in self.columns if column.name in read)

    def is_id_column(self, name: str) -> bool:
        """Whether a batch carries this column as ids (Ragged int64) rather than as dense float32 [B].

        A column is read as ids where a feature with a table or tower takes it as it is, or by a transform of ids such
        as modulo or cross, and where a task is grouped by it: all other integer columns (labels, counts) are dense.
        """
        return name in self._id_columns


def _resolve(declared: Mapping[str, Sequence[Any]]) -> tuple[dict[str, Section], list[str]]:
    """Expand the patterns of all declarations, and list every mistake in them."""
    problems: list[str] = []
    sections = {name: resolve_section(name, declared[name], problems) for name in SECTIONS}
    problems += find_mistakes(sections)
    return sections, problems
