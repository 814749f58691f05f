"""Small numbers of the host on their way to a device, and back, without waiting for it."""

from typing import Any

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device: the copy runs behind what the device does, the caller goes on at once."""
    if device.type == "cpu":
        return tensor
    # From pinned memory: from other memory the driver may wait for the stream before it copies.
    return tensor.pin_memory().to(device, non_blocking=True)


class Arriving:
    """A tensor on its way to the CPU: the copy runs behind what its device does, and only who reads it waits for it."""

    def __init__(self, tensor: Tensor) -> None:
        self._event: Any = None
        self._tensor = tensor
        if tensor.device.type == "cuda":
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def has_come(self) -> bool:
        return self._event is None or self._event.query()

    def read(self) -> Tensor:
        """The tensor on the CPU, once it has come; of the CPU itself the one that was given."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensor


def is_capturing() -> bool:
    """Whether what is launched now goes into a CUDA graph, and runs when that is replayed."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
