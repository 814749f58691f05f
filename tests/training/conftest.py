import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

ADVICE = (  # of Lightning, about what tests do on purpose
    "ignore:You defined a `validation_step` but have no `val_dataloader`",
    "ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint need to be provided",
    "ignore:Checkpoint directory .* exists and is not empty",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            for message in ADVICE:
                item.add_marker(pytest.mark.filterwarnings(message))


@pytest.fixture(autouse=True)
def _leaves_the_process_as_it_was() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGINT)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    yield
    assert not dist.is_initialized(), "a process group was left behind"
    assert signal.getsignal(signal.SIGINT) is handler, "a signal handler was left behind"
