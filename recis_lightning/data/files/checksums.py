"""Checksums of stripes, which ORC has none of: most flipped bits are otherwise read as wrong numbers in silence.

`recis data manifest DIR` writes DIR/_checksums.json; readers look for that name in the folder of a file and in those
above. A file has one xxh3 of 64 bits for each stripe, and one for all the rest (head, tail, anything between stripes).
"""

import json
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import xxhash

from recis_lightning.data.errors import DataError
from recis_lightning.data.files.manifest import Manifest, OrcFile, expand_variables, read_manifest
from recis_lightning.data.files.storage import is_remote, read_range, write_file

Verify = Literal["once", "always", "off"]

NAME, FORMAT, LEVELS = "_checksums.json", 1, 8  # so many folders above a file are looked into


class CorruptStripe(DataError):
    """A stripe whose bytes are not those that were written, or that can't be decoded."""


@dataclass(frozen=True)
class FileChecksums:
    """What one file is to hold."""

    nbytes: int
    spans: tuple[tuple[int, int], ...]
    """First byte and number of bytes of each stripe."""
    stripes: tuple[str, ...]
    rest: str

    def __post_init__(self) -> None:
        if len(self.spans) != len(self.stripes):
            raise DataError(f"{len(self.stripes)} checksums for {len(self.spans)} stripes; write the checksums again")


def write_checksums(folder: str | Path, on_bytes: Callable[[int], None] = lambda count: None) -> str:
    """Write the checksums of all files in a folder or at a URL, however deep; gives the file written.

    ``on_bytes`` is told how many bytes were read since the last call. DataError as `read_manifest`.
    """
    manifest, problems = read_manifest(folder)
    if problems:
        raise DataError(problems)
    base = _base_of(folder)
    files = {}
    for file in manifest.files:
        sums = compute_checksums(file, on_bytes)
        entry = {"nbytes": sums.nbytes, "spans": sums.spans, "stripes": sums.stripes, "rest": sums.rest}
        files[_name_below(base, file.path)] = entry
    path = f"{base}/{NAME}"
    write_file(path, (json.dumps({"format": FORMAT, "algorithm": "xxh3_64", "files": files}, indent=1) + "\n").encode())
    return path


def _base_of(folder: str | Path) -> str:
    """A folder as its files' paths begin."""
    given = expand_variables(os.fspath(folder))
    return given.rstrip("/") if is_remote(given) else os.path.abspath(given)


def _name_below(base: str, path: str) -> str:
    if not is_remote(base):
        return Path(os.path.relpath(path, base)).as_posix()
    if not path.startswith(f"{base}/"):
        raise DataError(
            f"{base} is no folder, and checksums lie in the folder of the files; name {path.rsplit('/', 1)[0]}"
        )
    return path[len(base) + 1 :]


def compute_checksums(file: OrcFile, on_bytes: Callable[[int], None] = lambda count: None) -> FileChecksums:
    stripes = []
    for span in file.stripe_spans:
        stripes.append(checksum(file.path, span))
        on_bytes(span[1])
    rest = _checksum_rest(file.path, file.nbytes, file.stripe_spans)
    return FileChecksums(file.nbytes, file.stripe_spans, tuple(stripes), rest)


def checksum(path: str, span: tuple[int, int]) -> str:
    """xxh3 of bytes [first, first + count) of a file, given as (first, count)."""
    return xxhash.xxh3_64_hexdigest(read_range(path, *span))


def _checksum_rest(path: str, nbytes: int, spans: Sequence[tuple[int, int]]) -> str:
    digest, at = xxhash.xxh3_64(), 0
    for first, count in [*sorted(spans), (nbytes, 0)]:
        if first > at:
            digest.update(read_range(path, at, first - at))
        at = first + count
    return digest.hexdigest()


class _Search:
    """Looks for the checksums of files in the folders above them, into each folder once."""

    def __init__(self) -> None:
        self._read: dict[str, dict[str, FileChecksums]] = {}

    def find(self, path: str) -> FileChecksums | None:
        folder, name = path.rsplit("/", 1) if is_remote(path) else os.path.split(path)
        for _ in range(LEVELS):
            found = self._checksums_in(folder).get(name)
            if found is not None:
                return found
            above, part = folder.rsplit("/", 1) if is_remote(folder) else os.path.split(folder)
            if not part or above == folder or above.endswith((":", ":/")):
                return None
            folder, name = above, f"{part}/{name}"
        return None

    def _checksums_in(self, folder: str) -> dict[str, FileChecksums]:
        if folder not in self._read:
            self._read[folder] = _read_checksums(f"{folder}/{NAME}")
        return self._read[folder]


