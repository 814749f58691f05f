"""Bad input: each is one error that names path, stripe, rows, column, found, expected, what to do; no thread stays."""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from recis_lightning.data.datamodule import OrcDataModule
from recis_lightning.data.errors import DataError
from recis_lightning.data.files.checksums import write_checksums
from recis_lightning.data.files.manifest import read_tail
from recis_lightning.schema import Schema
from tests.data.click_rows import click_rows, click_schema, write_stripes

FILES, STRIPES, ROWS = 9, 2, 20
SEVENTH = "part-6.orc"


def replace_column(name: str, values: list[Any], dtype: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        repeated = (values * len(table))[: len(table)]
        return table.set_column(table.schema.get_field_index(name), name, pa.array(repeated, dtype))

    return change


def spoil_row(name: str, row: int, value: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = table.column(name).to_pylist()
        values[row] = value
        return replace_column(name, values, table.schema.field(name).type)(table)

    return change


def rewrite(*changes: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    """Write a file again, its stripes changed by one function each; the last is for all that follow."""

    def apply(path: Path) -> None:
        tables = [click_rows(first * ROWS, ROWS) for first in range(STRIPES)]
        each = [changes[min(index, len(changes) - 1)] for index in range(STRIPES)]
        write_stripes(path, [change(table) for change, table in zip(each, tables, strict=True)])

    return apply


def same(table: pa.Table) -> pa.Table:
    return table


def flip_a_bit(path: Path) -> None:
    write_checksums(path.parent)
    first, count = read_tail(str(path)).stripe_spans[1]
    content = bytearray(path.read_bytes())
    content[first + count // 2] ^= 4
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def foreign(path: Path) -> None:
    write_stripes(path, [pa.table({"a": [1], "b": ["x"]})])


TEXT_PRICE = click_schema(
    columns=[
        *(column for column in click_schema().to_dict()["columns"] if column["name"] != "price"),
        {"name": "price", "dtype": "string", "parse": "float32"},
    ]
)
"""As the others, but with prices that are strings."""


def text_prices(bad: str) -> Callable[[Path], None]:
    prices = replace_column("price", ["1.5"], pa.string())
    return rewrite(prices, lambda table: spoil_row("price", 3, bad)(prices(table)))


# What is done to the seventh of nine files, and what the error must say, in this order.
CASES: dict[str, tuple[Callable[[Path], None], Schema, list[str]]] = {
    "truncated": (truncate, click_schema(), [SEVENTH, "truncated or damaged", "copy or write it again"]),
    "empty": (lambda path: path.write_bytes(b""), click_schema(), [SEVENTH, "is empty (0 bytes)", "write it again"]),
    "text": (
        lambda path: path.write_text("label,price\n1,2\n") and None,
        click_schema(),
        [SEVENTH, "no ORC or Parquet file", "begins with b'labe'", "need b'ORC'", "convert it"],
    ),
    "foreign schema": (
        foreign,
        click_schema(),
        ["6 problems", "column 'label' is missing in", SEVENTH, "column 'price' is missing in", SEVENTH],
    ),
    "missing column": (
        rewrite(lambda table: table.drop_columns(["price"])),
        click_schema(),
        ["column 'price' is missing in", SEVENTH],
    ),
    "changed type": (
        rewrite(replace_column("user", ["u1"], pa.string())),
        click_schema(),
        ["column 'user' is string in", SEVENTH, "need int64 as declared", "declare dtype: string"],
    ),
    "list where a scalar is declared": (
        rewrite(replace_column("price", [[1.5]], pa.list_(pa.float32()))),
        click_schema(),
        ["column 'price' is a list of float32 in", SEVENTH, "need float32 as declared", "declare layout: list"],
    ),
    "null label": (
        rewrite(same, spoil_row("label", 5, None)),
        click_schema(),
        [SEVENTH, "stripe 1, row 5 (row 25 of the file)", "column 'label', the label of task 'ctr'", "is missing"],
    ),
    "string that is no number": (
        text_prices("cheap"),
        TEXT_PRICE,
        [SEVENTH, "stripe 1, row 3 (row 23 of the file)", "column 'price'", "holds 'cheap'", "no number", "mend it"],
    ),
    "number beyond all bounds": (
        text_prices("1e400"),
        TEXT_PRICE,
        [SEVENTH, "stripe 1, row 3 (row 23 of the file)", "column 'price'", "holds '1e400'", "no number", "mend it"],
    ),
    "bit flip": (
        flip_a_bit,
        click_schema(),
        [SEVENTH, "stripe 1, rows 0 to 19", "have changed since", "xxh3 is", "was", "copy or write the file again"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_error_that_says_it_all(tmp_path: Path, case: str) -> None:
    spoil, schema, said = CASES[case]
    for index in range(FILES):
        write = text_prices("2") if schema is TEXT_PRICE else rewrite(same)
        write(tmp_path / f"part-{index}.orc")
    spoil(tmp_path / SEVENTH)
    data = OrcDataModule(schema, train=tmp_path, batch_size=8, read_threads=2)
    with pytest.raises(DataError, match="(?s)" + ".*".join(map(re.escape, said))) as caught:
        train(data)
    assert {index for index in range(FILES) if f"part-{index}.orc" in str(caught.value)} == {6}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("recis-")]


def train(data: OrcDataModule) -> int:
    data.setup("fit")
    return sum(batch.size for batch in data.train_dataloader())


def test_a_file_without_rows_is_left_out_and_only_such_are_an_error(tmp_path: Path) -> None:
    write_stripes(tmp_path / "empty.orc", [click_rows(0, 0)])
    with pytest.raises(DataError, match=f"train: no file of {tmp_path} has any row; write the data again"):
        train(OrcDataModule(click_schema(), train=tmp_path, batch_size=8))
    write_stripes(tmp_path / "full.orc", [click_rows(0, 20)])
    assert train(OrcDataModule(click_schema(), train=tmp_path, batch_size=8)) == 20


def test_data_that_changed_between_saving_and_resuming_are_an_error(tmp_path: Path) -> None:
    for index in range(3):
        rewrite(same)(tmp_path / f"part-{index}.orc")
    data = OrcDataModule(click_schema(), train=tmp_path, batch_size=8)
    data.setup("fit")
    saved = data.train_dataloader().state_dict()
    write_stripes(tmp_path / "part-1.orc", [click_rows(0, 21)])
    again = OrcDataModule(click_schema(), train=tmp_path, batch_size=8)
    again.setup("fit")
    with pytest.raises(DataError, match=r"rows was 120, is 101; .*changed: part-1.orc; train on the same files"):
        again.train_dataloader().load_state_dict(saved)
