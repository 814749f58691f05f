"""Public data as they are: what batches hold against what pyarrow reads, column by column."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from pyarrow import orc

from recis_lightning.data.datamodule import OrcDataModule
from recis_lightning.ragged import Batch, Ragged
from triton_ops.hash_bytes.reference import farm_fingerprint64

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif("RECIS_DATA" not in os.environ, reason="RECIS_DATA names no folder with the public data"),
]


def read_table(folder: str, columns: list[str]) -> pa.Table:
    paths = sorted((Path(os.environ["RECIS_DATA"]) / folder).glob("*.orc"))
    return pa.concat_tables([orc.read_table(path, columns=columns) for path in paths])


def read_batches(schema: dict[str, Any], folder: str, shuffle: bool = False) -> list[Batch]:
    data = OrcDataModule(schema, train="${RECIS_DATA}/" + folder, batch_size=1000, streams=1, shuffle=shuffle)
    data.setup("fit")
    return list(data.train_dataloader())


def column_of(batches: list[Batch], name: str) -> list[Any]:
    values = []
    for batch in batches:
        entry = batch[name]
        values += entry.check().to_lists() if isinstance(entry, Ragged) else entry.tolist()
    return values


def click_schema(**of_columns: dict[str, Any]) -> dict[str, Any]:
    return {
        "columns": [
            {"name": "label", **of_columns["label"]},
            {"name": "i{1..13}", "default": 0.0, **of_columns["dense"]},
            {"name": "c{1..26}", "dtype": "int64", **of_columns["ids"]},
        ],
        "tables": [{"name": "c{1..26}", "dim": 8}],
        "features": [{"name": "i{1..13}"}, {"name": "c{1..26}", "table": "c{1..26}"}],
        "tasks": [{"name": "ctr", "label": "label"}],
    }


def test_criteo_in_natural_types() -> None:
    schema = click_schema(label={"dtype": "float32"}, dense={"dtype": "float32"}, ids={})
    batches, table = (
        read_batches(schema, "criteo1tb_80k/train"),
        read_table("criteo1tb_80k/train", ["label", "i3", "c5"]),
    )
    assert sum(batch.size for batch in batches) == 60_000
    assert column_of(batches, "label") == table["label"].to_pylist()
    assert table["i3"].null_count
    assert column_of(batches, "i3") == pc.fill_null(table["i3"], 0.0).to_pylist()
    assert column_of(batches, "c5") == [[] if value is None else [value] for value in table["c5"].to_pylist()]


def test_recis_files_in_which_every_column_is_a_list() -> None:
    optional = {"layout": "optional_list"}
    schema = click_schema(label={"dtype": "float64"} | optional, dense={"dtype": "float64"} | optional, ids=optional)
    batches, table = (
        read_batches(schema, "recis_deepfm_raw"),
        read_table("recis_deepfm_raw", ["label", "i3", "c5", "c14"]),
    )
    assert sum(batch.size for batch in batches) == 20_000
    assert column_of(batches, "label") == [value for (value,) in table["label"].to_pylist()]
    narrow = torch.tensor([row[0] if row else 0.0 for row in table["i3"].to_pylist()], dtype=torch.float32)
    assert column_of(batches, "i3") == narrow.tolist()
    assert not all(table["c14"].to_pylist())
    for name in ("c5", "c14"):
        assert column_of(batches, name) == table[name].to_pylist()


def test_shuffled_rows_stay_together() -> None:
    schema = click_schema(label={"dtype": "float32"}, dense={"dtype": "float32"}, ids={})
    batches = read_batches(schema, "criteo1tb_80k/valid", shuffle=True)
    table = read_table("criteo1tb_80k/valid", ["label", "c1", "c14", "c20"])
    names = ("c1", "c14", "c20")
    read = zip(column_of(batches, "label"), *(map(tuple, column_of(batches, name)) for name in names), strict=True)
    stored = [tuple(() if value is None else (value,) for value in table[name].to_pylist()) for name in names]
    assert sorted(read) == sorted(zip(table["label"].to_pylist(), *stored, strict=True))


def test_movielens_sequences_with_their_ratings_as_weights() -> None:
    schema = {
        "columns": [
            {"name": "gender", "dtype": "string", "hash": "farm"},
            {"name": "item_seq", "dtype": "int64", "layout": "list"},
            {"name": "rating_seq", "dtype": "float32", "layout": "list"},
            {"name": "target_rating", "dtype": "float32"},
        ],
        "tables": [{"name": "gender", "dim": 4}, {"name": "items", "dim": 4}],
        "features": [
            {"name": "gender", "table": "gender"},
            {"name": "item_seq", "table": "items", "weights": "rating_seq"},
        ],
        "tasks": [{"name": "rating", "label": "target_rating", "loss": "mse"}],
    }
    names = ["gender", "item_seq", "rating_seq"]
    batches, table = read_batches(schema, "ml1m_seq_loo/valid"), read_table("ml1m_seq_loo/valid", names)
    for name in ("item_seq", "rating_seq"):
        assert column_of(batches, name) == table[name].to_pylist()
    hashes = {text: farm_fingerprint64(text.encode()) for text in ("F", "M")}
    signed = {text: value - (value >> 63 << 64) for text, value in hashes.items()}
    assert column_of(batches, "gender") == [[signed[text]] for text in table["gender"].to_pylist()]


def test_nested_attributes_of_a_history_are_what_pyarrow_reads() -> None:
    nested = {"dtype": "int64", "layout": "nested_list"}
    schema = {
        "columns": [
            {"name": "attr_seq", **nested},
            {"name": "recent", "source": "attr_seq", **nested, "max_length": 3, "keep": "last"},
        ],
        "tables": [{"name": "t", "dim": 4}],
        "features": [{"name": name, "table": "t", "pooling": "none"} for name in ("attr_seq", "recent")],
    }
    batches = read_batches(schema, "amazon_beauty_5core/train")
    rows = [row or [] for row in read_table("amazon_beauty_5core/train", ["attr_seq"])["attr_seq"].to_pylist()]
    assert column_of(batches, "attr_seq") == rows
    assert column_of(batches, "recent") == [row[-3:] for row in rows]


def test_posters_are_the_bytes_of_the_files() -> None:
    custom = {"kind": "custom", "class_path": "torch.ones"}
    schema = {
        "columns": [{"name": "jpeg", "dtype": "binary"}],
        "features": [{"name": "jpeg", "transforms": [custom]}],
    }
    images = column_of(read_batches(schema, "ml1m_posters"), "jpeg")
    assert [bytes(image) for image in images] == read_table("ml1m_posters", ["jpeg"])["jpeg"].to_pylist()
