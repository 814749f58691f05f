"""Training on several ranks: the same losses, weights and rows as on one, and checkpoints that fit any number."""

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision

from recis_lightning.data.datamodule import OrcDataModule
from recis_lightning.data.synthetic_schema import synthesize
from recis_lightning.schema import Schema
from recis_lightning.training import RecModule
from recis_lightning.training.callbacks import RunInterrupted
from recis_lightning.training.checkpoint import load_checkpoint
from recis_lightning.training.dense_shards import whole
from tests.ranks import run_trainers
from tests.training.helpers import Losses, OnRank, SmallNet, make_schema, make_trainer

ROWS, BATCH = 250, 24  # the last of 11 batches is short, and leaves some ranks without a row
EXACT = {"rtol": 0.0, "atol": 1e-10}


def schema_of(kind: str, dtype: str) -> Schema:
    return make_schema(dtype=dtype, kind=kind, where="clicked")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    for split, rows in (("train", ROWS), ("valid", 50)):
        synthesize(make_schema(where="clicked"), folder / split, rows)
    return str(folder)


def fit(
    data: str,
    root: str,
    devices: int = 1,
    kind: str = "adagrad",
    dtype: str = "float64",
    ckpt_path: str | None = None,
    strategy: str = "recis_sharded",
    more: Sequence[Callback] = (),
    **options: Any,
) -> dict[str, Any]:
    """What a fit gives on this rank: losses, metrics, dense weights, and the rows that are here."""
    warnings.filterwarnings("ignore", message="The dirpath has changed")
    schema = schema_of(kind, dtype)
    torch.manual_seed(0)
    network = partial(SmallNet, dropout=0.0)
    optimizer = partial(torch.optim.SGD if kind == "sgd" else torch.optim.Adam, lr=0.02)
    module = RecModule(schema, network=network, dense_optimizer=optimizer, seed=0)
    losses = Losses()
    callbacks = [losses, ModelCheckpoint(dirpath=f"{root}/checkpoints", save_top_k=-1, save_last=True), *more]
    scale = options.pop("scale", None)
    if scale is not None:
        # bfloat16 is what Lightning makes of precision 16-mixed on CPUs; the scaler is the same.
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        options["plugins"] = [MixedPrecision("16-mixed", "cpu", scaler=scaler)]
    else:
        options["precision"] = "64-true" if dtype == "float64" else options.get("precision", "32-true")
    options = {"max_epochs": 1, "strategy": strategy, **options}
    trainer = make_trainer(root, *callbacks, devices=devices, **options)
    folders = {"train": f"{data}/train", "validation": f"{data}/valid"}
    datamodule = OrcDataModule(schema, **folders, batch_size=BATCH, streams=12, window_rows=60, prefetch=2)
    interrupted = None
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=ckpt_path)
    except RunInterrupted as stop:
        interrupted = stop.path, stop.code
    tables = {}
    for name, table in module.tables.items():
        part = table.export()
        tables[name] = {"ids": part.ids, "weight": part.weight, "count": part.count, **part.slots}
    return {
        "interrupted": interrupted,
        "scale": trainer.precision_plugin.scaler.get_scale() if scale is not None else 1.0,
        "losses": list(losses.by_batch.values()),
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "dense": {name: whole(value).clone() for name, value in module.network.state_dict().items()},
        "tables": tables,
    }


def assert_same(ranks: list[dict[str, Any]], one: dict[str, Any], rtol: float, atol: float) -> None:
    close = partial(torch.testing.assert_close, rtol=rtol, atol=atol)
    means = torch.tensor([rank["losses"] for rank in ranks], dtype=torch.float64).mean(0)
    close(means, torch.tensor(one["losses"], dtype=torch.float64))
    for rank in ranks:
        for name, value in one["metrics"].items():
            if name.startswith(("val/", "train/", "sparse/")) and not name.endswith("bytes"):
                assert rank["metrics"][name] == pytest.approx(value, rel=1e-5, abs=max(1e-6, 10 * atol)), name
        for name, weight in one["dense"].items():
            close(rank["dense"][name], weight)
    for name, expected in one["tables"].items():
        for key, value in expected.items():
            close(torch.cat([rank["tables"][name][key] for rank in ranks]), value)


@pytest.mark.parametrize(
    ("world_size", "options"),
    [
        (2, {"kind": "adam", "accumulate_grad_batches": 3}),
        (3, {"kind": "sgd", "gradient_clip_val": 0.05}),
    ],
)
def test_several_ranks_train_as_one(world_size: int, options: dict[str, Any], data: str, tmp_path: Path) -> None:
    one = fit(data, str(tmp_path / "one"), **options)
    ranks = run_trainers(world_size, partial(fit, **options), data, str(tmp_path / "more"), world_size)
    assert_same(ranks, one, **EXACT)
    assert all(rank["metrics"]["exchange/bytes"] > 0 for rank in ranks)


@pytest.mark.parametrize(
    "options", [{"kind": "adam", "accumulate_grad_batches": 3}, {"kind": "sgd", "gradient_clip_val": 0.05}]
)
def test_fsdp2_trains_as_one_rank_does(options: dict[str, Any], data: str, tmp_path: Path) -> None:
    one = fit(data, str(tmp_path / "one"), **options)
    fsdp2 = partial(fit, strategy="recis_sharded_fsdp2", **options)
    assert_same(run_trainers(2, fsdp2, data, str(tmp_path / "more"), 2), one, **EXACT)


