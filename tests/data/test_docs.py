"""What docs/data.md shows is what is read."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from recis_lightning.data.row_filter import RowFilter
from recis_lightning.schema import Schema

TEXT = Path(__file__).resolve().parents[2].joinpath("docs/data.md").read_text()
COLUMNS = [match.replace("\\|", "|") for match in re.findall(r"^\|[^|]*(?:\\\|[^|]*)*\| `(\{.*?\})`", TEXT, re.M)]
BLOCKS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.S)]


def test_there_are_columns_and_blocks() -> None:
    assert len(COLUMNS) >= 12
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_of_the_table_is_a_declaration(column: str) -> None:
    assert Schema.from_dict({"columns": [yaml.safe_load(column)]}).columns


def test_the_blocks_are_settings() -> None:
    merged: dict[str, Any] = {}
    for block in BLOCKS:
        merged |= block.get("data", block)
    assert RowFilter.parse(merged["filter"]) is not None
    assert set(merged["mix"]) == set(merged["train"])
    declared = {"columns": merged["columns"], "features": merged["features"], "tables": [{"name": "tags", "dim": 4}]}
    assert Schema.from_dict(declared).features[0].weights == "tag_weights"
