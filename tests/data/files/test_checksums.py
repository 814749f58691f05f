"""Checksums: every flipped bit is found before its rows reach a batch, and nothing else is."""

import json
import logging
import random
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from recis_lightning.cli import main
from recis_lightning.data.datamodule import OrcDataModule
from recis_lightning.data.errors import DataError
from recis_lightning.data.files.checksums import NAME, Checks, CorruptStripe, verify, write_checksums
from recis_lightning.data.files.manifest import Manifest, read_manifest
from recis_lightning.data.plan import EpochPlan, Order
from recis_lightning.ragged import Batch
from tests.data.click_rows import click_rows, click_schema
from tests.data.test_loader import assert_holds, make_loader, row_numbers, write_files

ORDER = Order(batch_size=10, streams=1, window_rows=20)


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def read(folder: Path) -> Manifest:
    manifest, problems = read_manifest(folder)
    assert not problems
    return manifest


def check_all(checks: Checks) -> None:
    for stripe in range(len(checks.manifest.stripe_rows)):
        checks.check(stripe)


def test_300_flipped_bits_are_found_before_their_rows_reach_a_batch(tmp_path: Path) -> None:
    manifest = write_files(tmp_path, [[20, 20], [20, 20]])
    write_checksums(tmp_path)
    whole = {file.path: Path(file.path).read_bytes() for file in manifest.files}
    draw = random.Random(0)
    found_in_tails = found_in_stripes = 0
    for _ in range(300):
        path = Path(draw.choice(manifest.files).path)
        flip(path, draw.randrange(8 * len(whole[str(path)])))
        changed, problems = read_manifest(tmp_path)
        checks = Checks(changed, "once")
        if problems or checks.find_problems():
            found_in_tails += 1
        else:
            with pytest.raises(CorruptStripe, match=f"{path}, stripe ., rows 0 to 19: bytes .* have changed"):
                check_all(checks)
            found_in_stripes += 1
        path.write_bytes(whole[str(path)])
    assert found_in_tails + found_in_stripes == 300
    assert min(found_in_tails, found_in_stripes) > 50
    assert not Checks(read(tmp_path), "once").find_problems()


