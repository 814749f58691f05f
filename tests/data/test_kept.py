import pyarrow as pa
import pytest

from recis_lightning.data.datamodule import OrcDataModule
from recis_lightning.data.errors import DataError
from tests.data.click_rows import click_rows, click_schema, write_stripes


def open_data(folder, **options):
    data = OrcDataModule(click_schema(), predict=folder, batch_size=8, **options)
    data.setup("predict")
    return data


def write_log(folder):
    write_stripes(folder / "a.orc", [click_rows(0, 5), click_rows(5, 12)])
    write_stripes(folder / "b.orc", [click_rows(17, 9)])
    return folder


def test_kept_rows_stand_beside_the_rows_of_each_batch(tmp_path):
    data = open_data(write_log(tmp_path), keep=["city", "user"])
    kept = data.kept_rows()
    tables = [kept.take(step) for step in range(4)]
    assert [len(table) for table in tables] == [8, 8, 8, 2]
    assert pa.concat_tables(tables).equals(click_rows(0, 26).select(["city", "user"]))
    for table, batch in zip(tables, data.predict_dataloader(), strict=True):
        assert batch["user"].to_lists() == [[] if user is None else [user] for user in table["user"].to_pylist()]


def test_steps_may_be_left_out_but_not_asked_for_again(tmp_path):
    kept = open_data(write_log(tmp_path), keep=["user"]).kept_rows()
    assert kept.take(2).equals(click_rows(16, 8).select(["user"]))
    with pytest.raises(ValueError, match="steps are read once, in order"):
        kept.take(2)


def test_each_rank_keeps_the_rows_it_reads(tmp_path):
    data = open_data(write_log(tmp_path), keep=["user"])
    data._place = lambda: (1, 2)
    kept = data.kept_rows()
    rows = pa.concat_tables([kept.take(step) for step in range(4)])
    assert rows.equals(click_rows(13, 13).select(["user"]))


def test_a_column_that_is_not_in_the_files_is_named(tmp_path):
    with pytest.raises(DataError, match=r"a\.orc has no column 'usr' to keep; did you mean 'user'\?"):
        open_data(write_log(tmp_path), keep=["usr"])


def test_files_that_differ_in_a_kept_column_are_named(tmp_path):
    write_stripes(tmp_path / "a.orc", [click_rows(0, 5).append_column("key", pa.array(range(5), pa.int64()))])
    write_stripes(tmp_path / "b.orc", [click_rows(5, 2).append_column("key", pa.array(["x", "y"]))])
    with pytest.raises(DataError, match=r"b\.orc: column 'key' to keep is string, in .*a\.orc it is int64"):
        open_data(tmp_path, keep=["key"])
