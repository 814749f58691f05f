"""The towers of a schema: who gets whose vectors, what is computed once, what is refused before training."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from recis_lightning.ragged import Ragged
from recis_lightning.schema import Schema
from recis_lightning.schema.schedules import Schedule
from recis_lightning.towers.collection import TowerCollection, join_rows
from tests.towers.test_backbone import write_tokenizer
from tests.towers.tiny import BERT, LLAMA, LONGEST, VOCABULARY, draw_rows


def make(towers: list[dict[str, Any]], **features: str) -> TowerCollection:
    columns = [{"name": name, "dtype": "int64", "layout": "list"} for name in features]
    return TowerCollection(
        Schema.from_dict(
            {
                "columns": columns,
                "features": [{"name": name, "tower": tower} for name, tower in features.items()],
                "towers": towers,
            }
        )
    )


TEXT = {"name": "text", "dim": 3, "model": BERT}


def test_each_feature_gets_the_vectors_of_its_tower() -> None:
    towers = make(
        [TEXT, {"name": "causal", "dim": 5, "model": LLAMA, "pooling": "last"}], a="text", b="causal", c="text"
    )
    inputs = {name: draw_rows(6, seed) for seed, name in enumerate("abc")}
    vectors = towers(inputs | {"user": torch.zeros(6, 1)})
    assert list(vectors) == ["a", "c", "b"]
    for name, tower in (("a", "text"), ("b", "causal"), ("c", "text")):
        torch.testing.assert_close(vectors[name], towers[tower](inputs[name]), rtol=0, atol=1e-6)


def test_a_text_in_two_features_is_computed_once() -> None:
    towers = make([TEXT], a="text", b="text")
    rows = Ragged.from_lists([[1, 2], [3]])
    vectors = towers({"a": rows, "b": Ragged.from_lists([[3], []])})
    assert towers["text"].statistics.computed == 2
    assert torch.equal(vectors["a"][1], vectors["b"][0])


def test_all_options_of_a_declaration_reach_the_tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHES", str(tmp_path))
    frozen = {
        "cache": "${CACHES}/c",
        "cache_bytes": 1 << 20,
        "empty": "learned",
        "block_tokens": 64,
        "dtype": "bfloat16",
    }
    trained = {"train": "lora", "lora": {"rank": 3, "targets": ["key"]}, "lr": 0.1, "schedule": {"warmup_steps": 2}}
    towers = make(
        [TEXT | frozen, TEXT | trained | {"name": "b", "seed": 3, "bf16": True, "gradient_checkpointing": True}],
        x="text",
        y="b",
    )
    a, b = towers
    assert (a.cache_folder, a.cache_bytes, a.block_tokens) == (str(tmp_path / "c"), 1 << 20, 64)
    assert a.empty is not None
    assert a.backbone.dtype == torch.bfloat16
    assert (b.train_mode, b.lr, b.schedule, b.bf16) == ("lora", 0.1, Schedule(warmup_steps=2), True)
    assert b.backbone.peft_config["default"].r == 3
    assert b.backbone.is_activation_checkpointing
    assert a.base_fingerprint != b.base_fingerprint


def test_vectors_that_wait_are_written_when_asked_for(tmp_path: Path) -> None:
    towers = make([TEXT | {"cache": str(tmp_path)}], a="text")
    towers({"a": draw_rows(5)})
    assert not list(tmp_path.rglob("*.safetensors"))
    towers.flush_caches()
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1


def test_a_row_that_is_too_long_is_told_by_its_feature() -> None:
    towers = make([TEXT], plot="text", title="text")
    with pytest.raises(ValueError, match="feature 'title': row 1 .* 25 tokens"):
        towers({"plot": draw_rows(2), "title": Ragged.from_lists([[1], [1] * (LONGEST + 1)])})


@pytest.mark.parametrize(
    ("tower", "message"),
    [
        ({"model": "nowhere/at/all"}, "tower 'text': model 'nowhere/at/all': there is no folder"),
        ({"model": BERT | {"model_type": "brt"}}, "tower 'text': model_type is 'brt'"),
        (
            {"train": "lora", "lora": {"targets": ["qwery"]}},
            "tower 'text': LoRA target 'qwery' matches no linear layer",
        ),
    ],
)
def test_a_tower_that_cannot_be_made_is_named(tower: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make([TEXT | tower], a="text")


@pytest.mark.parametrize(
    ("tokens", "max_length", "message"),
    [
        (VOCABULARY, LONGEST, None),
        (VOCABULARY + 1, LONGEST, "column 'title': tokenizer .* gives tokens up to 60"),
        (VOCABULARY, LONGEST + 1, "column 'title': max_length is 25, .* takes 24 tokens at most"),
    ],
)
def test_a_tokenizer_that_does_not_fit_its_model_is_refused(
    tmp_path: Path, tokens: int, max_length: int, message: str | None
) -> None:
    file = write_tokenizer(tmp_path / "tokenizer.json", tokens)
    schema = Schema.from_dict(
        {
            "columns": [{"name": "title", "dtype": "string", "tokenizer": str(file), "max_length": max_length}],
            "features": [{"name": "title", "tower": "text"}],
            "towers": [TEXT],
        }
    )
    with nullcontext() if message is None else pytest.raises(ValueError, match=message):
        TowerCollection(schema)


def test_join_rows_keeps_every_row() -> None:
    parts = [[[1], [2, 3]], [], [[]], [[4], [], [5]]]
    joined = join_rows([Ragged.from_lists(part) for part in parts]).check()
    assert joined.to_lists() == [row for part in parts for row in part]
