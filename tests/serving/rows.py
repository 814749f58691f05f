"""A model with one of every form of input, and rows for it: as lists for the scorer, as ORC for the data module."""

import random
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from pyarrow import orc
from torch import Tensor, nn

from recis_lightning.data.datamodule import OrcDataModule
from recis_lightning.models import DeepFM
from recis_lightning.ragged import Batch
from recis_lightning.ragged_ops import segment_reduce
from recis_lightning.schema import Schema
from recis_lightning.training import RecModule

SETTINGS: dict[str, Any] = {
    "columns": [
        {"name": "click", "dtype": "float32"},
        {"name": "user", "dtype": "int64"},
        {"name": "shop", "dtype": "int32", "default": 3},
        {"name": "city", "dtype": "string", "hash": "farm"},
        {"name": "page", "dtype": "string", "hash": "murmur", "layout": "optional_list"},
        {"name": "code", "dtype": "string", "parse": "int64"},
        {"name": "tags", "dtype": "int64", "layout": "list"},
        {"name": "tag_weights", "dtype": "float32", "layout": "list"},
        {"name": "words", "dtype": "string", "hash": "farm", "layout": "list"},
        {"name": "price", "dtype": "float64", "default": -1},
        {"name": "age", "dtype": "int32", "layout": "optional_list", "default": 0},
        {"name": "rate", "dtype": "string", "parse": "float32", "default": 0.5},
    ],
    "tables": [
        {
            "name": "{user,shop,city,page,code,tags,words,price,recent}",
            "dim": 4,
            "initializer": {"kind": "uniform", "low": -1, "high": 1},
        },
    ],
    "features": [
        {"name": "{shop,city,page,code}", "table": "{shop,city,page,code}"},
        {"name": "user", "table": "user", "transforms": [{"kind": "modulo", "divisor": 50}]},
        {"name": "tags", "table": "tags", "weights": "tag_weights", "pooling": "mean"},
        {"name": "recent", "column": "tags", "table": "recent", "pooling": "sqrtn"},
        {"name": "words", "table": "words", "pooling": "mean"},
        {"name": "price_bucket", "column": "price", "table": "price", "transforms": [
            {"kind": "bucketize", "boundaries": [0, 1, 2, 5]}]},
        {"name": "price", "transforms": [{"kind": "clip", "low": 0}, {"kind": "log1p"}]},
        {"name": "age"},
        {"name": "rate"},
    ],
    "tasks": [{"name": "ctr", "label": "click"}, {"name": "value", "label": "click", "loss": "mse"}],
}  # fmt: skip

TYPES = {
    "user": pa.int64(),
    "shop": pa.int32(),
    "city": pa.string(),
    "page": pa.list_(pa.string()),
    "code": pa.string(),
    "tags": pa.list_(pa.int64()),
    "tag_weights": pa.list_(pa.float32()),
    "words": pa.list_(pa.string()),
    "price": pa.float64(),
    "age": pa.list_(pa.int32()),
    "rate": pa.string(),
}


def make_rows(count: int, seed: int = 0, ids: int = 40) -> dict[str, list[Any]]:
    """Rows as the scorer takes them; one value in five is missing, ids reach to the ends of int64."""
    draw = random.Random(seed)
    extremes = [-(2**63), 2**63 - 1, -1, 0]

    def maybe(value: Any) -> Any:
        return None if draw.random() < 0.2 else value

    def some_id() -> int:
        return draw.choice(extremes) if draw.random() < 0.2 else draw.randrange(ids)

    def word() -> str:
        return draw.choice(["", "a", "Łódź", "日本", "x" * 70]) + str(draw.randrange(ids))

    tags = [[some_id() for _ in range(draw.randrange(4))] for _ in range(count)]
    return {
        "user": [maybe(some_id()) for _ in range(count)],
        "shop": [maybe(draw.randrange(5)) for _ in range(count)],
        "city": [maybe(word()) for _ in range(count)],
        "page": [maybe([word()]) for _ in range(count)],
        "code": [maybe(str(some_id())) for _ in range(count)],
        "tags": tags,
        "tag_weights": [[draw.random() for _ in row] for row in tags],
        "words": [maybe([word() for _ in range(draw.randrange(3))]) for _ in range(count)],
        "price": [maybe(draw.random() * 9 - 1) for _ in range(count)],
        "age": [maybe([draw.randrange(90)]) for _ in range(count)],
        "rate": [maybe(f"{draw.random():.4f}") for _ in range(count)],
    }


def write_rows(rows: dict[str, list[Any]], path: Path, types: Mapping[str, pa.DataType] = TYPES) -> Path:
    arrays = [pa.array(values, types[name]) for name, values in rows.items()]
    orc.write_table(pa.table(arrays, names=list(rows)), path)
    return path


def read_batches(schema: Schema, path: Path, batch_size: int = 64) -> list[Batch]:
    data = OrcDataModule(schema, predict=path, batch_size=batch_size)
    data.setup("predict")
    batches = [batch.with_buffer(batch.buffer.clone()) for batch in data.predict_dataloader()]
    data.teardown("predict")
    return batches


def predict(module: RecModule, batches: list[Batch]) -> dict[str, Tensor]:
    module.eval()
    with torch.no_grad():
        scores = [module.predict_step(batch, 0) for batch in batches]
    return {task: torch.cat([each[task] for each in scores]) for task in scores[0]}


def trained_module(folder: Path, schema: Schema | None = None, network: Any = None) -> RecModule:
    """A module that has rows for the ids of seed 0."""
    schema = schema or Schema.from_dict(SETTINGS)
    torch.manual_seed(0)
    module = RecModule(schema, network=network or partial(DeepFM, hidden=[8], dropout=0.5))
    module.train()
    for batch in read_batches(schema, write_rows(make_rows(300), folder / "seen.orc")):
        module(batch)
    return module


class WideNet(nn.Module):
    """Reads vectors of any width and dtype."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.names = [feature.name for feature in schema.embedded_features]
        width = sum(schema.width_of(feature) for feature in schema.embedded_features)
        self.head = nn.Linear(width, len(schema.tasks))
        self.tasks = [task.name for task in schema.tasks]

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        vectors_BI = torch.cat([inputs[name].float() for name in self.names], dim=1)
        return dict(zip(self.tasks, self.head(vectors_BI).unbind(1), strict=True))


class SequenceNet(nn.Module):
    """Reads sequences and weights: for features that are not pooled."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.names = [feature.name for feature in schema.embedded_features]
        self.head = nn.Linear(4, len(schema.tasks))
        self.tasks = [task.name for task in schema.tasks]

    def forward(self, inputs: Any) -> dict[str, Tensor]:
        pooled = [segment_reduce(inputs[name]) if name == "tags" else inputs[name] for name in self.names]
        logits = self.head(torch.stack(pooled).sum(0))
        return dict(zip(self.tasks, logits.unbind(1), strict=True))
