"""What runs the ops of a test on tables: references, Numba, references over rows in blocks, or Triton over these.

In a folder whose conftest.py takes the fixture `implementation`, tests run on all it names. Without a GPU Python runs
Triton's kernels there, some milliseconds a launch: tests that are marked `interpreted` run on them too, all others with
--full. With a GPU those that are marked run on it.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import given, settings

from tests.interpreter import import_interpreted

ON_ALL = ["reference", "cpu", "blocks"]
TRITON = "triton"
HAS_GPU = torch.cuda.device_count() > 0  # which, unlike is_available, leaves CUDA alone
Check = Callable[..., None]
Size = TypeVar("Size")
IDS_A_PROGRAM = 256  # for a program takes as long for 64


def choose_implementation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run ops by references, by Numba, by references over rows that lie in blocks of 128, or by Triton over these."""
    from recis_lightning.tables import places

    if name in ("blocks", TRITON):
        monkeypatch.setattr(places, "BLOCK_ROWS", 128)
    if name == "blocks":
        monkeypatch.setattr(places, "lies_in_blocks", lambda device: True)
    if name == TRITON:
        monkeypatch.setattr(interpreted_index(), "BLOCK", IDS_A_PROGRAM)
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("TRITON_OPS", "reference" if name == "blocks" else name)


def choose_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run ops by Triton on this machine's GPU, over rows that lie in blocks of 128."""
    from recis_lightning.tables import places

    pytest.importorskip("triton")
    monkeypatch.setattr(places, "BLOCK_ROWS", 128)
    monkeypatch.setenv("TRITON_OPS", TRITON)


@functools.cache
def interpreted_index() -> Any:
    """The kernels of the index, which Python runs; skips a test where they are compiled or not there."""
    pytest.importorskip("triton")
    if HAS_GPU:
        pytest.skip("kernels are compiled for the GPU of this machine, for which others of these tests are")
    import_interpreted()
    from triton_ops.index import kernels

    return kernels


def parametrize(metafunc: pytest.Metafunc, names: Sequence[str]) -> None:
    """Run a test on what ``names`` says, and on Triton where that is asked for; for `pytest_generate_tests`."""
    chosen = (mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if "implementation" not in metafunc.fixturenames or any("implementation" in each for each in chosen):
        return
    is_asked = metafunc.config.getoption("--full") or metafunc.definition.get_closest_marker("interpreted")
    metafunc.parametrize("implementation", [*names, TRITON] if is_asked else names, indirect=True)


@pytest.fixture(autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What runs the ops of this test; a conftest.py that imports it gives it to all tests of its folder."""
    if request.param == TRITON and HAS_GPU and request.node.get_closest_marker("interpreted"):
        choose_gpu(monkeypatch)
    else:
        choose_implementation(request.param, monkeypatch)
    return request.param


def device() -> torch.device:
    """Where the tables of a test that is marked `interpreted` lie: on the GPU for Triton, if there is one."""
    return torch.device("cuda" if HAS_GPU and os.environ.get("TRITON_OPS") == TRITON else "cpu")


def sized(usual: Size, interpreted: Size) -> Size:
    """What size something is to be: smaller, or less often, where Python runs the kernels."""
    return interpreted if os.environ.get("TRITON_OPS") == TRITON and not HAS_GPU else usual


@pytest.fixture
def check(request: pytest.FixtureRequest, implementation: str) -> Check:
    """check(property, *strategies, examples=100) tries a property; where Python runs the kernels on fewer examples."""

    def try_out(holds: Callable[..., None], *strategies: Any, examples: int) -> None:
        fewer = examples // 2 if request.config.getoption("--full") else examples // 10
        settings(max_examples=sized(examples, fewer), deadline=None)(given(*strategies)(holds))()

    return try_out
