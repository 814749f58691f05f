"""What a schema says of a table's optimizer, dtype and training, and of pooling by tile: mistakes, and what is read."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from recis_lightning.schema import AdamW, Schedule, Schema, SchemaError


def settings(table: dict[str, Any], **feature: Any) -> dict[str, Any]:
    return {
        "columns": [
            {"name": "a", "dtype": "int64", "layout": "list"},
            {"name": "w", "dtype": "float32", "layout": "list"},
        ],
        "tables": [{"name": "a", "dim": 4} | table],
        "features": [{"name": "a", "table": "a"} | feature],
    }


def problems_of(mapping: dict[str, Any]) -> list[str]:
    with pytest.raises(SchemaError) as caught:
        Schema.from_dict(mapping)
    return list(caught.value.problems)


FROZEN = {"trainable": False}


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"optimizer": {"kind": "sgd", "momentum": 1}}, "optimizer momentum is 1, need 0 <= momentum < 1"),
        (
            {"optimizer": {"kind": "sgd", "nesterov": True}},
            "optimizer sgd is nesterov, and has no momentum; give it momentum, or leave nesterov out",
        ),
        (
            {"optimizer": {"kind": "sgd", "state_dtype": "bfloat16"}},
            "optimizer sgd without momentum has no state; leave state_dtype out",
        ),
        (
            {"optimizer": {"kind": "adamw", "weight_decay": 1.5, "decay_by_lr": False}},
            "optimizer weight_decay is 1.5, and is not multiplied by lr; need less than 1, or decay_by_lr: true",
        ),
        (
            {"optimizer": {"kind": "ftrl", "initial_accumulator_value": 0}},
            "optimizer ftrl divides by sqrt(sum) + beta, and both begin at 0; give initial_accumulator_value or beta",
        ),
        ({"optimizer": {"kind": "ftrl", "l1": -1}}, "optimizer l1 is -1, need at least 0"),
        (
            {"dtype": "float64", "optimizer": {"kind": "adam", "state_dtype": "float32"}},
            "optimizer state_dtype is float32, rows are float64; their state is float64 too",
        ),
        (
            {"optimizer": {"kind": "adam", "step": "per_row", "state_dtype": "bfloat16"}},
            "optimizer step is per_row, and state_dtype bfloat16 counts to 256 only; take state_dtype: float32, "
            "or step: table",
        ),
        (
            {"optimizer": {"kind": "adam", "schedule": {"decay": "cosine"}}},
            "optimizer: schedule decays until total_steps None, need more than warmup_steps 0",
        ),
        (
            {"optimizer": {"kind": "adam", "schedule": {"decay": "step"}}},
            "optimizer: schedule decays by step, and every is None; need at least 1",
        ),
        (
            {"optimizer": {"kind": "adam", "schedule": {"decay": "step", "every": 5, "gamma": 0}}},
            "optimizer: schedule gamma is 0, need more than 0 and at most 1",
        ),
        (
            {"optimizer": {"kind": "adam", "schedule": {"every": 5}}},
            "optimizer: schedule every is given, and decay is constant; write decay: step",
        ),
        (
            {"optimizer": {"kind": "adam", "schedule": {"decay": "step", "every": 5, "total_steps": 9}}},
            "optimizer: schedule total_steps is given, and decay is step; write decay: linear or cosine",
        ),
        (
            {"optimizer": {"kind": "adam", "schedule": {"floor": 2}}},
            "optimizer: schedule floor is 2, need 0 to 1",
        ),
        (FROZEN | {"optimizer": "adam"}, "optimizer is given, and trainable is false; drop one of them"),
        (FROZEN | {"grad_reduce": "mean"}, "grad_reduce is given, and trainable is false; drop one of them"),
        (
            {"dtype": "int8"},
            "rows of int8 cannot be trained; write trainable: false, or take dtype: float32",
        ),
        (
            FROZEN | {"dtype": "int8", "initializer": "uniform"},
            "initializer is uniform, and rows are int8; take a constant that they can hold",
        ),
        (
            FROZEN | {"dtype": "int8", "initializer": {"kind": "constant", "value": 128}},
            "initializer is 128, and rows are int8; take a constant that they can hold",
        ),
        (
            FROZEN | {"dtype": "int64", "initializer": {"kind": "constant", "value": 0.5}},
            "initializer is 0.5, and rows are int64; take a constant that they can hold",
        ),
    ],
)
def test_what_contradicts_in_a_table_is_named(table: dict[str, Any], problem: str) -> None:
    (found,) = problems_of(settings(table))
    assert found in (f"table 'a': {problem}", f"table 'a' {problem}")


@pytest.mark.parametrize(
    ("feature", "problem"),
    [
        ({"pooling": "tile"}, "feature 'a' has pooling tile, and tile_length is None; need at least 1"),
        ({"pooling": "tile", "tile_length": 0}, "feature 'a' has pooling tile, and tile_length is 0; need at least 1"),
        ({"tile_length": 3}, "feature 'a' has a tile_length, and pooling is 'sum'; write pooling: tile, or drop it"),
        (
            {"pooling": "tile", "tile_length": 3, "weights": "w"},
            "feature 'a' has pooling tile and weights; weights are for sum, mean and sqrtn, or for pooling: none",
        ),
    ],
)
def test_what_contradicts_in_pooling_is_named(feature: dict[str, Any], problem: str) -> None:
    assert problems_of(settings({}, **feature)) == [problem]


@pytest.mark.parametrize("feature", [{"pooling": "mean"}, {"pooling": "sqrtn"}, {"weights": "w"}])
def test_integers_are_not_averaged_or_weighed(feature: dict[str, Any]) -> None:
    for dtype in ("int32", "int64"):
        (found,) = problems_of(settings(FROZEN | {"dtype": dtype}, **feature))
        assert found.startswith("feature 'a' has ")
        assert f"and table 'a' holds {dtype}, which models get as they are; pool them by sum or tile" in found
    Schema.from_dict(settings(FROZEN | {"dtype": "int8"}, **feature))


def test_an_optimizer_with_all_its_options_is_read() -> None:
    options = {"kind": "adamw", "lr": "1e-3", "decay_by_lr": False, "eps_placement": "corrected", "step": "per_row"}
    schedule = {"warmup_steps": 10, "decay": "step", "every": 100, "gamma": 0.5}
    schema = Schema.from_dict(settings({"optimizer": options | {"schedule": schedule}}))
    optimizer = schema.table("a").optimizer
    assert optimizer == AdamW(
        lr=1e-3,
        decay_by_lr=False,
        eps_placement="corrected",
        step="per_row",
        schedule=Schedule(warmup_steps=10, decay="step", every=100, gamma=0.5),
    )
    assert Schema.from_dict(schema.to_dict()) == schema


def test_a_tile_is_as_wide_as_its_rows_together() -> None:
    schema = Schema.from_dict(settings({}, pooling="tile", tile_length=3))
    assert schema.width_of(schema.feature("a")) == 12


def test_a_schedule_by_steps_falls_after_each_of_them() -> None:
    schedule = Schedule(warmup_steps=2, decay="step", every=3, gamma=0.5, floor=0.1)
    assert [schedule.factor(step) for step in range(9)] == pytest.approx(
        [1 / 3, 2 / 3, 1, 1, 1, 0.55, 0.55, 0.55, 0.325]
    )


def test_the_example_of_the_documentation_is_whole() -> None:
    text = (Path(__file__).parents[1] / "docs" / "optimizers.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    schema = Schema.from_dict(yaml.safe_load(example))
    assert schema.table("user").optimizer.schedule == Schedule(warmup_steps=1000)
    assert schema.width_of(schema.feature("words")) == 24