def _read_checksums(path: str) -> dict[str, FileChecksums]:
    try:
        content = bytes(read_range(path, 0, 1 << 40)) if is_remote(path) else Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    try:
        found = json.loads(content)
        if found["format"] != FORMAT:
            raise DataError(f"{path} has format {found['format']}, this version reads {FORMAT}; write it again")
        return {
            name: FileChecksums(
                entry["nbytes"], tuple(map(tuple, entry["spans"])), tuple(entry["stripes"]), entry["rest"]
            )
            for name, entry in found["files"].items()
        }
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is damaged ({error!r}); write it again: recis data manifest <folder>") from error


class Checks:
    """Holds what is read of a data set against its checksums; safe to use from several threads."""

    def __init__(self, manifest: Manifest, verify: Verify) -> None:
        if verify not in ("once", "always", "off"):
            raise DataError(f"verify is {verify!r}; write once, always or off")
        self.manifest, self._verify = manifest, verify
        self._verified: set[int] = set()
        self._lock = threading.Lock()

    @cached_property
    def checksums(self) -> dict[str, FileChecksums]:
        """Of the files that have some."""
        if self._verify == "off":
            return {}
        search = _Search()
        found = {file.path: search.find(file.path) for file in self.manifest.files}
        return {path: sums for path, sums in found.items() if sums is not None}

    def find_problems(self) -> list[str]:
        """Files that are not what was written, as far as lengths, tails and heads tell; `always`: those without any."""
        problems = []
        for file in self.manifest.files:
            sums = self.checksums.get(file.path)
            if sums is None:
                if self._verify == "always":
                    problems.append(f"{file.path} has no checksums; write them: recis data manifest <folder>")
            elif (difference := find_difference(file, sums)) is not None:
                problems.append(difference)
        return problems

    def check(self, stripe: int) -> None:
        """Raise CorruptStripe where the bytes of a stripe are not those that were written."""
        file, index = self.manifest.locate(stripe)
        sums = self.checksums.get(file.path)
        if sums is None or (self._verify == "once" and stripe in self._verified):
            return
        found = checksum(file.path, sums.spans[index])
        if found != sums.stripes[index]:
            where = self.manifest.describe_rows(stripe, 0, file.stripe_rows[index])
            first, count = sums.spans[index]
            raise CorruptStripe(
                f"{where}: bytes {first} to {first + count - 1} have changed since their checksum was written (xxh3 is "
                f"{found}, was {sums.stripes[index]}); copy or write the file again"
            )
        with self._lock:
            self._verified.add(stripe)


def find_difference(file: OrcFile, sums: FileChecksums) -> str | None:
    """What shows, without reading stripes, that a file is not the one whose checksums these are."""
    again = "copy it again, or, where it was meant to change, write the checksums again: recis data manifest <folder>"
    if file.nbytes != sums.nbytes:
        return f"{file.path} has {file.nbytes} bytes, had {sums.nbytes} when its checksums were written; {again}"
    if file.stripe_spans != sums.spans or _checksum_rest(file.path, file.nbytes, sums.spans) != sums.rest:
        return f"{file.path}: its tail or head has changed since its checksums were written; {again}"
    return None


def verify(folder: str | Path, on_bytes: Callable[[int], None] = lambda count: None) -> tuple[int, list[str]]:
    """Read all of a folder and hold it against its checksums; gives how many stripes are right, and the problems."""
    manifest, problems = read_manifest(folder)
    checks = Checks(manifest, "always")
    bad = checks.find_problems()
    problems = [*problems, *bad]
    right = 0
    for stripe in range(len(manifest.stripe_rows)):
        file, index = manifest.locate(stripe)
        if file.path in checks.checksums and not any(problem.startswith(file.path) for problem in bad):
            try:
                checks.check(stripe)
                right += 1
            except CorruptStripe as error:
                problems += error.problems
        if index < len(file.stripe_spans):
            on_bytes(file.stripe_spans[index][1])
    known = {file.path for file in manifest.files}
    return right, [*problems, *(f"{path} is gone; its checksums are there" for path in _missing_files(folder, known))]


def _missing_files(folder: str | Path, known: set[str]) -> list[str]:
    base = _base_of(folder)
    paths = [f"{base}/{name}" for name in _read_checksums(f"{base}/{NAME}")]
    return [path for path in paths if (path if is_remote(path) else os.path.normpath(path)) not in known]
