"""Days as a schedule: train on day N, validate on day N + 1, go on. A day is what the paths of files say.

logs/day=2025-01-03/part-0.orc     a date, written 2025-01-03, 20250103 or 2025/01/03
logs/day_7.orc                     or a number behind `day`
"""

import datetime
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from recis_lightning.data.errors import DataError
from recis_lightning.data.files.manifest import Manifest

log = logging.getLogger(__name__)

_DATE = re.compile(r"(?<!\d)(\d{4})[-/_]?(\d{2})[-/_]?(\d{2})(?!\d)")
_NUMBER = re.compile(r"day[=_-]?(\d+)(?!\d)", re.IGNORECASE)


@dataclass(frozen=True)
class Day:
    """One day's files."""

    name: str
    manifest: Manifest


def split_days(manifest: Manifest) -> list[Day]:
    """The days of a data set, the first first; DataError where a path tells none, or there are fewer than two."""
    files: dict[tuple[int, str], list[int]] = {}
    problems = []
    for index, file in enumerate(manifest.files):
        found = find_day(file.path)
        if found is None:
            problems.append(f"{file.path} tells no day; name its folder or the file day=2025-01-31, 20250131 or day=7")
        else:
            files.setdefault(found, []).append(index)
    if problems:
        raise DataError(problems)
    days = [Day(name, manifest.of_files(files[order, name])) for order, name in sorted(files)]
    if empty := [day.name for day in days if not day.manifest.rows]:
        raise DataError(f"the filter keeps no row of day {', '.join(empty)}; relax it, or leave the day out")
    if len(days) < 2:
        names = ", ".join(day.name for day in days) or "none"
        raise DataError(f"there is one day at most ({names}), need two: one to train on, the next to validate on")
    if gaps := list(_gaps([order for order, _ in sorted(files)], days)):
        log.warning("days: %s; a day is validated on the next that there is", "; ".join(gaps))
    return days


def find_day(path: str) -> tuple[int, str] | None:
    """What to sort a day by, and its name: logs/20250103/a.orc -> (739254, 2025-01-03). The last in a path counts."""
    for match in reversed(list(_DATE.finditer(path))):
        try:
            date = datetime.date(*map(int, match.groups()))
        except ValueError:  # a number that is no date
            continue
        return date.toordinal(), date.isoformat()
    numbers = _NUMBER.findall(path)
    return (int(numbers[-1]), str(int(numbers[-1]))) if numbers else None


def _gaps(numbers: Sequence[int], days: Sequence[Day]) -> Iterator[str]:
    for place, (number, following) in enumerate(zip(numbers, numbers[1:], strict=False)):
        if following > number + 1:
            yield f"{following - number - 1} missing between {days[place].name} and {days[place + 1].name}"
