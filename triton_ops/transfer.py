"""Small numbers of the host on their way to a device, without waiting for it."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device: the copy runs behind what the device does, the caller goes on at once."""
    if device.type == "cpu":
        return tensor
    # From pinned memory: from other memory the driver may wait for the stream before it copies.
    return tensor.pin_memory().to(device, non_blocking=True)


def is_capturing() -> bool:
    """Whether what is launched now goes into a CUDA graph, and runs when that is replayed."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
