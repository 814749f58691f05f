"""Whether the values of a declaration's fields are of the types these are annotated with."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from recis_lightning.schema.reading import field_types


def find_misfits(where: str, declaration: Any) -> Iterator[str]:
    """Fields whose values are not of their type, kinds within included."""
    for name, annotation in field_types(type(declaration)).items():
        value = getattr(declaration, name)
        if not _matches(value, annotation):
            yield f"{where}.{name} is {value!r}, need {_describe(annotation)}"
            continue
        inner = enumerate(value) if isinstance(value, tuple) else [("", value)]
        for index, item in inner:
            if dataclasses.is_dataclass(item):
                yield from find_misfits(f"{where}.{name}[{index}]" if index != "" else f"{where}.{name}", item)


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
