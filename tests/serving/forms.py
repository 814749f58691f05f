"""A schema with every transform that a model can be exported with, and rows for it."""

import random
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from recis_lightning.ragged import Ragged
from recis_lightning.schema import Schema

SETTINGS: dict[str, Any] = {
    "columns": [
        {"name": "click", "dtype": "float32"},
        {"name": "{user,item}", "dtype": "int64"},
        {"name": "now", "dtype": "int64", "default": 0},
        {"name": "device", "dtype": "string", "hash": "xxh64"},
        {"name": "{price,age}", "dtype": "float32", "default": 1},
        {"name": "{items,times,words,title,numbers}", "dtype": "int64", "layout": "list"},
        {"name": "weights", "dtype": "float32", "layout": "list"},
        {"name": "keys", "dtype": "string", "hash": "murmur", "layout": "list"},
        {"name": "{values,image,picture}", "dtype": "float32", "layout": "list"},
    ],
    "sequences": [{"name": "history", "columns": ["items", "times", "weights"], "length": 2}],
    "tables": [
        {"name": "{user,device,small,crossed,items,gap,words,hashed,mine}", "dim": 4,
         "initializer": {"kind": "uniform", "low": -1, "high": 1}},
    ],
    "features": [
        {"name": "user", "table": "user"},
        {"name": "device", "table": "device",
         "transforms": [{"kind": "vocabulary", "values": ["d1", "d2", "d3"], "unknown": "drop"}]},
        {"name": "small", "column": "item", "table": "small", "transforms": ["hash", {"kind": "modulo", "divisor": 9}]},
        {"name": "bucket", "column": "age", "internal": True,
         "transforms": [{"kind": "bucketize", "boundaries": [0, 1, 2]}]},
        {"name": "crossed", "inputs": ["small", "bucket"], "table": "crossed", "transforms": ["cross"]},
        {"name": "crossed_items", "inputs": ["user", "items_of"], "table": "crossed", "weights": "inputs",
         "transforms": [{"kind": "cross", "max_ids": 8}, {"kind": "modulo", "divisor": 99}]},
        {"name": "items_of", "column": "items", "internal": True, "weights": "weights"},
        {"name": "items", "table": "items", "weights": "weights", "pooling": "none"},
        {"name": "first_words", "column": "words", "table": "words", "pooling": "sqrtn",
         "transforms": [{"kind": "truncate", "length": 1, "keep": "first"}]},
        {"name": "known_words", "column": "words", "table": "words", "pooling": "mean",
         "transforms": [{"kind": "vocabulary", "values": [3, 1, 2], "unknown": 5}]},
        {"name": "hashed", "column": "words", "table": "hashed", "transforms": [
            {"kind": "multi_hash", "buckets": [50, 60]}]},
        {"name": "gap", "inputs": ["times", "now"], "table": "gap",
         "transforms": [{"kind": "time_gap", "unit": 10}, {"kind": "bucketize", "boundaries": [-2, 0, 2]}]},
        *({"name": f"{measure}_of_words", "inputs": ["words", "title"],
           "transforms": [{"kind": "overlap", "measure": measure}]} for measure in ("count", "ratio", "contains")),
        {"name": "rate", "inputs": ["keys", "values"],
         "transforms": [{"kind": "lookup", "key": "k1", "missing": 0.5}]},
        {"name": "rates", "inputs": ["device", "numbers", "values"],
         "transforms": [{"kind": "lookup", "missing": "drop"}, {"kind": "reduce", "how": "mean", "empty": -1.0}]},
        *({"name": f"{how}_of_values", "column": "values", "transforms": [{"kind": "reduce", "how": how}]}
          for how in ("sum", "min", "max", "count", "first", "last")),
        {"name": "image", "transforms": [{"kind": "vector", "dim": 2}]},
        {"name": "picture", "transforms": [{"kind": "vector", "dim": 3, "fill": 0.5}]},
        {"name": "price", "transforms": ["log1p", {"kind": "z_score", "mean": 0.5, "std": 2}]},
        {"name": "share", "column": "price", "transforms": [{"kind": "quantile", "knots": [0, 1, 1, 5]}]},
        {"name": "ranged", "column": "price", "transforms": [{"kind": "min_max", "low": 0, "high": 9}, {
            "kind": "clip", "low": 0, "high": 0.5}]},
        {"name": "scaled", "inputs": ["price", "age"], "transforms": [
            {"kind": "custom", "class_path": "tests.serving.forms.Scale", "init_args": {"factor": 3.0}}]},
        {"name": "mine", "column": "words", "table": "mine", "transforms": [
            {"kind": "custom", "class_path": "tests.serving.forms.halve", "takes": "ids", "gives": "ids",
             "form": "rows"}]},
    ],
    "tasks": [{"name": "ctr", "label": "click"}],
}  # fmt: skip


