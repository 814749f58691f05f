"""A directory of checksummed files that appears whole or not at all: what checkpoints are made of.

    writer = DirectoryWriter("run/epoch=1.ckpt")
    writer.begin()                                    # makes run/epoch=1.ckpt.tmp; once, on whichever rank
    writer.add("dense.safetensors", data)
    writer.commit({"global_step": 100})               # manifest.json, fsync, rename

    reader = DirectoryReader("run/epoch=1.ckpt")      # manifest.json is whole, every file is there in its full size
    data = reader.read("dense.safetensors")           # and has the checksum that was written

Paths are local or any URL that fsspec knows. Where a rename is not atomic (object stores), the files are written in
place and the manifest last: a directory without a manifest is no checkpoint.
"""

import ctypes
import io
import json
import mmap
import os
import pickle
import posixpath
import warnings
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
import xxhash
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from recis_lightning.errors import UserError

MANIFEST = "manifest.json"
FORMAT, VERSION = "recis-lightning checkpoint", 1
ASIDE, REPLACED = ".tmp", ".old"  # what a directory is called before it is committed, and once it has been replaced


class NotPlainError(ValueError):
    """A file of torch.save that holds more than tensors and plain values, or is none; the message is torch's."""


def load_plain(data: bytes) -> Any:
    """What torch.save wrote, of tensors and plain values alone: nothing of it is run. NotPlainError for other files."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch has to say of other pickles is in its error too
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise NotPlainError(str(error).strip().splitlines()[0]) from error


Files = dict[str, dict[str, Any]]
"""By name in the directory: bytes, checksum, and rows where there are any."""


class CheckpointError(UserError, ValueError):
    """A checkpoint that cannot be used: which, why, and what to do."""


def _checksum(data: bytes | memoryview | mmap.mmap) -> str:
    return xxhash.xxh3_64_hexdigest(data)


def _manifest_checksum(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "checksum"}
    return _checksum(json.dumps(rest, sort_keys=True).encode())


class DirectoryWriter:
    """Writes files aside and commits them together; see the module.

    Writers of several ranks may add to one directory, once one of them has begun it; one of them commits.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fs, root = url_to_fs(path)
        self._root = root.rstrip("/")
        self._is_local = isinstance(self._fs, LocalFileSystem)
        self._folder = self._root + ASIDE if self._is_local else self._root
        self.files: Files = {}
        """What this writer has added, as the manifest describes it."""

    def is_place_of(self, reader: "DirectoryReader") -> bool:
        """Whether it would replace what a reader reads."""
        return self._fs.protocol == reader._fs.protocol and self._root == url_to_fs(reader.path)[1].rstrip("/")

    def begin(self) -> None:
        """Make room: remove what an earlier attempt has left. Before anything is added, by one writer alone."""
        _remove(self._fs, self._folder)
        self._fs.makedirs(self._folder, exist_ok=True)

    def add(self, name: str, data: bytes | memoryview, rows: int | None = None) -> None:
        """Write one file, `tables/c1/0000-4096.safetensors`; ``rows`` is noted beside its checksum."""
        place = posixpath.join(self._folder, name)
        self._fs.makedirs(posixpath.dirname(place), exist_ok=True)
        self._write(place, data)
        entry = {"bytes": len(data), "xxh3_64": _checksum(data)}
        self.files[name] = entry if rows is None else entry | {"rows": rows}

    def _write(self, place: str, data: bytes | memoryview) -> None:
        with self._fs.open(place, "wb") as file:
            file.write(data)
            if self._is_local:
                file.flush()
                os.fsync(file.fileno())

    def commit(self, contents: Mapping[str, Any], files: Files | None = None) -> None:
        """Write the manifest, with ``contents`` in it, and let the directory appear under its name.

        ``files`` are those that all writers of the directory have added; by default there is this one alone.
        """
        manifest = {"format": FORMAT, "version": VERSION, **contents, "files": files or self.files}
        manifest["checksum"] = _manifest_checksum(manifest)
        self._write(posixpath.join(self._folder, MANIFEST), json.dumps(manifest, indent=1).encode())
        if self._is_local:
            self._sync_folders()
            self._replace()

    def _sync_folders(self) -> None:
        # A file's name is durable once its folder is, whatever was synced of the file itself.
        for folder, _, _ in os.walk(self._folder):
            _sync_folder(folder)

    def _replace(self) -> None:
        """Rename the directory to its name. One that has the name is exchanged for it in one step, and then removed.

        Where the file system can't exchange, the one that has the name is moved out of the way first. Between the two
        renames only `.old` and `.tmp` exist, both whole, and `DirectoryReader` finds them.
        """
        replaced = self._root + REPLACED
        if not os.path.lexists(self._root):
            os.rename(self._folder, self._root)
        else:
            _remove(self._fs, replaced)
            if exchange(self._folder, self._root):
                os.rename(self._folder, replaced)
            else:
                os.rename(self._root, replaced)
                os.rename(self._folder, self._root)
        _sync_folder(os.path.dirname(self._root))
        _remove(self._fs, replaced)


_HERE, _EXCHANGE = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of renameat2(2)


