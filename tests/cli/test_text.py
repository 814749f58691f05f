"""`recis text` and `recis data hold-out`: what they write and say, and mistakes in a line."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recis_lightning import cli
from recis_lightning.data.tokens import TextTokenizer
from recis_lightning.ragged import Ragged
from recis_lightning.schema import Schema
from recis_lightning.training import RecModule
from recis_lightning.training.item_vectors import export_vectors
from tests.data.click_rows import click_rows, write_stripes
from tests.towers.tiny import BERT
from tests.training.helpers import SmallNet, make_trainer

ITEMS = {"id": [7, -3, None, 7, 2**62, 5], "title": ["red lamp", "blue lamp", "x", "red lamp", None, ""]}


def write_items(folder: Path, **columns: list[object]) -> Path:
    rows = pa.table(ITEMS | columns)
    write_stripes(folder / "part-0.orc", [rows.slice(0, 4), rows.slice(4)])
    return folder


@pytest.fixture
def saved(tmp_path: Path) -> tuple[RecModule, Path]:
    """A module with a tower over titles, and its checkpoint."""
    items = write_items(tmp_path / "items")
    arguments = ["text", "train-tokenizer", str(items), "--column", "title", "--out", str(tmp_path / "t.json")]
    assert cli.main([*arguments, "--vocab-size", "270"]) == 0
    schema = Schema.from_dict(
        {
            "columns": [
                {"name": "title", "dtype": "string", "tokenizer": str(tmp_path / "t.json")},
                {"name": "label", "dtype": "float32"},
            ],
            "features": [{"name": "text", "column": "title", "tower": "text"}],
            "towers": [{"name": "text", "dim": 3, "model": BERT | {"vocab_size": 270}, "empty": "learned"}],
            "tasks": [{"name": "ctr", "label": "label"}],
        }
    )
    module = RecModule(schema, SmallNet)
    torch.nn.init.ones_(module.towers["text"].empty)
    trainer = make_trainer(tmp_path)
    module.trainer = trainer
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    return module, tmp_path / "x.ckpt"


def test_train_tokenizer_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items, out = write_items(tmp_path / "items"), tmp_path / "t.json"
    assert cli.main(["text", "train-tokenizer", str(items), "--column", "title", "--out", str(out)]) == 0
    assert "tokens from 3 distinct texts" in capsys.readouterr().out
    assert len(TextTokenizer(str(out)).encode(["red lamp"])[0]) >= 4


def test_export_vectors_writes_each_item_once(
    tmp_path: Path, saved: tuple[RecModule, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    module, checkpoint = saved
    arguments = [
        "--data",
        str(tmp_path / "items"),
        "--id",
        "id",
        "--feature",
        "text",
        "--out",
        str(tmp_path / "v.parquet"),
    ]
    assert cli.main(["text", "export-vectors", str(checkpoint), *arguments]) == 0
    assert "v.parquet: 4 items, vectors of width 3" in capsys.readouterr().out
    table = pq.read_table(tmp_path / "v.parquet")
    assert table.schema == pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32(), 3))])
    assert table["id"].to_pylist() == [7, -3, 2**62, 5]
    tokens = TextTokenizer(str(tmp_path / "t.json")).encode(["red lamp", "blue lamp"])
    expected = module.eval().towers["text"](Ragged.from_lists([row.tolist() for row in tokens] + [[], []]))
    np.testing.assert_allclose(np.array(table["vector"].to_pylist()), expected.detach().numpy(), rtol=0, atol=1e-6)
    assert table["vector"].to_pylist()[2] == [1.0, 1.0, 1.0]


def test_an_item_with_several_texts_is_counted_and_the_first_taken(
    tmp_path: Path, saved: tuple[RecModule, Path]
) -> None:
    write_items(tmp_path / "several", id=[1, 1, 2, 2, 1, 3])
    exported = export_vectors(saved[0], tmp_path / "several", "id", "text", tmp_path / "v.parquet")
    assert (exported.items, exported.ambiguous) == (3, 2)
    whole = export_vectors(saved[0], tmp_path / "items", "id", "text", tmp_path / "w.parquet")
    assert whole.ambiguous == 0
    first, other = (
        pq.read_table(path)["vector"].to_pylist()[0] for path in (tmp_path / "v.parquet", tmp_path / "w.parquet")
    )
    assert first == other


def test_export_leaves_the_module_as_it_was_and_no_half_written_file(
    tmp_path: Path, saved: tuple[RecModule, Path]
) -> None:
    module, _ = saved
    module.train()
    export_vectors(module, tmp_path / "items", "id", "text", tmp_path / "v.parquet")
    assert all(part.training for part in module.modules())
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"--id": "idd"}, "no column 'idd'; did you mean 'id'"),
        ({"--feature": "txt"}, "feature 'txt' goes through no tower of this model; did you mean 'text'"),
        ({"--data": "nowhere"}, "nowhere does not exist"),
    ],
)
def test_mistakes_of_export_are_told_in_a_line(
    options: dict[str, str],
    message: str,
    tmp_path: Path,
    saved: tuple[RecModule, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {"--data": str(tmp_path / "items"), "--id": "id", "--feature": "text", "--out": str(tmp_path / "v.parquet")}
    arguments = [part for option in (given | options).items() for part in option]
    assert cli.main(["text", "export-vectors", str(saved[1]), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_hold_out_says_how_many_rows_went_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_stripes(tmp_path / "log/part-0.orc", [click_rows(0, 200)])
    arguments = [
        "data",
        "hold-out",
        str(tmp_path / "log"),
        "--column",
        "user",
        "--out",
        str(tmp_path / "out"),
        "--share",
        ".5",
    ]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "seen: " in shown
    assert "rows, of values of 'user'" in shown
    assert cli.main([*arguments[:4], "usr", *arguments[5:]]) == 2
    assert "has no column 'usr'; did you mean 'user'" in capsys.readouterr().err


def test_a_missing_package_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tokenizers", None)
    items = write_items(tmp_path / "items")
    assert (
        cli.main(["text", "train-tokenizer", str(items), "--column", "title", "--out", str(tmp_path / "t.json")]) == 2
    )
    assert "pip install 'recis-lightning[llm]'" in capsys.readouterr().err
