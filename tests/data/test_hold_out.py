"""Splitting files by the values of a column."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import orc

from recis_lightning.data.errors import DataError
from recis_lightning.data.hold_out import Split, hold_out, is_held_out
from tests.data.click_rows import click_rows, write_stripes


def read(folder: Path) -> pa.Table:
    return pa.concat_tables([orc.read_table(path) for path in sorted(folder.glob("*.orc"))])


@pytest.fixture
def log(tmp_path: Path) -> Path:
    write_stripes(tmp_path / "log/part-0.orc", [click_rows(0, 150), click_rows(100, 150)])
    write_stripes(tmp_path / "log/part-1.orc", [click_rows(50, 200)])
    return tmp_path / "log"


@pytest.mark.parametrize("column", ["user", "city"])
def test_rows_are_parted_by_value_and_all_kept_as_they_were(log: Path, tmp_path: Path, column: str) -> None:
    split = hold_out(log, column, tmp_path / "out", share=0.3, part_rows=90)
    seen, held_out = (read(tmp_path / "out" / name) for name in ("seen", "held_out"))
    assert split == Split(len(seen), len(held_out))
    assert 90 < split.held_out < 210
    values = set(held_out[column].to_pylist())
    assert None not in values
    rows = read(log)
    chosen = np.array([value in values for value in rows[column].to_pylist()])
    assert held_out.equals(rows.filter(pa.array(chosen)))
    assert seen.equals(rows.filter(pa.array(~chosen)))
    assert len(list((tmp_path / "out/seen").glob("*.orc"))) > 1


def test_the_choice_depends_on_value_seed_and_share_alone() -> None:
    values = pa.array(range(-5_000, 5_000))
    held_out = is_held_out(values, 0.1, seed=1)
    assert np.array_equal(is_held_out(values.take(pa.array(range(9_999, -1, -1))), 0.1, seed=1), held_out[::-1])
    assert 900 < held_out.sum() < 1_100
    assert (held_out & ~is_held_out(values, 0.2, seed=1)).sum() == 0
    assert 50 < (held_out & is_held_out(values, 0.1, seed=2)).sum() < 150
    assert is_held_out(values, 0.0, seed=1).sum() == 0
    assert is_held_out(values, 1.0, seed=1).all()
    assert is_held_out(pa.array([None, 3]), 1.0, seed=1).tolist() == [False, True]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("usr", "has no column 'usr'; did you mean 'user'"),
        ("price", "column 'price' is float .* need integers or strings"),
    ],
)
def test_a_column_that_cannot_part_rows_is_refused(log: Path, tmp_path: Path, column: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        hold_out(log, column, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_that_hold_files_are_not_written_to(log: Path, tmp_path: Path) -> None:
    hold_out(log, "user", tmp_path / "out")
    with pytest.raises(FileExistsError, match="holds ORC files already"):
        hold_out(log, "user", tmp_path / "out")
    with pytest.raises(ValueError, match="share is 2, need 0 to 1"):
        hold_out(log, "user", tmp_path / "other", share=2)
