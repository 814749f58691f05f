"""Rows left out by conditions: what is kept is read as if the files held nothing else."""

import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recis_lightning.data.columns import Selection
from recis_lightning.data.datamodule import OrcDataModule
from recis_lightning.data.errors import DataError
from recis_lightning.data.files.manifest import Manifest, read_manifest
from recis_lightning.data.loader import OrcLoader
from recis_lightning.data.plan import Order
from recis_lightning.data.row_filter import Condition, RowFilter, apply_filter
from tests.data.click_rows import click_rows, click_schema, write_stripes

SELECTION = Selection.of(click_schema())


def filtered(folder: Path, *conditions: list[Any]) -> Manifest:
    row_filter = RowFilter.parse(conditions)
    assert row_filter is not None
    return apply_filter(read_manifest(folder)[0], row_filter)


def drop_unkept(stripe: pa.Table, least: int) -> pa.Table:
    return stripe.filter(pa.array([user is not None and user >= least for user in stripe["user"].to_pylist()]))


@settings(max_examples=40, deadline=None)
@given(
    stripes=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    least=st.integers(0, 40),
    batch_size=st.sampled_from([4, 8, 24]),
    streams=st.sampled_from([1, 2, 4]),
    threads=st.integers(1, 3),
    stop=st.integers(0, 20),
)
def test_kept_rows_are_batched_as_files_that_hold_nothing_else(
    stripes: list[int], least: int, batch_size: int, streams: int, threads: int, stop: int
) -> None:
    tables = [click_rows(sum(stripes[:at]), rows) for at, rows in enumerate(stripes)]
    kept = [table for table in (drop_unkept(table, least) for table in tables) if len(table)]
    if not kept:
        return
    order = Order(batch_size=batch_size, streams=streams, window_rows=10, seed=5, shuffle=False)
    with TemporaryDirectory() as name:
        write_stripes(Path(name) / "all/a.orc", tables)
        write_stripes(Path(name) / "kept/a.orc", kept)
        manifest = filtered(Path(name) / "all", ["user", ">=", least])
        expected = [*OrcLoader(read_manifest(Path(name) / "kept")[0], SELECTION, order)]
        loader = OrcLoader(manifest, SELECTION, order, read_threads=threads)
        assert len(loader) == len(expected)
        found = [*loader]
        assert all(torch.equal(a.buffer, b.buffer) for a, b in zip(expected, found, strict=True))
        if stop < len(found) - 1:
            resumed = OrcLoader(manifest, SELECTION, order)
            resumed.load_state_dict(found[stop].token)
            rest = [*resumed]
            assert all(torch.equal(a.buffer, b.buffer) for a, b in zip(found[stop + 1 :], rest, strict=True))


def test_every_kept_row_comes_once_when_shuffled_on_several_ranks(tmp_path: Path) -> None:
    write_stripes(tmp_path / "a.orc", [click_rows(first, 20) for first in range(0, 100, 20)])
    manifest = filtered(tmp_path, ["user", "is not null"], ["label", "==", 1])
    order = Order(batch_size=8, streams=4, window_rows=16, seed=1)
    seen = []
    for rank in (0, 1):
        batches = [*OrcLoader(manifest, SELECTION, order, rank=rank, world_size=2)]
        assert len(batches) == order.steps(manifest.rows)
        seen += [user for batch in batches for user in batch["user"].values.tolist()]  # type: ignore[union-attr]
    assert sorted(seen) == [n for n in range(100) if n % 4 != 1 and n % 2]


COLUMNS = {
    "n": pa.array([1, 2, None, 4]),
    "x": pa.array([0.5, None, 1.5, 2.5]),
    "s": pa.array(["a", "b", None, "c"]),
    "b": pa.array([True, False, None, True]),
    "t": pa.array([datetime.datetime(2025, 1, day) if day else None for day in (1, 2, 0, 4)], pa.timestamp("ns")),
    "u": pa.array([{"age": 1}, None, {"age": None}, {"age": 4}]),
    "l": pa.array([[1], [], None, [2]]),
}


@pytest.mark.parametrize(
    ("conditions", "kept"),
    [
        ([["n", ">", 1]], [1, 3]),
        ([["n", ">=", 1.5]], [1, 3]),
        ([["n", "!=", 2]], [0, 3]),
        ([["n", "is null"]], [2]),
        ([["n", "in", [1, 4, 9]]], [0, 3]),
        ([["n", "not in", [1]]], [1, 3]),
        ([["x", "<", 2]], [0, 2]),
        ([["s", "==", "b"]], [1]),
        ([["s", "in", ["a", "c"]]], [0, 3]),
        ([["b", "==", True]], [0, 3]),
        ([["t", ">=", "2025-01-02"]], [1, 3]),
        ([["t", "<", datetime.date(2025, 1, 2)]], [0]),
        ([["u.age", "<=", 4]], [0, 3]),
        ([["l", "is not null"]], [0, 1, 3]),
        ([["n", ">", 1], ["x", ">", 2]], [3]),
    ],
)
def test_a_null_meets_no_comparison(tmp_path: Path, conditions: list[list[Any]], kept: list[int]) -> None:
    write_stripes(tmp_path / "a.orc", [pa.table(COLUMNS)])
    row_filter = RowFilter.parse(conditions)
    assert row_filter is not None
    assert [*row_filter.find_problems(read_manifest(tmp_path)[0])] == []
    mask = row_filter.mask(pa.RecordBatch.from_pydict(COLUMNS))
    assert [row for row, keeps in enumerate(mask.to_pylist()) if keeps] == kept
    assert apply_filter(read_manifest(tmp_path)[0], row_filter).rows == len(kept)


