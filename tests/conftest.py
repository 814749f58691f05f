"""Settings of all tests."""

import contextlib

import pytest
import torch
from hypothesis import settings

from tests.interpreter import interpreting

# No deadline for one example: the first often pays for compilation or a lazy import.
settings.register_profile("recis", deadline=None)
settings.load_profile("recis")

if not torch.cuda.is_available():
    # Before anything else imports it, as tests of kernels need it.
    with interpreting(), contextlib.suppress(ImportError):
        import triton.language  # noqa: F401


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="all combinations, where else each pair of settings is in one")
