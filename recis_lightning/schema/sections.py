"""Declarations by name: patterns expanded, values held against their types."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from recis_lightning.schema.names import expand_declaration
from recis_lightning.schema.reading import SECTIONS, Unread, label
from recis_lightning.schema.values import find_misfits


@dataclass
class Section:
    """One section's declarations by name, patterns expanded; None for one that could not be read."""

    declared: dict[str, Any] = field(default_factory=dict)
    complete: bool = True
    """False where something in it could not be read that may declare any name."""

    def lacks(self, name: str) -> bool:
        return self.complete and name not in self.declared


def resolve_section(name: str, items: Sequence[Any], problems: list[str]) -> Section:
    section, (cls, patterns) = Section(), SECTIONS[name]
    for index, item in enumerate(items):
        where = label(name, index, item)
        if not isinstance(item, cls | Unread):
            problems.append(f"{where} is {item!r}, need a {cls.__name__}; Schema.from_dict reads plain mappings")
            item = Unread(None)
        misfits = [] if isinstance(item, Unread) else list(find_misfits(where, item))
        if misfits:
            problems += misfits
            item = Unread(item.name if isinstance(item.name, str) else None)
        if item.name is None:
            section.complete = False
            continue
        try:
            expanded = expand_declaration(item, ("name",) if isinstance(item, Unread) else patterns)
        except ValueError as error:
            problems.append(f"{where}: {error}")
            section.complete = False
            continue
        for declaration in expanded:
            if declaration.name in section.declared:
                problems.append(f"{name}: '{declaration.name}' is declared twice")
            section.declared.setdefault(declaration.name, None if isinstance(declaration, Unread) else declaration)
    return section
