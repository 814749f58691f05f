"""Finding files and reading their tails."""

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import orc

from recis_lightning.data.errors import DataError
from recis_lightning.data.files import manifest as manifest_module
from recis_lightning.data.files.manifest import find_files, read_manifest, read_tail
from tests.data.click_rows import click_rows, write_stripes


def problem_of(path: Path | str) -> str:
    """The one problem that reading this path meets."""
    _, problems = read_manifest(path)
    (problem,) = problems
    return problem


@pytest.mark.parametrize("compression", ["uncompressed", "snappy", "zlib", "lz4", "zstd"])
def test_tail_tells_rows_and_types(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "a.orc"
    noise = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 40_000)  # what can't be compressed ends stripes
    table = pa.table({"id": noise, "items": pa.array([[1]] * len(noise), pa.list_(pa.int64()))})
    orc.write_table(table, path, stripe_size=50_000, batch_size=5_000, compression=compression)
    file, opened = read_tail(str(path)), orc.ORCFile(path)
    assert file.stripe_rows == tuple(opened.read_stripe(stripe).num_rows for stripe in range(opened.nstripes))
    assert len(file.stripe_rows) > 1
    assert file.nbytes == path.stat().st_size
    assert file.columns == {"id": pa.int64(), "items": pa.list_(pa.int64())}


def test_rows_of_stripes_are_counted_where_pyarrow_hides_the_tail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_stripes(tmp_path / "a.orc", [click_rows(0, 5), click_rows(5, 2)])
    monkeypatch.setattr(manifest_module, "_parse_stripes", lambda tail: [])
    assert read_tail(str(path)).stripe_rows == (5, 2)


def test_folders_are_read_to_any_depth_and_sorted(tmp_path: Path) -> None:
    for name in ("b/part-1.orc", "a/x/part-0.orc", "b/part-0.orc"):
        write_stripes(tmp_path / name, [click_rows(0, 2)])
    found, problems = find_files(tmp_path)
    assert [os.path.relpath(path, tmp_path) for path in found] == ["a/x/part-0.orc", "b/part-0.orc", "b/part-1.orc"]
    assert not problems


@pytest.mark.parametrize(
    "name", ["_temporary/part-1.orc", ".hidden/part-1.orc", "_part-1.orc", ".part-1.orc", "notes.txt"]
)
def test_folders_are_read_without_unfinished_and_other_files(tmp_path: Path, name: str) -> None:
    write_stripes(tmp_path / "part-0.orc", [click_rows(0, 2)])
    write_stripes(tmp_path / name, [click_rows(0, 2)])
    assert find_files(tmp_path) == ([str(tmp_path / "part-0.orc")], [])


def test_a_file_a_glob_and_a_list_name_files(tmp_path: Path) -> None:
    paths = [str(write_stripes(tmp_path / f"day={day}" / "000_0", [click_rows(0, 2)])) for day in (1, 2, 3)]
    assert find_files(paths[1]) == ([paths[1]], [])
    assert find_files(str(tmp_path / "day=*" / "*")) == (paths, [])
    assert find_files([paths[2], str(tmp_path / "day=[12]" / "000_0")]) == ([paths[2], *paths[:2]], [])


def test_a_glob_of_folders_reads_the_folders(tmp_path: Path) -> None:
    paths = [str(write_stripes(tmp_path / f"day={day}" / "a.orc", [click_rows(0, 2)])) for day in (1, 2)]
    assert find_files(str(tmp_path / "day=*")) == (paths, [])


def test_environment_variables_stand_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_stripes(tmp_path / "train" / "a.orc", [click_rows(0, 2)])
    monkeypatch.setenv("SOME_DATA", str(tmp_path))
    assert find_files("${SOME_DATA}/train") == ([str(path)], [])


def test_an_unset_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_DATA", raising=False)
    assert "needs the environment variable SOME_DATA, which is not set; export SOME_DATA=<folder>" in problem_of(
        "${SOME_DATA}/train"
    )


def test_a_file_named_twice_is_a_problem(tmp_path: Path) -> None:
    path = write_stripes(tmp_path / "a.orc", [click_rows(0, 2)])
    _, problems = read_manifest([tmp_path, path])
    assert problems == [f"{path} is named more than once, its rows would count twice; name it once"]


