"""Which implementation of an op runs: its plain-torch reference, Numba on the CPU, or Triton on a GPU.

Each op is a folder `triton_ops/<op>/` whose files say what there is: `reference.py` (the definition), `cpu.py` (Numba,
only where the reference is too slow), `kernels.py` (Triton), and `op.py`, which checks arguments and asks here once a
call. The environment variable TRITON_OPS=reference | cpu | triton overrides the choice, to rule kernels out.
"""

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

Implementation = Literal["reference", "cpu", "triton"]

OVERRIDE = "TRITON_OPS"
_FILES: dict[Implementation, str] = {"reference": "reference.py", "cpu": "cpu.py", "triton": "kernels.py"}
_ROOT = Path(__file__).parent
# Ops that need no kernel for a GPU.
_ELSEWHERE: dict[str, tuple[Implementation | None, str]] = {
    "hash_bytes": (None, "strings are hashed on the CPU, while data are read"),
    "pack": (None, "batches are packed on the CPU, while data are read"),
    "row_transform": ("reference", "plain torch is the path of this op there"),
}


class UnsupportedDeviceError(NotImplementedError):
    """An op was asked to run on a device it has no implementation for."""


@dataclass(frozen=True)
class Choice:
    """What runs an op on a device, and why."""

    op: str
    device: str
    implementation: Implementation | None
    """None where the op cannot run there."""
    reason: str


def choose(op: str, device: torch.device) -> Implementation:
    """The implementation that serves ``op`` on ``device``: choose("row_update", torch.device("cpu")) -> "cpu".

    Under torch.compile and torch.export it is the reference: a graph holds torch's own operations. Raises
    UnsupportedDeviceError where there is none, and ValueError where TRITON_OPS names none.
    """
    if torch.compiler.is_compiling():
        return "reference"
    override = os.environ.get(OVERRIDE, "")
    choice = _decide(op, device.type, override, bool(override) and _interpreted())
    if choice.implementation is None:
        raise UnsupportedDeviceError(f"op '{op}' on {device}: {choice.reason}")
    return choice.implementation


def explain(device_types: tuple[str, ...] = ("cpu", "cuda")) -> list[Choice]:
    """What would run each op on each kind of device under the environment of this moment, and why."""
    override = os.environ.get(OVERRIDE, "")
    return [_decide(op, device_type, override, _interpreted()) for device_type in device_types for op in ops()]


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def ops() -> tuple[str, ...]:
    """The names of all ops: the folders that hold a reference."""
    return tuple(sorted(path.parent.name for path in _ROOT.glob(f"*/{_FILES['reference']}")))


@functools.cache
def implementations(op: str) -> frozenset[Implementation]:
    """What an op's folder holds: implementations("index") -> {"reference", "cpu"}."""
    if op not in ops():
        raise ValueError(f"there is no op '{op}'; the ops are: {', '.join(ops())}")
    return frozenset(name for name, file in _FILES.items() if (_ROOT / op / file).exists())


@functools.cache
def _decide(op: str, device_type: str, override: str, interpreted: bool) -> Choice:
    available = implementations(op)
    if override:
        return Choice(op, device_type, *_apply_override(override, device_type, available, interpreted))
    if device_type == "cpu":
        if "cpu" in available:
            return Choice(op, device_type, "cpu", "Numba, compiled once and cached on disk")
        return Choice(op, device_type, "reference", "plain torch is the CPU path of this op")
    if "triton" in available:
        return Choice(op, device_type, "triton", "Triton kernel")
    if op in _ELSEWHERE:
        return Choice(op, device_type, *_ELSEWHERE[op])
    return Choice(op, device_type, None, f"it has no Triton kernel yet; run on the CPU, or set {OVERRIDE}=reference")


def _apply_override(
    override: str, device_type: str, available: frozenset[Implementation], interpreted: bool
) -> tuple[Implementation | None, str]:
    if override not in _FILES:
        raise ValueError(f"{OVERRIDE} is '{override}'; set it to one of {', '.join(_FILES)}, or leave it out")
    wanted = override
    if wanted == "reference":
        return "reference", f"{OVERRIDE}=reference"
    if wanted == "cpu":
        if device_type != "cpu":
            return None, f"{OVERRIDE}=cpu, but the tensors are on {device_type}; leave {OVERRIDE} out"
        return ("cpu" if "cpu" in available else "reference"), f"{OVERRIDE}=cpu"
    if "triton" not in available and device_type == "cpu":
        return ("cpu" if "cpu" in available else "reference"), f"{OVERRIDE}=triton, but it has no Triton kernel"
    if "triton" not in available:
        return None, f"{OVERRIDE}=triton, but it has no Triton kernel yet; leave {OVERRIDE} out"
    if device_type == "cpu" and not interpreted:
        return None, f"{OVERRIDE}=triton on the CPU needs Triton's interpreter; set TRITON_INTERPRET=1 as well"
    return "triton", f"{OVERRIDE}=triton" + (", interpreted" if device_type == "cpu" else "")