def test_checkpoints_pass_between_fsdp2_and_ddp(data: str, tmp_path: Path) -> None:
    expected = fit(data, str(tmp_path / "whole"), max_steps=22, max_epochs=-1)
    last = partial("{}/checkpoints/last.ckpt".format)
    first = partial(fit, max_steps=5, max_epochs=-1, strategy="recis_sharded_fsdp2")
    run_trainers(2, first, data, str(tmp_path / "1"), 2)
    second = partial(fit, max_steps=12, max_epochs=-1, ckpt_path=last(tmp_path / "1"))
    run_trainers(2, second, data, str(tmp_path / "2"), 2)
    third = partial(fit, max_steps=22, max_epochs=-1, strategy="recis_sharded_fsdp2", ckpt_path=last(tmp_path / "2"))
    ranks = run_trainers(2, third, data, str(tmp_path / "3"), 2)
    assert_same(ranks, expected | {"losses": expected["losses"][12:]}, **EXACT)


def test_float32_differs_by_rounding_alone(data: str, tmp_path: Path) -> None:
    one = fit(data, str(tmp_path / "one"), dtype="float32")
    ranks = run_trainers(2, partial(fit, dtype="float32"), data, str(tmp_path / "more"), 2)
    assert_same(ranks, one, rtol=0, atol=1e-6)


@pytest.mark.parametrize("strategy", ["recis_sharded", "recis_sharded_fsdp2"])
@pytest.mark.parametrize("options", [{"precision": "bf16-mixed"}, {"scale": 2.0**126}])
def test_mixed_precision_and_a_loss_scaler_that_overflows_do_on_ranks_what_they_do_on_one(
    options: dict[str, Any], strategy: str, data: str, tmp_path: Path
) -> None:
    options = {"kind": "sgd", "dtype": "float32", **options}
    one = fit(data, str(tmp_path / "one"), **options)
    ranks = run_trainers(2, partial(fit, strategy=strategy, **options), data, str(tmp_path / "more"), 2)
    assert_same(ranks, one, rtol=0, atol=2e-3)
    assert all(rank["scale"] == one["scale"] for rank in ranks)
    if "scale" in options:
        assert one["scale"] < options["scale"]


def test_checkpoints_pass_from_one_rank_to_two_to_three_to_one(data: str, tmp_path: Path) -> None:
    expected = fit(data, str(tmp_path / "whole"), max_steps=44, max_epochs=-1)
    fit(data, str(tmp_path / "1"), max_steps=7, max_epochs=-1)
    last = partial("{}/checkpoints/last.ckpt".format)
    run_trainers(
        2, partial(fit, max_steps=15, max_epochs=-1, ckpt_path=last(tmp_path / "1")), data, str(tmp_path / "2"), 2
    )
    saved = load_checkpoint(last(tmp_path / "2"))
    assert (saved["global_step"], len(saved["random_states"])) == (15, 2)
    run_trainers(
        3, partial(fit, max_steps=31, max_epochs=-1, ckpt_path=last(tmp_path / "2")), data, str(tmp_path / "3"), 3
    )
    back = fit(data, str(tmp_path / "back"), max_steps=44, max_epochs=-1, ckpt_path=last(tmp_path / "3"))
    assert_same([back | {"losses": back["losses"][-13:]}], expected | {"losses": expected["losses"][-13:]}, **EXACT)


@pytest.mark.trap
def test_a_signal_to_one_rank_stops_and_saves_all_of_them(data: str, tmp_path: Path) -> None:
    expected = fit(data, str(tmp_path / "whole"))
    stop = OnRank(rank=1, batch=4, kind="sigterm")
    stopped = run_trainers(2, partial(fit, more=[stop]), data, str(tmp_path / "stopped"), 2)
    assert [rank["interrupted"] for rank in stopped] == [
        (str(tmp_path / "stopped/interrupted.ckpt"), status) for status in (130, 0)
    ]
    assert [len(rank["losses"]) for rank in stopped] == [5, 5]
    path = str(tmp_path / "stopped/interrupted.ckpt")
    back = run_trainers(2, partial(fit, ckpt_path=path), data, str(tmp_path / "back"), 2)
    assert_same(back, expected | {"losses": expected["losses"][5:]}, **EXACT)


def validate(data: str, root: str, devices: int) -> dict[str, Any]:
    """Fits, validates, tests and predicts with one Trainer; the rows that are here before and after."""
    schema = schema_of("adagrad", "float64")
    torch.manual_seed(0)
    module = RecModule(schema, network=partial(SmallNet, dropout=0.0), seed=0)
    folders = dict.fromkeys(("train", "validation", "test", "predict"), f"{data}/valid")
    trainer = make_trainer(root, devices=devices, precision="64-true", max_epochs=1)

    def rows() -> list[torch.Tensor]:
        return [table.export().weight for table in module.tables.values()]

    datamodule = partial(OrcDataModule, schema, **folders, batch_size=BATCH, streams=12)
    trainer.fit(module, datamodule=datamodule())
    before = rows()
    metrics = [trainer.validate(module, datamodule=datamodule(), verbose=False)[0]]
    metrics += [trainer.test(module, datamodule=datamodule(), verbose=False)[0]]
    scores = torch.cat([batch["ctr"] for batch in trainer.predict(module, datamodule=datamodule())])
    return {"before": before, "after": rows(), "metrics": metrics, "scores": scores}


@pytest.mark.trap
def test_evaluation_on_several_ranks_leaves_their_rows_and_gives_the_same(data: str, tmp_path: Path) -> None:
    one = validate(data, str(tmp_path / "one"), 1)
    ranks = run_trainers(3, validate, data, str(tmp_path / "three"), 3)
    for rank in ranks:
        assert all(map(torch.equal, rank["before"], rank["after"]))
        assert all(len(rows) for rows in rank["before"])
        assert rank["metrics"] == [pytest.approx(each, rel=1e-9) for each in one["metrics"]]
    torch.testing.assert_close(torch.cat([rank["scores"] for rank in ranks]), one["scores"], rtol=0, atol=1e-12)
