"""Arrays that are address space first and memory only where they are touched."""

import math
import mmap
import os
import sys

import numpy as np
import torch
from torch import Tensor

HUGE_PAGE = 2 << 20  # bytes, on x86-64 and most of arm64

# Python 3.11 has no name for the flag that keeps a private mapping out of the kernel's commit accounting.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def reserve(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros whose memory is committed page by page as it is first written: reserve((2**31, 16), torch.float32).

    Past the first 2 MB in huge pages where the system grants them (random access is 1.5 times as fast), so that a small
    array stays small. Never copy or save the whole tensor: that touches every page. Raises MemoryError where the
    address space, or a limit on it, does not hold the array.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes == 0:
        return torch.empty(shape, dtype=dtype)
    with torch.inference_mode(False):  # an inference tensor could never take part in training
        return torch.from_numpy(np.frombuffer(_map(nbytes), np.uint8)).view(dtype).view(shape)


def _map(nbytes: int) -> mmap.mmap | bytearray:
    if not hasattr(mmap, "MAP_PRIVATE"):
        return bytearray(nbytes)  # systems without POSIX mappings
    try:
        memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"the system refused to reserve {nbytes:,} bytes of address space: {error}") from error
    if nbytes > HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_HUGEPAGE, HUGE_PAGE, nbytes - HUGE_PAGE)
        except OSError:
            return memory  # a kernel built without huge pages: slower, and nothing else
    return memory


def physical_memory() -> int:
    """Bytes of this machine's memory; 16 GB where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 16 << 30
