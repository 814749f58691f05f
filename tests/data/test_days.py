"""Which day a path tells."""

import logging
from pathlib import Path

import pytest

from recis_lightning.data.days import find_day, split_days
from recis_lightning.data.errors import DataError
from recis_lightning.data.files.manifest import read_manifest
from tests.data.click_rows import click_rows, write_stripes


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/logs/day=2025-01-03/part-0.orc", "2025-01-03"),
        ("/logs/20250103/part-0.orc", "2025-01-03"),
        ("/logs/2025/01/03/part-0.orc", "2025-01-03"),
        ("s3://bucket/2024-12-31/clicks_2025-01-03.orc", "2025-01-03"),
        ("/logs/day=7/part-20259999.orc", "7"),
        ("/logs/day_07.orc", "7"),
        ("/logs/Day7/a.orc", "7"),
        ("/logs/part-0.orc", None),
        ("/logs/123456789/part-0.orc", None),
    ],
)
def test_a_path_tells_its_day(path: str, name: str | None) -> None:
    found = find_day(path)
    assert (None if found is None else found[1]) == name


def write(folder: Path, *names: str) -> None:
    for name in names:
        write_stripes(folder / name, [click_rows(0, 3)])


def test_days_are_sorted_as_dates_and_numbers_with_all_their_files(tmp_path: Path) -> None:
    write(tmp_path, "day=10/a.orc", "day=9/b.orc", "day=9/a.orc", "day=11/a.orc")
    days = split_days(read_manifest(tmp_path)[0])
    assert [(day.name, day.manifest.names) for day in days] == [
        ("9", ["a.orc", "b.orc"]),
        ("10", ["a.orc"]),
        ("11", ["a.orc"]),
    ]


def test_days_that_are_missing_in_between_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "2025-01-30/a.orc", "2025-02-02/a.orc")
    with caplog.at_level(logging.WARNING):
        split_days(read_manifest(tmp_path)[0])
    assert "2 missing between 2025-01-30 and 2025-02-02" in caplog.text


def test_files_that_tell_no_day_are_named(tmp_path: Path) -> None:
    write(tmp_path, "2025-01-30/a.orc", "b.orc")
    with pytest.raises(DataError, match="b.orc tells no day; name its folder or the file day=2025-01-31"):
        split_days(read_manifest(tmp_path)[0])


def test_one_day_is_too_few(tmp_path: Path) -> None:
    write(tmp_path, "2025-01-30/a.orc")
    with pytest.raises(DataError, match=r"one day at most \(2025-01-30\), need two"):
        split_days(read_manifest(tmp_path)[0])
