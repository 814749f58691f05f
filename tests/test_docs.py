"""What the documentation shows is what there is."""

import importlib
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from recis_lightning.cli import checkpoint, main, plan
from recis_lightning.cli.tables import _parser
from recis_lightning.data.datamodule import OrcDataModule
from recis_lightning.data.synthetic.schema import synthesize
from recis_lightning.schema import INITIALIZERS, Schema
from recis_lightning.schema.policies import ADMISSIONS, EVICTIONS
from recis_lightning.training import RecModule
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


@pytest.fixture
def models_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The recipe of docs/models.md with data made for it, in a folder that holds the page's modules."""
    text = (DOCS / "models.md").read_text()
    for module in blocks(text, "python"):
        name = re.match(r"# (\w+\.py)\n", module)
        assert name is not None
        (tmp_path / name[1]).write_text(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe: dict[str, Any] = yaml.safe_load(blocks(text, "yaml")[0])
    for split, (name, rows) in enumerate({"train": 320, "validation": 160}.items()):
        synthesize(Schema.from_dict(recipe["data"]["schema"]), tmp_path / name, rows, split=split)
        recipe["data"][name] = name
    recipe["data"]["batch_size"] = 64
    return recipe


def test_a_network_of_your_own_as_the_docs_have_it_trains(models_page: dict[str, Any], tmp_path: Path) -> None:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1, "max_epochs": 1}
    Path("recipe.yaml").write_text(yaml.safe_dump(models_page | {"trainer": quiet}))
    assert main(["fit", "--config", "recipe.yaml"]) == 0
    logged = json.loads(Path("runs/version_0/metrics.json").read_text())["last"]
    assert 0 < logged["val/gauc"] < 1
    assert {"train/loss", "val/auc", "val/ne", "val/calibration", "sparse/item/rows"} <= set(logged)


def test_a_loss_of_your_own_as_the_docs_have_it_is_trained_on(models_page: dict[str, Any]) -> None:
    own: Any = importlib.import_module("my_losses")
    network = importlib.import_module("my_models").History
    data = OrcDataModule(**models_page["data"])
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    losses = []
    for kind in (own.FocalModule, RecModule):
        torch.manual_seed(0)
        losses.append(kind(data.schema, network=partial(network, hidden=[8])).training_step(batch, 0).item())
    data.teardown("fit")
    assert 0.2 < losses[0] / losses[1] < 0.35  # a quarter where all scores are a half, as they nearly are at first


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
