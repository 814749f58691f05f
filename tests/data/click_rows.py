"""Small ORC data whose every value tells the number of its row, for the tests of this folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import orc

from recis_lightning.schema import Schema


def write_stripes(path: Path, stripes: Sequence[pa.Table]) -> Path:
    """Write one ORC file with one stripe for each table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The writer ends a stripe at a batch's end once it is large enough; one byte always is.
    with orc.ORCWriter(path, stripe_size=1, batch_size=max(1, *(len(stripe) for stripe in stripes))) as writer:
        for stripe in stripes:
            writer.write(stripe)
    return path


def read_stripe_rows(path: Path) -> list[int]:
    file = orc.ORCFile(path)
    return [file.read_stripe(stripe).num_rows for stripe in range(file.nstripes)]


def click_schema(**changes: Any) -> Schema:
    """One of everything: a label, a dense value with and one without default, ids, strings, lists and weights."""
    settings: dict[str, Any] = {
        "columns": [
            {"name": "label", "dtype": "float32"},
            {"name": "price", "dtype": "float32", "default": -1.0},
            {"name": "user", "dtype": "int64"},
            {"name": "city", "dtype": "string", "hash": "farm"},
            {"name": "items", "dtype": "int64", "layout": "list"},
            {"name": "item_weights", "dtype": "float32", "layout": "list"},
        ],
        "tables": [{"name": name, "dim": 4} for name in ("user", "city", "items")],
        "features": [
            {"name": "price"},
            {"name": "user", "table": "user"},
            {"name": "city", "table": "city"},
            {"name": "items", "table": "items", "weights": "item_weights"},
        ],
        "tasks": [{"name": "ctr", "label": "label"}],
    }
    return Schema.from_dict(settings | changes)


def click_rows(first: int, count: int) -> pa.Table:
    """Rows whose every value tells the number of the row; one in three or so is missing."""
    numbers = range(first, first + count)
    lists = [[n * 10 + k for k in range(n % 4)] if n % 5 else None for n in numbers]
    return pa.table(
        {
            "label": pa.array([float(n % 2) for n in numbers], pa.float32()),
            "price": pa.array([None if n % 3 == 0 else n / 2 for n in numbers], pa.float32()),
            "user": pa.array([None if n % 4 == 1 else n for n in numbers], pa.int64()),
            "city": pa.array([None if n % 7 == 2 else f"city {n}" for n in numbers], pa.string()),
            "items": pa.array(lists, pa.list_(pa.int64())),
            "item_weights": pa.array(
                [None if row is None else [value / 8 for value in row] for row in lists], pa.list_(pa.float32())
            ),
        }
    )
