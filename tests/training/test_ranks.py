"""Training on several ranks: the same losses, weights and rows as on one, and checkpoints that fit any number."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision

from recis_lightning.data.datamodule import OrcDataModule
from recis_lightning.data.synthetic.schema import synthesize
from recis_lightning.schema import Schema
from recis_lightning.training import RecModule, ShardedStrategy
from recis_lightning.training.checkpoint import load_checkpoint
from recis_lightning.training.dense_shards import whole
from recis_lightning.training.interrupt import RunInterrupted
from tests.ranks import run_trainers
from tests.training.helpers import Losses, OnRank, SmallNet, make_schema, make_trainer

ROWS, BATCH = 242, 24  # the last of 11 batches has two rows, and leaves some ranks without one
EXACT = {"rtol": 0.0, "atol": 1e-10}
STRATEGIES = ("recis_sharded", "recis_sharded_fsdp2")
KINDS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
}


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
    strategy: str | dict[str, Any] = "recis_sharded",  # or options of a ShardedStrategy
    dropout: float = 0.0,
    more: Sequence[Callback] = (),
    **options: Any,
) -> dict[str, Any]:
    """What a fit gives on this rank: losses, metrics, dense weights, and the rows that are here."""
    warnings.filterwarnings("ignore", message="The dirpath has changed")
    schema = schema_of(kind, dtype)
    torch.manual_seed(0)
    network = partial(SmallNet, dropout=dropout)
    optimizer = partial(KINDS[kind], lr=0.02)
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
    strategy = ShardedStrategy(**strategy) if isinstance(strategy, dict) else strategy
    options = {"max_epochs": 1, "strategy": strategy, **options}
    trainer = make_trainer(root, *callbacks, devices=devices, **options)
    folders = {"train": f"{data}/train", "validation": f"{data}/valid"}
    datamodule = OrcDataModule(schema, **folders, batch_size=BATCH, streams=12, window_rows=60, prefetch=2)
    torch.manual_seed(1 + trainer.global_rank)  # each rank draws dropout of its own
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
        "dense": {name: whole(value).cpu().clone() for name, value in module.network.state_dict().items()},
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


# ------------------------------------------------------------------------- every combination, or every pair of settings

Outcome = dict[str, Any]
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"accumulate_grad_batches": 3},  # the last of four windows is short
    "clipping": {"gradient_clip_val": 0.05},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "fp16-scaler": {"scale": 2.0**126},  # so that the first steps overflow
}
EXACT_IN = {"float64": dict.fromkeys(KINDS, 1e-10), "float32": {"sgd": 1e-6, "adagrad": 1e-6, "adam": 1e-4}}
MIXED = {"sgd": 2e-3, "adagrad": 2e-2, "adam": 2e-2}  # a bfloat16 has 8 bits, and sums of other batches other last ones


@dataclass(frozen=True, kw_only=True)
class Case:
    """A fit on several ranks."""

    ranks: int
    strategy: str
    mode: str
    kind: str
    dtype: str

    def __str__(self) -> str:
        return "-".join(map(str, astuple(self)))

    @property
    def options(self) -> dict[str, Any]:
        """What is the same on one rank."""
        return {"kind": self.kind, "dtype": self.dtype, **MODES[self.mode]}

    @property
    def tolerance(self) -> float:
        return MIXED[self.kind] if "16" in self.mode else EXACT_IN[self.dtype][self.kind]


def every_case() -> list[Case]:
    """Autocast runs in float32, and the other modes in both."""
    factors = ((2, 4), STRATEGIES, MODES, KINDS, ("float64", "float32"))
    cases = [Case(**dict(zip(Case.__annotations__, each, strict=True))) for each in product(*factors)]
    return [case for case in cases if case.dtype == "float32" or "16" not in case.mode]


def pairwise(cases: list[Case]) -> list[Case]:
    """Few of the cases that have any two settings together which all of them have: at each step one with most new."""

    def pairs(case: Case) -> set[Any]:
        return set(combinations(asdict(case).items(), 2))

    chosen, missing = [], set().union(*map(pairs, cases))
    while missing:
        chosen.append(max(cases, key=lambda case: len(pairs(case) & missing)))
        missing -= pairs(chosen[-1])
    return chosen


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        cases = every_case()
        metafunc.parametrize("case", cases if metafunc.config.getoption("full") else pairwise(cases), ids=str)


@pytest.fixture(scope="module")
def on_one_rank(data: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Outcome]:
    """A fit with these options on one rank, done once."""
    done: dict[str, Outcome] = {}

    def run(**options: Any) -> Outcome:
        if repr(options) not in done:
            done[repr(options)] = fit(data, str(tmp_path_factory.mktemp("one")), **options)
        return done[repr(options)]

    return run


@pytest.mark.trap(18)
def test_several_ranks_train_as_one(case: Case, on_one_rank: Callable[..., Outcome], data: str, tmp_path: Path) -> None:
    one = on_one_rank(**case.options)
    ranks = run_trainers(
        case.ranks, partial(fit, strategy=case.strategy, **case.options), data, str(tmp_path), case.ranks
    )
    assert_same(ranks, one, rtol=0, atol=case.tolerance)
    assert all(rank["metrics"]["exchange/bytes"] > 0 for rank in ranks)
    assert {rank["scale"] for rank in ranks} == {one["scale"]}
    if case.mode == "fp16-scaler":
        assert one["scale"] < MODES[case.mode]["scale"]


def test_a_few_cases_hold_every_pair_of_settings() -> None:
    cases, few = every_case(), pairwise(every_case())
    assert len(few) < len(cases) / 4
    for (first, one), (second, other) in combinations([(n, v) for n in Case.__annotations__ for v in values(n)], 2):
        is_possible = any((getattr(c, first), getattr(c, second)) == (one, other) for c in cases)
        assert is_possible == any((getattr(c, first), getattr(c, second)) == (one, other) for c in few)


def values(name: str) -> set[Any]:
    return {getattr(case, name) for case in every_case()}


@pytest.mark.trap(5)
def test_ranks_take_as_many_steps_where_the_rows_are_not_enough_for_all(data: str, tmp_path: Path) -> None:
    ranks = run_trainers(4, fit, data, str(tmp_path), 4)
    assert [len(rank["losses"]) for rank in ranks] == [-(-ROWS // BATCH)] * 4
    assert [rank["losses"][-1] > 0 for rank in ranks].count(False) >= 2  # they had no row in the last batch


class CountBroadcasts(Callback):
    """Counts what is broadcast to all ranks between the beginnings of two batches."""

    def __init__(self) -> None:
        self.by_batch: list[int] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        broadcast = torch.distributed.broadcast

        def count(*arguments: Any, **options: Any) -> Any:
            if self.by_batch:
                self.by_batch[-1] += 1
            return broadcast(*arguments, **options)

        torch.distributed.broadcast = count
        self._restore = lambda: setattr(torch.distributed, "broadcast", broadcast)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.by_batch.append(0)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._restore()


def fit_and_count(data: str, root: str, devices: int) -> list[int]:
    counter = CountBroadcasts()
    fit(data, root, devices, more=[counter])
    return counter.by_batch


@pytest.mark.trap(8)
def test_ranks_do_not_ask_each_other_for_signals_before_every_batch(data: str, tmp_path: Path) -> None:
    # Lightning broadcasts a flag and reads it: on a GPU a wait for all that is under way, a step.
    for counts in run_trainers(2, fit_and_count, data, str(tmp_path), 2):
        assert counts[:-1] == [0] * (len(counts) - 1)  # behind the last come validation and a checkpoint


@pytest.mark.trap(3)
def test_each_rank_goes_on_with_its_own_random_numbers_and_rows(data: str, tmp_path: Path) -> None:
    steps = {"dropout": 0.5, "max_epochs": -1}
    whole = run_trainers(2, partial(fit, max_steps=9, **steps), data, str(tmp_path / "whole"), 2)
    run_trainers(2, partial(fit, max_steps=4, **steps), data, str(tmp_path / "first"), 2)
    path = str(tmp_path / "first/checkpoints/last.ckpt")
    rest = run_trainers(2, partial(fit, max_steps=9, ckpt_path=path, **steps), data, str(tmp_path / "rest"), 2)
    for expected, rank in zip(whole, rest, strict=True):
        assert rank["losses"] == expected["losses"][4:]
        for name, table in expected["tables"].items():
            assert len(table["ids"])
            assert all(torch.equal(rank["tables"][name][key], value) for key, value in table.items())
    assert whole[0]["losses"] != whole[1]["losses"]


@pytest.mark.parametrize("strategy", [{}, {"dense": "fsdp2"}])
@pytest.mark.parametrize(("precision", "bound"), [("bf16", 2.0**-8), ("fp16", 2.0**-11)])
def test_rows_and_gradients_that_travel_narrower_change_losses_by_no_more_than_their_rounding(
    precision: str, bound: float, strategy: dict[str, Any], data: str, tmp_path: Path
) -> None:
    narrow = strategy | {"rows_as": precision, "grads_as": precision}
    options = {"dtype": "float32", "max_epochs": 3}
    full, rounded = (
        run_trainers(2, partial(fit, strategy=each, **options), data, str(tmp_path / name), 2)
        for name, each in (("full", strategy), ("narrow", narrow))
    )
    for ours, theirs in zip(rounded, full, strict=True):
        differences = (torch.tensor(ours["losses"]) - torch.tensor(theirs["losses"])).abs()
        assert 0 < differences.max() < bound / 2
    assert rounded[0]["metrics"]["exchange/bytes"] < full[0]["metrics"]["exchange/bytes"]


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


@pytest.mark.trap(8)
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


@pytest.mark.trap(14)
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("fail", "ValueError: row 7 is broken"),
        ("save", "rank 1 of 2 has failed, and all ranks have to save together"),
    ],
)
def test_the_error_of_one_rank_ends_all_and_is_shown_by_all(kind: str, message: str, data: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as failure:
        run_trainers(2, partial(fit, more=[OnRank(1, 3, kind)]), data, str(tmp_path), 2)
    of_rank_0, of_rank_1 = str(failure.value).split("rank 1: Traceback")
    assert message in of_rank_1
    assert "The first failure was that of rank 1: " in of_rank_0
    assert message in of_rank_0


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


@pytest.mark.trap(1)
def test_evaluation_on_several_ranks_leaves_their_rows_and_gives_the_same(data: str, tmp_path: Path) -> None:
    one = validate(data, str(tmp_path / "one"), 1)
    ranks = run_trainers(3, validate, data, str(tmp_path / "three"), 3)
    for rank in ranks:
        assert all(map(torch.equal, rank["before"], rank["after"]))
        assert all(len(rows) for rows in rank["before"])
        assert rank["metrics"] == [pytest.approx(each, rel=1e-9) for each in one["metrics"]]
    torch.testing.assert_close(torch.cat([rank["scores"] for rank in ranks]), one["scores"], rtol=0, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ranks_on_gpus_train_as_one_on_the_cpu_where_their_checkpoint_goes_on(
    strategy: str, data: str, tmp_path: Path
) -> None:
    expected = fit(data, str(tmp_path / "whole"), dtype="float32", max_steps=9, max_epochs=-1)
    on_gpus = partial(fit, dtype="float32", max_steps=5, max_epochs=-1, strategy=strategy, accelerator="gpu")
    ranks = run_trainers(2, on_gpus, data, str(tmp_path / "gpus"), 2)
    means = torch.tensor([rank["losses"] for rank in ranks]).mean(0)
    torch.testing.assert_close(means, torch.tensor(expected["losses"][:5]), rtol=1e-4, atol=1e-5)
    last = str(tmp_path / "gpus/checkpoints/last.ckpt")
    back = fit(data, str(tmp_path / "back"), dtype="float32", max_steps=9, max_epochs=-1, ckpt_path=last)
    assert_same([back], expected | {"losses": expected["losses"][5:]}, rtol=1e-4, atol=1e-5)
