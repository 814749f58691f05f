"""A table that grows from nothing to 20 M rows of width 16 under Adam: bytes a row, the longest step, steps when large.

Each step looks up a batch of ids, a third of which are new, and updates their rows. After each growth of memory it
prints what the table takes for each of its rows; the bound is payload (row and optimizer state) x 1.10 + 80 bytes. The
process's resident memory is read from the system, so the figures hold splits, buffers and all else. On a machine that
others use, the longest step is mostly one that waited for a core: its time on the processor is given too.

Steps on 20 M rows are timed by turns with those on 1 M. A zipf batch over 20 M ranks touches 1.3 times as many rows as
one over 1 M: of the bound of 1.6 that much is work, the rest what rows and slots cost that lie in no cache.

    python -m tests.benchmarks.bench_growth 20000000
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recis_lightning.optim import SparseOptimizer
from recis_lightning.schema import Adam, Table, Uniform
from recis_lightning.tables import PendingGrad, TableGroup
from tests.benchmarks.report import Result

ROWS, DIM, BATCH = 20_000_000, 16, 1 << 17
SMALL = 1_000_000
PAYLOAD = DIM * 4 * 3
BOUND = PAYLOAD * 1.10 + 80
LONGEST_STEP, PEAK, SLOWER = 0.25, 1.15, 1.6
KINDS = ("zipf", "uniform")
ROUNDS, TIMED = 5, 24


def resident() -> int:
    """Bytes of memory that this process has now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def ids_of(numbers: np.ndarray) -> Tensor:
    return torch.from_numpy(numbers * -7046029254386353131)  # odd: different numbers stay different ids


def step(group: TableGroup, optimizer: SparseOptimizer, ids_N: Tensor, grads_ND: Tensor) -> None:
    """Look up, insert, find what is touched, update: a training step without a model."""
    rows_N = group.lookup(ids_N, torch.tensor([0, len(ids_N)]), torch.tensor([0]), insert=True)
    rows_U, _ = group.unique_rows(rows_N, record=True)
    group.pending.append(PendingGrad(rows_U, grads_ND[: len(rows_U)], frozenset([0])))
    optimizer.step()


def zipf(random: np.random.Generator, rows: int) -> np.ndarray:
    power = 1 - 1.05
    return ((1 + random.random(BATCH) * ((rows + 1) ** power - 1)) ** (1 / power)).astype(np.int64) - 1


class Table16:
    """A table that takes steps, with what is known of them."""

    def __init__(self) -> None:
        self.group, self.optimizer = make_table()
        self.grads_ND = torch.randn(BATCH, DIM) * 1e-3
        self.known, self.longest, self.longest_cpu = 0, 0.0, 0.0
        self.random = np.random.default_rng(0)

    def take(self, numbers: np.ndarray) -> None:
        step(self.group, self.optimizer, ids_of(numbers), self.grads_ND)

    def grow(self) -> None:
        """A step whose ids are new, for a third of them."""
        new = BATCH // 3
        old = self.random.integers(0, max(self.known, 1), BATCH - new)
        begin, begin_cpu = time.perf_counter(), time.thread_time()
        self.take(np.concatenate([old, np.arange(self.known, self.known + new)]))
        self.longest = max(self.longest, time.perf_counter() - begin)
        self.longest_cpu = max(self.longest_cpu, time.thread_time() - begin_cpu)
        self.known += new

    def draw(self, kind: str) -> np.ndarray:
        return zipf(self.random, self.known) if kind == "zipf" else self.random.integers(0, self.known, BATCH)

    def time_steps(self, kind: str) -> float:
        """The median time of a step, in milliseconds."""
        times = []
        for _ in range(TIMED):
            numbers = self.draw(kind)
            begin = time.perf_counter()
            self.take(numbers)
            times.append(1000 * (time.perf_counter() - begin))
        return statistics.median(times)


def measure(rows: int) -> dict[str, Any]:
    """Grow a table to so many rows; then time steps on it and on one of 1 M rows, by turns."""
    torch.set_num_threads(1)
    warm = make_table()
    for _ in range(3):
        step(*warm, ids_of(np.arange(1000)), torch.zeros(1000, DIM))
    del warm
    large = Table16()
    start, before = resident(), 0
    while large.known < rows:
        large.grow()
        before = report(large.group, start, large.known, before)
    final = resident() - start
    stats = large.group[0].stats()
    found: dict[str, Any] = {
        "bytes_per_row": stats["bytes"] / large.known,
        "resident_per_row": final / large.known,
        "longest": large.longest,
        "longest_cpu": large.longest_cpu,
        "peak": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - start) / final,
    }
    small = Table16()
    while small.known < SMALL:
        small.grow()
    for kind in KINDS:
        for table, name in ((small, f"{kind}_small"), (large, kind)):
            rows_drawn = [len(np.unique(table.draw(kind))) for _ in range(3)]
            print(f"{kind}, {table.known:,} rows: a batch touches {statistics.mean(rows_drawn):,.0f}", file=sys.stderr)
            found[name] = []
        for _ in range(ROUNDS):
            found[f"{kind}_small"].append(small.time_steps(kind))
            found[kind].append(large.time_steps(kind))
    return found


def make_table() -> tuple[TableGroup, SparseOptimizer]:
    table = Table(name="item", dim=DIM, initializer=Uniform(low=-0.05, high=0.05), optimizer=Adam())
    group = TableGroup([table], max_rows=32_000_000)
    return group, SparseOptimizer([group])


def report(group: TableGroup, start: int, known: int, before: int) -> int:
    """Print what a row takes where the table's memory has grown by a twentieth; the size that was printed last."""
    stats = group[0].stats()
    size = int(stats["row_bytes"] + stats["index_bytes"])
    if size < before * 1.05 and known < ROWS:
        return before
    taken, rss = size / known, (resident() - start) / known
    print(f"{known:>11,} rows  {taken:6.1f} bytes a row, resident {rss:6.1f}, bound {BOUND:.1f}", file=sys.stderr)
    return size


def run() -> list[Result]:
    command = [sys.executable, "-m", "tests.benchmarks.bench_growth", str(ROWS)]
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    output = subprocess.run(command, env=os.environ | one_thread, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(output.splitlines()[-1])
    compared: list[tuple[str, str, list[float], list[float], str]] = [
        ("memory a row", "payload x 1.10 + 80 bytes", [found["bytes_per_row"]], [BOUND], "bytes"),
        ("longest growing step", "0.25 s", [found["longest"]], [LONGEST_STEP], "s"),
        ("the same, on the processor", "0.25 s", [found["longest_cpu"]], [LONGEST_STEP], "s"),
        ("peak memory / final", "1.15", [found["peak"]], [PEAK], ""),
    ]
    for kind in KINDS:
        bounds = [SLOWER * small for small in found[f"{kind}_small"]]
        compared.append((f"step at 20 M rows, {kind}", "1.6 x at 1 M", found[kind], bounds, "ms"))
    return [
        Result(
            name=name,
            rival=f"bound {rival}",
            ratio=statistics.median(bound / one for one, bound in zip(ours, bounds, strict=True)),
            worst_ratio=min(bound / one for one, bound in zip(ours, bounds, strict=True)),
            ours=statistics.median(ours),
            theirs=statistics.median(bounds),
            unit=unit,
            shapes=f"one table, width {DIM}, Adam, {ROWS:,} rows, batch {BATCH}, a third new while it grows; steps of "
            f"both sizes by turns, {ROUNDS} runs of {TIMED}",
            threads=1,
        )
        for name, rival, ours, bounds, unit in compared
    ]


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
