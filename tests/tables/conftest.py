"""Every test of tables runs on the CPU's kernels, on the references, on these over rows that lie in blocks; on Triton's
kernels those that are marked for it, and with --full all of them."""

import pytest

from tests.tables.blocks import ON_ALL, check, implementation, parametrize  # noqa: F401


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize(metafunc, ON_ALL)
