"""Every test of tables runs on the CPU's kernels, on the references, and on these over rows that lie in blocks."""

import pytest

from recis_lightning.tables import places


@pytest.fixture(params=["reference", "cpu", "blocks"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "blocks":  # as on a GPU, where a table grows by a block now and then
        monkeypatch.setattr(places, "lies_in_blocks", lambda device: True)
        monkeypatch.setattr(places, "BLOCK_ROWS", 128)
    monkeypatch.setenv("TRITON_OPS", "reference" if request.param == "blocks" else request.param)
    return request.param
