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
    tensor may be kept for as long as one likes. The pool never has more pieces of memory than tensors were in use at
    the same time. On another device than the CPU memory is that of torch, which keeps it for later tensors itself.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self._free: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of any content: take((1000, 16), torch.float32). Small ones are torch's own."""
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes < HUGE_PAGE or self.device.type != "cpu":
            return torch.empty(shape, dtype=dtype, device=self.device)
        memory = self._take_memory(nbytes)
        lent = memory[:nbytes]  # an array of its own: torch keeps it for as long as any tensor shares its memory
        weakref.finalize(lent, self._free.append, memory).atexit = False
        storage = torch.from_numpy(lent).untyped_storage()
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        # Not as a view of the bytes: autograd treats views of a tensor as one with it.
        return torch.empty(0, dtype=dtype).set_(storage, 0, shape, strides)

    def _take_memory(self, nbytes: int) -> np.ndarray:
        """The smallest free piece that is large enough; or else a new one, in the place of the largest free one."""
        self._free.sort(key=len)
        for place, memory in enumerate(self._free):
            if len(memory) >= nbytes:
                return self._free.pop(place)
        if self._free:
            self._free.pop()
        return reserve((nbytes + nbytes // 8,), torch.uint8).numpy()  # the next batch may be a little larger
