import json
import os
from pathlib import Path

import pytest

from recis_lightning.training.files import (
    ASIDE,
    CheckpointError,
    DirectoryReader,
    DirectoryWriter,
    exchange,
    remove_directory,
)

DENSE, ROWS = b"dense" * 100, b"rows" * 1000


def write(path: str, dense: bytes = DENSE) -> None:
    writer = DirectoryWriter(path)
    writer.begin()
    writer.add("dense.safetensors", dense)
    writer.add("tables/c1/0000-4096.safetensors", ROWS, rows=1000)
    writer.commit({"global_step": 7})


@pytest.mark.parametrize("root", ["{tmp}", "file://{tmp}", "memory://checkpoints"])
def test_files_come_back_as_they_were_written(root: str, tmp_path: Path) -> None:
    path = root.format(tmp=tmp_path) + "/x.ckpt"
    write(path)
    reader = DirectoryReader(path)
    assert reader.manifest["global_step"] == 7
    assert reader.manifest["files"]["tables/c1/0000-4096.safetensors"]["rows"] == 1000
    assert reader.read("dense.safetensors") == DENSE
    remove_directory(path)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        DirectoryReader(path)


def test_nothing_appears_under_the_name_before_the_commit(tmp_path: Path) -> None:
    writer = DirectoryWriter(str(tmp_path / "x.ckpt"))
    writer.begin()
    writer.add("dense.safetensors", DENSE)
    assert not (tmp_path / "x.ckpt").exists()
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        DirectoryReader(str(tmp_path / "x.ckpt"))


def test_what_an_interrupted_write_left_is_not_in_the_next_one(tmp_path: Path) -> None:
    left = DirectoryWriter(str(tmp_path / "x.ckpt"))
    left.begin()
    left.add("left.over", b"1")
    write(str(tmp_path / "x.ckpt"))
    assert sorted(os.listdir(tmp_path / "x.ckpt")) == ["dense.safetensors", "manifest.json", "tables"]
    assert os.listdir(tmp_path) == ["x.ckpt"]


def test_writers_of_several_ranks_add_to_one_directory(tmp_path: Path) -> None:
    path = str(tmp_path / "x.ckpt")
    first, second = DirectoryWriter(path), DirectoryWriter(path)
    first.begin()
    first.add("dense.safetensors", DENSE)
    second.add("tables/c1/2048-4096.safetensors", ROWS, rows=1000)
    first.commit({}, first.files | second.files)
    assert DirectoryReader(path).read("tables/c1/2048-4096.safetensors") == ROWS


