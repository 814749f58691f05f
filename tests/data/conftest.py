"""A guard against threads that outlive their iterator."""

import threading
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("recis-"):
            thread.join(timeout=60)  # an abandoned iterator only tells its threads to end
            assert not thread.is_alive(), f"{thread.name} was left behind"
