"""The id index on a GPU, or interpreted: growth, rows that run out, launches, and what the host waits for."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.triton_ops.conftest import ON_TRITON
from tests.triton_ops.test_index import INT64, Tables, few_programs, mixed_to, one_run
from triton_ops.index import directory
from triton_ops.row_layout import GRANULE, ID


@pytest.fixture(autouse=True)
def _on_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    few_programs(monkeypatch)


def runs_of(*runs: tuple[int, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, splits and tables of runs (table, ids)."""
    ids = torch.cat([ids for _, ids in runs])
    splits = torch.tensor([0, *(len(ids) for _, ids in runs)]).cumsum(0)
    return ids, splits, torch.tensor([table for table, _ in runs])


def test_segments_split_and_double_past_the_deepest_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "LARGEST_SEGMENT", 128)
    monkeypatch.setattr(directory, "DEEPEST", 3)
    tables = Tables()
    ids = torch.cat([mixed_to([(1234 << 52) | k * 7919 for k in range(300)]), torch.arange(200)])
    for part in ids.split(60):
        tables.insert(part)
        stats = tables.index.stats(0)
        assert stats["ids"] <= stats["slots"] <= 32 * max(stats["ids"], 32)
    assert tables.find(ids).tolist() == list(range(500))
    assert tables.index.stats(0)["segments"] >= 4
    mean, most = tables.index.probe_lengths(0)
    assert 1 <= mean <= most
    assert tables.erase(ids[:300]) == 300
    assert tables.find(ids).tolist() == [-1] * 300 + list(range(300, 500))
    assert sorted(tables.items(0)[1].tolist()) == list(range(300, 500))


def test_slots_of_erased_ids_serve_again() -> None:
    tables = Tables()
    for start in range(0, 240, 20):
        assert sorted(tables.insert(torch.arange(start, start + 20)).tolist()) == list(range(20))
        assert tables.erase(torch.arange(start, start + 20)) == 20
    assert tables.index.stats(0)["slots"] <= 128
    assert tables.index.count(0) == 0


def test_ids_that_are_no_keys_come_and_go_like_others() -> None:
    tables = Tables()
    ids = torch.tensor([INT64.min, INT64.min + 1, INT64.min + 2, INT64.min + 3])
    for _ in range(7):  # more often than their slots would last
        assert sorted(tables.insert(ids).tolist()) == [0, 1, 2, 3]
        assert tables.find(ids + 4).tolist() == [-1] * 4
        assert tables.erase(ids) == 4
    tables.insert(ids)
    assert sorted(tables.items(0)[0].tolist()) == ids.tolist()


def test_ids_without_a_row_are_counted_and_the_others_served() -> None:
    tables = Tables(tables=2, rows=2 * GRANULE, apart=True)
    ids, splits, of = runs_of((1, torch.arange(70)), (0, torch.arange(10)), (1, torch.arange(60, 90)))
    inserted = tables.find_or_insert(ids, splits, of)
    first, other, rest = inserted.rows.split([70, 10, 30])
    assert first.tolist() == [*range(64, 128), *[-1] * 6]
    assert other.tolist() == list(range(10))
    assert rest.tolist() == [124, 125, 126, 127, *[-1] * 26]
    assert sorted(inserted.new_rows.tolist()) == [*range(10), *range(64, 128)]
    assert tables.index.lost(wait=True).tolist() == [0, 26]
    assert [tables.index.count(table) for table in range(2)] == [10, 64]
    tables.erase(torch.arange(3), table=1)
    assert tables.insert(torch.tensor([80, 81, 2, 1]), table=1).tolist() == [66, 65, 64, -1]
    assert tables.index.lost(wait=True).tolist() == [0, 27]


def test_a_mask_says_which_new_ids_get_rows_and_which_go() -> None:
    tables = Tables(tables=2, apart=True)
    ids, splits, of = runs_of((0, torch.tensor([5, 6, 5, 7])), (1, torch.tensor([5, 8])), (0, torch.tensor([6, 9])))
    ids = ids.to(tables.device)
    tables.insert(torch.tensor([7]))

    def masked(*chosen: int) -> Tensor:
        return torch.tensor([place in chosen for place in range(8)], device=tables.device)

    inserted = tables.index.find_or_insert(ids, splits, of, tables.pool, masked(2, 3, 5, 6))
    start = tables.rows_of_table
    assert inserted.rows.tolist() == [-1, -1, 1, 0, -1, start, 2, -1]
    assert sorted(inserted.new_rows[inserted.new_rows >= 0].tolist()) == [1, 2, start]
    assert tables.index.find(ids, splits, of).tolist() == [1, 2, 1, 0, -1, start, 2, -1]
    assert int(tables.index.erase(ids, splits, of, tables.pool, masked(0, 2, 4, 7))) == 1
    assert tables.index.find(ids, splits, of).tolist() == [-1, 2, -1, 0, -1, start, 2, -1]


