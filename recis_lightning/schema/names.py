"""Names in a schema: patterns that stand for many, hints for those misspelt, and the error that lists mistakes."""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from recis_lightning.errors import UserError


class SchemaError(UserError, ValueError):
    """Every mistake found in a schema, one to a line."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        super().__init__(f"the schema has {count}:\n" + "\n".join(f"  - {problem}" for problem in problems))


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


def expand_declaration(declaration: Any, fields: Sequence[str]) -> list[Any]:
    """Expand the patterns of several fields in step: name `c{1..2}`, table `t{1..2}` -> (c1, t1), (c2, t2).

    A field of several names expands each of them; beside a name that is no pattern, they are all its: inputs
    [`c{1..2}`] -> (c1, c2).
    """
    count = len(expand(declaration.name))
    changes: list[dict[str, Any]] = [{} for _ in range(count)]
    for name in fields:
        value = getattr(declaration, name)
        if value is None:
            continue
        if isinstance(value, tuple) and count == 1:
            changes[0][name] = tuple(each for pattern in value for each in expand(pattern))
            continue
        patterns = value if isinstance(value, tuple) else (value,)
        columns = [_in_step(name, pattern, count) for pattern in patterns]
        for index, change in enumerate(changes):
            names = tuple(column[index] for column in columns)
            change[name] = names if isinstance(value, tuple) else names[0]
    return [dataclasses.replace(declaration, **change) for change in changes]


def _in_step(field: str, pattern: str, count: int) -> list[str]:
    values = expand(pattern)
    if len(values) not in (1, count):
        raise ValueError(f"'{field}' expands to {len(values)} names, 'name' to {count}; let them run in step")
    return values * count if len(values) == 1 else values


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint for an error message: `; did you mean 'pooling'?`, or what there is."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    listed = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"; there are: {listed}" if known else "; there are none"
