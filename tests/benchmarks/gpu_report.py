"""The numbers of `tests.benchmarks.gpu` as tables, with what is to be reached: python -m tests.benchmarks.gpu_report"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PUBLISHED = {
    "static tables of FBGEMM TBE": 1.352,
    "dynamicemb": 2.185,
}
"""Milliseconds of forward, backward and Adam on 10 tables, dim 128, 1,048,570 ids by zipf(1.05), float32, published by
dynamicemb for an H100 80GB. Published, on another GPU: not run here."""

BANDWIDTH_OF_H200 = 1.43
"""The H200's bandwidth by its data sheet, over the H100's."""


def targets(report: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """What is to be reached on an H200: what, at least or at most, measured, and whether it is reached."""
    parts = report["parts"]
    lines = []

    def line(what: str, bound: str, found: float | None, is_reached: bool) -> None:
        shown = "not measured" if found is None else f"{found:.3f}"
        lines.append((what, bound, shown, "-" if found is None else "yes" if is_reached else "no"))

    gather = _pick(parts, "gather", "of_copy", dtype="float32", dim=128)
    line("gather, float32, dim 128, share of copy", ">= 0.85", gather, (gather or 0) >= 0.85)
    hits = [entry["of_64_byte_reads"] for entry in parts.get("find", []) if entry["what"] == "hit"]
    line("find (hit), share of random 64-byte reads", ">= 0.6", min(hits, default=None), min(hits, default=0) >= 0.6)
    adam = _pick(parts, "update", "of_copy", rule="adam", dim=128)
    line("Adam, share of its bytes' time", ">= 0.80", adam, (adam or 0) >= 0.80)
    step = _pick(parts, "step", "ms", how="graph")
    line("forward, backward, Adam as a graph, ms", "<= 0.95", step, (step or 1) <= 0.95)
    return lines


def _pick(parts: Mapping[str, Sequence[Mapping[str, Any]]], part: str, measure: str, **wanted: Any) -> float | None:
    for entry in parts.get(part, []):
        if all(entry[key] == value for key, value in wanted.items()):
            return float(entry[measure])
    return None


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def render(report: Mapping[str, Any]) -> str:
    """All of it as Markdown."""
    about = report["about"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    text = [f"{about['device']}, {versions}, Python {about['python']}, {about['time']}"]
    text.append(table(("target", "bound", "measured", "reached"), targets(report)))
    compared = [
        (name, f"{ms:.3f}", f"{ms / BANDWIDTH_OF_H200:.3f}", "published, other GPU (H100)")
        for name, ms in PUBLISHED.items()
    ]
    text.append(table(("peer on the step above", "ms", "ms scaled by bandwidth to an H200", "note"), compared))
    for part, entries in report["parts"].items():
        text.append(f"{part}\n\n{table(list(entries[0]), [list(entry.values()) for entry in entries])}")
    if report["left_out"]:
        text.append(f"Left out for want of time: {', '.join(report['left_out'])}.")
    return "\n\n".join(text)


def main(arguments: Sequence[str]) -> None:
    path = Path(arguments[0] if arguments else "build/bench/gpu.json")
    if not path.exists():
        sys.exit(f"there is no '{path}'; make bench-gpu writes it, on a machine with a GPU")
    print(render(json.loads(path.read_text())))


if __name__ == "__main__":
    main(sys.argv[1:])