def flip_in_stripe(manifest: Manifest, stripe: int) -> None:
    """Change the middle of a stripe."""
    file, index = manifest.locate(stripe)
    first, count = file.stripe_spans[index]
    flip(Path(file.path), 8 * (first + count // 2))


def test_a_batch_never_holds_rows_of_a_stripe_that_changed(tmp_path: Path) -> None:
    manifest = write_files(tmp_path, [[20, 20], [20, 20]])
    write_checksums(tmp_path)
    flip_in_stripe(manifest, 2)
    order = Order(batch_size=10, streams=1, shuffle=False, window_rows=1)
    batches: list[Batch] = []
    with pytest.raises(CorruptStripe, match="part-1.orc, stripe 0, rows 0 to 19: bytes"):
        batches.extend(make_loader(manifest, order, checks=Checks(manifest, "once")))
    assert sum(batch.size for batch in batches) == 40
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("recis-")]


def test_once_checks_a_stripe_at_its_first_reading_and_always_at_each(tmp_path: Path) -> None:
    manifest = write_files(tmp_path, [[20, 20]])
    write_checksums(tmp_path)
    once, always = Checks(manifest, "once"), Checks(manifest, "always")
    for checks in (once, always):
        checks.check(1)
    flip_in_stripe(manifest, 1)
    once.check(1)
    with pytest.raises(CorruptStripe):
        always.check(1)
    Checks(manifest, "off").check(1)


def test_always_demands_checksums_of_all_files(tmp_path: Path) -> None:
    manifest = write_files(tmp_path, [[20], [20]])
    assert Checks(manifest, "once").find_problems() == []
    problems = Checks(manifest, "always").find_problems()
    assert len(problems) == 2
    assert "part-0.orc has no checksums; write them: recis data manifest" in problems[0]


def test_checksums_are_found_in_folders_above_and_name_files_below(tmp_path: Path) -> None:
    for day in ("day=1", "day=2"):
        (tmp_path / day).mkdir()
        write_files(tmp_path / day, [[20]])
    write_checksums(tmp_path)
    assert Checks(read(tmp_path / "day=2"), "always").find_problems() == []


def test_parquet_has_checksums_of_its_row_groups(tmp_path: Path) -> None:
    pa.parquet.write_table(click_rows(0, 40), tmp_path / "a.parquet", row_group_size=20)
    write_checksums(tmp_path)
    manifest = read(tmp_path)
    flip_in_stripe(manifest, 1)
    checks = Checks(manifest, "always")
    checks.check(0)
    with pytest.raises(CorruptStripe, match="stripe 1"):
        checks.check(1)


def test_a_file_that_was_written_again_is_named_with_what_to_do(tmp_path: Path) -> None:
    write_files(tmp_path, [[20]])
    write_checksums(tmp_path)
    manifest = write_files(tmp_path, [[30]])
    (problem,) = Checks(manifest, "once").find_problems()
    assert "part-0.orc has " in problem
    assert "write the checksums again: recis data manifest" in problem


def test_damaged_checksums_are_an_error(tmp_path: Path) -> None:
    manifest = write_files(tmp_path, [[20]])
    path = Path(write_checksums(tmp_path))
    path.write_text(path.read_text()[:100])
    with pytest.raises(DataError, match="is damaged"):
        Checks(manifest, "once").find_problems()
    path.write_text(json.dumps({"format": 9}))
    with pytest.raises(DataError, match="has format 9, this version reads 1"):
        Checks(manifest, "once").find_problems()


# ----------------------------------------------------------------------------------------------------- leaving rows out


@pytest.mark.parametrize("shuffle", [True, False])
def test_skipped_stripes_make_batches_smaller_and_never_fewer(
    tmp_path: Path, shuffle: bool, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = write_files(tmp_path, [[20, 20, 20], [20, 20]])
    write_checksums(tmp_path)
    flip_in_stripe(manifest, 1)
    order = Order(batch_size=12, streams=2, window_rows=90, shuffle=shuffle)
    loader = make_loader(manifest, order, checks=Checks(manifest, "once"), skip_limit=1)
    with caplog.at_level(logging.WARNING):
        batches = list(loader)
    plan = EpochPlan(manifest.stripe_rows, order, 0)
    assert len(batches) == plan.steps
    for step, batch in enumerate(batches):
        kept = [address for address in plan.addresses(step, range(2)) if address[0] != 1]
        assert_holds(batch, row_numbers(manifest, kept))
    assert loader.skips is not None
    assert (loader.skips.stripes, loader.skips.rows) == ({1}, 20)
    assert caplog.text.count("a corrupt stripe is left out (1 of at most 1)") == 1


def test_one_stripe_more_than_may_be_skipped_is_an_error(tmp_path: Path) -> None:
    manifest = write_files(tmp_path, [[20, 20, 20]])
    write_checksums(tmp_path)
    flip_in_stripe(manifest, 0)
    flip_in_stripe(manifest, 2)
    with pytest.raises(CorruptStripe, match="have changed"):
        list(make_loader(manifest, ORDER, checks=Checks(manifest, "once"), skip_limit=1))


def test_the_data_module_tells_changed_tails_before_training_and_skipped_rows_after_an_epoch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = write_files(tmp_path, [[20, 20]])
    write_checksums(tmp_path)
    flip_in_stripe(manifest, 1)
    module = OrcDataModule(click_schema(), train=tmp_path, batch_size=8, on_corrupt="skip_stripe")
    module.setup("fit")
    with caplog.at_level(logging.WARNING):
        assert sum(batch.size for batch in module.train_dataloader()) == 20
    assert "train: 1 corrupt stripes were left out, 20 rows" in caplog.text
    Path(write_checksums(tmp_path)).write_text((tmp_path / NAME).read_text().replace('"rest": "', '"rest": "0'))
    with pytest.raises(DataError, match="train: .*part-0.orc: its tail or head has changed"):
        OrcDataModule(click_schema(), train=tmp_path, batch_size=8).setup("fit")


@pytest.mark.parametrize("setting", [{"verify": "twice"}, {"on_corrupt": "ignore"}])
def test_unknown_settings_are_refused(tmp_path: Path, setting: dict[str, str]) -> None:
    write_files(tmp_path, [[20]])
    with pytest.raises(DataError, match=f"{next(iter(setting))} is '.*'; write "):
        OrcDataModule(click_schema(), train=tmp_path, batch_size=8, **setting).setup("fit")  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------- the commands


def test_the_commands_write_and_verify_checksums(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write_files(tmp_path, [[20, 20], [20]])
    assert main(["data", "manifest", str(tmp_path)]) == 0
    assert main(["data", "verify", str(tmp_path)]) == 0
    assert "3 stripes are what was written" in capsys.readouterr().out
    flip_in_stripe(manifest, 2)
    assert main(["data", "verify", str(tmp_path)]) != 0
    assert "part-1.orc, stripe 0, rows 0 to 19: bytes" in capsys.readouterr().err
    Path(manifest.files[0].path).unlink()
    _, problems = verify(tmp_path)
    assert [problem for problem in problems if "part-0.orc is gone" in problem]
