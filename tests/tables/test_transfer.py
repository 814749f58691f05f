"""Tables out to files and in from files: what is written is what is read, by us and by others."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file, save_file

from recis_lightning.schema import Adagrad, Adam, AdamW, Constant, Ftrl, Sgd, Table, Uniform
from recis_lightning.tables import (
    DynamicTable,
    TableFullError,
    TableGroup,
    TableSlice,
    export_table,
    import_table,
    row_files,
    transfer,
)
from recis_lightning.tables.row_files import FORMATS, TableFileError
from recis_lightning.tables.transfer import write_rows
from tests.tables.test_table import assert_equal_slices, make_table, train

INT64 = torch.iinfo(torch.int64)


def trained(optimizer: Any = None, ids: torch.Tensor | None = None) -> DynamicTable:
    table = make_table(optimizer or Adam())
    extremes = torch.tensor([INT64.min, INT64.min + 1, INT64.max - 1, INT64.max])
    train(table, torch.cat([torch.arange(-300, 300), extremes]) if ids is None else ids, step=4)
    return table


@pytest.mark.parametrize("optimizer", [Adam(), Adagrad(), Sgd()], ids=lambda optimizer: optimizer.kind)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("is_folder", [False, True])
def test_what_is_exported_is_imported_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, is_folder: bool, optimizer: Any
) -> None:
    for module in (transfer, row_files):
        monkeypatch.setattr(module, "PIECE_BYTES", 4000)  # many pieces
    monkeypatch.setattr(row_files, "PART_BYTES", 9000)
    table, other = trained(optimizer), make_table(optimizer)
    out = tmp_path / ("item" if is_folder else f"item.{format}")
    written = export_table(table, out, format=format)
    assert written.rows == len(table) == 604
    assert (len(written.files) > 1) == is_folder
    assert import_table(other, out) == 604
    assert_equal_slices(other.export(), table.export())
    assert other.step == table.step == 4
    left = sorted(path.name for path in (out if is_folder else tmp_path).iterdir())
    assert left == sorted(path.name for path in written.files), "nothing else may lie there"


def count_rows_read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many rows of each column are read of files, from now on."""
    found, cut, convert = Counter[str](), row_files.cut_slices, row_files._to_tensor

    class Counted:
        def __init__(self, name: str, column: Any) -> None:
            self.name, self.column, self.get_shape = name, column, column.get_shape

        def __getitem__(self, rows: slice) -> torch.Tensor:
            piece: torch.Tensor = self.column[rows]
            found[self.name] += len(piece)
            return piece

    def to_tensor(column: Any, name: str, path: str) -> torch.Tensor:
        found[name] += len(column)
        return convert(column, name, path)

    monkeypatch.setattr(
        row_files, "cut_slices", lambda slices, path: cut({n: Counted(n, c) for n, c in slices.items()}, path)
    )
    monkeypatch.setattr(row_files, "_to_tensor", to_tensor)
    return found


@pytest.mark.parametrize("format", FORMATS)
def test_a_rank_takes_its_rows_and_reads_hardly_more_of_a_file_in_our_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    for module in (transfer, row_files):
        monkeypatch.setattr(module, "PIECE_BYTES", 4000)  # 64 rows or so
    table, other = trained(ids=torch.arange(3000)), make_table(Adam())
    export_table(table, tmp_path / "item", format=format)
    if format == "orc":  # whose writer makes no stripe of less than some thousand rows
        monkeypatch.setattr(row_files, "PART_BYTES", 4000)
        export_table(table, tmp_path / "parts", format=format)
    held, load = [], DynamicTable.load
    monkeypatch.setattr(DynamicTable, "load", lambda self, part: held.append(len(part)) or load(self, part))
    read = count_rows_read(monkeypatch)
    shards = (1000, 2000)
    count = import_table(other, tmp_path / ("parts" if format == "orc" else "item"), shards=shards)
    assert_equal_slices(other.export(), table.export(*shards))
    assert sum(held) == count == len(other)
    assert max(held) <= 256
    assert count <= read["weight"] <= 1.2 * count
    assert read["ids"] == 3000 + read["weight"] * (format == "parquet")


@pytest.mark.parametrize("format", FORMATS)
def test_id_and_shard_ranges_choose_rows(tmp_path: Path, format: str) -> None:
    table = trained()
    files = {name: tmp_path / f"{name}.{format}" for name in ("low", "top", "shards", "none")}
    export_table(table, files["low"], ids=(INT64.min, 10))
    export_table(table, files["top"], ids=(10, INT64.max + 1))
    export_table(table, files["shards"], shards=(1000, 3000))
    assert export_table(table, files["none"], ids=(5000, 6000)).rows == 0
    low, top = make_table(Adam()), make_table(Adam())
    import_table(low, files["low"])
    import_table(top, files["top"])
    assert sorted(low.export().ids.tolist()) == [INT64.min, INT64.min + 1, *range(-300, 10)]
    assert sorted(top.export().ids.tolist()) == [*range(10, 300), INT64.max - 1, INT64.max]
    import_table(low, files["top"])
    assert_equal_slices(low.export(), table.export())
    shards = make_table(Adam())
    import_table(shards, files["shards"])
    assert_equal_slices(shards.export(), table.export(1000, 3000))
    assert import_table(make_table(Adam()), files["none"]) == 0


