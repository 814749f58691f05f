"""How long something takes where it happens: on the CPU by its clock, on a GPU between two events."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Stopwatch:
    """Adds up the time of what runs within `running`; waits for no GPU."""

    def __init__(self, device: torch.device) -> None:
        self._is_on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[Any, Any]] = []
        """Of what a GPU may not have come to yet: before it, and behind."""

    @contextmanager
    def running(self) -> Iterator[None]:
        if self._is_on_gpu:
            before, behind = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            yield
            behind.record()
            self._events.append((before, behind))
            return
        started = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - started

    def take(self) -> float:
        """Seconds since this was last asked; of what a GPU has come to."""
        while self._events and self._events[0][1].query():
            before, behind = self._events.pop(0)
            self._seconds += before.elapsed_time(behind) / 1e3
        seconds, self._seconds = self._seconds, 0.0
        return seconds
