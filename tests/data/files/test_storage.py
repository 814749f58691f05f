"""Remote files: the same rows as local ones, requests that fail now and then, and what is said where they always do."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from recis_lightning.cli import main
from recis_lightning.data.errors import DataError
from recis_lightning.data.files import storage
from recis_lightning.data.files.checksums import verify, write_checksums
from recis_lightning.data.files.manifest import Manifest, read_manifest
from recis_lightning.data.files.storage import ATTEMPTS, OpenFiles, RemoteFile, read_range
from recis_lightning.data.plan import Order
from tests.data.test_loader import assert_same, buffers, make_loader, write_files

ORDER = Order(batch_size=8)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(storage, "FIRST_DELAY_S", 0.0)
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def upload(memory: Any, folder: Path, target: str) -> None:
    for path in folder.rglob("*.orc"):
        memory.pipe(f"{target}/{path.relative_to(folder)}", path.read_bytes())


class Failing:
    """Fails the n-th, (n + every)-th, ... read of the memory file system, or all of a file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, every: int) -> None:
        self.reads = self.failures = 0
        read = MemoryFile.read

        def fail(file: Any, *args: Any) -> Any:
            self.reads += 1
            if self.reads % every == 0:
                self.failures += 1
                raise ConnectionResetError("the connection was reset")
            return read(file, *args)

        monkeypatch.setattr(MemoryFile, "read", fail)


def read(url: str) -> Manifest:
    manifest, problems = read_manifest(url)
    assert not problems
    return manifest


def test_a_url_gives_the_rows_and_the_order_of_a_folder(tmp_path: Path, memory: Any) -> None:
    local = write_files(tmp_path, [[60, 20], [30]])
    upload(memory, tmp_path, "/logs/day=1")
    remote = read("memory://logs")
    assert remote.fingerprint == local.fingerprint
    assert_same(buffers(make_loader(remote, ORDER)), buffers(make_loader(local, ORDER)))


@pytest.mark.parametrize(
    ("url", "names"),
    [
        ("memory://logs/", ["a/part-0.orc", "a/part-1.orc", "b/part-0.orc", "b/part-1.orc"]),
        ("memory://logs/b", ["part-0.orc", "part-1.orc"]),
        ("memory://logs/?/part-1.orc", ["a/part-1.orc", "b/part-1.orc"]),
        ("memory://logs/[b-z]", ["part-0.orc", "part-1.orc"]),
        ("memory://logs/a/part-0.orc", ["part-0.orc"]),
    ],
)
def test_folders_files_and_globs_are_found(tmp_path: Path, memory: Any, url: str, names: list[str]) -> None:
    write_files(tmp_path, [[6], [3]])
    for folder in ("a", "b", "_temporary"):
        upload(memory, tmp_path, f"/logs/{folder}")
    assert read(url).names == names


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("memory://nowhere", "memory://nowhere does not exist; name a folder"),
        ("memory://logs/*.csv", "memory://logs/.*csv has no file that ends in .orc or .parquet among the 1 of"),
        ("nothing://logs", "nothing://logs: no file system for it"),
    ],
)
def test_what_is_not_there_is_said(memory: Any, url: str, problem: str) -> None:
    memory.pipe("/logs/a.txt", b"text")
    _, problems = read_manifest(url)
    with pytest.raises(DataError, match=problem):
        raise DataError(problems)


