"""Batches on their way to a GPU: in which order things are asked for, and on which stream."""

from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from recis_lightning.data import delivery
from recis_lightning.data.delivery import Delivery, receive
from recis_lightning.data.memory import PinnedBuffers
from recis_lightning.ragged import Batch, Ragged

ENTRIES = {"ids": Ragged.from_lists([[5, 7], [], [5]]), "age": torch.tensor([1.0, 2.0, 3.0])}


class Machine:
    """Writes down what a GPU would be told; its tensors are those of the CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.running = "main"
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(self, "copies"))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(self, "main"))
        monkeypatch.setattr(torch.cuda, "stream", self.on)
        monkeypatch.setattr(Tensor, "is_pinned", lambda tensor: False)
        monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: self.note(tensor, "pin"))
        monkeypatch.setattr(Tensor, "to", lambda tensor, *_, **how: self.note(tensor.clone(), f"copy {how}"))
        monkeypatch.setattr(Tensor, "record_stream", lambda _, stream: self.log.append(f"kept for {stream.name}"))

    def note(self, tensor: Tensor, what: str) -> Tensor:
        self.log.append(f"{self.running}: {what}")
        return tensor

    @contextmanager
    def on(self, stream: "Stream") -> Any:
        before, self.running = self.running, stream.name
        yield
        self.running = before


class Stream:
    def __init__(self, machine: Machine, name: str) -> None:
        self.machine, self.name = machine, name

    def record_event(self) -> str:
        self.machine.log.append(f"{self.name}: event")
        return "the event"

    def wait_event(self, event: str) -> None:
        self.machine.log.append(f"{self.name} waits for {event}")


def test_batch_is_pinned_and_copied_aside_and_the_training_stream_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch.pack(ENTRIES, 3, {"step": 4})
    machine = Machine(monkeypatch)
    sent = Delivery(torch.device("cuda", 0)).send(batch)
    assert machine.log == ["main: pin", "copies: copy {'non_blocking': True}", "copies: event"]
    machine.log.clear()
    received = receive(sent, batch.device)
    assert machine.log == ["main waits for the event", "kept for main"]
    assert received.arrival is None
    assert received.token == {"step": 4}
    assert received["ids"].to_lists() == [[5, 7], [], [5]]  # type: ignore[union-attr]
    machine.log.clear()
    assert receive(received, batch.device) is received, "it is there"
    assert machine.log == []


def test_batch_that_nobody_sent_is_copied_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch.pack(ENTRIES, 3)
    machine = Machine(monkeypatch)
    receive(batch, torch.device("cuda", 0))
    assert machine.log == ["main: pin", "main: copy {'non_blocking': True}"]


def test_batch_of_the_cpu_stays_where_it_is_and_is_not_pinned() -> None:
    batch = Batch.pack(ENTRIES, 3)
    assert receive(batch, torch.device("cpu")) is batch


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_batches_arrive_on_a_gpu_as_they_were_packed() -> None:
    device = torch.device("cuda", 0)
    courier, pool = Delivery(device), PinnedBuffers()
    sent = []
    for number in range(50):
        buffer = pool.take(1 << 20)
        buffer.fill_(number)
        sent.append(courier.send(Batch(buffer, {}, 0)))  # the pinned buffer is free to be used again
        del buffer
    for number, batch in enumerate(sent):
        assert batch.arrival is not None
        assert bool((receive(batch, device).buffer == number).all())
    assert delivery.receive(Batch.pack(ENTRIES, 3), device)["age"].tolist() == [1.0, 2.0, 3.0]
