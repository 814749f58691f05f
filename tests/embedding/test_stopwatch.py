"""Time in all-to-alls: by the clock on the CPU, between events on a GPU, pretended here."""

import time

import torch

from recis_lightning.embedding.stopwatch import Stopwatch
from tests.interpreter import import_interpreted
from tests.pretend_gpu import GPU, on_pretended_gpu, pretending


def test_seconds_add_up_until_they_are_taken() -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        with stopwatch.running():
            time.sleep(0.01)
    assert stopwatch.take() >= 0.02
    assert stopwatch.take() == 0


@on_pretended_gpu
def test_a_gpu_is_asked_for_the_time_between_its_events_and_not_waited_for() -> None:
    import_interpreted()
    with pretending() as gpu:
        stopwatch = Stopwatch(GPU)
        for _ in range(3):
            with stopwatch.running():
                torch.zeros(1, device=GPU)
        stopwatch._events[2][1].query = lambda: False  # it has not come to the last one
        assert stopwatch.take() == 0.002
        del stopwatch._events[0][1].query
        assert stopwatch.take() == 0.001
        assert gpu.waits == []
