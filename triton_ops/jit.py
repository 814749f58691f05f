"""How CPU kernels are compiled: once for the types they meet, kept on disk, without the GIL."""

import functools
import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba

log = logging.getLogger(__name__)

_ROOT = Path(__file__).parent


def kernel(function: Callable[..., Any], *, fastmath: frozenset[str] = frozenset(), parallel: bool = False) -> Any:
    """Compile a function with Numba at its first call, and load it from disk in later processes.

    ``fastmath`` names liberties with floating-point arithmetic, by LLVM's flags. ``parallel`` runs loops over
    numba.prange on several threads; such a kernel may only be called where `triton_ops.threads` allows it.

    A kernel has in it what it imports from other files: helpers, and constants such as the columns of a record. Numba
    throws a kept kernel away when its own file changes, but not when one of those does. So kernels are kept in a folder
    named by the content of all of triton_ops.
    """
    # numpy: a division by zero gives inf, instead of a branch and an exception at each division.
    options = {"nogil": True, "error_model": "numpy", "fastmath": set(fastmath), "parallel": parallel}
    folder = cache_folder()
    if folder is None:
        return numba.njit(**options)(function)  # type: ignore[call-overload]
    with _numba_cache_in(folder):
        return numba.njit(cache=True, **options)(function)  # type: ignore[call-overload]


@functools.cache
def cache_folder() -> Path | None:
    """Where compiled kernels are kept; None where nothing can be written, so that each process compiles its own.

    Inside NUMBA_CACHE_DIR where it is set, else beside the source, else in the user's cache.
    """
    given = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    bases = [Path(given)] if given else [_ROOT / "__pycache__", Path("~/.cache/triton_ops").expanduser()]
    name = f"kernels-{digest(_ROOT)}"
    found = next((base / name for base in bases if _is_writable(base / name)), None)
    if found is None:
        log.warning(
            "compiled kernels can be kept nowhere: none of %s can be written, so each process compiles for some 10 s; "
            "set NUMBA_CACHE_DIR to a folder that can",
            ", ".join(map(str, bases)),
        )
    return found


def digest(root: Path) -> str:
    """What tells two states of a folder's Python files apart: 16 hexadecimal digits."""
    content = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return content.hexdigest()[:16]


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


@contextmanager
def _numba_cache_in(folder: Path) -> Iterator[None]:
    # Numba decides where a function is kept when it is decorated, by this setting of its own.
    before = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before  # type: ignore[attr-defined]
