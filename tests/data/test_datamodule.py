"""The data module under a stock Trainer, and everything it says before the first batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from recis_lightning.data.datamodule import OrcDataModule
from recis_lightning.data.errors import DataError
from recis_lightning.data.loader import OrcLoader
from recis_lightning.ragged import Batch
from tests.data.click_rows import click_rows, click_schema, write_stripes

SCHEMA = click_schema()


class Recorder(LightningModule):
    """Learns nothing and remembers the users of every batch, by stage."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: dict[str, list[list[list[int]]]] = {"train": [], "val": [], "test": [], "predict": []}

    def _see(self, stage: str, batch: Batch) -> Tensor:
        self.seen[stage].append(batch["user"].to_lists())
        return self.weight.sum() * 0

    def training_step(self, batch: Batch) -> Tensor:
        return self._see("train", batch)

    def validation_step(self, batch: Batch) -> None:
        self._see("val", batch)

    def test_step(self, batch: Batch) -> None:
        self._see("test", batch)

    def predict_step(self, batch: Batch) -> Tensor:
        return self._see("predict", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Commit(Callback):
    """Commits what was trained on, then saves a checkpoint behind step ``save_at``."""

    def __init__(self, save_at: int | None = None) -> None:
        self.save_at = save_at

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        loader = trainer.train_dataloader
        assert isinstance(loader, OrcLoader)
        loader.commit(batch.token)
        if trainer.global_step == self.save_at:
            trainer.save_checkpoint(f"{trainer.default_root_dir}/{self.save_at}.ckpt", weights_only=False)


def make_trainer(folder: Path, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", devices=1, default_root_dir=folder, **(quiet | options))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_stripes(tmp_path / "train" / "a.orc", [click_rows(0, 30), click_rows(30, 20)])
    write_stripes(tmp_path / "valid" / "a.orc", [click_rows(100, 7), click_rows(107, 6)])
    return tmp_path


def make_data(folder: Path, **options: Any) -> OrcDataModule:
    settings: dict[str, Any] = {"train": folder / "train", "validation": folder / "valid", "batch_size": 8}
    return OrcDataModule(SCHEMA, **(settings | options))


def users(first: int, count: int) -> list[list[int]]:
    return [[] if value is None else [value] for value in click_rows(first, count)["user"].to_pylist()]


def flat(batches: list[list[list[int]]]) -> list[list[int]]:
    return [row for batch in batches for row in batch]


# --------------------------------------------------------------------------------------------------------- with Trainer


def test_fit_sees_every_row_of_every_epoch_and_validates_in_file_order(folder: Path) -> None:
    module, data = Recorder(), make_data(folder)
    make_trainer(folder, max_epochs=2, num_sanity_val_steps=0, enable_checkpointing=False).fit(module, data)
    first, second = module.seen["train"][:7], module.seen["train"][7:]
    assert len(second) == 7
    assert first != second
    assert sorted(flat(first)) == sorted(flat(second)) == sorted(users(0, 50))
    assert module.seen["val"] == [users(100, 8), users(108, 5)] * 2


def test_test_and_predict_run_in_file_order_and_predict_needs_no_labels(folder: Path) -> None:
    bare = click_rows(100, 13).drop_columns(["label"])
    write_stripes(folder / "bare" / "a.orc", [bare])
    module, data = Recorder(), make_data(folder, test=folder / "valid", predict=folder / "bare")
    trainer = make_trainer(folder)
    trainer.test(module, data, verbose=False)
    trainer.predict(module, data)
    assert module.seen["test"] == module.seen["predict"] == [users(100, 8), users(108, 5)]


def test_fit_runs_without_validation_data(folder: Path) -> None:
    module = Recorder()
    trainer = make_trainer(folder, max_epochs=1, enable_checkpointing=False)
    trainer.fit(module, make_data(folder, validation=None))
    assert len(module.seen["train"]) == 7


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_a_stage_without_data_is_told_which_there_are(folder: Path, stage: str) -> None:
    source = {"validate": "validation"}.get(stage, stage)
    run = getattr(make_trainer(folder), stage)
    with pytest.raises(DataError, match=f"there are no data for {source}, only for: train; give {source}=<folder>"):
        run(Recorder(), make_data(folder, validation=None))


def resume(folder: Path, save_at: int, **options: Any) -> tuple[list[Any], list[Any]]:
    """The training batches of a whole run, and of the same with a new start behind a checkpoint."""
    whole, rest = Recorder(), Recorder()
    options = {"enable_checkpointing": False, "limit_val_batches": 0} | options
    make_trainer(folder, callbacks=[Commit(save_at)], **options).fit(whole, make_data(folder))
    trainer = make_trainer(folder, callbacks=[Commit()], **options)
    trainer.fit(rest, make_data(folder), ckpt_path=str(folder / f"{save_at}.ckpt"), weights_only=False)
    return whole.seen["train"], whole.seen["train"][:save_at] + rest.seen["train"]


@pytest.mark.trap(2)
@pytest.mark.parametrize("save_at", [3, 7, 9])
def test_a_resumed_fit_sees_exactly_what_the_whole_would_have_seen(folder: Path, save_at: int) -> None:
    whole, resumed = resume(folder, save_at, max_epochs=2)
    assert len(whole) == 14
    assert resumed == whole


@pytest.mark.parametrize("save_at", [1, 2, 3])
def test_epochs_cut_short_are_over_when_resumed(folder: Path, save_at: int) -> None:
    whole, resumed = resume(folder, save_at, max_epochs=3, limit_train_batches=2)
    assert len(whole) == 6
    assert resumed == whole


def test_epochs_cut_short_begin_anew_each(folder: Path) -> None:
    module, control = Recorder(), make_data(folder)
    options = {"limit_train_batches": 2, "limit_val_batches": 0, "enable_checkpointing": False}
    make_trainer(folder, max_epochs=3, **options).fit(module, make_data(folder))
    control.setup("fit")
    loader = control.train_dataloader()
    expected = []
    for _ in range(3):
        batches = iter(loader)
        expected += [next(batches)["user"].to_lists() for _ in range(2)]
    loader.close()
    assert module.seen["train"] == expected


def test_overfitting_sees_the_same_batches_in_every_epoch(folder: Path) -> None:
    module = Recorder()
    options = {"overfit_batches": 2, "limit_val_batches": 0, "enable_checkpointing": False}
    make_trainer(folder, max_epochs=2, **options).fit(module, make_data(folder))
    assert module.seen["train"][:2] == module.seen["train"][2:]


class Failure(Callback):
    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("on purpose")


def test_a_failing_fit_leaves_no_thread(folder: Path) -> None:
    # The fixture of this folder's conftest looks for threads when the test is over.
    data = make_data(folder, batch_size=8, prefetch=1)
    trainer = make_trainer(folder, max_epochs=1, enable_checkpointing=False, callbacks=[Failure()])
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.fit(Recorder(), data)


# ----------------------------------------------------------------------------------------------- before the first batch


def test_the_schema_may_be_a_mapping_or_a_yaml_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "schema.yaml").write_text(yaml.safe_dump(SCHEMA.to_dict()))
    monkeypatch.setenv("SOME_DATA", str(folder))
    assert OrcDataModule("${SOME_DATA}/schema.yaml").schema == OrcDataModule(SCHEMA.to_dict()).schema == SCHEMA


@pytest.mark.parametrize(
    ("content", "message"), [(None, "is no file; name a YAML file"), ("- a\n", "holds list, need a mapping")]
)
def test_a_schema_file_that_holds_none_is_an_error(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "schema.yaml").write_text(content)
    with pytest.raises(DataError, match=message):
        OrcDataModule(tmp_path / "schema.yaml")


def test_every_problem_of_every_source_is_in_one_error(folder: Path) -> None:
    write_stripes(folder / "train" / "b.orc", [click_rows(0, 3).drop_columns(["price"])])
    (folder / "train" / "c.orc").write_text("no")
    (folder / "valid" / "b.orc").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        make_trainer(folder, max_epochs=1).fit(Recorder(), make_data(folder))
    problems = [problem.replace(str(folder), "") for problem in caught.value.problems]
    assert len(problems) == 3
    assert problems[0].startswith("train: /train/c.orc is no ORC or Parquet file")
    assert problems[1].startswith("train: column 'price' is missing in /train/b.orc; there are: city, item_weights")
    assert problems[2].startswith("validation: /valid/b.orc is empty (0 bytes)")
    assert str(caught.value).startswith("the data have 3 problems:\n  - train: ")


def test_data_without_rows_are_an_error(folder: Path) -> None:
    write_stripes(folder / "none" / "a.orc", [click_rows(0, 0)])
    with pytest.raises(DataError, match="train: no file of .*none has any row"):
        make_data(folder, train=folder / "none").setup("fit")


def test_drop_last_that_leaves_nothing_is_an_error(folder: Path) -> None:
    data = make_data(folder, batch_size=80, drop_last=True)
    data.setup("fit")
    with pytest.raises(DataError, match="50 rows do not fill one batch of 80"):
        data.train_dataloader()


def test_drop_last_tells_how_many_rows_it_leaves_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = make_data(folder, drop_last=True)
    data.setup("fit")
    with caplog.at_level("INFO"):
        assert [batch.size for batch in data.train_dataloader()] == [8] * 6
    assert "drop_last leaves out 2 of 50 rows an epoch" in caplog.text


def test_loaders_before_setup_are_an_error(folder: Path) -> None:
    with pytest.raises(RuntimeError, match=r"the train data are not read yet; call setup\(\) first"):
        make_data(folder).train_dataloader()


def test_loaders_outside_a_trainer_read_as_one_rank(folder: Path) -> None:
    data = make_data(folder)
    data.setup()
    loader = data.val_dataloader()
    assert isinstance(loader, OrcLoader)
    assert [batch.size for batch in loader] == [8, 5]


def test_stripes_that_streams_share_are_told_with_what_they_cost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_stripes(tmp_path / "a.orc", [click_rows(0, 64)])
    for streams, kept, said in ((8, 1000, True), (1, 1000, False), (8, 1 << 30, False)):
        data = OrcDataModule(SCHEMA, train=tmp_path, batch_size=8, streams=streams, prefetch_bytes=kept)
        data.setup("fit")
        caplog.clear()
        with caplog.at_level("INFO"):
            data.train_dataloader()
        told = "train: stripes are large (1 in 8 streams), and up to 8.0 rows are decoded for each that is used"
        assert (told in caplog.text) == said
