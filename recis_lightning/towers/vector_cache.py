"""Vectors of a frozen tower on disk, by content: computed in the first epoch of the first run, read ever after.

    <folder>/<fingerprint of the tower>/<random>.safetensors    keys uint8 [N, 16], vectors [N, H]
    <folder>/<fingerprint of the tower>/in-use                  locked (shared) by every process that has it open
    <folder>/lock                                               locked while a file is written or removed

A file is written aside and renamed, and never changed; several processes fill one folder, and each sees what the others
have written whenever it writes itself. Files are mapped into memory, not read, so processes of a machine share them.

N vectors of a file, K vectors asked for, H width.
"""

import fcntl
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import safetensors.numpy
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from recis_lightning.ragged import Ragged
from recis_lightning.towers.errors import TowerError

KEY_BYTES = 16
FILE_BYTES = 32 << 20  # vectors that wait in memory before they are written


def content_keys(rows: Ragged) -> list[bytes]:
    """A 128-bit key for each row's values: xxh3_128 over them as little-endian int64, so [7] and [7, 0] differ."""
    data = rows.values.cpu().contiguous().numpy().astype("<i8", copy=False).tobytes()
    bounds = (rows.offsets * 8).tolist()
    return [xxhash.xxh3_128_digest(data[start:stop]) for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]


class VectorCache:
    """Vectors of one tower by key, on disk and bounded: what does not fit is not kept, and counted.

    ``max_bytes`` bounds all files of ``folder``, those of other towers included; they are removed, oldest first, where
    room is needed and no process has them open. ``dtype`` is float16, float32 or float64.
    """

    def __init__(
        self,
        folder: str | Path,
        fingerprint: str,  # names the tower: hexadecimal digits
        width: int,
        dtype: torch.dtype,
        max_bytes: int,
        file_bytes: int = FILE_BYTES,
    ) -> None:
        self.folder, self.fingerprint, self.width, self.dtype = Path(folder), fingerprint, width, dtype
        self.max_bytes = max_bytes
        self.not_kept = 0
        """How many vectors found no room."""
        self._numpy_dtype = torch.empty(0, dtype=dtype).numpy().dtype
        self._row_bytes = KEY_BYTES + width * self._numpy_dtype.itemsize
        rows = min(file_bytes, max_bytes) // self._row_bytes
        if rows < 1:
            raise TowerError(
                f"cache '{folder}' may hold {max_bytes} bytes, and one vector takes {self._row_bytes}; give it more"
            )
        self._waiting_NH = np.empty((rows, width), self._numpy_dtype)
        self._waiting_keys: list[bytes] = []
        self._files: dict[str, NDArray[Any]] = {}  # vectors by file name, mapped
        self._places: dict[bytes, tuple[NDArray[Any], int]] = {}
        self._is_full = False
        self._own = self.folder / fingerprint
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._write_lock():  # who removes folders holds it too
            self._own.mkdir(exist_ok=True)
            self._in_use = _lock(self._own / "in-use", fcntl.LOCK_SH)
            os.utime(self._own / "in-use")
        self.refresh()

    def __len__(self) -> int:
        """How many vectors are known, waiting ones included."""
        return len(self._places)

    def find(self, keys: Sequence[bytes]) -> tuple[NDArray[np.int64], Tensor]:
        """Which of ``keys`` are known [int64, ascending], and their vectors [known, H]."""
        places = [(index, place) for index, key in enumerate(keys) if (place := self._places.get(key)) is not None]
        vectors_KH = np.empty((len(places), self.width), self._numpy_dtype)
        by_file: dict[int, tuple[NDArray[Any], list[int], list[int]]] = {}
        for target, (_, (source, row)) in enumerate(places):
            _, rows, targets = by_file.setdefault(id(source), (source, [], []))
            rows.append(row)
            targets.append(target)
        for source, rows, targets in by_file.values():
            vectors_KH[targets] = source[rows]
        return np.array([index for index, _ in places], dtype=np.int64), torch.from_numpy(vectors_KH)

    def add(self, keys: Sequence[bytes], vectors_KH: Tensor) -> None:
        """Keep vectors; they are written once enough of them wait, or at `flush`."""
        # A numpy copy belongs to no autograd mode: what is added under inference_mode is used in training later.
        new_KH = vectors_KH.detach().to("cpu", self.dtype).numpy()
        for key, vector_H in zip(keys, new_KH, strict=True):
            if key in self._places:
                continue
            if self._is_full:
                self.not_kept += 1
                continue
            row = len(self._waiting_keys)
            self._waiting_NH[row] = vector_H
            self._waiting_keys.append(key)
            self._places[key] = (self._waiting_NH, row)
            if len(self._waiting_keys) == len(self._waiting_NH):
                self.flush()

    def flush(self) -> None:
        """Write what waits to a file of its own, as far as there is room, and look what others have written."""
        with self._write_lock():
            for left_over in self._own.glob("*.tmp"):  # of a process that died: whoever writes holds the lock
                left_over.unlink()
            room = (self._make_room(len(self._waiting_keys)) // self._row_bytes) if self._waiting_keys else 0
            kept = min(room, len(self._waiting_keys))
            if kept:
                self._write(kept)
            self._forget_waiting(kept)
        self.refresh()

    def _write(self, count: int) -> None:
        keys = np.frombuffer(b"".join(self._waiting_keys[:count]), np.uint8).reshape(count, KEY_BYTES)
        data = safetensors.numpy.save({"keys": keys, "vectors": self._waiting_NH[:count]})
        name = uuid4().hex
        aside = self._own / f"{name}.tmp"
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, self._own / f"{name}.safetensors")

    def _forget_waiting(self, kept: int) -> None:
        """Clear what waited; what was written comes back with `refresh`."""
        dropped = len(self._waiting_keys) - kept
        for key in self._waiting_keys:
            del self._places[key]
        self._waiting_keys.clear()
        if dropped:
            self.not_kept += dropped
            self._is_full = True
            warnings.warn(
                f"cache '{self.folder}' has reached {self.max_bytes} bytes: further vectors are computed each time "
                "they are needed; raise cache_bytes, or remove what is old",
                stacklevel=2,
            )

    def refresh(self) -> None:
        """Take in files that were written since: by this process or another."""
        for path in sorted(self._own.glob("*.safetensors")):
            if path.name in self._files:
                continue
            keys_NK, vectors_NH = _map_file(path)
            if vectors_NH.shape[1:] != (self.width,) or vectors_NH.dtype != self._numpy_dtype:
                raise TowerError(
                    f"{path} holds vectors {vectors_NH.dtype} {list(vectors_NH.shape)}, need {self._numpy_dtype} "
                    f"[N, {self.width}]; it was not written for this tower, remove it"
                )
            self._files[path.name] = vectors_NH
            data = keys_NK.tobytes()
            for row in range(len(vectors_NH)):
                self._places.setdefault(data[row * KEY_BYTES : (row + 1) * KEY_BYTES], (vectors_NH, row))

    # ------------------------------------------------------------------------------------------------------- the bound

    @contextmanager
    def _write_lock(self) -> Iterator[None]:
        descriptor = _lock(self.folder / "lock", fcntl.LOCK_EX)
        try:
            yield
        finally:
            os.close(descriptor)

    def _make_room(self, count: int) -> int:
        """How many bytes may be written, once other towers' vectors have gone where they were in the way."""
        others = [path for path in self.folder.iterdir() if path.is_dir() and path != self._own]
        others.sort(key=_last_used)
        while (room := self.max_bytes - _bytes_of(self.folder)) < count * self._row_bytes + _HEADER_BYTES and others:
            _remove_unused(others.pop(0))
        return max(room - _HEADER_BYTES, 0)

    def close(self) -> None:
        """Write what waits and let go of the files."""
        if self._in_use >= 0:
            self.flush()
            os.close(self._in_use)
            self._in_use = -1


