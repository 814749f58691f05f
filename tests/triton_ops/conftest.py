"""Where ops on rows are tested: by their reference, on the CPU, and by Triton on a GPU or in its interpreter."""

import pytest
import torch

ON_TRITON = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where Triton's kernels run here: interpreted, on the CPU, without a GPU."""


@pytest.fixture
def on_triton(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Runs ops by their Triton kernels; the device that tensors must lie on."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_OPS", "triton")
    if ON_TRITON.type == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    return ON_TRITON
