"""100 optimizer steps of DeepFM against plain PyTorch: the same losses and weights in fp64; in fp32 too with --full."""

import os
from pathlib import Path

import pytest

from tests.parity.runs import SPARSE_OPTIMIZERS, run

# The control's torch.optim.Adagrad builds sparse tensors, and torch says once a process that it checks none of them.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")

DATA = {
    # name -> (folder below RECIS_DATA, rows, column layout, float type in the files)
    "criteo1tb_80k": ("criteo1tb_80k/train", 60_000, "scalar", "float32"),
    "recis_deepfm_raw": ("recis_deepfm_raw", 20_000, "optional_list", "float64"),
}
LOSS_TOLERANCE = {"float64": 1e-9, "float32": 1e-4}
WEIGHT_TOLERANCE = 1e-9  # fp64


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", LOSS_TOLERANCE if metafunc.config.getoption("full") else ["float64"])


@pytest.fixture(params=DATA)
def data(request: pytest.FixtureRequest) -> tuple[Path, int, str, str]:
    root = os.environ.get("RECIS_DATA")
    if not root:
        pytest.skip("RECIS_DATA names no data folder")
    folder, rows, layout, file_float = DATA[request.param]
    return Path(root) / folder, rows // 400, layout, file_float


def check(outcome_of: dict, dtype: str) -> None:
    outcome = run(dtype=dtype, **outcome_of)
    assert len(outcome.ours) == len(outcome.theirs) > 0
    assert outcome.greatest_loss_difference <= LOSS_TOLERANCE[dtype]
    if dtype == "float64":
        assert outcome.greatest_weight_difference() <= WEIGHT_TOLERANCE


@pytest.mark.real_data
@pytest.mark.parametrize("optimizer", SPARSE_OPTIMIZERS)
def test_hundred_steps_equal_plain_pytorch(data, optimizer: str, dtype: str, tmp_path: Path) -> None:
    path, batch_size, layout, file_float = data
    settings = {"path": path, "folder": tmp_path, "optimizer": optimizer, "batch_size": batch_size}
    check(settings | {"layout": layout, "file_float": file_float}, dtype)


@pytest.mark.real_data
@pytest.mark.parametrize("option", [{"accumulate": 4}, {"clip": True}], ids=str)
def test_accumulation_and_clipping_equal_plain_pytorch(data, option: dict, dtype: str, tmp_path: Path) -> None:
    path, batch_size, layout, file_float = data
    settings = {"path": path, "folder": tmp_path, "optimizer": "adamw", "batch_size": batch_size}
    check(settings | {"layout": layout, "file_float": file_float} | option, dtype)
