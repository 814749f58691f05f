"""Looking ids up, against a loop of random 64-byte reads over the same footprint that prefetches, in the same process.

Ids are present and uniform, the index is at least half of the footprint that its slots reserve on huge pages. `with
policies` looks up through counter admission and records steps and counts for LRU, which a training step does as well.
Torch's own way to a row number, unique and searchsorted, is the second rival.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recis_lightning.schema import Sgd, Table
from recis_lightning.schema.policies import Counter, Lru
from recis_lightning.tables import TableGroup
from recis_lightning.tables.memory import reserve
from tests.benchmarks.report import Result
from triton_ops.jit import kernel
from triton_ops.prefetch import prefetch

COUNTS = (100_000, 1_000_000, 5_000_000)
BATCH, RUNS, LINE, AHEAD = 1 << 16, 5, 64, 16
BATCHES = 8


@kernel
def read_lines(lines: Any, places: Any) -> Any:
    """The sum of one word of each 64-byte line that is named: as fast as memory answers independent reads."""
    total = np.int64(0)
    for i in range(len(places)):
        if i + AHEAD < len(places):
            prefetch(lines, places[i + AHEAD] * LINE)
        total += lines[places[i], 0]
    return total


def make_group(count: int, policies: bool) -> tuple[TableGroup, Tensor]:
    options: dict[str, Any] = {}
    if policies:
        options = {"admission": Counter(threshold=2), "eviction": (Lru(),), "capacity": 1 << 24}
    table = Table(name="item", dim=1, optimizer=Sgd(), **options)
    group = TableGroup([table], max_rows=1 << 24)
    ids = torch.arange(count) * -7046029254386353131
    for part in ids.split(1 << 20):
        group[0].find_or_insert(part)
    return group, ids


def time_per_id(call: Callable[[Tensor], Any], batches: list[Tensor]) -> float:
    """Nanoseconds."""
    begin = time.perf_counter()
    for batch in batches:
        call(batch)
    return 1e9 * (time.perf_counter() - begin) / sum(map(len, batches))


def compare(count: int) -> list[Result]:
    random = torch.Generator().manual_seed(count)
    plain, ids = make_group(count, policies=False)
    bounded, _ = make_group(count, policies=True)
    footprint = int(plain[0].stats()["index_bytes"])
    lines = reserve((footprint // LINE, LINE // 8), torch.int64).fill_(1).numpy()
    sorted_ids = ids.sort().values
    one_run = torch.tensor([0, BATCH]), torch.tensor([0])

    def through_policies(batch: Tensor) -> None:
        bounded.unique_rows(bounded.lookup(batch, *one_run, insert=True), record=True)

    contestants: dict[str, Callable[[Tensor], Any]] = {
        "lines": lambda batch: read_lines(lines, batch.numpy()),
        "lookup": lambda batch: plain.lookup(batch, *one_run, insert=True),
        "lookup and dedup with counter and LRU": through_policies,
        "torch": lambda batch: torch.searchsorted(sorted_ids, torch.unique(batch, return_inverse=True)[0]),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(RUNS + 1):  # the first warms up
        places = [torch.randint(count, (BATCH,), generator=random) for _ in range(BATCHES)]
        for name, call in contestants.items():
            batches = [place % len(lines) if name == "lines" else ids[place] for place in places]
            times[name].append(time_per_id(call, batches))
    results = []
    for ours in ("lookup", "lookup and dedup with counter and LRU"):
        for rival in ("lines", "torch"):
            ratios = [their / our for our, their in zip(times[ours][1:], times[rival][1:], strict=True)]
            results.append(
                Result(
                    name=f"{ours}, {count:,} ids, index {footprint >> 20} MB",
                    rival="random 64-byte reads" if rival == "lines" else "torch unique + searchsorted",
                    ratio=statistics.median(ratios),
                    worst_ratio=min(ratios),
                    ours=statistics.median(times[ours][1:]),
                    theirs=statistics.median(times[rival][1:]),
                    unit="ns/id",
                    shapes=f"uniform present ids, {BATCHES} batches of {BATCH}, {RUNS} runs",
                    threads=1,
                )
            )
    return results


def run() -> list[Result]:
    torch.set_num_threads(1)
    return [result for count in COUNTS for result in compare(count)]