_HEADER_BYTES = 1024  # what safetensors adds to a file of two tensors, at most


def _lock(path: Path, kind: int) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    fcntl.flock(descriptor, kind)
    return descriptor


def _last_used(folder: Path) -> float:
    marker = folder / "in-use"
    return marker.stat().st_mtime if marker.exists() else 0.0


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*/*.safetensors"))


def _remove_unused(folder: Path) -> None:
    """Remove a tower's vectors, unless a process has them open."""
    descriptor = os.open(folder / "in-use", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        shutil.rmtree(folder)
    finally:
        os.close(descriptor)


def _map_file(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """The keys, and the vectors mapped into memory; TowerError where it is no whole file."""
    try:
        with open(path, "rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_bytes))
        keys, vectors = (_map_tensor(path, header[name], 8 + header_bytes) for name in ("keys", "vectors"))
    except (ValueError, KeyError, OSError) as error:
        raise TowerError(f"{path} is no file of vectors ({error}); remove it") from error
    return np.array(keys), vectors


def _map_tensor(path: Path, entry: dict[str, Any], data_start: int) -> NDArray[Any]:
    dtype: Any = {"U8": "|u1", "F16": "<f2", "F32": "<f4", "F64": "<f8"}[entry["dtype"]]
    return np.memmap(path, dtype, "r", offset=data_start + entry["data_offsets"][0], shape=tuple(entry["shape"]))
