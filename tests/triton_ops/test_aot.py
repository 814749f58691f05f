"""Every listed launch compiles for three GPUs, on the installed Triton and on the oldest that users have.

With --full also on the newest there is, which nobody has promised: what will break next shows there first.

What is compiled is kept under build/triton, so that only kernels that changed are compiled again.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.triton_ops.aot import ROOT, TARGETS

pytest.importorskip("triton")

OLDEST = "triton==3.6.0"
"""What the CUDA build of the oldest torch that is tested pins."""
NEWEST = "triton"
KEPT = ROOT / "build" / "triton"


def compile_all(arguments: list[str], **environment: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Kernels that are not listed, and what came of each launch that is."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.triton_ops.aot", "2", *arguments],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(KEPT / "compiled"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    first, *lines = map(json.loads, result.stdout.splitlines())
    return first["unlisted"], lines


def name(found: Mapping[str, Any]) -> str:
    return f"{found['module']}[{found['place']}] {found.get('kernel', '')} on {found['target']}"


def check(results: list[dict[str, Any]]) -> None:
    assert {result["target"] for result in results} == set(TARGETS)
    assert {name(each): each["error"] for each in results if "error" in each} == {}
    assert {name(each): each["strong"] for each in results if each["strong"]} == {}
    assert [name(each) for each in results if each["repeated"]] == []
    assert {name(each): each["spilled"] for each in results if each["spilled"]} == {}
    assert [name(each) for each in results if each["wide"] and not each["moves_16_bytes"]] == []


def test_every_launch_compiles_without_spills_by_16_bytes_and_with_relaxed_atomics():
    # Every launch for each target: python -m tests.triton_ops.aot 2 sm_80 sm_90 gfx942
    unlisted, results = compile_all(["sm_90", "sm_80:once", "gfx942:once"])
    assert unlisted == [], "list how it is launched in its module's CONFIGURATIONS"
    check(results)


@pytest.fixture(scope="module", params=[OLDEST, NEWEST], ids=["oldest", "newest"])
def other_triton(request: pytest.FixtureRequest) -> Path:
    """A folder that holds another Triton than the one installed."""
    if request.param == NEWEST and not request.config.getoption("--full"):
        pytest.skip("the newest Triton is tried with --full")
    folder = KEPT / request.param
    if not (folder / "triton").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--retries", "0", "--timeout", "5"]
        result = subprocess.run(
            [*install, "--target", str(folder), request.param], capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            pytest.skip(f"{request.param} is not in {folder} and cannot be installed there: {result.stderr[-200:]}")
    return folder


def test_every_kernel_compiles_on_other_tritons(other_triton):
    path = os.pathsep.join([str(other_triton), str(ROOT)])
    _, results = compile_all([f"{target}:once" for target in TARGETS], PYTHONPATH=path)
    check(results)