def test_runs_of_one_table_count_as_one_in_the_order_of_the_call() -> None:
    tables = Tables(apart=True)
    ids, splits, of = runs_of((2, torch.tensor([5, 6])), (0, torch.tensor([5])), (2, torch.tensor([7, 5, 8])))
    start = tables.rows_of_table
    assert tables.find_or_insert(ids, splits, of).rows.tolist() == [
        2 * start, 2 * start + 1, 0, 2 * start + 2, 2 * start, 2 * start + 3,
    ]  # fmt: skip


def test_two_hundred_tables_take_what_their_ids_need() -> None:
    tables = Tables(tables=200, rows=200 * GRANULE, apart=True)
    ids, splits, of = runs_of(*((table, torch.arange(2)) for table in range(200)))
    rows = tables.find_or_insert(ids, splits, of).rows
    assert rows.tolist() == [table * GRANULE + k for table in range(200) for k in range(2)]
    assert sum(tables.index.stats(table)["index_bytes"] for table in range(200)) == 200 * 1024


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often each kernel was launched."""
    from triton_ops.index import kernels

    counted: Counter[str] = Counter()

    def count(kernel: Any) -> Any:
        class Counted:
            def __getitem__(self, grid: Any) -> Any:
                counted[kernel.fn.__name__] += 1
                return kernel[grid]

        return Counted()

    for name in ("find", "claim", "rank", "publish", "bury", "finish", "move"):
        monkeypatch.setattr(kernels, name, count(getattr(kernels, name)))
    return counted


@pytest.mark.parametrize("count", [1, 15])
def test_launches_do_not_depend_on_how_many_tables_there_are(count: int, launches: Counter[str]) -> None:
    tables = Tables(tables=count, rows=count * GRANULE, apart=True)
    ids, splits, of = runs_of(*((table, torch.arange(3)) for table in range(count)))
    tables.find_or_insert(ids, splits, of)
    assert launches == {"find": 1, "claim": 1, "rank": 1, "publish": 1, "finish": 1}
    launches.clear()
    tables.index.find(ids.to(tables.device), splits, of)
    assert launches == {"find": 1}
    launches.clear()
    tables.index.erase(ids.to(tables.device), splits, of, tables.pool)
    assert launches == {"find": 1, "claim": 1, "rank": 1, "bury": 1, "finish": 1}


class _Waits(TorchDispatchMode):
    """Notes calls whose result the host must wait for."""

    waited: list[str]

    def __init__(self) -> None:
        super().__init__()
        self.waited = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "_unique2", "masked_select"):
            self.waited.append(str(function))
        return function(*args, **(kwargs or {}))


def test_lookups_read_nothing_back() -> None:
    tables = Tables()
    ids = torch.arange(100, device=tables.device)
    with _Waits() as mode:
        for step in range(3):
            tables.index.find_or_insert(ids + 50 * step, one_run(ids), torch.tensor([0]), tables.pool)
            tables.index.erase(ids, one_run(ids), torch.tensor([0]), tables.pool)
            tables.index.find(ids, one_run(ids), torch.tensor([0]))
    assert mode.waited == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_lookups_do_not_wait_for_a_gpu() -> None:
    tables = Tables(rows=1 << 20)
    ids = torch.arange(1000, device=ON_TRITON)
    tables.index.find_or_insert(ids, one_run(ids), torch.tensor([0]), tables.pool)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            tables.index.find_or_insert(ids, one_run(ids), torch.tensor([0]), tables.pool)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_growth_without_memory_names_the_table_and_leaves_the_index_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton_ops.index.segments import Segments

    tables = Tables()
    rows = tables.insert(torch.arange(30), table=1)
    with monkeypatch.context() as patch:
        patch.setattr(Segments, "allocate", lambda self, size: None)
        with pytest.raises(MemoryError, match="index of table 1 to grow: it holds 30 ids in 64 slots, 1,024 bytes"):
            tables.insert(torch.arange(100), table=1)
        assert torch.equal(tables.find(torch.arange(30), table=1), rows)
        assert tables.index.count(1) == 30
    assert torch.equal(tables.insert(torch.arange(100), table=1)[:30], rows)


def test_four_processes_claim_slots_at_once_and_without_the_swap_they_would_not_agree() -> None:
    trials = ("right", "100", "stale", "10", "two_steps", "5")
    result = subprocess.run(
        [sys.executable, "-m", "tests.triton_ops.index_race", *trials],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    right, stale, in_two_steps = (int(line.split()[1]) for line in result.stdout.splitlines())
    assert right == stale == 0
    assert in_two_steps > 0


@pytest.mark.skipif(ON_TRITON.type != "cpu", reason="reads of a GPU cannot be made stale")
def test_stale_reads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.triton_ops.index_race import stale_reads
    from triton_ops.index import kernels

    class WithStaleReads:
        """`claim` that reads what slots held before it, two times in five."""

        def __getitem__(self, grid: Any) -> Any:
            def run(*arguments: Any, **constants: Any) -> None:
                slots = next(slots for slots, is_side in tables.index._implementation._mirror.slots(0) if not is_side)
                with stale_reads(slots.data_ptr(), slots.flatten().numpy().copy(), seed=len(arguments[0])):
                    claim[grid](*arguments, **constants)

            return run

    claim, tables = kernels.claim, Tables()
    monkeypatch.setattr(kernels, "claim", WithStaleReads())
    ids = torch.randint(0, 60, (150,), generator=torch.Generator().manual_seed(1)) * 64
    model: dict[int, int] = {}
    for part in ids.split(50):
        expected = [model.setdefault(id_, len(model)) for id_ in part.tolist()]
        assert tables.insert(part).tolist() == expected
    assert tables.index.count(0) == len(model)


def test_clear_starts_with_the_first_row_again() -> None:
    tables = Tables(apart=True)
    for _ in range(2):
        assert tables.insert(torch.arange(100), table=1).tolist() == [tables.rows_of_table + k for k in range(100)]
        tables.insert(torch.tensor([INT64.min]), table=1)
        kept = tables.insert(torch.arange(5), table=0)
        tables.erase(torch.arange(7), table=1)
        tables.index.clear(1)
        assert tables.index.count(1) == 0
        assert (tables.find(torch.arange(100), table=1) == -1).all()
        assert torch.equal(tables.find(torch.arange(5)), kept)


def test_what_is_made_in_inference_mode_grows_outside_of_it() -> None:
    with torch.inference_mode():
        tables = Tables()
        tables.insert(torch.arange(40))
        tables.erase(torch.arange(3))
    assert len(tables.insert(torch.arange(300)).unique()) == 300
    tables.erase(torch.arange(200))
    tables.index.clear(0)
    with torch.inference_mode():
        tables.insert(torch.arange(10))
        other = Tables()
        other.index.restore(tables.index.snapshot())
    assert other.find(torch.arange(10)).tolist() == list(range(10))
    other.insert(torch.arange(200))


def test_rows_that_are_no_whole_granules_are_refused() -> None:
    tables = Tables()
    tables.pool.refill = lambda table, lacking: [(8, 80)]  # type: ignore[assignment, union-attr]
    with pytest.raises(ValueError, match="give whole granules of 64"):
        tables.insert(torch.arange(3))


def test_new_ids_are_written_to_rows_that_lie_in_blocks() -> None:
    class Blocks:
        block_rows, width, dtype = 64, 4, torch.int64

        def __init__(self, device: torch.device) -> None:
            self.tensors = [torch.zeros((64, 4), dtype=torch.int64, device=device) for _ in range(4)]
            self.pointers = torch.tensor([block.data_ptr() for block in self.tensors], device=device)

    tables = Tables()
    blocks = tables.pool.meta = Blocks(tables.device)  # type: ignore[union-attr, assignment]
    assert tables.insert(torch.arange(1000, 1200)).tolist() == list(range(200))
    written = torch.cat([block[:, ID] for block in blocks.tensors]).cpu()
    assert written[:200].tolist() == list(range(1000, 1200))
    assert np.count_nonzero(written[200:].numpy()) == 0
