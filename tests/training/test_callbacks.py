from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

from recis_lightning.training.callbacks import CommitLoader, TableStatistics, table_statistics
from recis_lightning.training.progress import Throughput
from recis_lightning.training.run_record import RunRecord
from tests.training.helpers import MemoryLoader, make_module, make_trainer


def test_the_loader_knows_each_batch_before_any_other_callback_runs(tmp_path: Path) -> None:
    loader = MemoryLoader(3)
    seen = []

    class Look(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            seen.append(loader.state_dict())

    trainer = make_trainer(tmp_path, Look(), max_epochs=1)
    trainer.fit(make_module(), loader)
    assert seen == [{"epoch": 0, "batch": 1}, {"epoch": 0, "batch": 2}, {"epoch": 1, "batch": 0}]
    assert isinstance(trainer.callbacks[0], CommitLoader)  # type: ignore[attr-defined]


def test_speed_and_table_sizes_are_logged_every_n_steps(tmp_path: Path) -> None:
    module = make_module()
    logger = CSVLogger(tmp_path, name="runs")
    trainer = make_trainer(tmp_path, logger=logger, log_every_n_steps=3)
    trainer.fit(module, MemoryLoader(6))
    rows = [line.split(",") for line in Path(logger.log_dir, "metrics.csv").read_text().splitlines()]
    logged = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    assert [entry["step"] for entry in logged] == ["2", "5", "8", "11"]
    for entry in logged:
        assert float(entry["perf/rows_per_second"]) > 0
        assert 0 <= float(entry["perf/data_wait"]) <= 1
        assert entry["train/loss"]
    assert float(logged[-1]["sparse/user/rows"]) == len(module.tables["user"])
    assert float(logged[-1]["sparse/rows"]) == sum(len(table) for table in module.tables.values())
    assert float(logged[-1]["sparse/bytes"]) > 0


def test_table_statistics_add_up() -> None:
    module = make_module()
    module.tables["user"].find_or_insert(torch.arange(70))
    found = table_statistics(module.tables)
    assert found["sparse/user/rows"] == found["sparse/rows"] == 70
    assert found["sparse/item/rows"] == 0
    assert found["sparse/bytes"] >= 70 * (4 + 4) * 4


def test_a_trainer_that_fits_twice_has_each_callback_once(tmp_path: Path) -> None:
    module, trainer = make_module(), make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, MemoryLoader(1))
    trainer.validate(module, MemoryLoader(1), verbose=False)
    kinds = [type(callback) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    assert {CommitLoader, TableStatistics, Throughput, RunRecord} <= set(kinds)
    assert len(kinds) == len(set(kinds))
