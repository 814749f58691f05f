"""Parquet through the path of ORC: row groups are stripes, and the same rows are the same batches."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recis_lightning.data.check import find_mismatches
from recis_lightning.data.columns import Selection
from recis_lightning.data.errors import DataError
from recis_lightning.data.files.formats import plain_type, read_stripe
from recis_lightning.data.files.manifest import read_manifest, read_tail
from recis_lightning.data.hold_out import hold_out
from recis_lightning.data.kept import KeptRows
from recis_lightning.data.loader import OrcLoader
from recis_lightning.data.plan import Order
from recis_lightning.ragged import Batch
from tests.data.click_rows import click_rows, click_schema, write_stripes

ORDER = Order(batch_size=8, streams=4, window_rows=40, seed=3)


def write_both(folder: Path, stripes: list[pa.Table]) -> None:
    write_stripes(folder / "orc" / "a.orc", stripes)
    (folder / "parquet").mkdir()
    with pq.ParquetWriter(folder / "parquet" / "a.parquet", stripes[0].schema) as writer:
        for stripe in stripes:
            writer.write_table(stripe, row_group_size=len(stripe))


def batches_of(folder: Path, **options: Any) -> list[Batch]:
    manifest, problems = read_manifest(folder)
    selection = Selection.of(click_schema())
    assert problems + [*find_mismatches(manifest, selection.columns)] == []
    return [*OrcLoader(manifest, selection, ORDER, **options)]


def test_parquet_gives_the_batches_of_orc_to_the_bit(tmp_path: Path) -> None:
    write_both(tmp_path, [click_rows(first, 20) for first in range(0, 100, 20)])
    from_orc, from_parquet = batches_of(tmp_path / "orc"), batches_of(tmp_path / "parquet")
    assert len(from_orc) == len(from_parquet) == 13
    for left, right in zip(from_orc, from_parquet, strict=True):
        assert torch.equal(left.buffer, right.buffer)
        assert left.layout == right.layout


def test_row_groups_are_told_apart_as_stripes_are(tmp_path: Path) -> None:
    write_both(tmp_path, [click_rows(0, 20), click_rows(20, 5)])
    file = read_tail(str(tmp_path / "parquet" / "a.parquet"))
    assert (file.format, file.stripe_rows) == ("parquet", (20, 5))
    manifest, _ = read_manifest(tmp_path / "parquet")
    assert manifest.describe_row(1, 2).endswith("a.parquet, stripe 1, row 2 (row 22 of the file)")
    assert read_stripe(file.path, "parquet", 1, ["user"]).to_pydict() == {"user": click_rows(20, 5)["user"].to_pylist()}


def test_both_formats_in_one_folder_are_one_data_set(tmp_path: Path) -> None:
    write_both(tmp_path, [click_rows(0, 20)])
    assert sum(batch.size for batch in batches_of(tmp_path)) == 40


@pytest.mark.parametrize(
    ("stored", "plain"),
    [
        (pa.array([2**64 - 1, 3], pa.uint64()), pa.array([-1, 3], pa.int64())),
        (pa.array([200], pa.uint8()), pa.array([200], pa.int16())),
        (pa.array(["a", None], pa.large_string()), pa.array(["a", None])),
        (pa.array(["a", None, "a"]).dictionary_encode(), pa.array(["a", None, "a"])),
        (pa.array([[1], None], pa.large_list(pa.uint64())), pa.array([[1], None], pa.list_(pa.int64()))),
        (pa.array([[1.0, 2.0]], pa.list_(pa.float16(), 2)), pa.array([[1, 2]], pa.list_(pa.float32()))),
        (pa.array([{"a": 1}], pa.struct([("a", pa.uint16())])), pa.array([{"a": 1}], pa.struct([("a", pa.int32())]))),
        (pa.array([[(1, 2)]], pa.map_(pa.uint32(), pa.int8())), pa.array([[(1, 2)]], pa.map_(pa.int64(), pa.int8()))),
        (pa.array([b"ab"], pa.binary(2)), pa.array([b"ab"], pa.binary())),
    ],
)  # fmt: skip
def test_types_that_orc_lacks_are_read_as_those_it_has(tmp_path: Path, stored: pa.Array, plain: pa.Array) -> None:
    assert plain_type(stored.type) == plain.type == plain_type(plain.type)
    pq.write_table(pa.table({"x": stored}), tmp_path / "a.parquet")
    assert read_tail(str(tmp_path / "a.parquet")).columns == {"x": plain.type}
    assert read_stripe(str(tmp_path / "a.parquet"), "parquet", 0).column("x").equals(plain)


def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    pq.write_table(click_rows(0, 50), tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[:-9])
    with pytest.raises(DataError, match="a.parquet is truncated or damaged: .* bytes begin as Parquet"):
        read_tail(str(tmp_path / "a.parquet"))


def test_a_row_group_that_can_not_be_decoded_is_named_with_its_rows(tmp_path: Path) -> None:
    write_both(tmp_path, [click_rows(0, 20), click_rows(20, 20)])
    path = tmp_path / "parquet" / "a.parquet"
    offset = pq.read_metadata(path).row_group(1).column(0).dictionary_page_offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 40] = bytes(40)
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"a.parquet, stripe 1, rows 0 to 19: can't be decoded"):
        batches_of(tmp_path / "parquet")


def test_kept_columns_and_held_out_rows_come_from_parquet_too(tmp_path: Path) -> None:
    write_both(tmp_path, [click_rows(first, 20) for first in range(0, 60, 20)])
    manifest, _ = read_manifest(tmp_path / "parquet")
    order = Order(batch_size=50, streams=1, window_rows=1, shuffle=False)
    assert (
        KeptRows(manifest, ["city", "user"], order, range(1)).take(0).equals(click_rows(0, 50).select(["city", "user"]))
    )
    split = hold_out(tmp_path / "parquet", "city", tmp_path / "out", share=0.5)
    assert split.seen + split.held_out == 60
