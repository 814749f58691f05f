"""Buffers that are used again, since fresh memory costs more in page faults than filling it."""

import weakref
from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recis_lightning.ragged import ALIGNMENT


class BufferPool:
    """Hands out uint8 tensors whose memory comes back once nothing refers to it any more; safe between threads.

    Fresh pages of 4 kB cost about 90 ns for the 264 bytes of a row of 40 columns, nearly as much as all the packing.
    """

    def __init__(self) -> None:
        self._free: deque[NDArray[np.uint8]] = deque()

    def take(self, nbytes: int) -> Tensor:
        """A tensor of ``nbytes`` bytes, 64-byte aligned, whose content means nothing."""
        if not nbytes:
            return torch.empty(0, dtype=torch.uint8)  # an empty array of NumPy's has no stride to view it by
        memory = self._take_free(nbytes)
        if memory is None:
            # An eighth more, so that the next buffer, a little larger, finds room in this one. From NumPy, since it
            # asks for huge pages where they pay; torch leaves that to an environment variable.
            memory = np.empty(nbytes + nbytes // 8 + ALIGNMENT, np.uint8)
            memory = memory[-memory.ctypes.data % ALIGNMENT :]
        # The tensor's storage, which all its views share, keeps `handle` alive; nothing else does.
        handle = memory[:nbytes]
        weakref.finalize(handle, self._free.append, memory).atexit = False
        return torch.from_numpy(handle)

    def _take_free(self, nbytes: int) -> NDArray[np.uint8] | None:
        """The free buffer that fits best; where none is large enough, the last one makes room for a larger."""
        for _ in range(len(self._free)):
            try:
                memory = self._free.pop()
            except IndexError:  # another thread was faster
                break
            if len(memory) >= nbytes:
                return memory
            self._free.appendleft(memory)
        if self._free:
            self._free.popleft()
        return None


class PinnedBuffers:
    """As `BufferPool`, of pinned memory: torch keeps it for later, and not before copies from it are over."""

    def take(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