def settings_of(*features: dict[str, Any]) -> dict[str, Any]:
    """The settings with these features alone."""
    used = {feature.get("table") for feature in features}
    tables = [{"name": name, "dim": 4} for name in sorted(used - {None})]
    return SETTINGS | {"features": list(features), "tables": tables, "sequences": []}


TYPES = {
    "user": pa.int64(),
    "item": pa.int64(),
    "now": pa.int64(),
    "device": pa.string(),
    "price": pa.float32(),
    "age": pa.float32(),
    "items": pa.list_(pa.int64()),
    "times": pa.list_(pa.int64()),
    "weights": pa.list_(pa.float32()),
    "words": pa.list_(pa.int64()),
    "title": pa.list_(pa.int64()),
    "keys": pa.list_(pa.string()),
    "numbers": pa.list_(pa.int64()),
    "values": pa.list_(pa.float32()),
    "image": pa.list_(pa.float32()),
    "picture": pa.list_(pa.float32()),
}


def make_rows(count: int, seed: int = 0, ids: int = 40) -> dict[str, list[Any]]:
    """Rows as the scorer takes them; values are missing and lists empty, ids reach to the ends of int64."""
    draw = random.Random(seed)

    def maybe(value: Any) -> Any:
        return None if draw.random() < 0.2 else value

    def some_id() -> int:
        return draw.choice([-(2**63), 2**63 - 1, -1]) if draw.random() < 0.1 else draw.randrange(ids)

    def some(make: Any, most: int = 4) -> list[Any]:
        return [make() for _ in range(draw.randrange(most + 1))]

    items, values = [some(some_id) for _ in range(count)], [some(draw.random) for _ in range(count)]
    return {
        "user": [maybe(some_id()) for _ in range(count)],
        "item": [maybe(some_id()) for _ in range(count)],
        "now": [maybe(draw.randrange(100)) for _ in range(count)],
        "device": [maybe(f"d{draw.randrange(6)}") for _ in range(count)],
        "price": [maybe(draw.random() * 9) for _ in range(count)],
        "age": [maybe(draw.random() * 4 - 1) for _ in range(count)],
        "items": items,
        "times": [[draw.randrange(100) for _ in row] for row in items],
        "weights": [[draw.random() for _ in row] for row in items],
        "words": [some(some_id) for _ in range(count)],
        "title": [some(some_id) for _ in range(count)],
        "keys": [[f"k{draw.randrange(3)}" for _ in row] for row in values],
        "numbers": [[draw.randrange(4) for _ in row] for row in values],
        "values": values,
        "image": [[draw.random(), draw.random()] for _ in range(count)],
        "picture": [[draw.random()] * 3 if draw.random() < 0.7 else [] for _ in range(count)],
    }


class Scale(nn.Module):
    """A transform with a weight that is trained."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, price: Tensor, age: Tensor) -> Tensor:
        return self.factor * price.sin() + age


def halve(rows: Ragged) -> Ragged:
    """A transform that is a function."""
    return rows.with_values(rows.values // 2)


def branch(price: Tensor) -> Tensor:
    """A transform that no graph can hold."""
    return price if price.sum().item() > 0 else -price


class Network(nn.Module):
    """Reads vectors of all widths, and a sequence."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.embedded = [feature.name for feature in schema.embedded_features]
        self.dense = [feature.name for feature in schema.dense_features]
        self.heads = nn.ModuleDict({each.name: nn.Linear(schema.width_of(each), 1) for each in schema.dense_features})
        self.head = nn.Linear(4, 1)

    def forward(self, inputs: Any) -> dict[str, Tensor]:
        logits = [self.heads[name](inputs[name]) for name in self.dense]
        for name in self.embedded:
            entry = inputs[name]
            if isinstance(entry, Ragged):
                rows = torch.repeat_interleave(torch.arange(len(entry)), entry.lengths, output_size=len(entry.values))
                weighted = entry.values * entry.weights[:, None]
                entry = torch.zeros(len(entry), 4).index_add(0, rows, weighted)
            logits.append(self.head(entry))
        return {"ctr": torch.stack(logits).mean(0)[:, 0]}
