"""Training steps in a bare loop: 26 tables, ids zipf(1.05) and 2 % never seen, an MLP, Adam; against stock torch.

Ours keeps exact tables that grow: tables that know the zipf ids, so that 2 % of ids are new; the same with counter
admission and LRU bookkeeping; and tables that begin empty, where about 36 % of ids are new. The rival keeps one
`nn.EmbeddingBag(sparse=True)` of fixed size for hashed ids and updates it with SparseAdam; its ids are hashed before
the clock starts, and lie so that its output is the MLP's input as it is. The embedding part is a step less one of the
same MLP on inputs that are ready. Each contestant runs in a process of its own, on one thread, by turns; the time of a
run is the mean over its steps.

B batch rows, F features, D width of an embedding.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from recis_lightning.embedding import EmbeddingCollection
from recis_lightning.optim import CompositeOptimizer, SparseOptimizer
from recis_lightning.ragged import Ragged, stack_features
from recis_lightning.schema import Schema
from tests.benchmarks.report import Result
from tests.benchmarks.rivals import draws
from tests.benchmarks.rivals.draws import BATCH, EXPONENT, FEATURES, NEW, RANKS, TIMED, WARM_UP

WIDTHS = (16, 64)
RIVAL_ROWS = 4_000_000
RUNS = 5
OURS = {"2 % of ids new": "known", "the same, counter and LRU": "policies", "tables empty at first": "empty"}
POLICIES = {"admission": {"kind": "counter", "threshold": 2}, "eviction": {"kind": "lru"}, "capacity": 1_000_000}
MLP = "the MLP alone"
HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
RIVALS: dict[str, dict[str, str]] = {
    "torch EmbeddingBag + SparseAdam": {},
    "the same, THP_MEM_ALLOC_ENABLE=1": HUGE_PAGES,
}


def draw_ids(steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For each step int64 ids [F, B], and bool [F, B] that tells which were never seen before."""
    return ((torch.from_numpy(ids), torch.from_numpy(new)) for ids, new in draws.draw_ids(steps))


def labels(steps: int) -> Tensor:
    return torch.from_numpy(draws.draw_labels(steps))


def make_mlp(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(FEATURES * width, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 1), nn.Flatten(0)
    )


def ours(
    width: int, steps: int, tables: str, optimizer_kind: str = "adamw", policies: Mapping[str, Any] | None = None
) -> Iterator[Callable[[], None]]:
    """Steps of our tables, each ready to run; ``policies`` are admission, eviction and capacity of all of them."""
    schema = Schema.from_dict(
        {
            "columns": [{"name": f"c{{1..{FEATURES}}}", "dtype": "int64"}],
            "tables": [
                {
                    "name": f"c{{1..{FEATURES}}}",
                    "dim": width,
                    "initializer": {"kind": "uniform", "low": -0.05, "high": 0.05},
                    "optimizer": {"kind": optimizer_kind, "lr": 1e-3},
                    **(policies or {}),
                }
            ],
            "features": [{"name": f"c{{1..{FEATURES}}}", "table": f"c{{1..{FEATURES}}}"}],
        }
    )
    embedding, mlp = EmbeddingCollection(schema), make_mlp(width)
    optimizer = CompositeOptimizer(torch.optim.AdamW(mlp.parameters()), SparseOptimizer(embedding.groups))
    if tables != "empty":
        for ids, new in draw_ids(steps):
            for feature, table in enumerate(embedding.tables.values()):
                table.find_or_insert(ids[feature][~new[feature]])
    offsets = torch.arange(BATCH + 1)
    for (ids, _), label in zip(draw_ids(steps), labels(steps), strict=True):
        inputs = {f"c{feature + 1}": Ragged(ids[feature], offsets) for feature in range(FEATURES)}

        def step(inputs: dict[str, Ragged] = inputs, label: Tensor = label) -> None:
            optimizer.zero_grad()
            pooled = embedding(inputs)
            logits = mlp(stack_features([pooled[name] for name in inputs]).flatten(1))
            nn.functional.binary_cross_entropy_with_logits(logits, label).backward()
            optimizer.step()
            if policies:
                embedding.evict()

        yield step


