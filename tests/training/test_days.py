"""Days as a schedule: train day N, validate day N + 1, stop anywhere, go on as if nothing had happened."""

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Callback, Trainer

from recis_lightning.cli import main
from recis_lightning.data.datamodule import OrcDataModule
from recis_lightning.data.errors import DataError
from recis_lightning.ragged import Batch
from tests.data.click_rows import click_rows, click_schema, write_stripes
from tests.training.helpers import InterruptAt, Losses, everything, make_module, make_trainer

DAYS, ROWS, BATCH = 4, 40, 16  # three batches a day, of which the last is short
BATCHES = 3


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    for day in range(DAYS):
        tables = [click_rows(day * ROWS + first, ROWS // 2) for first in (0, ROWS // 2)]
        write_stripes(folder / f"day=2025-01-{day + 30 if day < 2 else day - 1:02d}" / "part.orc", tables)
    # Days of two months: their order is that of dates, not of names.
    for late in ("day=2025-01-01", "day=2025-01-02"):
        (folder / late).rename(folder / late.replace("-01-0", "-02-0"))
    return folder


NAMES = ["2025-01-30", "2025-01-31", "2025-02-01", "2025-02-02"]


class Seen(Callback):
    """The rows of every batch, by the epoch."""

    def __init__(self) -> None:
        self.train: list[tuple[int, list[Any]]] = []
        self.val: list[tuple[int, list[Any]]] = []

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.train.append((trainer.current_epoch, batch["user"].to_lists()))

    def on_validation_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.val.append((trainer.current_epoch, batch["user"].to_lists()))


def days_of(batches: list[tuple[int, list[Any]]]) -> dict[int, set[int]]:
    """Which days' rows each epoch saw."""
    found: dict[int, set[int]] = {}
    for epoch, users in batches:
        found.setdefault(epoch, set()).update(user // ROWS for row in users for user in row)
    return found


class Run:
    def __init__(self, folder: Path, root: Path, *callbacks: Callback, ckpt_path: str | None = None, **data: Any):
        self.losses, self.seen = Losses(), Seen()
        self.module = make_module(click_schema())
        self.data = OrcDataModule(click_schema(), days=folder, batch_size=BATCH, **data)
        self.trainer = make_trainer(root, self.losses, self.seen, *callbacks, max_epochs=-1)
        self.interrupted: str | None = None
        try:
            self.trainer.fit(self.module, datamodule=self.data, ckpt_path=ckpt_path)
        except SystemExit as stop:
            self.interrupted = stop.path  # type: ignore[attr-defined]

    @property
    def table(self) -> list[dict[str, str]]:
        with open(Path(self.trainer.default_root_dir) / "days.csv") as file:
            return list(csv.DictReader(file))


def test_each_epoch_trains_on_a_day_and_validates_on_the_next(days: Path, tmp_path: Path) -> None:
    run = Run(days, tmp_path)
    assert run.trainer.current_epoch == DAYS - 1
    assert days_of(run.seen.train) == {0: {0}, 1: {1}, 2: {2}}
    assert days_of(run.seen.val) == {0: {1}, 1: {2}, 2: {3}}
    assert len(run.losses.by_batch) == (DAYS - 1) * BATCHES
    assert [(row["train_day"], row["validation_day"]) for row in run.table] == list(zip(NAMES, NAMES[1:], strict=False))
    assert [row["step"] for row in run.table] == ["3", "6", "9"]
    assert all(float(row["val/loss"]) > 0 for row in run.table)
    lines = (tmp_path / "days.md").read_text().splitlines()
    assert lines[0].startswith("| epoch | train_day | validation_day | step |")
    assert len(lines) == 2 + DAYS - 1


@pytest.mark.trap(2)
@pytest.mark.parametrize("batch", range(0, (DAYS - 1) * BATCHES))
def test_interrupted_within_and_between_days_and_resumed_equals_uninterrupted(
    days: Path, tmp_path: Path, batch: int, whole: Run
) -> None:
    stopped = Run(days, tmp_path, InterruptAt(batch))
    assert stopped.interrupted is not None
    resumed = Run(days, tmp_path, ckpt_path=stopped.interrupted)
    assert stopped.losses.by_batch | resumed.losses.by_batch == whole.losses.by_batch
    assert not stopped.losses.by_batch.keys() & resumed.losses.by_batch.keys()
    assert everything(resumed.module) == everything(whole.module)
    assert resumed.table == whole.table


@pytest.fixture(scope="module")
def whole(days: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(days, tmp_path_factory.mktemp("whole"))


def test_a_run_stops_after_fewer_days_where_it_is_told(days: Path, tmp_path: Path) -> None:
    data = OrcDataModule(click_schema(), days=f"{days}/day=2025-01-*", batch_size=BATCH)
    trainer = make_trainer(tmp_path, max_epochs=5)
    trainer.fit(make_module(click_schema()), datamodule=data)
    assert trainer.current_epoch == 1


def test_recis_fit_runs_over_days(days: Path, tmp_path: Path) -> None:
    settings = {
        "seed_everything": 0,
        "model": {"network": {"class_path": "DeepFM", "init_args": {"hidden": [4]}}},
        "data": {"schema": click_schema().to_dict(), "days": f"{days}/day=*", "batch_size": BATCH},
        "trainer": {
            "default_root_dir": str(tmp_path),
            "max_epochs": -1,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "logger": False,
            "num_sanity_val_steps": 0,
        },
    }
    (tmp_path / "days.yaml").write_text(yaml.safe_dump(settings))
    assert main(["fit", "--config", str(tmp_path / "days.yaml")]) == 0
    with open(tmp_path / "days.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["validation_day"] for row in rows] == NAMES[1:]
    assert all(0 <= float(row["val/auc"]) <= 1 for row in rows)


def test_days_beside_train_are_refused(days: Path) -> None:
    with pytest.raises(DataError, match="days are given beside train or validation"):
        OrcDataModule(click_schema(), days=days, train=days)


def test_every_problem_of_every_day_is_in_one_error(days: Path, tmp_path: Path) -> None:
    write_stripes(tmp_path / "day=3" / "a.orc", [click_rows(0, 3).drop_columns(["price"])])
    (tmp_path / "day=4").mkdir()
    (tmp_path / "day=4" / "a.orc").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        OrcDataModule(click_schema(), days=tmp_path, batch_size=BATCH).setup("fit")
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["days", "days"]
