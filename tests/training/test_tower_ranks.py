"""A language model on several ranks, beside tables that these share: the same losses and weights as on one."""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from recis_lightning.data.datamodule import OrcDataModule
from recis_lightning.data.synthetic.schema import synthesize
from recis_lightning.schema import Schema
from recis_lightning.training import RecModule
from tests.ranks import run_trainers
from tests.towers.tiny import BERT
from tests.training.helpers import Losses, SmallNet, make_schema, make_trainer

LORA = {"train": "lora", "lora": {"rank": 2, "targets": ["query", "value"]}, "lr": 0.05, "empty": "learned"}
FULL = {"train": "full", "lr": 0.01}
FSDP2 = "recis_sharded_fsdp2"
ROWS, BATCH = 150, 24  # the last of 7 batches is short


def schema_of(tower: dict[str, Any]) -> Schema:
    """A user's table, and lists of tokens that go through a tower."""
    settings = make_schema(dtype="float64").to_dict()
    settings["tables"] = [table for table in settings["tables"] if table["name"] == "user"]
    settings["features"] = [{"name": "user", "table": "user"}, {"name": "items", "tower": "text"}, {"name": "age"}]
    settings["towers"] = [{"name": "text", "dim": 3, "model": BERT} | tower]
    return Schema.from_dict(settings)


def fit(
    data: str,
    root: str,
    devices: int,
    tower: dict[str, Any],
    strategy: str = "recis_sharded",
    ckpt_path: str | None = None,
    stop: int | None = None,
) -> dict[str, Any]:
    """What a fit of two epochs gives on this rank: losses and trained weights, and what share of texts was computed.

    With ``stop`` it is left behind this many batches, and saved as <root>/stopped.ckpt.
    """
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    schema, losses = schema_of(tower), Losses()
    torch.manual_seed(0)
    optimizer = partial(torch.optim.Adam, lr=0.02)
    module = RecModule(schema, network=partial(SmallNet, dropout=0.0), dense_optimizer=optimizer)
    options: dict[str, Any] = {} if stop is None else {"max_steps": stop}
    trainer = make_trainer(root, losses, devices=devices, precision="64-true", strategy=strategy, **options)
    trainer.fit(module, OrcDataModule(schema, train=data, batch_size=BATCH, streams=12), ckpt_path=ckpt_path)
    if stop is not None:
        trainer.save_checkpoint(f"{root}/stopped.ckpt")
    trained = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    return {
        "losses": list(losses.by_batch.values()),
        "weights": {name: whole(weight) for name, weight in trained.items()},
        "share": {name: share_here(weight) for name, weight in trained.items()},
        "last": trainer.callback_metrics["towers/text/computed"].item(),
    }


def whole(weight: Any) -> torch.Tensor:
    """All of a weight that may be cut over the ranks."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight.clone()


def share_here(weight: torch.Tensor) -> float:
    """What part of a weight's numbers this rank holds."""
    return weight.to_local().numel() / weight.numel() if isinstance(weight, DTensor) else 1.0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    synthesize(schema_of({}), folder, ROWS)
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "strategy"),
    [("lora", "recis_sharded"), ("lora", FSDP2), ("frozen and cached", "recis_sharded")],
)
def test_two_ranks_train_a_tower_as_one_does(kind: str, strategy: str, data: str, tmp_path: Path) -> None:
    one = fit(data, str(tmp_path / "one"), 1, LORA if kind == "lora" else {})
    tower = LORA if kind == "lora" else {"cache": str(tmp_path / "cache")}
    ranks = run_trainers(2, fit, data, str(tmp_path / "two"), 2, tower, strategy)
    close = partial(torch.testing.assert_close, rtol=0.0, atol=1e-10)
    means = torch.tensor([rank["losses"] for rank in ranks], dtype=torch.float64).mean(0)
    close(means, torch.tensor(one["losses"], dtype=torch.float64))
    assert any("lora_" in name for name in one["weights"]) == (kind == "lora")
    for rank in ranks:
        for name, weight in one["weights"].items():
            close(rank["weights"][name], weight, msg=name)
    if kind != "lora":
        assert one["last"] > 0
        assert [rank["last"] for rank in ranks] == [0.0, 0.0]  # both had written what the other needed later


@pytest.mark.parametrize("tower", [LORA, FULL], ids=["lora", "full"])
def test_a_tower_that_fsdp2_cuts_comes_back_on_as_many_ranks_and_on_one(
    tower: dict[str, Any], data: str, tmp_path: Path
) -> None:
    expected = fit(data, str(tmp_path / "whole"), 1, tower)
    stopped = run_trainers(2, fit, data, str(tmp_path), 2, tower, FSDP2, None, 5)
    for name in expected["weights"]:
        shares = [rank["share"][name] for rank in stopped]
        assert sum(shares) == 1, f"{name} lies on the ranks in parts {shares}"
    of_model = [name for name in expected["weights"] if "backbone" in name]
    assert len(of_model) > 5
    assert all(rank["share"][name] == 0.5 for rank in stopped for name in of_model)
    path = str(tmp_path / "stopped.ckpt")
    on_two = run_trainers(2, fit, data, str(tmp_path / "two"), 2, tower, FSDP2, path)
    on_one = fit(data, str(tmp_path / "one"), 1, tower, "recis_sharded", path)
    for ranks in (on_two, [on_one]):
        means = torch.tensor([rank["losses"] for rank in ranks], dtype=torch.float64).mean(0)
        torch.testing.assert_close(means.tolist(), expected["losses"][5:], rtol=0.0, atol=1e-10)
        for rank in ranks:
            for name, weight in expected["weights"].items():
                torch.testing.assert_close(rank["weights"][name], weight, rtol=0.0, atol=1e-10, msg=name)