def theirs(width: int, steps: int) -> Iterator[Callable[[], None]]:
    bag, mlp = nn.EmbeddingBag(RIVAL_ROWS, width, mode="sum", sparse=True), make_mlp(width)
    nn.init.uniform_(bag.weight, -0.05, 0.05)
    dense, sparse = torch.optim.AdamW(mlp.parameters()), torch.optim.SparseAdam(bag.parameters(), lr=1e-3)
    offsets = torch.arange(BATCH * FEATURES)
    for (ids, _), label in zip(draw_ids(steps), labels(steps), strict=True):
        rows = ids.T.remainder(RIVAL_ROWS).reshape(-1)

        def step(rows: Tensor = rows, label: Tensor = label) -> None:
            dense.zero_grad()
            sparse.zero_grad()
            logits = mlp(bag(rows, offsets).view(BATCH, -1))
            nn.functional.binary_cross_entropy_with_logits(logits, label).backward()
            dense.step()
            sparse.step()

        yield step


def mlp_alone(width: int, steps: int) -> Iterator[Callable[[], None]]:
    mlp = make_mlp(width)
    dense, inputs = torch.optim.AdamW(mlp.parameters()), torch.rand(BATCH, FEATURES * width)
    for label in labels(steps):

        def step(label: Tensor = label) -> None:
            dense.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(mlp(inputs), label).backward()
            dense.step()

        yield step


def measure(contestant: str, width: int) -> float:
    """Mean wall time of a step, in milliseconds; the contestant is `theirs`, `mlp`, or one of the values of OURS."""
    torch.set_num_threads(1)
    count = WARM_UP + TIMED
    if contestant in ("theirs", "mlp"):
        return mean_time((theirs if contestant == "theirs" else mlp_alone)(width, count))
    policies = POLICIES if contestant == "policies" else None
    return mean_time(ours(width, count, contestant, policies=policies))


def mean_time(steps: Iterable[Callable[[], None]]) -> float:
    ready = list(steps)
    for step in ready[:WARM_UP]:
        step()
    times = [time.perf_counter()]
    for step in ready[WARM_UP:]:
        step()
        times.append(time.perf_counter())
    return 1000 * statistics.fmean(end - begin for begin, end in pairwise(times))


def measure_apart(contestant: str, width: int, environment: dict[str, str]) -> float:
    """`measure` in a new process on one thread."""
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.benchmarks.bench_step", contestant, str(width)]
    finished = subprocess.run(command, env=os.environ | one_thread | environment, stdout=subprocess.PIPE, text=True)
    if finished.returncode:
        sys.exit(f"{' '.join(command)} failed with {finished.returncode}")
    return float(json.loads(finished.stdout.splitlines()[-1]))


def run() -> list[Result]:
    results = []
    for width in WIDTHS:
        measure_apart("empty", width, {})  # compiles what is not in the cache yet
        times: dict[str, list[float]] = {name: [] for name in (MLP, *OURS, *RIVALS)}
        for _ in range(RUNS):
            times[MLP].append(measure_apart("mlp", width, {}))
            for situation, tables in OURS.items():
                times[situation].append(measure_apart(tables, width, {}))
            for rival, environment in RIVALS.items():
                times[rival].append(measure_apart("theirs", width, environment))
        pairs = [(situation, rival) for situation in OURS for rival in RIVALS]
        results += [compare("step", width, *pair, times) for pair in pairs]
        apart = {
            name: [step - mlp for step, mlp in zip(of_runs, times[MLP], strict=True)] for name, of_runs in times.items()
        }
        results += [compare("embedding part", width, *pair, apart) for pair in pairs]
    return results


def compare(part: str, width: int, situation: str, rival: str, times: dict[str, list[float]]) -> Result:
    ratios = [theirs / ours for ours, theirs in zip(times[situation], times[rival], strict=True)]
    return Result(
        name=f"{part}, width {width}, {situation}",
        rival=rival,
        ratio=statistics.median(ratios),
        worst_ratio=min(ratios),
        ours=statistics.median(times[situation]),
        theirs=statistics.median(times[rival]),
        unit="ms",
        shapes=f"{FEATURES} tables x batch {BATCH}, zipf({EXPONENT}) over {RANKS} ranks and {NEW:.0%} never seen, "
        f"MLP {FEATURES * width}-256-64-1, {RUNS} runs of {TIMED} steps after {WARM_UP}",
        threads=1,
    )


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