def test_plain_libraries_read_what_is_written(tmp_path: Path) -> None:
    table = trained()
    expected = table.export()
    for format in FORMATS:
        export_table(table, tmp_path / f"item.{format}")
    tensors = load_file(tmp_path / "item.safetensors")
    assert tensors["weight"].dtype == np.float32
    np.testing.assert_array_equal(tensors["ids"], expected.ids.numpy())
    np.testing.assert_array_equal(tensors["slot.exp_avg_sq"], expected.slots["exp_avg_sq"].numpy())
    for rows in (pq.read_table(tmp_path / "item.parquet"), pyarrow.orc.read_table(tmp_path / "item.orc")):
        assert rows["ids"].to_pylist() == expected.ids.tolist()
        assert rows["weight"].to_pylist() == expected.weight.tolist()
        assert rows["count"].to_pylist() == expected.count.tolist()


def test_weights_alone_get_the_state_of_new_rows(tmp_path: Path) -> None:
    table = trained()
    export_table(table, tmp_path / "item.parquet", optimizer=False)
    assert pq.read_schema(tmp_path / "item.parquet").names == ["ids", "weight"]
    for optimizer in (Adagrad(initial_accumulator_value=0.5), AdamW()):
        other = make_table(optimizer)
        import_table(other, tmp_path / "item.parquet")
        found, first = other.export(), 0.5 if optimizer.kind == "adagrad" else 0.0
        assert torch.equal(found.weight, table.export().weight)
        assert all((slot == first).all() for slot in found.slots.values())
        assert not found.count.any()


def test_import_overwrites_what_is_there_and_leaves_the_rest(tmp_path: Path) -> None:
    table, other = trained(ids=torch.arange(10)), make_table(Adam())
    train(other, torch.arange(5, 15), step=9)
    before = other.export()
    export_table(table, tmp_path / "item.orc")
    import_table(other, tmp_path / "item.orc")
    assert (len(other), other.step) == (15, 9)
    rows = other.find(torch.arange(10))
    assert torch.equal(other.weight(rows), table.weight(table.find(torch.arange(10))))
    kept = before.select(before.ids >= 10)
    assert torch.equal(other.weight(other.find(kept.ids)), kept.weight)


def test_imports_of_ranges_of_virtual_shards_make_the_whole(tmp_path: Path) -> None:
    table = trained()
    export_table(table, tmp_path / "item.orc")
    for first in range(0, 4096, 1024):
        part = make_table(Adam())
        count = import_table(part, tmp_path / "item.orc", shards=(first, first + 1024))
        assert count == len(part)
        assert_equal_slices(part.export(), table.export(first, first + 1024))


# ----------------------------------------------------------------------------------------------------- what goes wrong


def test_state_of_another_optimizer_is_refused_by_name_and_may_be_left_out(tmp_path: Path) -> None:
    export_table(trained(), tmp_path / "item.safetensors")
    other = make_table(Adagrad())
    with pytest.raises(
        TableFileError, match=r"state exp_avg, exp_avg_sq; table 'user' is updated by adagrad, with sum"
    ):
        import_table(other, tmp_path / "item.safetensors")
    assert len(other) == 0
    assert import_table(other, tmp_path / "item.safetensors", optimizer=False) == 604


def vectors(path: Path, ids: Any, rows: Any) -> Path:
    pq.write_table(pa.table({"id": ids, "vector": rows}), path)
    return path


ROW = [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("ids", "rows", "error"),
    [
        ([1, 1], [ROW, ROW], r"table 'user': 1 of 2 ids in the slice repeat others"),
        ([1, None], [ROW, ROW], r"column 'id' of '.*' has 1 missing values"),
        ([1, 2], [ROW, None], r"column 'vector' of '.*' has 1 missing values"),
        ([1, 2], [ROW, [1.0, None, 2.0]], r"column 'vector' of '.*' has 1 missing numbers in its lists"),
        ([1, 2], [ROW, [1.0]], r"lists of 3 and of 1 numbers"),
        ([1, 2], [ROW[:2], ROW[:2]], r"table 'user' has dim 3, column 'vector' of '.*' has vectors of 2"),
        ([1, 2], [1.0, 2.0], r"table 'user' has dim 3, column 'vector' of '.*' has single numbers"),
        ([7, 8], [ROW, [1.0, float("nan"), 2.0]], r"table 'user': the vector of id 8 in '.*' has NaN or infinite"),
        ([1.0, 2.0], [ROW, ROW], r"table 'user': column 'id' of '.*' is torch.float64 \[2\]; ids are integers"),
        (["a", "b"], [ROW, ROW], r"column 'id' of '.*' is string, need numbers"),
    ],
)
def test_vectors_that_do_not_fit_are_refused_by_table_file_and_column(
    tmp_path: Path, ids: Any, rows: Any, error: str
) -> None:
    path = vectors(tmp_path / "v.parquet", ids, rows)
    with pytest.raises(TableFileError, match=error):
        import_table(make_table(Adam()), path, ids="id", vector="vector")


