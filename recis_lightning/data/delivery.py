"""Batches on their way to a GPU: copied from pinned memory on a stream of their own while others are trained on.

    thread that packs      pinned buffer -> copy on the delivery's stream -> event      (`Delivery.send`)
    thread that trains     its stream waits for the event, nobody else does             (`receive`)

On the CPU a batch is where it was packed, and none of this happens.
"""

from dataclasses import replace

import torch

from recis_lightning.ragged import Batch


class Delivery:
    """Starts copies of batches to a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)

    def send(self, batch: Batch) -> Batch:
        """The batch on the device; `receive` it before it is read, for the copy may be under way."""
        # The pinned memory is given back by torch once the copy is over, however soon nobody holds it.
        buffer = batch.buffer if batch.buffer.is_pinned() else batch.buffer.pin_memory()
        with torch.cuda.stream(self._stream):
            moved = batch.with_buffer(buffer.to(self.device, non_blocking=True))
            return replace(moved, arrival=self._stream.record_event())


def receive(batch: Batch, device: torch.device) -> Batch:
    """The batch on ``device``, where what is launched from here on may read it; waits for nothing on the CPU."""
    if batch.arrival is not None:
        stream = torch.cuda.current_stream(batch.device)
        stream.wait_event(batch.arrival)
        batch.record_stream(stream)  # its memory is the delivery's stream's, which would give it out again too soon
        batch = replace(batch, arrival=None)
    if batch.device == device:
        return batch
    if device.type == "cuda" and batch.device.type == "cpu":
        return batch.pin_memory().to(device, non_blocking=True)
    return batch.to(device)