def test_a_file_is_read_once_in_large_requests(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes(range(256)) * 40
    memory.pipe("/a.bin", content)
    monkeypatch.setattr(storage, "READ_AHEAD", 4096)
    counter = Failing(monkeypatch, every=10**9)
    with RemoteFile("memory://a.bin") as file:
        assert b"".join(iter(lambda: file.read(100), b"")) == content
    assert counter.reads == 3
    assert bytes(read_range("memory://a.bin", 300, 20)) == content[300:320]


def test_stripes_of_a_file_are_read_with_few_requests(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = write_files(tmp_path, [[20] * 6])
    upload(memory, tmp_path, "/logs")
    remote = read("memory://logs")
    counter, order = Failing(monkeypatch, every=10**9), Order(batch_size=8, streams=1, window_rows=1, shuffle=False)
    assert_same(buffers(make_loader(remote, order)), buffers(make_loader(local, order)))
    assert counter.reads <= 2  # of six stripes, each of which has a tail and columns to ask for


def test_a_thread_keeps_few_files_open(memory: Any) -> None:
    for index in range(10):
        memory.pipe(f"/{index}.bin", bytes([index]) * 10)
    files = OpenFiles()
    for index in (*range(10), 3):
        with files.open(f"memory://{index}.bin") as file:
            assert file.read(5) == bytes([index]) * 5
    assert list(files._kept.__dict__) == [f"memory://{index}.bin" for index in (7, 8, 9, 3)]


def test_failed_reads_are_tried_again(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    local = write_files(tmp_path, [[60, 20], [30]])
    upload(memory, tmp_path, "/logs")
    failing = Failing(monkeypatch, every=3)
    with caplog.at_level(logging.WARNING):
        assert_same(buffers(make_loader(read("memory://logs"), ORDER)), buffers(make_loader(local, ORDER)))
    assert failing.failures > 0
    assert len([record for record in caplog.records if "attempt 1 of 4" in record.message]) == failing.failures


def test_a_read_that_always_fails_names_file_and_attempts_and_ends_all_threads(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, [[60]])
    upload(memory, tmp_path, "/logs")
    manifest = read("memory://logs")
    failing = Failing(monkeypatch, every=1)
    with pytest.raises(DataError, match=r"memory://logs/part-0.orc.* failed 4 times \(the connection was reset\)"):
        list(make_loader(manifest, Order(batch_size=8, streams=1)))
    assert failing.reads == ATTEMPTS


def test_a_tail_that_cannot_be_read_names_file_and_attempts(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, [[60]])
    upload(memory, tmp_path, "/logs")
    Failing(monkeypatch, every=1)
    _, problems = read_manifest("memory://logs")
    assert len(problems) == 1
    assert "memory://logs/part-0.orc can't be read" in problems[0]
    assert "failed 4 times" in problems[0]


def test_a_listing_that_fails_is_tried_again(tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, [[6]])
    upload(memory, tmp_path, "/logs")
    calls, find = [], MemoryFileSystem.find

    def fail_once(self: Any, *args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise TimeoutError("too slow")
        return find(self, *args, **options)

    monkeypatch.setattr(MemoryFileSystem, "find", fail_once)
    assert read("memory://logs").rows == 6
    assert len(calls) == 2


def test_pyarrows_own_file_systems_are_used_by_their_urls(tmp_path: Path) -> None:
    local = write_files(tmp_path, [[9]])
    assert read(f"file://{tmp_path}").fingerprint == local.fingerprint
    assert isinstance(storage.filesystem_of(f"file://{tmp_path}")[0], pa.fs.LocalFileSystem)


def test_checksums_are_written_and_held_at_a_url_though_requests_fail(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(tmp_path, [[60, 20], [30]])
    upload(memory, tmp_path, "/logs/day=1")
    failing = Failing(monkeypatch, every=5)
    main(["data", "manifest", "memory://logs"])
    assert failing.failures
    assert "written to memory://logs/_checksums.json" in capsys.readouterr().out
    local = Path(write_checksums(tmp_path))
    assert json.loads(memory.cat_file("/logs/_checksums.json"))["files"] == {
        f"day=1/{name}": entry for name, entry in json.loads(local.read_text())["files"].items()
    }
    main(["data", "verify", "memory://logs/"])
    assert "3 stripes are what was written" in capsys.readouterr().out
    content = bytearray(memory.cat_file("/logs/day=1/part-0.orc"))
    content[40] ^= 1
    memory.pipe("/logs/day=1/part-0.orc", bytes(content))
    memory.rm("/logs/day=1/part-1.orc")
    storage.filesystem_of.cache_clear()
    right, problems = verify("memory://logs")
    assert right == 1
    assert "memory://logs/day=1/part-0.orc, stripe 0" in problems[0]
    assert problems[1] == "memory://logs/day=1/part-1.orc is gone; its checksums are there"
    with pytest.raises(DataError, match="memory://logs/day=1/part-0.orc is no folder.*name memory://logs/day=1"):
        write_checksums("memory://logs/day=1/part-0.orc")