def test_id_that_comes_again_in_another_piece_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, rows = np.arange(100), np.ones((100, 3), np.float32)
    ids[99] = 7
    save_file({"ids": ids, "weight": rows}, tmp_path / "v.safetensors")
    monkeypatch.setattr(row_files, "PIECE_BYTES", 64)
    with pytest.raises(TableFileError, match=r"table 'user': id 7 comes twice in '.*v.safetensors'"):
        import_table(make_table(Adam()), tmp_path / "v.safetensors")


def test_files_that_are_none_are_refused_by_name(tmp_path: Path) -> None:
    table = make_table(Adam())
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.csv").write_text("1,2")
    for format in FORMATS:
        (tmp_path / f"x.{format}").write_bytes(b"no such file")
        with pytest.raises(TableFileError, match=rf"file '.*x.{format}' cannot be read"):
            import_table(table, tmp_path / f"x.{format}")
    for name, error in {
        "none": "there is no file or folder '.*none'",
        "empty": "folder '.*empty' holds no file that ends in",
        "x.csv": "file '.*x.csv' ends in none of",
        ".": "holds files of several formats",
    }.items():
        with pytest.raises(TableFileError, match=error):
            import_table(table, tmp_path / name)
    export_table(table, tmp_path / "t.parquet")
    with pytest.raises(TableFileError, match="has no column 'id'; did you mean 'ids'"):
        import_table(table, tmp_path / "t.parquet", ids="id")


def test_an_interrupted_export_leaves_nothing_and_a_folder_takes_one_table(tmp_path: Path) -> None:
    def interrupt() -> Iterator[TableSlice]:
        yield table.export(0, 2000)
        raise RuntimeError("cut")

    table = trained()
    for format in FORMATS:
        with pytest.raises(RuntimeError, match="cut"):
            write_rows(interrupt(), table.export(), tmp_path / f"item.{format}", None, 0, ids=None, optimizer=True)
    assert not list(tmp_path.iterdir())
    export_table(table, tmp_path / "parts", format="orc")
    with pytest.raises(TableFileError, match=r"holds part-00000.orc already"):
        export_table(table, tmp_path / "parts", format="parquet")
    with pytest.raises(TableFileError, match="is a folder, since it ends in none of .safetensors, .parquet, .orc; say"):
        export_table(table, tmp_path / "item.csv")
    with pytest.raises(TableFileError, match=r"ends in .orc, and format parquet is asked for"):
        export_table(table, tmp_path / "item.orc", format="parquet")


def test_capacity_counts_for_what_is_imported(tmp_path: Path) -> None:
    export_table(trained(), tmp_path / "item.orc")
    small = TableGroup([Table(name="user", dim=3, capacity=100, optimizer=Adam())], max_rows=4096)[0]
    with pytest.raises(TableFullError, match="table 'user' is full: it holds 100 ids, its capacity"):
        import_table(small, tmp_path / "item.orc")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "bfloat16", "optimizer": Adam(state_dtype="bfloat16")},
        {"dtype": "float16", "optimizer": Ftrl()},
        {"dtype": "float64", "optimizer": Adam(step="per_row")},
        {"dtype": "int8", "trainable": False, "initializer": Constant()},
    ],
    ids=lambda options: options["dtype"],
)
def test_tables_of_every_dtype_come_back_to_the_bit(tmp_path: Path, format: str, options: dict[str, Any]) -> None:
    declared = {"name": "t", "dim": 3, "initializer": Uniform()} | options
    table, other = (TableGroup([Table(**declared)], max_rows=4096)[0] for _ in range(2))
    rows = table.find_or_insert(torch.arange(-50, 50))
    table.group.weight[rows] = (torch.randn(100, 3) * 30).to(table.dtype)
    table.group.state[rows] = torch.rand(100, table.group.state.shape[1]).to(table.group.state.dtype)
    export_table(table, tmp_path / f"t.{format}")
    assert import_table(other, tmp_path / f"t.{format}") == 100
    assert_equal_slices(other.export(), table.export())


def test_integer_table_takes_no_vectors_that_it_would_round(tmp_path: Path) -> None:
    table = TableGroup([Table(name="codes", dim=3, dtype="int8", trainable=False)], max_rows=4096)[0]
    path = vectors(tmp_path / "v.parquet", [1, 2], [[1, 2, 3], [4, 5, 300]])
    with pytest.raises(TableFileError, match=r"table 'codes' holds torch.int8, column 'vector' of .* from 1 to 300"):
        import_table(table, path, ids="id", vector="vector")
    path = vectors(tmp_path / "w.parquet", [1], [[0.5, 2.0, 3.0]])
    with pytest.raises(TableFileError, match=r"table 'codes' holds torch.int8, .* is torch.float64"):
        import_table(table, path, ids="id", vector="vector")
