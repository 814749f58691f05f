"""The Triton kernels: equal to the reference in the interpreter and on a GPU, and compiled ahead of time for others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[3]


def run_aside(source: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: Triton decides to interpret or to compile when it is imported."""
    return subprocess.run(
        [sys.executable, "-c", source],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_interpreted_kernels_equal_the_reference():
    pytest.importorskip("triton")
    source = "from tests.triton_ops.transform.columns_check import check; check('cpu', sizes=(0, 1, 63, 1000))"
    result = run_aside(source, TRITON_INTERPRET="1", TRITON_OPS="triton")
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.split() == ["equal"]


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton_ops.transform import kernels

ids, floats = "*i64", "*fp32"
parameters = {
    "hash_ids": {"kinds": ids},
    "modulo": {"divisors": ids},
    "multi_hash": {"hashes": ids, "splits": ids},
    "vocabulary": {"sorted_ids": ids, "places_of": ids, "splits": ids, "unknown": ids},
    "bucketize_floats": {"boundaries": floats, "splits": ids},
    "bucketize_integers": {"boundaries": ids, "splits": ids},
    "clip_floats": {"bounds": floats},
    "clip_integers": {"bounds": ids},
    "standardize": {"shift_scale": floats},
    "quantile": {"knots": floats, "splits": ids},
}
targets = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "gfx942": ("hip", "gfx942", 64)}
for name, arguments in parameters.items():
    constants = {"BLOCK": kernels.BLOCK} | ({"STEPS": 6} if name in kernels.SEARCHES else {})
    signature = {"table": ids, **arguments, **dict.fromkeys(constants, "constexpr")}
    for label, target in targets.items():
        source = ASTSource(fn=getattr(kernels, name), signature=signature, constexprs=constants)
        compiled = triton.compile(source, target=GPUTarget(*target))
        assert compiled.asm["hsaco" if label == "gfx942" else "cubin"]
        print(name, label)
"""


def test_kernels_compile_ahead_of_time_for_three_gpus():
    pytest.importorskip("triton")
    result = run_aside(COMPILE, TRITON_INTERPRET="0")
    assert result.returncode == 0, result.stderr[-3000:]
    assert len(result.stdout.splitlines()) == 30


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_kernels_equal_the_reference_on_a_gpu():
    from tests.triton_ops.transform.columns_check import check

    check("cuda", sizes=(0, 1, 63, 1000, 5000))
