"""Every test of tables runs on the CPU's kernels, on the references, and on these over rows that lie in blocks."""

import pytest

from tests.tables.blocks import ON_ALL, choose_implementation


@pytest.fixture(params=ON_ALL, autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    choose_implementation(request.param, monkeypatch)
    return request.param