def test_a_checkpoint_is_replaced_by_one_of_the_same_name(tmp_path: Path) -> None:
    write(str(tmp_path / "last.ckpt"))
    write(str(tmp_path / "last.ckpt"), dense=b"newer")
    assert DirectoryReader(str(tmp_path / "last.ckpt")).read("dense.safetensors") == b"newer"
    assert os.listdir(tmp_path) == ["last.ckpt"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_checkpoint_that_is_replaced_is_whole_at_any_moment(
    can_exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, rename = tmp_path / "last.ckpt", os.rename
    write(str(place))

    def look_and_rename(old: str, new: str) -> None:
        for _ in range(2):
            assert DirectoryReader(str(place)).read("dense.safetensors") in (DENSE, b"newer")
            assert place.exists() or not can_exchange
            if os.path.exists(old):
                rename(old, new)

    if not can_exchange:
        monkeypatch.setattr("recis_lightning.training.files.exchange", lambda *paths: False)
    elif not exchange(str(place), str(place)):
        pytest.skip("this file system exchanges nothing")
    monkeypatch.setattr(os, "rename", look_and_rename)
    write(str(place), dense=b"newer")
    assert DirectoryReader(str(place)).read("dense.safetensors") == b"newer"
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_the_newer_one_is_read_where_replacing_was_interrupted(tmp_path: Path) -> None:
    write(str(tmp_path / "older.ckpt"))
    write(str(tmp_path / "newer.ckpt"), b"newer")
    (tmp_path / "older.ckpt").rename(tmp_path / "last.ckpt.old")
    (tmp_path / "newer.ckpt").rename(tmp_path / "last.ckpt.tmp")
    assert DirectoryReader(str(tmp_path / "last.ckpt")).read("dense.safetensors") == b"newer"
    remove_directory(str(tmp_path / "last.ckpt.tmp"))
    assert DirectoryReader(str(tmp_path / "last.ckpt")).read("dense.safetensors") == DENSE


def test_a_flipped_bit_is_found_and_its_file_named(tmp_path: Path) -> None:
    write(str(tmp_path / "x.ckpt"))
    file = tmp_path / "x.ckpt" / "tables" / "c1" / "0000-4096.safetensors"
    data = bytearray(file.read_bytes())
    data[1234] ^= 1
    file.write_bytes(data)
    reader = DirectoryReader(str(tmp_path / "x.ckpt"))
    assert reader.read("dense.safetensors") == DENSE
    with pytest.raises(CheckpointError, match=r"tables/c1/0000-4096.safetensors has checksum"):
        reader.read("tables/c1/0000-4096.safetensors")


def test_a_file_cut_off_is_found_before_anything_is_read(tmp_path: Path) -> None:
    write(str(tmp_path / "x.ckpt"))
    os.truncate(tmp_path / "x.ckpt" / "dense.safetensors", 10)
    with pytest.raises(CheckpointError, match=r"dense.safetensors has 10 bytes, 500 were written"):
        DirectoryReader(str(tmp_path / "x.ckpt"))


def test_a_missing_file_is_found_before_anything_is_read(tmp_path: Path) -> None:
    write(str(tmp_path / "x.ckpt"))
    (tmp_path / "x.ckpt" / "dense.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"file dense.safetensors is missing"):
        DirectoryReader(str(tmp_path / "x.ckpt"))


def test_a_directory_without_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    write(str(tmp_path / "x.ckpt"))
    (tmp_path / "x.ckpt" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no manifest.json: writing or removing it was interrupted"):
        DirectoryReader(str(tmp_path / "x.ckpt"))


@pytest.mark.parametrize("root", ["{tmp}", "memory://torn"])
def test_whole_checkpoints_beside_a_torn_one_are_named_the_newest_first(root: str, tmp_path: Path) -> None:
    folder = root.format(tmp=tmp_path)
    for name in ("step=10.ckpt", "step=20.ckpt"):
        write(f"{folder}/{name}")
    torn = DirectoryWriter(f"{folder}/step=30.ckpt")
    torn.begin()
    torn.add("dense.safetensors", DENSE)
    path = f"{folder}/step=30.ckpt" + (ASIDE if root == "{tmp}" else "")  # where nothing is renamed it has its name
    with pytest.raises(CheckpointError, match="was interrupted; use another one: step=20.ckpt, step=10.ckpt$"):
        DirectoryReader(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ('{"format": "something else"}', "cannot be read"),
        ("[]", "cannot be read"),
    ],
)
def test_a_manifest_that_is_none_is_refused(text: str, message: str, tmp_path: Path) -> None:
    write(str(tmp_path / "x.ckpt"))
    (tmp_path / "x.ckpt" / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        DirectoryReader(str(tmp_path / "x.ckpt"))


def test_a_changed_manifest_is_refused(tmp_path: Path) -> None:
    write(str(tmp_path / "x.ckpt"))
    manifest = tmp_path / "x.ckpt" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"global_step": 7', '"global_step": 8'))
    with pytest.raises(CheckpointError, match="changed after it was written"):
        DirectoryReader(str(tmp_path / "x.ckpt"))


def test_a_newer_format_is_refused_by_its_version(tmp_path: Path) -> None:
    write(str(tmp_path / "x.ckpt"))
    manifest = tmp_path / "x.ckpt" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 99}))
    with pytest.raises(CheckpointError, match="format version 99, this release reads 1"):
        DirectoryReader(str(tmp_path / "x.ckpt"))


def test_a_file_in_the_place_of_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(b"torch")
    with pytest.raises(CheckpointError, match="is a file; checkpoints of the strategy recis_sharded are directories"):
        DirectoryReader(str(tmp_path / "x.ckpt"))


def test_removing_a_link_leaves_what_it_points_to(tmp_path: Path) -> None:
    write(str(tmp_path / "x.ckpt"))
    (tmp_path / "last.ckpt").symlink_to("x.ckpt")
    assert DirectoryReader(str(tmp_path / "last.ckpt")).read("dense.safetensors") == DENSE
    remove_directory(str(tmp_path / "last.ckpt"))
    assert os.listdir(tmp_path) == ["x.ckpt"]
    assert DirectoryReader(str(tmp_path / "x.ckpt")).read("dense.safetensors") == DENSE