def exchange(first: str, second: str) -> bool:
    """Let two paths change places in one step, which Python has no function for; False where the system has none."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return rename is not None and rename(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_directory(path: str) -> None:
    """Remove a checkpoint, or what is left of one; of a link only the link. Nothing happens where there is none."""
    fs, root = url_to_fs(path)
    _remove(fs, root.rstrip("/"))


def _remove(fs: AbstractFileSystem, root: str) -> None:
    fs.invalidate_cache()
    if isinstance(fs, LocalFileSystem) and os.path.islink(root):
        os.unlink(root)
        return
    if not fs.exists(root):
        return
    manifest = posixpath.join(root, MANIFEST)
    if fs.isdir(root) and fs.exists(manifest):
        fs.rm_file(manifest)  # first, so that a removal that is interrupted leaves no checkpoint
    fs.rm(root, recursive=True)


class DirectoryReader:
    """Reads what `DirectoryWriter` committed; CheckpointError names what is torn, cut off or changed.

    That all files are there, in their full size, is seen at once; a file's checksum when it is read.
    """

    def __init__(self, path: str, check_sizes: bool = True) -> None:
        """Without ``check_sizes`` files may be missing or of other sizes: `problems` tells of them."""
        self.path = path
        self._fs, root = url_to_fs(path)
        self._fs.invalidate_cache()
        self._root = self._find(root.rstrip("/"))
        self.manifest = self._read_manifest()
        self._viewed: tuple[str, mmap.mmap | bytearray] | None = None
        if check_sizes:
            for name in self.manifest["files"]:
                if (problem := self.size_problem(name)) is not None:
                    raise CheckpointError(f"checkpoint '{self.path}': {problem}; use another checkpoint")

    def _find(self, root: str) -> str:
        manifest = posixpath.join(root, MANIFEST)
        if self._fs.exists(manifest):
            return root
        if self._fs.isdir(root):
            raise CheckpointError(
                f"checkpoint '{self.path}' has no {MANIFEST}: writing or removing it was interrupted; use another one"
                f"{self._whole_ones_beside(root)}"
            )
        if self._fs.exists(root):
            raise CheckpointError(
                f"checkpoint '{self.path}' is a file; checkpoints of the strategy recis_sharded are directories "
                f"that hold a {MANIFEST}"
            )
        for other in (root + ASIDE, root + REPLACED):  # whole where replacing it was interrupted, the newer one first
            if self._fs.exists(posixpath.join(other, MANIFEST)):
                return other
        raise CheckpointError(f"there is no checkpoint '{self.path}'")

    def _whole_ones_beside(self, root: str) -> str:
        """The other checkpoints of the folder, the newest first: ": step=20.ckpt, step=10.ckpt"."""
        places = self._fs.ls(posixpath.dirname(root), detail=False)
        manifests = [posixpath.join(place.rstrip("/"), MANIFEST) for place in places]
        newest = sorted(filter(self._fs.exists, manifests), key=self._fs.modified, reverse=True)[:3]
        names = [posixpath.basename(posixpath.dirname(manifest)) for manifest in newest]
        return f": {', '.join(names)}" if names else ""

    def _read_manifest(self) -> dict[str, Any]:
        data = self._fs.cat_file(posixpath.join(self._root, MANIFEST))
        try:
            manifest = json.loads(data)
        except ValueError:
            manifest = None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise CheckpointError(f"checkpoint '{self.path}': {MANIFEST} cannot be read; use another checkpoint")
        if manifest.get("version") != VERSION:
            raise CheckpointError(
                f"checkpoint '{self.path}' has format version {manifest.get('version')}, this release reads {VERSION}; "
                "read it with the release that wrote it"
            )
        if manifest.get("checksum") != _manifest_checksum(manifest):
            raise CheckpointError(
                f"checkpoint '{self.path}': {MANIFEST} was changed after it was written; use another checkpoint"
            )
        return manifest

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes of every file that lies in the directory, by name."""
        found = self._fs.find(self._root, detail=True)
        return {posixpath.relpath(place, self._root): info["size"] for place, info in found.items()}

    def size_problem(self, name: str) -> str | None:
        """What is wrong with a file as far as its size tells."""
        written, found = self.manifest["files"][name]["bytes"], self.sizes.get(name)
        if found is None:
            return f"file {name} is missing"
        if found != written:
            return f"file {name} has {found} bytes, {written} were written: it was cut off or changed"
        return None

    def read(self, name: str) -> bytes:
        """The bytes of a file, once its checksum has been found right."""
        content: bytes = self._fs.cat_file(posixpath.join(self._root, name))
        self._verify(name, content)
        return content

    def read_range(self, name: str, begin: int, end: int) -> bytes:
        """Some bytes of a file, not verified: for headers."""
        content: bytes = self._fs.cat_file(posixpath.join(self._root, name), start=begin, end=end)
        return content

    def view(self, name: str) -> mmap.mmap | bytearray:
        """As `read`; of a local file the very pages that the system's cache has.

        They may be written to: the pages concerned are copied first, and the file stays as it is. The file that was
        viewed last is not verified anew.
        """
        if self._viewed is None or self._viewed[0] != name:
            self._viewed = None
            self._viewed = name, self._map(name)
        return self._viewed[1]

    def _map(self, name: str) -> mmap.mmap | bytearray:
        if not isinstance(self._fs, LocalFileSystem):
            return bytearray(self.read(name))
        with open(posixpath.join(self._root, name), "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._verify(name, data)
        return data

    def _verify(self, name: str, data: bytes | mmap.mmap) -> None:
        found, expected = _checksum(data), self.manifest["files"][name]["xxh3_64"]
        if found != expected:
            raise CheckpointError(
                f"checkpoint '{self.path}': file {name} has checksum {found}, {expected} was written; "
                "its bytes were changed, use another checkpoint"
            )
