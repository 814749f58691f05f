"""How many threads a kernel may use here and now.

Several only for large batches, in the main thread of a process that nobody forked or spawned as a worker: a thread team
costs more than it gives below some ten thousand ids, threads that read data should not each start one, and GNU OpenMP
kills a forked child that uses it after its parent has. And only where cores are free: a team waits for its last member,
and where that one has to wait for a core, a lookup of 100 k ids took 70 ms instead of 4.
"""

import functools
import importlib
import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numba
import torch

FEWEST = 1 << 15  # ids that are worth a team of threads

_PROCESS = os.getpid()


def threads_for(count: int) -> int:
    """Threads for a kernel over ``count`` ids: torch.get_num_threads() where several may be used, else 1.

    What a kernel gives does not depend on it.
    """
    if count < FEWEST or torch.get_num_threads() == 1:
        return 1
    if os.getpid() != _PROCESS or multiprocessing.parent_process() is not None:
        return 1
    if threading.current_thread() is not threading.main_thread() or not _has_safe_layer():
        return 1
    threads = min(torch.get_num_threads(), int(numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    return threads if _are_free(threads) else 1


def _are_free(threads: int) -> bool:
    """Whether the machine's load of the last minute, this thread among it, leaves cores for so many threads."""
    if not hasattr(os, "getloadavg"):
        return False
    return os.getloadavg()[0] + threads <= (os.cpu_count() or 1) + 1


@functools.cache
def _has_safe_layer() -> bool:
    """Whether Numba finds OpenMP or TBB here; its own work queue may not be entered by two threads."""
    for layer in ("omppool", "tbbpool"):
        try:
            importlib.import_module(f"numba.np.ufunc.{layer}")
        except ImportError:
            continue
        return True
    return False


@contextmanager
def limited_to(threads: int) -> Iterator[None]:
    """Let parallel kernels use so many threads within."""
    before = numba.get_num_threads()
    numba.set_num_threads(threads)
    try:
        yield
    finally:
        numba.set_num_threads(before)
