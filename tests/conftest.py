"""Settings of all tests."""

import contextlib
import os

import pytest
import torch
from hypothesis import settings

# No deadline for one example: the first often pays for compilation or a lazy import.
settings.register_profile("recis", deadline=None)
settings.load_profile("recis")

if not torch.cuda.is_available():
    # Triton decides when it is imported whether its own library can be interpreted, as tests of kernels need it here.
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    with contextlib.suppress(ImportError):
        import triton.language  # noqa: F401
    os.environ.pop("TRITON_INTERPRET")
    if before is not None:
        os.environ["TRITON_INTERPRET"] = before


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="all combinations, where else each pair of settings is in one")
