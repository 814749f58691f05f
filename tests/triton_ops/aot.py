"""Compiles the launches that kernels.py files list, for GPUs that are not here: `python -m tests.triton_ops.aot`.

Runs with TRITON_INTERPRET=0, since Triton decides when it is imported. Prints a line of JSON for each launch and
target. Arguments: how many processes; then the targets, as in `2 sm_90 sm_80:once`, where once is for the first launch
of each kernel alone.
"""

import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tests.interpreter import kernel_modules
from triton_ops.launches import Configuration

ROOT = Path(__file__).parents[2]
TARGETS = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "gfx942": ("hip", "gfx942", 64)}
NVIDIA_WIDE = re.compile(
    r"(?:ld|st)\.(?:global|relaxed)\S*\.v(?:4\.b32|2\.b64|4\.f32|2\.f64)|(?:ld|st)\.global\S*\.b128"
)
AMD_WIDE = re.compile(r"(?:global|flat|buffer)_(?:load|store)_dwordx4")
STRONG = re.compile(r"\b(?:acquire|release|acq_rel|seq_cst)\b")


def listed() -> list[tuple[str, int, Configuration]]:
    """Every launch that a kernels.py lists: its module, its place there, and itself."""
    found = []
    for name in kernel_modules():
        launches = getattr(importlib.import_module(name), "CONFIGURATIONS", ())
        found += [(name, place, launch) for place, launch in enumerate(launches)]
    return found


def unlisted() -> list[str]:
    """Kernels that are launched by no listed configuration; the parts of kernels begin with an underscore."""
    import triton

    launched = {launch.kernel for _, _, launch in listed()}
    return [
        f"{name}.{kernel}"
        for name in kernel_modules()
        for kernel, value in vars(importlib.import_module(name)).items()
        if isinstance(value, triton.JITFunction) and value.fn.__module__ == name
        if not kernel.startswith("_") and value not in launched and name != "triton_ops.shared.kernels"
    ]


def compile_one(module: str, place: int, target: str) -> dict[str, Any]:
    """What comes of compiling a launch for a target."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    launch = importlib.import_module(module).CONFIGURATIONS[place]
    names = launch.kernel.arg_names
    missing = [name for name in names if name not in launch.signature and name not in launch.constants]
    assert not missing, f"{module}: {launch.kernel.__name__} is listed without {', '.join(missing)}"
    signature = {name: launch.signature.get(name, "constexpr") for name in names}
    # As at run time: memory of torch's begins at a multiple of 16 bytes.
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    source = ASTSource(launch.kernel, signature, dict(launch.constants), aligned)
    compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options=dict(launch.options))
    found = {"module": module, "kernel": launch.kernel.__name__, "place": place, "target": target, "wide": launch.wide}
    text = compiled.asm["amdgcn" if target == "gfx942" else "ptx"]
    found["moves_16_bytes"] = bool((AMD_WIDE if target == "gfx942" else NVIDIA_WIDE).search(text))
    # "one work-group" orders what a program's own threads do, such as a reduction's.
    lines = [line for line in compiled.asm["llir"].splitlines() if 'syncscope("workgroup")' not in line]
    lines += [] if target == "gfx942" else re.findall(r"(?:atom|red|fence|membar)\S*", text)
    found["strong"] = [line for line in lines if STRONG.search(line.replace(".", " ")) and not _is_declaration(line)]
    found["repeated"] = _repeats_swaps(compiled.asm["ttgir"])
    found["spilled"] = _spilled(compiled.asm["cubin"]) if target == "sm_90" else 0
    return found


def _repeats_swaps(text: str) -> bool:
    """Whether several threads make one compare-and-swap: on AMD only one of them would hear that it came about."""
    threads = {
        name: int(elements) * int(lanes) * int(warps)
        for name, elements, lanes, warps in re.findall(
            r"(#\w+) = #ttg.blocked<{sizePerThread = \[(\d+)\], threadsPerWarp = \[(\d+)\], warpsPerCTA = \[(\d+)\]",
            text,
        )
    }
    swaps = re.findall(r"tt\.atomic_cas .*?tensor<(\d+)x!tt\.ptr<i64>, (.*?)>", text)
    return any(threads.get(layout, 1 << 62) > int(size) for size, layout in swaps)


def _is_declaration(line: str) -> bool:
    return line.lstrip().startswith(("define", "declare", "attributes", "!", ";", "source_filename"))


def _spilled(cubin: bytes) -> int:
    """Bytes that each thread keeps in memory for want of registers."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    return sum(map(int, re.findall(r"(?:STACK|LOCAL):(\d+)", usage)))


def _compile(job: tuple[str, int, str]) -> dict[str, Any]:
    try:
        return compile_one(*job)
    except Exception as error:
        return {"module": job[0], "place": job[1], "target": job[2], "error": f"{type(error).__name__}: {error}"}


def _results(processes: int, targets: list[str]) -> Iterator[dict[str, Any]]:
    by_kernel: dict[Any, list[tuple[str, int]]] = {}
    for module, place, launch in listed():
        by_kernel.setdefault(launch.kernel, []).append((module, place))
    jobs = []
    for target in targets:
        name, _, times = target.partition(":")
        for launches in by_kernel.values():
            jobs += [(*launch, name) for launch in launches[: 1 if times == "once" else None]]
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        yield from pool.map(_compile, jobs)


if __name__ == "__main__":
    processes, *wanted = sys.argv[1:]
    print(json.dumps({"unlisted": unlisted()}))
    for result in _results(int(processes), wanted):
        print(json.dumps(result), flush=True)
