"""`recis doctor`: what a bug report needs, and what to look at first when something is slow."""

import argparse
import os
import platform
from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import torch

from recis_lightning import __version__
from triton_ops import dispatch

PACKAGES = ("torch", "lightning", "triton", "numba", "numpy", "pyarrow", "torchmetrics", "safetensors", "wandb")


def run(arguments: Sequence[str]) -> int:
    text = "Show versions, devices, and which kernels run and why."
    argparse.ArgumentParser("recis doctor", description=text).parse_args(arguments)
    print(examine())
    return 0


def examine() -> str:
    """Versions, devices, and the implementation of every op with the reason for it, as lines to print."""
    sections = {"versions": _versions(), "devices": _devices(), "kernels": _kernels()}
    return "\n\n".join("\n".join([title, *(f"  {line}" for line in lines)]) for title, lines in sections.items())


def _versions() -> list[str]:
    lines = [f"recis-lightning {__version__}", f"python {platform.python_version()}, {platform.platform()}"]
    for package in PACKAGES:
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            lines.append(f"{package} is not installed")
    return lines


def _devices() -> list[str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = [f"{cores} CPU cores for this process, torch computes on {torch.get_num_threads()} threads"]
    if not torch.cuda.is_available():
        return [*lines, "no GPU that torch can use: tables train on the CPU (accelerator: cpu, any number of ranks)"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        lines.append(f"cuda:{index} {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    return [
        *lines,
        "tables train on one of them (accelerator: gpu), or on the CPU (accelerator: cpu, any number of ranks)",
    ]


def _kernels() -> list[str]:
    """Ops that run the same way for the same reason share a line."""
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for choice in dispatch.explain(("cpu", "cuda")):
        groups[choice.device, choice.implementation or "none", choice.reason].append(choice.op)
    names = {"cpu": "cpu", "cuda": "gpu" if torch.cuda.is_available() else "gpu, if there were one"}
    return [f"{names[device]}: {', '.join(ops)}: {what} ({reason})" for (device, what, reason), ops in groups.items()]
