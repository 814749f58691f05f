"""Memory for the large tensors of one step, used again for those of the next."""

import math
import weakref

import numpy as np
import torch
from torch import Tensor

from recis_lightning.tables.memory import HUGE_PAGE, reserve


class BufferPool:
    """Gives uninitialised tensors, over the memory of earlier ones that nobody holds any more.

    A fresh tensor of some megabytes costs a page fault for each 4 KB, which takes longer than filling it. Memory goes
    back to the pool when the last tensor over it is gone, views and tensors saved for backward included, so that a
    tensor may be kept for as long as one likes. What the pool holds is what was in use at the same time at most.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray]] = {}

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of any content: take((1000, 16), torch.float32). Small ones are torch's own."""
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes < HUGE_PAGE:
            return torch.empty(shape, dtype=dtype)
        # A few sizes only, at most a quarter too large, so that batches of about the same size share their memory.
        step = 1 << max(nbytes.bit_length() - 3, HUGE_PAGE.bit_length() - 1)
        size = -(-nbytes // step) * step
        free = self._free.setdefault(size, [])
        memory = free.pop() if free else reserve((size,), torch.uint8).numpy()
        lent = memory[:nbytes]  # an array of its own: torch keeps it for as long as any tensor shares its memory
        weakref.finalize(lent, free.append, memory).atexit = False
        storage = torch.from_numpy(lent).untyped_storage()
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        # Not as a view of the bytes: autograd treats views of a tensor as one with it.
        return torch.empty(0, dtype=dtype).set_(storage, 0, shape, strides)
