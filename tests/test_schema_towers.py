"""Towers in a schema: what is read, what features may name them, and every mistake."""

import json
from typing import Any

import pytest

from recis_lightning.schema import Schema, SchemaError
from recis_lightning.schema.schedules import Schedule
from recis_lightning.schema.towers import Lora, Tower

BERT = {"model_type": "bert", "hidden_size": 64, "layer_norm_eps": "1e-12"}


def settings(**changes: Any) -> dict[str, Any]:
    """A small schema with a tower and no mistake, some sections of it replaced."""
    return {
        "columns": [
            {"name": "title", "dtype": "string", "tokenizer": "tokenizer.json", "max_length": 32},
            {"name": "plot", "dtype": "int64", "layout": "list"},
            {"name": "label", "dtype": "float32"},
        ],
        "features": [{"name": "title", "tower": "text"}, {"name": "plot", "tower": "text"}],
        "towers": [{"name": "text", "dim": 8, "model": BERT}],
        "tasks": [{"name": "ctr", "label": "label"}],
    } | changes


def tower(**changes: Any) -> list[dict[str, Any]]:
    return [{"name": "text", "dim": 8, "model": BERT} | changes]


def test_a_tower_is_read_with_what_is_nested_in_it() -> None:
    schema = Schema.from_dict(
        settings(
            towers=tower(train="lora", lora={"rank": 2, "targets": ["query"]}, lr="1e-4", schedule={"warmup_steps": 5})
        )
    )
    assert schema.tower("text") == Tower(
        name="text",
        dim=8,
        model={"model_type": "bert", "hidden_size": 64, "layer_norm_eps": 1e-12},
        train="lora",
        lora=Lora(rank=2, targets=("query",)),
        lr=1e-4,
        schedule=Schedule(warmup_steps=5),
    )
    assert Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema


def test_features_of_towers_are_vectors_whose_columns_are_ids() -> None:
    schema = Schema.from_dict(settings())
    assert [feature.name for feature in schema.tower_features] == ["title", "plot"]
    assert schema.vector_features == schema.tower_features
    assert schema.dense_features == schema.embedded_features == ()
    assert schema.width_of(schema.feature("title")) == 8
    assert schema.is_id_column("title")
    assert schema.is_id_column("plot")
    assert not schema.is_id_column("label")


def test_tokens_may_be_looked_up_in_a_table_too() -> None:
    schema = Schema.from_dict(
        settings(
            features=[{"name": "title", "tower": "text"}, {"name": "words", "column": "title", "table": "words"}],
            tables=[{"name": "words", "dim": 4}],
        )
    )
    assert [schema.width_of(feature) for feature in schema.vector_features] == [8, 4]


def feature(**changes: Any) -> dict[str, Any]:
    return {"features": [{"name": "title", "tower": "text"} | changes]}


def column(**changes: Any) -> dict[str, Any]:
    columns = settings()["columns"]
    return {
        "columns": [{key: value for key, value in (columns[0] | changes).items() if value is not None}, *columns[1:]]
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (feature(tower="txt"), "feature 'title' goes through tower 'txt', which is not declared; did you mean 'text'"),
        (feature(table="t") | {"tables": [{"name": "t", "dim": 2}]}, "names table 't' and tower 'text'"),
        (feature(transforms=["log1p"]), "goes through a tower and has transforms"),
        (feature(weights="plot"), "goes through a tower and has weights"),
        (feature(pooling="mean"), "has pooling 'mean' and a tower"),
        (feature(column="label"), "column 'label' holds no lists of token ids; give it dtype: string and a tokenizer"),
        (feature(tower=None), "feature 'title' is dense, but column 'title' is tokenized to ids; name a tower"),
        (feature() | {"towers": [*tower(), *tower(name="b")]}, "tower 'b' is named by no feature"),
        (column(hash="farm"), "say hash: farm .* or tokenizer: <file>"),
        (column(tokenizer=None, max_length=None), "say hash: farm .* or tokenizer: <file>"),
        (column(dtype="int64", max_length=None), "column 'title' is int64; hash, parse and tokenizer are for strings"),
        (column(layout="list"), "a tokenizer is for one string a row"),
        (column(max_length=0), "max_length is 0; it cuts lists and what a tokenizer gives, to at least 1"),
        (column(default=3), "is tokenized; a missing id is no id"),
        ({"tasks": [{"name": "ctr", "label": "title"}]}, "label from 'title', which holds ids or lists"),
        ({"towers": tower(name="a.b")}, "leave out / .* and ."),
        ({"towers": tower(dim=0, cache_bytes=0)}, r"dim is 0, need at least 1\n.*cache_bytes is 0"),
        ({"towers": tower(model={"hidden_size": 3})}, "model is a config without model_type"),
        ({"towers": tower(model=3)}, "model is 3, need a name or dict"),
        ({"towers": tower(lr=-1, train="full")}, "lr is -1, need at least 0"),
        ({"towers": tower(lr=1e-3)}, "lr and schedule are of the model, which is frozen"),
        ({"towers": tower(cache="here", train="lora")}, "a cache is for a frozen model, and train is lora"),
        ({"towers": tower(lora={"rank": 2})}, "lora is given, and train is frozen"),
        ({"towers": tower(train="lora", lora={"rank": 0, "dropout": 1})}, r"rank is 0.*\n.*dropout is 1"),
        ({"towers": tower(train="lora", lora={"r": 2})}, "lora: unknown option 'r'"),
        (
            {"towers": tower(train="full", schedule={"decay": "linear"})},
            "total_steps None, need more than warmup_steps 0",
        ),
        ({"towers": tower(train="full", schedule={"total_steps": 9})}, "total_steps is given, and decay is constant"),
        ({"towers": tower(train="full", schedule={"warmup_steps": -1})}, "warmup_steps is -1"),
    ],
)
def test_every_mistake_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        Schema.from_dict(settings(**changes))


@pytest.mark.parametrize(
    ("decay", "factors"),
    [
        ("constant", {0: 1 / 11, 5: 6 / 11, 10: 1, 60: 1, 500: 1}),
        ("linear", {0: 1 / 11, 5: 6 / 11, 10: 1, 60: 0.55, 110: 0.1, 500: 0.1}),
        ("cosine", {10: 1, 35: 0.1 + 0.9 * 0.8535533905932737, 60: 0.55, 110: 0.1}),
    ],
)
def test_a_schedule_rises_and_falls_as_declared(decay: Any, factors: dict[int, float]) -> None:
    schedule = Schedule(warmup_steps=10, decay=decay, total_steps=110, floor=0.1)
    assert {step: schedule.factor(step) for step in factors} == pytest.approx(factors)
