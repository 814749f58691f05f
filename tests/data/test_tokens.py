"""Text columns as token ids: what a batch carries, what is remembered, what is refused, and training a tokenizer."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from recis_lightning.data.datamodule import OrcDataModule
from recis_lightning.data.errors import DataError
from recis_lightning.data.tokens import TextTokenizer, tokenizer_of
from recis_lightning.data.train_tokenizer import SPECIAL, read_texts, train_tokenizer
from recis_lightning.ragged import Ragged
from recis_lightning.schema import Column, Schema
from tests.data.click_rows import write_stripes

TITLES = ["big red lamp", None, "", "small lamp", "big red lamp", "a very big and very red lamp"]


def title_rows(titles: list[str | None]) -> pa.Table:
    return pa.table(
        {
            "title": pa.array(titles, pa.string()),
            "tokens": pa.array(
                [None if title is None else list(range(len(title))) for title in titles], pa.list_(pa.int64())
            ),
            "label": pa.array([float(index) for index in range(len(titles))], pa.float32()),
        }
    )


@pytest.fixture
def log(tmp_path: Path) -> Path:
    write_stripes(tmp_path / "log/part-0.orc", [title_rows(TITLES[:4]), title_rows(TITLES[4:])])
    return tmp_path / "log"


@pytest.fixture
def tokenizer(tmp_path: Path, log: Path) -> Path:
    return train_tokenizer(log, "title", tmp_path / "tokenizer.json", vocab_size=300, min_frequency=1).path


def make_schema(tokenizer: Path | str, **options: Any) -> Schema:
    return Schema.from_dict(
        {
            "columns": [
                {"name": "title", "dtype": "string", "tokenizer": str(tokenizer)} | options,
                {"name": "tokens", "dtype": "int64", "layout": "list"},
                {"name": "label", "dtype": "float32"},
            ],
            "features": [{"name": "title", "tower": "text"}, {"name": "tokens", "tower": "text"}],
            "towers": [{"name": "text", "dim": 4, "model": {"model_type": "bert"}}],
            "tasks": [{"name": "ctr", "label": "label"}],
        }
    )


def read_all(log: Path, schema: Schema, **options: Any) -> tuple[list[list[int]], list[list[int]]]:
    """The rows of both columns, in the order of the file."""
    module = OrcDataModule(schema, validation=str(log), batch_size=4, streams=1, **options)
    module.setup("validate")
    titles, tokens = [], []
    for batch in module.val_dataloader():
        for name, rows in (("title", titles), ("tokens", tokens)):
            entry = batch[name]
            assert isinstance(entry, Ragged)
            rows += entry.check().to_lists()
    return titles, tokens


def words(tokenizer: Path, *text: str) -> list[int]:
    from tokenizers import Tokenizer

    vocabulary = Tokenizer.from_file(str(tokenizer)).get_vocab()
    return [vocabulary["[CLS]"], *(vocabulary["\u0120" + word] for word in text), vocabulary["[SEP]"]]


def test_a_batch_carries_the_token_ids_of_each_text_and_lists_as_they_are(log: Path, tokenizer: Path) -> None:
    titles, tokens = read_all(log, make_schema(tokenizer))
    big, small = words(tokenizer, "big", "red", "lamp"), words(tokenizer, "small", "lamp")
    assert titles == [big, [], [], small, big, words(tokenizer, *TITLES[5].split())]
    assert tokens == [list(range(len(title or ""))) for title in TITLES]


def test_max_length_cuts_between_the_special_ids(log: Path, tokenizer: Path) -> None:
    titles, _ = read_all(log, make_schema(tokenizer, max_length=4))
    assert titles == [words(tokenizer, "big", "red"), [], [], words(tokenizer, "small", "lamp")] + [
        words(tokenizer, "big", "red"),
        words(tokenizer, "a", "very"),
    ]


def test_padding_and_truncation_that_come_with_a_file_are_taken_off(tmp_path: Path, tokenizer: Path) -> None:
    from tokenizers import Tokenizer

    padded = Tokenizer.from_file(str(tokenizer))
    padded.enable_padding(length=50)
    padded.enable_truncation(3)
    padded.save(str(tmp_path / "padded.json"))
    (ids,) = TextTokenizer(str(tmp_path / "padded.json")).encode(["big red lamp"])
    assert ids.tolist() == words(tokenizer, "big", "red", "lamp")


def test_texts_are_remembered_up_to_a_bound_and_told_right_beyond_it(tokenizer: Path) -> None:
    bounded = TextTokenizer(str(tokenizer), remembered_ids=12)
    for _ in range(3):
        for texts in (["big red lamp", "small lamp", ""], ["a lamp", "big red lamp", "a lamp"]):
            expected = [words(tokenizer, *text.split()) if text else [] for text in texts]
            assert [ids.tolist() for ids in bounded.encode(texts)] == expected
            assert sum(map(len, bounded._remembered.values())) <= 12


def test_a_remembered_text_is_not_tokenized_again(tokenizer: Path) -> None:
    remembering = TextTokenizer(str(tokenizer))
    (first,) = remembering.encode(["big red lamp"])
    (again,) = remembering.encode(["big red lamp"])
    assert again is first


def test_threads_share_one_tokenizer(tokenizer: Path) -> None:
    bounded = TextTokenizer(str(tokenizer), remembered_ids=30)
    texts = ["big red lamp", "small lamp", "a lamp", "very red"]

    def check(turn: int) -> bool:
        chosen = texts[turn % 4 :] + texts[: turn % 4]
        return [ids.tolist() for ids in bounded.encode(chosen)] == [words(tokenizer, *text.split()) for text in chosen]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(check, range(200)))


def test_a_tokenizer_is_read_again_where_its_file_has_changed(tmp_path: Path, log: Path, tokenizer: Path) -> None:
    column = Column(name="title", dtype="string", tokenizer=str(tokenizer))
    first = tokenizer_of(column)
    assert tokenizer_of(column) is first
    train_tokenizer(log, "title", tokenizer, vocab_size=262, min_frequency=1)
    assert tokenizer_of(column).encode(["big red lamp"])[0].tolist() != first.encode(["big red lamp"])[0].tolist()


# ---------------------------------------------------------------------------------------------------------- bad input


def test_tokenizers_that_cannot_be_used_are_named_before_the_first_batch(
    tmp_path: Path, log: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.json").write_text("{}")
    monkeypatch.delenv("NO_SUCH", raising=False)
    for schema, message in (
        (make_schema(tmp_path / "none.json"), r"column 'title': tokenizer .*there is no file .*train-tokenizer"),
        (make_schema(tmp_path / "broken.json"), "column 'title': .* is no tokenizer.json"),
        (make_schema("${NO_SUCH}/t.json"), "column 'title': .*variable NO_SUCH, which is not set"),
        (make_schema(tokenizer, max_length=1), "adds 2 special ids to each text; a max_length of 1 is too short"),
    ):
        with pytest.raises(DataError, match=message):
            OrcDataModule(schema, validation=str(log)).setup("validate")


def test_a_column_that_holds_no_strings_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    rows = title_rows(TITLES)
    write_stripes(tmp_path / "ints/part-0.orc", [rows.set_column(0, "title", pa.array(range(len(rows)), pa.int64()))])
    with pytest.raises(DataError, match="column 'title' is int64 in .* need string as declared"):
        OrcDataModule(make_schema(tokenizer), validation=str(tmp_path / "ints")).setup("validate")


# ------------------------------------------------------------------------------------------------------------ training


def test_training_learns_the_words_of_a_column(log: Path, tmp_path: Path) -> None:
    trained = train_tokenizer(log, "title", tmp_path / "new/tokenizer.json", vocab_size=400, min_frequency=1)
    assert (trained.texts, trained.longest) == (3, 9)
    assert trained.mean_length == pytest.approx((5 + 4 + 9) / 3)
    tokenizer = TextTokenizer(str(trained.path))
    assert tokenizer.encode(["BIG lamp"])[0].tolist() == words(trained.path, "big", "lamp")
    assert len(tokenizer.encode(["\u4e2d"])[0]) == 6  # a space and three bytes
    from tokenizers import Tokenizer

    vocabulary = Tokenizer.from_file(str(trained.path)).get_vocab()
    assert [vocabulary[token] for token in SPECIAL] == [0, 1, 2]
    assert trained.vocabulary == len(vocabulary) == max(vocabulary.values()) + 1


def test_training_twice_gives_the_same_file(log: Path, tmp_path: Path) -> None:
    files = [train_tokenizer(log, "title", tmp_path / name, vocab_size=290).path for name in ("a.json", "b.json")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_texts_are_read_once_each_and_as_many_as_asked_for(log: Path) -> None:
    assert list(read_texts(log, "title", 100)) == ["big red lamp", "small lamp", "a very big and very red lamp"]
    assert list(read_texts(log, "title", 2)) == ["big red lamp", "small lamp"]


@pytest.mark.parametrize(
    ("column", "message"),
    [("titel", "no column 'titel'; did you mean 'title'"), ("label", "'label' is float in .* need strings")],
)
def test_a_column_without_texts_is_refused(log: Path, tmp_path: Path, column: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        train_tokenizer(log, column, tmp_path / "t.json")
    assert not os.path.exists(tmp_path / "t.json")


def test_a_column_of_nulls_and_a_vocabulary_too_small_are_refused(tmp_path: Path) -> None:
    write_stripes(tmp_path / "log/part-0.orc", [title_rows([None, ""])])
    with pytest.raises(DataError, match="column 'title' .* holds no text"):
        train_tokenizer(tmp_path / "log", "title", tmp_path / "t.json")
    with pytest.raises(ValueError, match="vocab_size is 4, need at least 259"):
        train_tokenizer(tmp_path / "log", "title", tmp_path / "t.json", vocab_size=4)