def test_a_path_that_does_not_exist_is_told_with_what_does(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    assert problem_of(tmp_path / "trian" / "x") == (
        f"{tmp_path}/trian/x does not exist; {tmp_path} does, and holds train"
    )


def test_an_empty_folder_is_told_with_what_it_holds(tmp_path: Path) -> None:
    assert "holds no *.orc or *.parquet file, but nothing" in problem_of(tmp_path)
    (tmp_path / "000000_0").write_bytes(b"ORC")
    assert "holds no *.orc or *.parquet file, but 000000_0; name another folder, or a glob" in problem_of(tmp_path)


def test_a_glob_without_a_match_is_a_problem(tmp_path: Path) -> None:
    assert "matches no file" in problem_of(tmp_path / "*.orc")


def test_a_list_without_entries_is_a_problem() -> None:
    assert read_manifest([])[1] == ["the list of paths is empty; name a folder, a file or a glob"]


def test_unreadable_files_are_all_named_each_with_its_reason(tmp_path: Path) -> None:
    whole = write_stripes(tmp_path / "a.orc", [click_rows(0, 50)])
    content = whole.read_bytes()
    (tmp_path / "b.orc").write_bytes(b"")
    (tmp_path / "c.orc").write_bytes(content[: len(content) // 2])
    (tmp_path / "d.orc").write_bytes(content[:-1])
    (tmp_path / "e.orc").write_text("label,user\n1,2\n")
    manifest, problems = read_manifest(tmp_path)
    assert [Path(file.path).name for file in manifest.files] == ["a.orc"]
    assert [problem.split(" ")[0] for problem in problems] == [str(tmp_path / f"{name}.orc") for name in "bcde"]
    assert "is empty (0 bytes)" in problems[0]
    assert "is truncated or damaged" in problems[1]
    assert "is truncated or damaged" in problems[2]
    assert "is no ORC or Parquet file but something else (begins with b'labe'" in problems[3]


def test_reading_a_bad_tail_keeps_the_cause(tmp_path: Path) -> None:
    (tmp_path / "a.orc").write_text("no")
    with pytest.raises(DataError) as caught:
        read_tail(str(tmp_path / "a.orc"))
    assert isinstance(caught.value.__cause__, OSError)


def test_files_without_rows_are_left_out(tmp_path: Path) -> None:
    write_stripes(tmp_path / "a.orc", [click_rows(0, 0)])
    write_stripes(tmp_path / "b.orc", [click_rows(0, 3)])
    manifest, problems = read_manifest(tmp_path)
    assert [Path(file.path).name for file in manifest.files] == ["b.orc"]
    assert not problems


def test_manifest_locates_stripes_and_rows(tmp_path: Path) -> None:
    write_stripes(tmp_path / "a.orc", [click_rows(0, 4), click_rows(4, 2)])
    write_stripes(tmp_path / "b.orc", [click_rows(6, 3), click_rows(9, 5)])
    manifest, _ = read_manifest(tmp_path)
    assert manifest.stripe_rows.tolist() == [4, 2, 3, 5]
    assert manifest.rows == 14
    file, stripe = manifest.locate(3)
    assert (Path(file.path).name, stripe) == ("b.orc", 1)
    assert manifest.describe_row(3, 2) == f"{tmp_path}/b.orc, stripe 1, row 2 (row 5 of the file)"
    assert manifest.describe_rows(1, 0, 2) == f"{tmp_path}/a.orc, stripe 1, rows 0 to 1"


def test_fingerprint_stays_where_files_move_and_changes_with_them(tmp_path: Path) -> None:
    write_stripes(tmp_path / "one" / "a.orc", [click_rows(0, 4)])
    write_stripes(tmp_path / "one" / "sub" / "b.orc", [click_rows(4, 4)])
    before = read_manifest(tmp_path / "one")[0].fingerprint
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert read_manifest(tmp_path / "two")[0].fingerprint == before
    write_stripes(tmp_path / "two" / "a.orc", [click_rows(0, 3), click_rows(3, 1)])
    assert read_manifest(tmp_path / "two")[0].fingerprint != before
    os.rename(tmp_path / "one" / "a.orc", tmp_path / "one" / "c.orc")
    assert read_manifest(tmp_path / "one")[0].fingerprint != before
