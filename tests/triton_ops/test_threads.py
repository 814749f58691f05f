"""When kernels use several threads, and that it changes no result."""

import multiprocessing
import os
import threading
from collections.abc import Iterator

import pytest
import torch

from triton_ops import threads
from triton_ops.index import Index, RowPool
from triton_ops.threads import FEWEST, threads_for

CORES = threads.numba.config.NUMBA_NUM_THREADS
many = pytest.mark.skipif(CORES < 2 or not threads._has_safe_layer(), reason="needs two cores, and OpenMP or TBB")


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setenv("TRITON_OPS", "cpu")
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 0.5, 0.5))
    yield
    torch.set_num_threads(before)


def make_index(rows: int) -> tuple[Index, RowPool]:
    slots = torch.zeros(8 * rows + 256, 2, dtype=torch.int64).numpy()
    pool = RowPool(RowPool.empty_cursors(2), torch.zeros(rows, dtype=torch.int64).numpy(), lambda table: False)
    pool.cursors[0, :2], pool.cursors[1, :2] = (0, rows // 2), (rows // 2, rows)
    return Index(2, slots), pool


def look_up(ids: torch.Tensor, rows: int) -> list[object]:
    """What an index says to two batches of two tables each."""
    index, pool = make_index(rows)
    found: list[object] = []
    for batch in ids.chunk(2):
        splits = torch.tensor([0, len(batch) // 3, len(batch)])
        inserted = index.find_or_insert(batch, splits, torch.tensor([0, 1]), pool)
        found += [inserted.rows.tolist(), inserted.new_rows.tolist(), inserted.full_table]
        found.append(index.find(batch.flip(0), splits, torch.tensor([1, 0])).tolist())
    return found


@many
@pytest.mark.parametrize("rows", [1 << 17, 1 << 12], ids=["room for all", "full on the way"])
def test_rows_are_the_same_on_one_thread_and_on_two(rows: int) -> None:
    ids = torch.randint(-20_000, 20_000, (4 * FEWEST + 77,), generator=torch.Generator().manual_seed(0))
    assert threads_for(len(ids) // 2) == 2
    on_two = look_up(ids, rows)
    torch.set_num_threads(1)
    assert look_up(ids, rows) == on_two


def test_small_batches_and_one_thread_of_torch_stay_on_one() -> None:
    assert threads_for(FEWEST - 1) == 1
    torch.set_num_threads(1)
    assert threads_for(1 << 20) == 1


def test_other_threads_than_the_main_one_stay_on_one() -> None:
    found: list[int] = []
    reader = threading.Thread(target=lambda: found.append(threads_for(1 << 20)))
    reader.start()
    reader.join()
    assert found == [1]


def test_a_forked_process_and_a_worker_stay_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: threads._PROCESS + 1)
        assert threads_for(1 << 20) == 1
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())
    assert threads_for(1 << 20) == 1


def test_busy_machine_keeps_kernels_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(threads.numba.config, "NUMBA_NUM_THREADS", 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (2.9, 9.0, 9.0))
    assert threads_for(1 << 20) == 2 or not threads._has_safe_layer()
    monkeypatch.setattr(os, "getloadavg", lambda: (3.1, 0.0, 0.0))
    assert threads_for(1 << 20) == 1


def test_without_a_safe_layer_kernels_stay_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_has_safe_layer", lambda: False)
    assert threads_for(1 << 20) == 1
