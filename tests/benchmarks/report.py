"""What a benchmark gives: ratios against a named rival, measured in one run, as a table and as JSON."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import lightning
import numba
import numpy
import torch

FOLDER = Path("build/bench")


def hardware() -> str:
    """The processor's model and the number of cores this process may use."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


def versions() -> dict[str, str]:
    modules = {"torch": torch, "lightning": lightning, "numba": numba, "numpy": numpy}
    return {"python": platform.python_version()} | {name: module.__version__ for name, module in modules.items()}


def load_average() -> float:
    """Processes that ran or waited for a core during the last minute, those of the benchmark itself included."""
    return round(os.getloadavg()[0], 2)


@dataclass(frozen=True, kw_only=True)
class Result:
    """How one of our measures compares with a rival's; a ratio above 1 is in our favour."""

    name: str
    rival: str
    ratio: float
    """The median over runs of theirs / ours, each from the same run."""
    worst_ratio: float
    """The least of these."""
    bar: float | None = None
    """The ratio that the project promises, where it does."""
    ours: float
    theirs: float
    unit: str
    shapes: str
    threads: int
    load: float = field(default_factory=load_average)
    hardware: str = field(default_factory=hardware)
    versions: dict[str, str] = field(default_factory=versions)


def verdict(result: Result) -> str:
    """A ratio of 0.8 where 0.75 is promised: "0.75 PASS"; nothing where nothing is."""
    if result.bar is None:
        return ""
    return f"{result.bar:.2f} {'PASS' if result.ratio >= result.bar else 'FAIL'}"


def print_table(results: Sequence[Result]) -> None:
    header = ("what", "against", "ratio", "worst", "bar", "ours", "theirs", "unit")
    rows = [
        (
            *(r.name, r.rival, f"{r.ratio:.2f}x", f"{r.worst_ratio:.2f}x", verdict(r)),
            *(f"{r.ours:.4g}", f"{r.theirs:.4g}", r.unit),
        )
        for r in results
    ]
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if results:
        threads = sorted({result.threads for result in results})
        loads = [result.load for result in results]
        print(f"threads {threads}, load average {min(loads)} to {max(loads)}, {results[0].hardware}")


def write_json(part: str, results: Sequence[Result]) -> Path:
    """Write build/bench/<part>.json, a list of results."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{part}.json"
    path.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
    return path
