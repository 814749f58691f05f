"""Files wherever they lie: local paths as they are, URLs by pyarrow or fsspec, with read-ahead and retries.

`s3://bucket/logs`, `gs://...` and `hdfs://...` are pyarrow's own; any other scheme is fsspec's (`memory://`, `abfs://`
with adlfs, `hf://` with huggingface_hub, ...).
"""

import fnmatch
import io
import logging
import os
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs

from recis_lightning.data.errors import DataError

log = logging.getLogger(__name__)

ATTEMPTS, FIRST_DELAY_S = 4, 0.2  # a failed request is sent again after .2, .4 and .8 s
READ_AHEAD = 4 << 20  # bytes of one request at least: the parts of a stripe lie one behind the other

FILES_OPEN = 4  # remote files whose connection and last request a thread keeps

T = TypeVar("T")


def is_remote(path: str) -> bool:
    return "://" in path


def open_input(path: str) -> str | pa.NativeFile:
    """What pyarrow's readers take: a local path itself, else a file that reads ahead and tries again."""
    return pa.PythonFile(RemoteFile(path), mode="r") if is_remote(path) else path


class OpenFiles:
    """Opens files as `open_input`, and keeps each thread's last few remote ones, with what was read ahead of them."""

    def __init__(self) -> None:
        self._kept = threading.local()

    def open(self, path: str) -> str | pa.NativeFile:
        if not is_remote(path):
            return path
        files: dict[str, RemoteFile] = self._kept.__dict__
        file = files.pop(path, None) or RemoteFile(path)
        files[path] = file  # the last used is the last
        while len(files) > FILES_OPEN:
            del files[next(iter(files))]
        return pa.PythonFile(_Shared(file), mode="r")


def size_of(path: str) -> int:
    if not is_remote(path):
        return os.path.getsize(path)
    info = _info(path)
    if info.type != fs.FileType.File:
        raise FileNotFoundError(f"{path} is no file")
    return int(info.size)


def read_range(path: str, first: int, count: int) -> memoryview:
    """Bytes [first, first + count) of a file."""
    if is_remote(path):
        with RemoteFile(path) as remote:
            remote.seek(first)
            return memoryview(remote.read(count))
    with pa.memory_map(path) as file:
        file.seek(first)
        return memoryview(file.read_buffer(count))


def write_file(path: str, content: bytes) -> None:
    """Write a file that appears whole: aside first where it is local, in one request, tried again, where it is not."""
    if is_remote(path):
        filesystem, place = filesystem_of(path)

        def write() -> None:
            with filesystem.open_output_stream(place) as file:
                file.write(content)

        try_again(write, f"{path}: writing {len(content)} bytes")
        return
    aside = path + ".tmp"
    with open(aside, "wb") as file:
        file.write(content)
    os.replace(aside, path)


def list_files(url: str, suffixes: tuple[str, ...]) -> list[str]:
    """The files of a remote folder with these endings, however deep, a remote file, or what a glob matches; sorted.

    As for local folders nothing below names that begin with `.` or `_`. DataError where there are none.
    """
    url = root = url.rstrip("/")
    while any(sign in root.split("://", 1)[1] for sign in "*?["):
        root = root.rsplit("/", 1)[0]
    info = _info(root)
    if info.type == fs.FileType.File:
        return [root]
    if info.type == fs.FileType.NotFound:
        raise DataError(f"{root} does not exist; name a folder or file that does, with all parts of its URL")
    filesystem, path = filesystem_of(root)
    selector = fs.FileSelector(path, recursive=True)
    found = try_again(lambda: filesystem.get_file_info(selector), f"{root}: listing it")
    below = sorted(each.path[len(path) :].strip("/") for each in found if each.type == fs.FileType.File)
    names = [f"{root}/{name}" for name in below if not _is_hidden(name)]
    # What a glob matches are files, or folders of them: days, say.
    patterns = [f"{root}/*{suffix}" for suffix in suffixes]
    if url != root:
        patterns = [url, *(f"{url}/*{suffix}" for suffix in suffixes)]
    chosen = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    if not chosen:
        raise DataError(f"{url} has no file that ends in {' or '.join(suffixes)} among the {len(found)} of {root}")
    return chosen


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "_")) for part in name.split("/"))


@lru_cache(maxsize=64)
def filesystem_of(url: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URL, and the path in it."""
    try:
        return fs.FileSystem.from_uri(url)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError, ImportError):
        pass
    import fsspec  # a dependency of Lightning's; its file systems are imported by need

    try:
        found, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DataError(f"{url}: no file system for it ({error}); install the package that reads it") from error
    return fs.PyFileSystem(fs.FSSpecHandler(found)), path


def _info(url: str) -> fs.FileInfo:
    filesystem, path = filesystem_of(url)
    return try_again(lambda: filesystem.get_file_info(path), f"{url}: looking it up")


def try_again(request: Callable[[], T], what: str) -> T:
    """The result of a request that may fail now and then; OSError names it and the attempts once there are enough."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return request()
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # drivers raise what their clients do, not OSError alone
            if attempt == ATTEMPTS:
                raise OSError(f"{what} failed {ATTEMPTS} times ({error})") from error
            log.warning("%s failed, attempt %d of %d: %s", what, attempt, ATTEMPTS, error)
            time.sleep(FIRST_DELAY_S * 2 ** (attempt - 1))
    raise AssertionError("unreachable")


class RemoteFile(io.RawIOBase):
    """A remote file as pyarrow reads it: requests of at least READ_AHEAD bytes, each tried again where it fails."""

    def __init__(self, url: str) -> None:
        self._url, self._size, self._at = url, size_of(url), 0
        self._first, self._ahead = 0, b""
        self._file: pa.NativeFile | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        rest = max(self._size - self._at, 0)
        count = rest if size is None or size < 0 else min(size, rest)
        start = self._at - self._first
        if start < 0 or start + count > len(self._ahead):
            self._fetch(count)
            start = 0
        self._at += count
        return self._ahead[start : start + count]

    def _fetch(self, count: int) -> None:
        count = min(max(count, READ_AHEAD), self._size - self._at)
        what = f"{self._url}: reading {count} bytes at {self._at}"
        self._ahead, self._first = try_again(lambda: self._request(self._at, count), what), self._at

    def _request(self, first: int, count: int) -> bytes:
        file, self._file = self._file or _open(self._url), None  # one that fails is not asked again
        read = file.read_at(count, first)
        if len(read) != count:
            raise OSError(f"{len(read)} bytes came instead of {count}")
        self._file = file
        return bytes(read)

    def readinto(self, buffer: Any) -> int:
        read = self.read(len(buffer))
        buffer[: len(read)] = read
        return len(read)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


class _Shared(io.RawIOBase):
    """A remote file from its beginning, which stays open when a reader closes it."""

    def __init__(self, file: RemoteFile) -> None:
        self._remote = file
        file.seek(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._remote.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._remote.seek(offset, whence)

    def read(self, size: int | None = -1) -> bytes:
        return self._remote.read(size)


def _open(url: str) -> pa.NativeFile:
    filesystem, path = filesystem_of(url)
    return filesystem.open_input_file(path)
