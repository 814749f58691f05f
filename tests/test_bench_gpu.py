"""`make bench-gpu` runs end to end, tiny and interpreted, so that no time of a GPU is lost to errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.benchmarks import gpu, gpu_report

ROOT = Path(__file__).parents[1]


def test_smoke_run_measures_every_part_and_is_told_as_a_table(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--smoke", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads(out.read_text())
    assert set(report["parts"]) == set(gpu.PARTS) - {"index"} | {"find", "find_or_insert"}
    assert report["left_out"] == []
    text = gpu_report.render(report)
    assert "published, other GPU (H100)" in text
    assert "| find (hit), share of random 64-byte reads | >= 0.6 |" in text
    for part in report["parts"]:
        assert f"\n\n{part}\n\n|" in text


def test_parts_without_time_are_left_out_and_named() -> None:
    pytest.importorskip("triton")
    report = gpu.run(gpu.SMOKE, torch.device("cpu"), budget=-1.0)
    assert report.left_out == list(gpu.PARTS)
    assert "Left out for want of time: check, copy" in gpu_report.render(vars(report))


def test_zipf_ids_are_in_range_and_the_first_is_the_most_frequent() -> None:
    ids = gpu.zipf(20_000, 1000, torch.Generator().manual_seed(0))
    counts = torch.bincount(ids, minlength=1000)
    assert ids.min() >= 0
    assert ids.max() < 1000
    assert counts[0] == counts.max()
    assert 1.7 < counts[0] / counts[1] < 2.6, "2^1.05 is 2.07; the first of a continuous law is a little more"


def test_report_without_a_file_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="make bench-gpu writes it"):
        gpu_report.main([str(tmp_path / "none.json")])
