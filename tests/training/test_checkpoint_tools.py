"""Checkpoints looked into, verified and written anew in other files."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from recis_lightning import cli
from recis_lightning.embedding.exchange import owned_shards
from recis_lightning.training import RecModule, checkpoint_tools, strategy
from recis_lightning.training.checkpoint import save_checkpoint
from recis_lightning.training.checkpoint_tools import describe, reshard, verify
from recis_lightning.training.files import CheckpointError, DirectoryReader, DirectoryWriter
from tests.training.helpers import Losses, MemoryLoader, everything, make_module, make_trainer
from tests.training.test_policies import schema_with

COUNTED = {"admission": {"kind": "counter", "threshold": 3}, "eviction": "lru", "capacity": 12}


def counted_module() -> RecModule:
    return make_module(schema_with(**COUNTED))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[RecModule, str]:
    """Several files a table, and an admission that has counted."""
    root = tmp_path_factory.mktemp("saved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strategy, "save_checkpoint", partial(save_checkpoint, part_bytes=700))
        module = counted_module()
        trainer = make_trainer(root)
        trainer.fit(module, MemoryLoader())
        trainer.save_checkpoint(root / "x.ckpt")
    return module, str(root / "x.ckpt")


def parts_of(path: str, table: str) -> list[tuple[int, int]]:
    parts = DirectoryReader(path).manifest["tables"][table]["parts"]
    return [(part["first_shard"], part["last_shard"]) for part in parts]


def test_describe_tells_what_was_saved(saved: tuple[RecModule, str], capsys: pytest.CaptureFixture[str]) -> None:
    module, path = saved
    found = describe(path)
    assert (found["global_step"], found["epoch"], found["world_size"], found["version"]) == (12, 2, 1, 1)
    assert found["position"] == {"epoch": 2, "batch": 0}
    assert found["has_optimizer"]
    assert {name: table["rows"] for name, table in found["tables"].items()} == {
        name: len(table) for name, table in module.tables.items()
    }
    assert found["tables"]["item"] | {"bytes": 0, "files": 0} == {
        "rows": len(module.tables["item"]), "dim": 4, "dtype": "float32", "optimizer": "adagrad",
        "state": {"sum": "float32"}, "step": 12, "bytes": 0, "files": 0,
    }  # fmt: skip
    assert {name: tuple(about["shape"]) for name, about in found["dense"].items()} == {
        name: tuple(value.shape) for name, value in module.state_dict().items()
    }
    assert found["bytes"] == sum(file.stat().st_size for file in Path(path).rglob("*")) - sum(
        place.stat().st_size for place in [Path(path) / "manifest.json", *filter(Path.is_dir, Path(path).rglob("*"))]
    )
    assert cli.main(["checkpoint", "inspect", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert cli.main(["checkpoint", "inspect", path]) == 0
    shown = capsys.readouterr().out
    assert f"{path}: step 12, epoch 2" in shown
    assert 'data position: {"epoch": 2, "batch": 0}' in shown
    assert "network.body.0.weight" in shown


def test_a_sound_checkpoint_verifies_at_any_place(
    saved: tuple[RecModule, str], capsys: pytest.CaptureFixture[str]
) -> None:
    read: list[int] = []
    assert verify(saved[1], read.append) == []
    assert sum(read) == describe(saved[1])["bytes"]
    assert verify(f"file://{saved[1]}") == []
    assert cli.main(["checkpoint", "verify", saved[1]]) == 0
    rows = sum(len(table) for table in saved[0].tables.values())
    assert f"and {rows} rows are what was written" in capsys.readouterr().out


def test_every_bad_file_is_named_and_the_status_is_1(
    saved: tuple[RecModule, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "bad.ckpt")
    reshard(saved[1], path, parts=4)
    files = sorted(DirectoryReader(path).manifest["files"])
    gone, short, flipped = files[0], files[1], files[-1]
    os.unlink(f"{path}/{gone}")
    with open(f"{path}/{short}", "r+b") as file:
        file.truncate(5)
    content = bytearray(Path(f"{path}/{flipped}").read_bytes())
    content[len(content) // 2] ^= 8
    Path(f"{path}/{flipped}").write_bytes(content)
    problems = sorted(verify(path))
    assert [line.split()[1] for line in problems] == [gone, short, flipped]
    assert [next(word for word in ("missing", "cut off", "checksum") if word in line) for line in problems] == [
        "missing", "cut off", "checksum",
    ]  # fmt: skip
    assert cli.main(["checkpoint", "verify", path]) == 1
    assert sorted(capsys.readouterr().out.splitlines()) == problems
    assert cli.main(["checkpoint", "verify", str(tmp_path / "none.ckpt")]) == 2


def test_rows_that_are_not_where_the_manifest_says_are_found(saved: tuple[RecModule, str], tmp_path: Path) -> None:
    """Files with right checksums, put together wrongly."""
    path = str(tmp_path / "one.ckpt")
    reshard(saved[1], path)
    reader = DirectoryReader(path)

    def rewrite(change: Any) -> list[str]:
        manifest = json.loads(json.dumps(reader.manifest))
        writer = DirectoryWriter(str(tmp_path / "wrong.ckpt"))
        writer.begin()
        for name, about in manifest["files"].items():
            writer.add(name, reader.read(name), rows=about.get("rows"))
        change(manifest, writer.files)
        writer.commit({key: manifest[key] for key in manifest.keys() - {"format", "version", "checksum", "files"}})
        return verify(str(tmp_path / "wrong.ckpt"))

    part = reader.manifest["tables"]["item"]["parts"][0]["file"]
    rows = reader.manifest["files"][part]["rows"]
    assert rewrite(lambda manifest, files: None) == []
    found = rewrite(lambda manifest, files: files[part].update(rows=rows + 1))
    assert found[0] == f"file {part} holds {rows} rows, and says {rows}; {rows + 1} were written"
    assert found[1] == f"table 'item': its files hold {rows + 1} rows, {rows} were written"

    def forget(manifest: Any, files: Any) -> None:
        manifest["tables"]["item"]["parts"][0].update(last_shard=4095)

    found = rewrite(forget)
    assert found[-1] == "table 'item': its files cover virtual shards [(0, 4095)], not each of 4096 once"


@pytest.mark.parametrize("parts", [1, 3])
def test_a_resharded_checkpoint_trains_on_to_the_bit(saved: tuple[RecModule, str], tmp_path: Path, parts: int) -> None:
    source, path = saved
    new = str(tmp_path / "new.ckpt")
    counts = reshard(path, new, parts)
    assert counts == {"user": parts, "item": parts}
    assert parts_of(new, "item") == [owned_shards(rank, parts) for rank in range(parts)]
    assert verify(new) == []
    assert everything(RecModule.load_from_checkpoint(new)) == everything(source)
    outcomes = []
    for place in (path, new):
        module, losses = counted_module(), Losses()
        make_trainer(tmp_path, losses, max_epochs=3).fit(module, MemoryLoader(), ckpt_path=place)
        outcomes.append((losses.by_batch, everything(module), module.tables["item"].stats()))
    assert outcomes[0] == outcomes[1], "what admission has counted is there too"


def test_files_are_cut_by_size_and_by_ranks(saved: tuple[RecModule, str], tmp_path: Path) -> None:
    new = str(tmp_path / "small.ckpt")
    reshard(saved[1], new, 2, part_bytes=2000)
    bounds = parts_of(new, "user")
    assert len(bounds) > 2
    assert bounds[0] != (0, 2048)
    assert any(last == 2048 for _, last in bounds), "no file is shared by two ranks"
    assert verify(new) == []
    assert cli.main(["checkpoint", "reshard", new, "--out", str(tmp_path / "compact.ckpt")]) == 0
    assert parts_of(str(tmp_path / "compact.ckpt"), "user") == [(0, 4096)]


def test_reshard_of_remote_checkpoints(saved: tuple[RecModule, str], tmp_path: Path) -> None:
    reshard(saved[1], "memory://reshard/new.ckpt", parts=2)
    assert verify("memory://reshard/new.ckpt") == []
    reshard("memory://reshard/new.ckpt", str(tmp_path / "back.ckpt"))
    assert everything(RecModule.load_from_checkpoint(str(tmp_path / "back.ckpt"))) == everything(saved[0])


def test_what_cannot_be_resharded_is_told(saved: tuple[RecModule, str], tmp_path: Path) -> None:
    for place in (saved[1], saved[1] + "/", f"file://{saved[1]}"):
        with pytest.raises(CheckpointError, match="is what is read"):
            reshard(saved[1], place)
    with pytest.raises(CheckpointError, match="parts is 5000, need 1 to 4096"):
        reshard(saved[1], str(tmp_path / "y.ckpt"), parts=5000)
    assert not (tmp_path / "y.ckpt").exists()


def test_memory_is_that_of_a_part(
    saved: tuple[RecModule, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most: list[int] = []
    load = checkpoint_tools.load_table

    def load_table(table: Any, *arguments: Any) -> None:
        load(table, *arguments)
        most.append(len(table))

    monkeypatch.setattr(checkpoint_tools, "load_table", load_table)
    reshard(saved[1], str(tmp_path / "y.ckpt"), parts=8)
    assert max(most) < max(len(table) for table in saved[0].tables.values())
    assert sum(most) == sum(len(table) for table in saved[0].tables.values())
