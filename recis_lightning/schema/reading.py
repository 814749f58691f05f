"""From plain mappings, as YAML gives them, to declarations."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recis_lightning.schema.declarations import Column, Feature, Pretrained, SequenceGroup, Table, Task
from recis_lightning.schema.kinds import INITIALIZERS
from recis_lightning.schema.names import did_you_mean
from recis_lightning.schema.optimizers import OPTIMIZERS
from recis_lightning.schema.policies import ADMISSIONS, EVICTIONS
from recis_lightning.schema.schedules import Schedule
from recis_lightning.schema.towers import Lora, Tower
from recis_lightning.schema.transforms import TRANSFORMS


@dataclass(frozen=True)
class Unread:
    """In the place of a declaration that can't be read: what refers to it by name is right, and not reported."""

    name: str | None


def read_section(section: str, items: Any, problems: list[str]) -> list[Any]:
    if not isinstance(items, Sequence) or isinstance(items, str):
        problems.append(f"section '{section}' is {items!r}; write a list")
        return [Unread(None)]
    declared: list[Any] = []
    for index, item in enumerate(items):
        declaration = read(SECTIONS[section][0], item, label(section, index, item), problems)
        name = item.get("name") if isinstance(item, Mapping) else None
        declared.append(declaration or Unread(name if isinstance(name, str) else None))
    return declared


def label(section: str, index: int, item: Any) -> str:
    name = item.get("name") if isinstance(item, Mapping) else getattr(item, "name", None)
    return f"{section[:-1]} '{name}'" if name else f"{section}[{index}]"


def read(cls: type, settings: Any, where: str, problems: list[str]) -> Any:
    """Build a declaration from a mapping; None, and a line in ``problems``, where options are unknown or missing."""
    if isinstance(settings, cls):
        return settings
    if not isinstance(settings, Mapping):
        problems.append(f"{where} is {settings!r}; write a mapping with {', '.join(field_types(cls)) or 'no options'}")
        return None
    types, before = field_types(cls), len(problems)
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


def field_types(cls: type) -> dict[str, Any]:
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
    return read(kinds[kind], {key: item for key, item in settings.items() if key != "kind"}, where, problems)


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
    (Table, "pretrained"): lambda value, where, problems: value and read(Pretrained, value, where, problems),
    (Feature, "transforms"): lambda value, where, problems: _read_kinds(value, TRANSFORMS, where, problems),
    (Tower, "model"): _read_model,
    (Tower, "lora"): lambda value, where, problems: read(Lora, value, where, problems),
    (Tower, "schedule"): lambda value, where, problems: value and read(Schedule, value, where, problems),
}
_NESTED |= {(cls, "schedule"): _NESTED[Tower, "schedule"] for cls in OPTIMIZERS.values()}

SECTIONS: dict[str, tuple[type, tuple[str, ...]]] = {
    # section -> (class, the fields whose patterns run in step)
    "columns": (Column, ("name", "source")),
    "features": (Feature, ("name", "column", "inputs", "table", "tower", "weights")),
    "tables": (Table, ("name",)),
    "towers": (Tower, ("name",)),
    "tasks": (Task, ("name", "label", "where", "sample_weight", "group")),
    "sequences": (SequenceGroup, ("name", "columns")),
}


def to_plain(declaration: Any) -> Any:
    if isinstance(declaration, tuple):
        return [to_plain(item) for item in declaration]
    if not dataclasses.is_dataclass(declaration):
        return declaration
    kind = {"kind": declaration.kind} if hasattr(declaration, "kind") else {}
    return kind | {item.name: to_plain(getattr(declaration, item.name)) for item in dataclasses.fields(declaration)}
