"""Where ops on rows are tested: by their reference, on the CPU, and by Triton on a GPU or in its interpreter."""

import importlib.util

import pytest
import torch

from tests.interpreter import import_interpreted

HAS_TRITON = importlib.util.find_spec("triton") is not None
ON_TRITON = torch.device("cuda" if torch.cuda.is_available() else "cpu")

if HAS_TRITON and ON_TRITON.type == "cpu":
    import_interpreted()


@pytest.fixture
def on_triton(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Runs ops by their Triton kernels; the device that tensors must lie on: the CPU, interpreted, without a GPU."""
    if not HAS_TRITON:
        pytest.skip("triton is not installed")
    monkeypatch.setenv("TRITON_OPS", "triton")
    if ON_TRITON.type == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    return ON_TRITON
