"""What the documentation shows is what there is."""

import re
from pathlib import Path

import torch
import yaml

from recis_lightning.cli import checkpoint, plan
from recis_lightning.cli.tables import _parser
from recis_lightning.schema import INITIALIZERS, Schema
from recis_lightning.schema.policies import ADMISSIONS, EVICTIONS
from recis_lightning.training.warm_start import WarmStart
from triton_ops.transform import modulo

DOCS = Path(__file__).parents[1] / "docs"
TABLES = Path(__file__).parents[1].joinpath("docs/tables.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_declared_tables_of_the_docs_are_tables() -> None:
    (declared,) = blocks(TABLES, "yaml")
    tables = yaml.safe_load(declared)["tables"]
    names = ["item", "user", "shop"]
    schema = {
        "columns": [{"name": name, "dtype": "int64"} for name in names],
        "features": [{"name": name, "table": name} for name in names],
        "tasks": [],
    }
    assert [table.name for table in Schema.from_dict(schema | {"tables": tables}).tables] == names


def test_commands_of_the_docs_parse() -> None:
    lines = [line for block in blocks(TABLES, "bash") for line in block.splitlines()]
    assert len(lines) == 6
    for line in lines:
        words = line.split("#")[0].split()
        assert words[:2] == ["recis", "tables"]
        _parser().parse_args(words[2:])


def test_every_kind_is_told_of() -> None:
    for kind in (*INITIALIZERS, *ADMISSIONS, *EVICTIONS):
        assert f"`{kind}`" in TABLES


def test_the_modulo_for_ids_of_recis_keeps_the_bits_that_recis_keeps() -> None:
    (divisor,) = map(int, re.findall(r"kind: modulo, divisor: (\d+)", TABLES))
    ids = torch.tensor([0, 5, -1, 2**52, 2**52 + 7, -(2**63), 2**63 - 1])
    assert torch.equal(modulo([ids], [divisor])[0], ids & (2**52 - 1))


def test_entries_of_a_warm_start_in_the_docs_are_entries() -> None:
    for page in (DOCS / "checkpoints.md", DOCS.parent / "README.md"):
        (declared,) = [block for block in blocks(page.read_text(), "yaml") if "warm_start" in block]
        entries = yaml.safe_load(declared)["model"]["warm_start"]
        assert len(entries) >= 2
        assert all(WarmStart(**entry).path for entry in entries)


def test_commands_about_checkpoints_and_plans_parse() -> None:
    makers = {"checkpoint": checkpoint.make_parser, "plan": plan.make_parser}
    for page, count in (("checkpoints.md", 3), ("plan.md", 3)):
        lines = [line for block in blocks((DOCS / page).read_text(), "bash") for line in block.splitlines()]
        assert len(lines) == count
        for line in lines:
            recis, command, *words = line.split("#")[0].split()
            assert recis == "recis"
            makers[command]().parse_args(words)
