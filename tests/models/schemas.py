"""Small schemas for model tests, and inputs that fit them."""

from typing import Any

import torch

from recis_lightning.schema import Schema


def make_schema(dims: dict[str, int], dense: int = 2, tasks: tuple[str, ...] = ("ctr",), **options: Any) -> Schema:
    """Embedded features of given dims, dense features d1, d2, ..., and tasks with a label each."""
    columns: list[dict[str, Any]] = [{"name": name, "dtype": "int64"} for name in dims]
    columns += [{"name": f"d{index + 1}", "dtype": "float32"} for index in range(dense)]
    columns += [{"name": f"{task}_label", "dtype": "float32"} for task in tasks]
    return Schema.from_dict(
        {
            "columns": columns,
            "tables": [{"name": name, "dim": dim} for name, dim in dims.items()],
            "features": [{"name": name, "table": name} | options for name in dims]
            + [{"name": f"d{index + 1}"} for index in range(dense)],
            "tasks": [{"name": task, "label": f"{task}_label"} for task in tasks],
        }
    )


def make_inputs(schema: Schema, rows: int = 5, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """Random pooled embeddings [B, D] in ``dtype`` and dense features [B, 1] in float32, as a batch carries them."""
    generator = torch.Generator().manual_seed(rows)
    inputs = {
        feature.name: torch.randn(rows, schema.table(feature.table or "").dim, generator=generator, dtype=dtype)
        for feature in schema.embedded_features
    }
    return inputs | {
        feature.name: torch.randn(rows, 1, generator=generator, dtype=torch.float32)
        for feature in schema.dense_features
    }
