"""Settings of all tests."""

import pytest
from hypothesis import settings

import tests.interpreted  # noqa: F401

# No deadline for one example: the first often pays for compilation or a lazy import.
settings.register_profile("recis", deadline=None)
settings.load_profile("recis")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="all combinations, where else each pair of settings is in one")
