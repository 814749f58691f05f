"""All metrics over two processes, one of which has few rows or none: the same values as in one process."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from recis_lightning.metrics import AUC, Calibration, GroupedAUC, LogLoss, NormalizedEntropy

ROWS = 1000


def make_rows() -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.linspace(-3, 3, ROWS, dtype=torch.float64)
    return logits, (torch.arange(ROWS) * 7919 % 10 < 3).long()


def metrics() -> dict[str, torch.nn.Module]:
    return {
        "exact": AUC(),
        "grid": AUC(max_cells=64),
        "loss": LogLoss(),
        "entropy": NormalizedEntropy(),
        "calibration": Calibration(),
        "grouped": GroupedAUC(),
    }


def update(metric: torch.nn.Module, rows: slice = slice(None)) -> None:
    logits, target = make_rows()
    # Groups that lie on both ranks.
    groups = [torch.arange(ROWS)[rows] % 13] if isinstance(metric, GroupedAUC) else []
    metric.update(logits[rows], target[rows], *groups)


def run_rank(rank: int, store: str, results: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    values = {}
    for share in (ROWS, ROWS - 30):  # what rank 0 holds: all of it, and all but a part that is exact on its own
        for name, metric in metrics().items():
            mine = slice(0, share) if rank == 0 else slice(share, ROWS)
            if mine.start < mine.stop:
                update(metric, mine)
            values[name, share] = metric.compute()
            if isinstance(metric, AUC):
                values[f"{name} bound", share] = metric.error_bound()
                assert sum(map(len, metric.cells)) <= (share if rank == 0 else ROWS - share)
    torch.save(values, f"{results}.{rank}")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="torch is built without distributed")
def test_ranks_agree_with_one_process(tmp_path):
    mp.spawn(run_rank, (str(tmp_path / "store"), str(tmp_path / "results")), nprocs=2)
    expected = metrics()
    for metric in expected.values():
        update(metric)
    for rank in range(2):
        for (name, _), value in torch.load(tmp_path / f"results.{rank}").items():
            metric = expected[name.removesuffix(" bound")]
            assert value == pytest.approx(
                float(metric.error_bound() if "bound" in name else metric.compute()), abs=1e-14
            )
    assert expected["grid"].error_bound() > 0
