"""Settings of all tests."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

import tests.interpreted  # noqa: F401
from tests.ranks import OF_LAUNCHERS

# No deadline for one example: the first often pays for compilation or a lazy import.
settings.register_profile("recis", deadline=None)
settings.load_profile("recis")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="all combinations, where else each pair of settings is in one")


@pytest.fixture(autouse=True)
def _no_launcher_is_left() -> Iterator[None]:
    """Strategies of Lightning say in the environment which rank they are, and what runs later would believe it."""
    before = {name: os.environ.get(name) for name in OF_LAUNCHERS}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
