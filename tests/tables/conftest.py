"""Every test of tables runs on the CPU's kernels and on the references."""

import pytest


@pytest.fixture(params=["reference", "cpu"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TRITON_OPS", request.param)
    return request.param
