import signal
from collections.abc import Iterator

import pytest
import torch.distributed as dist


@pytest.fixture(autouse=True)
def _leaves_the_process_as_it_was() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGINT)
    yield
    assert not dist.is_initialized(), "a process group was left behind"
    assert signal.getsignal(signal.SIGINT) is handler, "a signal handler was left behind"
