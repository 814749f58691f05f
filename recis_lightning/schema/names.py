"""Names in a schema: patterns that stand for many, hints for those misspelt, and the error that lists mistakes."""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any


class SchemaError(ValueError):
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


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint for an error message: `; did you mean 'pooling'?`, or what there is."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    listed = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"; there are: {listed}" if known else "; there are none"