@pytest.mark.parametrize(
    ("condition", "problem"),
    [
        (["m", ">", 1], "needs column 'm', which is missing"),
        (["u.size", ">", 1], "needs column 'u.size', which is missing"),
        (["l", ">", 1], "compares column 'l', which is list<item: int64>; only single values can be compared"),
        (["n", "==", "one"], "compares column 'n', which is int64, with 'one'; write a int64"),
        (["t", ">", "soon"], "compares column 't', which is timestamp[ns], with 'soon'"),
        (["s", "in", [1]], None),
    ],
)
def test_a_condition_that_the_files_do_not_allow_is_told_before_training(
    tmp_path: Path, condition: list[Any], problem: str | None
) -> None:
    write_stripes(tmp_path / "a.orc", [pa.table(COLUMNS)])
    row_filter = RowFilter.parse([condition])
    assert row_filter is not None
    found = [*row_filter.find_problems(read_manifest(tmp_path)[0])]
    if problem is None:
        assert found == []
    else:
        assert len(found) == 1
        assert f"a.orc: the filter '{Condition(*condition)}' {problem}" in found[0]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("label > 0", r"the filter has 'label > 0'; write \[column, operator, value\]"),
        (["label", "=", 0], "the filter has operator '='; did you mean"),
        (["label", ">"], "'>' takes a value"),
        (["label", "is null", 1], "'is null' takes no value"),
        (["label", "in", 1], "'in' takes a list of values"),
        (["label", "==", [1]], "'==' takes one value"),
    ],
)
def test_a_condition_that_can_not_be_meant_is_refused(condition: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        RowFilter.parse([condition])


def test_a_fault_is_told_by_its_row_in_the_file(tmp_path: Path) -> None:
    rows = click_rows(0, 20)
    labels = pa.array([None if n == 18 else 1.0 for n in range(20)], pa.float32())
    write_stripes(tmp_path / "a.orc", [rows.set_column(0, "label", labels)])
    manifest = filtered(tmp_path, ["user", ">", 9])
    with pytest.raises(DataError, match=r"stripe 0, row 18 \(row 18 of the file\): column 'label'"):
        next(iter(OrcLoader(manifest, SELECTION, Order(batch_size=50, streams=1, shuffle=False))))


def data_module(folder: Path, *conditions: list[Any]) -> OrcDataModule:
    data = OrcDataModule(click_schema(), train=folder, predict=folder, batch_size=8, streams=1, filter=conditions)
    data.setup()
    return data


def test_predict_scores_every_row(tmp_path: Path) -> None:
    write_stripes(tmp_path / "a.orc", [click_rows(0, 40)])
    data = data_module(tmp_path, ["label", "==", 1])
    assert sum(batch.size for batch in data.train_dataloader()) == 20
    assert sum(batch.size for batch in data.predict_dataloader()) == 40


def test_a_filter_that_keeps_nothing_is_an_error(tmp_path: Path) -> None:
    write_stripes(tmp_path / "a.orc", [click_rows(0, 40)])
    with pytest.raises(DataError, match=r"train: the filter keeps none of 40 rows \(label == 7\); relax it"):
        data_module(tmp_path, ["label", "==", 7])


def test_a_position_saved_with_another_filter_is_refused(tmp_path: Path) -> None:
    write_stripes(tmp_path / "a.orc", [click_rows(0, 40)])
    state = data_module(tmp_path, ["label", "==", 1]).train_dataloader().state_dict()
    other = data_module(tmp_path, ["label", "==", 0]).train_dataloader()
    with pytest.raises(DataError, match="filter was label == 1, is label == 0"):
        other.load_state_dict(state)


def test_a_corrupt_stripe_is_an_error_before_training_or_left_out_where_told(tmp_path: Path) -> None:
    path = write_stripes(tmp_path / "a.orc", [click_rows(0, 20), click_rows(20, 20)])
    first, nbytes = read_manifest(tmp_path)[0].files[0].stripe_spans[1]
    content = bytearray(path.read_bytes())
    content[first : first + nbytes] = bytes([255]) * nbytes
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="a.orc, stripe 1, rows 0 to 19: can't be decoded"):
        data_module(tmp_path, ["label", "==", 1])
    row_filter = RowFilter.parse([["label", "==", 1]])
    assert row_filter is not None
    kept = apply_filter(read_manifest(tmp_path)[0], row_filter, leave_corrupt=True)
    assert kept.stripe_rows.tolist() == [10, 20]
    options = {"on_corrupt": "skip_stripe", "filter": [["label", "==", 1]]}
    data = OrcDataModule(click_schema(), train=tmp_path, batch_size=8, streams=1, **options)
    data.setup("fit")
    assert sum(batch.size for batch in data.train_dataloader()) == 10


def test_days_keep_what_the_filter_keeps_of_them(tmp_path: Path) -> None:
    for day in (1, 2, 3):
        tables = [click_rows(100 * day, 10), click_rows(100 * day + 10, 10)]
        write_stripes(tmp_path / f"day={day}" / "a.orc", tables)
    manifest = filtered(tmp_path, ["user", ">=", 115])
    assert manifest.of_files([0, 2]).stripe_rows.tolist() == [0, 4, 7, 8]
    data = OrcDataModule(click_schema(), days=tmp_path, batch_size=8, streams=1, filter=[["user", ">=", 115]])
    data.setup("fit")
    assert sum(batch.size for batch in data.train_dataloader()) == 4
    assert sum(batch.size for batch in data.val_dataloader()) == 15
    with pytest.raises(DataError, match="days: the filter keeps no row of day 1; relax it, or leave the day out"):
        OrcDataModule(click_schema(), days=tmp_path, batch_size=8, filter=[["user", ">=", 200]]).setup("fit")
