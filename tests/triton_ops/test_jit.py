"""Compiled kernels are kept on disk, and never outlive the source they were compiled from."""

from collections.abc import Iterator
from pathlib import Path

import numba
import pytest

from triton_ops import jit
from triton_ops.shared import cpu


@pytest.fixture(autouse=True)
def fresh_folder() -> Iterator[None]:
    jit.cache_folder.cache_clear()
    yield
    jit.cache_folder.cache_clear()


def add_one(number: int) -> int:
    return number + 1


def test_kernels_are_kept_in_a_folder_named_by_the_content_of_all_sources() -> None:
    assert f"kernels-{jit.digest(Path(jit.__file__).parent)}" in cpu.mix64.stats.cache_path


def test_digest_changes_with_any_file_and_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "op").mkdir()
    (tmp_path / "op" / "cpu.py").write_text("COLUMN = 1\n")
    (tmp_path / "layout.py").write_text("")
    digests = [jit.digest(tmp_path)]
    (tmp_path / "notes.txt").write_text("not a source")
    assert jit.digest(tmp_path) == digests[0]
    (tmp_path / "op" / "cpu.py").write_text("COLUMN = 2\n")
    digests.append(jit.digest(tmp_path))
    (tmp_path / "layout.py").rename(tmp_path / "other.py")
    digests.append(jit.digest(tmp_path))
    assert len(set(digests)) == 3


def test_folder_that_is_given_to_numba_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    compiled = jit.kernel(add_one)
    assert compiled(1) == 2
    assert list(tmp_path.glob("kernels-*/*/*.nbi"))
    assert str(tmp_path) == numba.config.CACHE_DIR


def test_kernels_compile_where_nothing_can_be_written_and_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (file := tmp_path / "file").touch()
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(file))
    assert jit.cache_folder() is None
    assert "each process compiles for some 10 s; set NUMBA_CACHE_DIR" in caplog.text
    assert jit.kernel(add_one)(1) == 2


def test_what_is_kept_on_disk_is_made_by_kernel_alone() -> None:
    # It is kept by the content of all sources: Numba alone goes by that of its own file.
    root = Path(jit.__file__).parent
    users = [path.name for path in root.rglob("*.py") if "cache=True" in path.read_text()]
    assert users == ["jit.py"]
