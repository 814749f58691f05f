"""Part files: sizes, order, and the refusal to mix two data sets."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.orc
import pytest

from recis_lightning.data.files.orc_writer import PartWriter


def write(folder: Path, batches: list[list[int]], part_rows: int) -> list[Path]:
    with PartWriter(folder, part_rows) as writer:
        for batch in batches:
            writer.write(pa.table({"x": pa.array(batch, pa.int64())}))
    return writer.paths


@pytest.mark.parametrize("batches", [[[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]], [[0, 1, 2], [3], [], [4, 5, 6, 7, 8, 9]]])
def test_parts_are_filled_in_order_however_rows_arrive(tmp_path: Path, batches: list[list[int]]) -> None:
    paths = write(tmp_path / "log", batches, part_rows=4)
    assert [path.name for path in paths] == ["part-00000.orc", "part-00001.orc", "part-00002.orc"]
    assert [pyarrow.orc.read_table(path)["x"].to_pylist() for path in paths] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_parts_are_zstd(tmp_path: Path) -> None:
    (path,) = write(tmp_path, [[1, 2]], part_rows=4)
    assert pyarrow.orc.ORCFile(path).compression == "ZSTD"


def test_stripes_are_small_beside_a_part(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with PartWriter(tmp_path, part_rows=1_000_000) as writer:
        for _ in range(10):
            writer.write(pa.table({"x": rng.integers(-(2**63), 2**63 - 1, 100_000)}))
    # 8 MB of values, in stripes of about 1 MB.
    assert 6 <= pyarrow.orc.ORCFile(writer.paths[0]).nstripes <= 10


def test_a_folder_with_orc_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (path,) = write(tmp_path, [[1]], part_rows=4)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="holds ORC files already; remove them"):
        write(tmp_path, [[2]], part_rows=4)
    assert path.read_bytes() == before


def test_an_error_on_the_way_leaves_no_part_behind(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write(tmp_path, [[1, 2, 3], None], part_rows=2)  # type: ignore[list-item]
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_no_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="part_rows is 0"):
        PartWriter(tmp_path, 0)


def test_structs_keep_their_nulls_over_parts(tmp_path: Path) -> None:
    rows = pa.table({"user": pa.array([{"age": 1}, None, {"age": None}, {"age": 4}, None])})
    with PartWriter(tmp_path, part_rows=2) as writer:
        writer.write(rows)
    assert [row for path in writer.paths for row in pyarrow.orc.read_table(path).to_pylist()] == rows.to_pylist()
