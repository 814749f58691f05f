"""Dispatch: the files of an op's folder and TRITON_OPS decide what runs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from triton_ops import dispatch

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Three ops: `plain` has only a reference, `fast` Numba too, `everywhere` Triton as well."""
    for op, files in {"plain": [], "fast": ["cpu.py"], "everywhere": ["cpu.py", "kernels.py"]}.items():
        (tmp_path / op).mkdir()
        for file in ["reference.py", *files]:
            (tmp_path / op / file).touch()
    monkeypatch.setattr(dispatch, "_ROOT", tmp_path)
    monkeypatch.delenv("TRITON_OPS", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    caches = (dispatch.ops, dispatch.implementations, dispatch._decide)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def test_device_decides_without_an_override() -> None:
    assert dispatch.choose("plain", CPU) == "reference"
    assert dispatch.choose("fast", CPU) == "cpu"
    assert dispatch.choose("everywhere", CUDA) == "triton"


def test_op_without_a_triton_kernel_is_a_named_error_on_a_gpu() -> None:
    with pytest.raises(dispatch.UnsupportedDeviceError, match="op 'fast' on cuda: it has no Triton kernel"):
        dispatch.choose("fast", CUDA)


@pytest.mark.parametrize(("override", "expected"), [("reference", "reference"), ("cpu", "cpu")])
def test_override_is_read_at_every_call(monkeypatch: pytest.MonkeyPatch, override: str, expected: str) -> None:
    assert dispatch.choose("everywhere", CPU) == "cpu"
    monkeypatch.setenv("TRITON_OPS", override)
    assert dispatch.choose("everywhere", CPU) == expected
    assert dispatch.choose("plain", CPU) == "reference"


def test_cpu_override_refuses_gpu_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_OPS", "cpu")
    with pytest.raises(dispatch.UnsupportedDeviceError, match="tensors are on cuda"):
        dispatch.choose("everywhere", CUDA)


def test_triton_on_the_cpu_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_OPS", "triton")
    with pytest.raises(dispatch.UnsupportedDeviceError, match="TRITON_INTERPRET=1"):
        dispatch.choose("everywhere", CPU)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert dispatch.choose("everywhere", CPU) == "triton"
    assert dispatch.choose("fast", CPU) == "cpu", "what has no Triton kernel runs as ever beside those that have"
    with pytest.raises(dispatch.UnsupportedDeviceError, match="no Triton kernel"):
        dispatch.choose("fast", CUDA)


def test_unknown_override_and_unknown_op_say_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no op 'gather'; the ops are: everywhere, fast, plain"):
        dispatch.choose("gather", CPU)
    monkeypatch.setenv("TRITON_OPS", "cuda")
    with pytest.raises(ValueError, match="TRITON_OPS is 'cuda'; set it to one of reference, cpu, triton"):
        dispatch.choose("fast", CPU)


def test_explain_gives_a_reason_for_every_op_and_device() -> None:
    choices = {(choice.op, choice.device): choice for choice in dispatch.explain()}
    assert len(choices) == 6
    assert choices["fast", "cuda"].implementation is None
    assert all(choice.reason for choice in choices.values())
