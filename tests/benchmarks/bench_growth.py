"""A table that grows from nothing to 20 M rows of width 16 under Adam: bytes a row, the longest step, steps when large.

Each step looks up a batch of ids, a third of which are new, and updates their rows. After each growth of memory it
prints what the table takes for each of its rows; the bound is payload (row and optimizer state) x 1.10 + 80 bytes. The
process's resident memory is read from the system, so the figures hold splits, buffers and all else. On a machine that
others use, the longest step is mostly one that waited for a core: its time on the processor is given too.

    python -m tests.benchmarks.bench_growth 20000000
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

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
TIMED = 24


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


def time_steps(take: Callable[[np.ndarray], None], draw: Callable[[], np.ndarray]) -> float:
    """The median time of a step, in milliseconds."""
    times = []
    for _ in range(TIMED):
        numbers = draw()
        begin = time.perf_counter()
        take(numbers)
        times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times)


def measure(rows: int) -> dict[str, float]:
    """Grow a table to so many rows, and time steps at 1 M rows and at the end."""
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    warm = make_table()
    for _ in range(3):
        step(*warm, ids_of(np.arange(1000)), torch.zeros(1000, DIM))
    del warm
    group, optimizer = make_table()
    grads_ND = torch.randn(BATCH, DIM) * 1e-3
    start, known, before, longest, longest_cpu, found = resident(), 0, 0, 0.0, 0.0, {}

    def take(numbers: np.ndarray) -> None:
        step(group, optimizer, ids_of(numbers), grads_ND)

    while known < rows:
        new = min(BATCH // 3, rows - known)
        old = random.integers(0, max(known, 1), BATCH - new)
        begin, begin_cpu = time.perf_counter(), time.thread_time()
        take(np.concatenate([old, np.arange(known, known + new)]))
        longest = max(longest, time.perf_counter() - begin)
        longest_cpu = max(longest_cpu, time.thread_time() - begin_cpu)
        crossed = known < SMALL <= known + new
        known += new
        if crossed:
            for name, draw in draws(random, known).items():
                found[f"{name}_small"] = time_steps(take, draw)
        before = report(group, start, known, before)
    for name, draw in draws(random, known).items():
        found[name] = time_steps(take, draw)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - start
    stats = group[0].stats()
    final = resident() - start
    return found | {
        "bytes_per_row": (stats["row_bytes"] + stats["index_bytes"]) / known,
        "resident_per_row": final / known,
        "longest": longest,
        "longest_cpu": longest_cpu,
        "peak": peak / final,
    }


def draws(random: np.random.Generator, known: int) -> dict[str, Callable[[], np.ndarray]]:
    return {"zipf": lambda: zipf(random, known), "uniform": lambda: random.integers(0, known, BATCH)}


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
    compared = [
        ("memory a row", "payload x 1.10 + 80 bytes", found["bytes_per_row"], BOUND, "bytes"),
        ("longest growing step", "0.25 s", found["longest"], LONGEST_STEP, "s"),
        ("the same, on the processor", "0.25 s", found["longest_cpu"], LONGEST_STEP, "s"),
        ("peak memory / final", "1.15", found["peak"], PEAK, ""),
        ("step at 20 M rows, zipf", "1.6 x at 1 M", found["zipf"], SLOWER * found["zipf_small"], "ms"),
        ("step at 20 M rows, uniform", "1.6 x at 1 M", found["uniform"], SLOWER * found["uniform_small"], "ms"),
    ]
    return [
        Result(
            name=name,
            rival=f"bound {rival}",
            ratio=theirs / ours,
            worst_ratio=theirs / ours,
            ours=ours,
            theirs=theirs,
            unit=unit,
            shapes=f"one table, width {DIM}, Adam, {ROWS:,} rows, batch {BATCH}, a third new while it grows",
            threads=1,
        )
        for name, rival, ours, theirs, unit in compared
    ]


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
