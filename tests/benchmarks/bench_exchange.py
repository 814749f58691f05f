"""What ranks send each other in a step, and how long that takes, against what is reckoned: 2 and 4 ranks over gloo.

Bytes are held against `recis plan`, which is a bound; time against a cost model, latency + bytes / bandwidth for each
all-to-all, whose two numbers are measured by bare all-to-alls of the same processes. One rank sends nothing. A step is
a lookup and backward of 8 tables of width 16 in one group, a bag of 4 ids a row in each. Seconds are those of a step's
all-to-alls, the ranks having met before each: a training step waits for its slowest rank besides, which is printed with
them. Medians.

With more ranks than cores, processes wait for a core, not for the wire: PASS asks for a model within a factor of 2.
"""

import statistics
import sys
import time
from typing import Any

import torch
import torch.distributed as dist

from recis_lightning.embedding import EmbeddingCollection
from recis_lightning.embedding.exchange import Exchange
from recis_lightning.ragged import Ragged
from recis_lightning.schema import Schema
from recis_lightning.training.plan import Workload, make_plan
from tests.benchmarks.report import Result
from tests.ranks import run_ranks

TABLES, DIM, BAG, ROWS = 8, 16, 4, 1 << 20
RANKS, BATCHES = (2, 4), (256, 4096)  # rows of each rank
STEPS, WARM, ALL_TO_ALLS = 30, 3, 4
SIZES = (1 << 10, 1 << 14, 1 << 18, 1 << 22)  # bytes for each other rank
FACTOR = 2.0


def schema() -> Schema:
    names = [f"c{number}" for number in range(TABLES)]
    return Schema.from_dict(
        {
            "columns": [{"name": name, "dtype": "int64", "layout": "list"} for name in names],
            "tables": [{"name": name, "dim": DIM, "optimizer": "adagrad"} for name in names],
            "features": [{"name": name, "table": name} for name in names],
            "tasks": [],
        }
    )


def time_all_to_all(size: int) -> float:
    """The median seconds of an all-to-all of so many bytes for each rank."""
    world = dist.get_world_size()
    outgoing = torch.zeros(size * world, dtype=torch.uint8)
    incoming, splits, times = torch.empty_like(outgoing), [size] * world, []
    for _ in range(STEPS):
        dist.barrier()
        begin = time.perf_counter()
        dist.all_to_all_single(incoming, outgoing, splits, splits)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


class Meeting(Exchange):
    """Ranks meet before each all-to-all, so that none waits for another in it."""

    def _all_to_all(self, *arguments: Any) -> None:
        dist.barrier()
        super()._all_to_all(*arguments)


def time_steps(batch: int, kind: type[Exchange]) -> tuple[float, float]:
    """Bytes that this rank sends in a step, and median seconds in its all-to-alls."""
    collection = EmbeddingCollection(schema(), max_rows=1 << 23)
    assert dist.group.WORLD is not None
    exchange = kind(dist.group.WORLD)
    collection.shard(exchange)
    generator = torch.Generator().manual_seed(dist.get_rank())
    offsets, sent, seconds = torch.arange(batch + 1) * BAG, [], []
    for step in range(WARM + STEPS):
        ids = [torch.randint(ROWS, (batch * BAG,), generator=generator) for _ in range(TABLES)]
        inputs = {name: Ragged(values, offsets) for name, values in zip(collection.features, ids, strict=True)}
        dist.barrier()
        outputs = collection(inputs)
        torch.stack([output.sum() for output in outputs.values()]).sum().backward()
        for group in collection.groups:
            group.pending.clear()
        costs = exchange.take_costs()
        if step >= WARM:
            sent.append(costs["exchange/bytes"])
            seconds.append(costs["exchange/seconds"])
    return statistics.mean(sent), statistics.median(seconds)


def measure() -> tuple[dict[int, float], dict[int, tuple[float, float]], dict[int, float]]:
    """Seconds of bare all-to-alls by size; by rows of a batch bytes and seconds of steps, and seconds with waiting."""
    torch.set_num_threads(1)
    steps = {batch: time_steps(batch, Meeting) for batch in BATCHES}
    return {size: time_all_to_all(size) for size in SIZES}, steps, {b: time_steps(b, Exchange)[1] for b in BATCHES}


def fit(seconds: dict[int, float], peers: int) -> tuple[float, float]:
    """Latency in seconds, and bandwidth in bytes a second, of what one rank sends."""
    latency = min(seconds.values())
    largest = max(seconds)
    return latency, largest * peers / max(seconds[largest] - latency, 1e-9)


def run() -> list[Result]:
    results = []
    print("1 rank: 0 bytes, 0 s: rows are read where they lie", file=sys.stderr)
    for ranks in RANKS:
        found = run_ranks(ranks, measure)
        bare = {size: statistics.median(rank[0][size] for rank in found) for size in SIZES}
        latency, bandwidth = fit(bare, ranks - 1)
        print(
            f"{ranks} ranks: an all-to-all takes {1e6 * latency:.0f} us + {1e9 / bandwidth:.3f} ns a byte",
            file=sys.stderr,
        )
        for batch in BATCHES:
            sent = statistics.mean(rank[1][batch][0] for rank in found)
            taken = statistics.median(rank[1][batch][1] for rank in found)
            waiting = statistics.median(rank[2][batch] for rank in found)
            print(
                f"{ranks} ranks of {batch} rows: {1e3 * taken:.2f} ms, {1e3 * waiting:.2f} with waiting",
                file=sys.stderr,
            )
            results += compare(ranks, batch, sent, taken, ALL_TO_ALLS * latency + sent / bandwidth)
    return results


def compare(ranks: int, batch: int, sent: float, taken: float, reckoned: float) -> list[Result]:
    declared = schema()
    names = [table.name for table in declared.tables]
    workload = Workload(
        schema=declared, batch_size=batch * ranks, rows=dict.fromkeys(names, ROWS), ids=dict.fromkeys(names, float(BAG))
    )
    planned = make_plan(workload, ranks).sent
    right = 1 / FACTOR <= reckoned / taken <= FACTOR
    print(f"{'PASS' if right else 'FAIL'}: {ranks} ranks of {batch} rows: model {reckoned / taken:.2f} of measured")
    shapes = (
        f"{TABLES} tables of width {DIM}, {BAG} ids a row of each, {batch} rows a rank, {ROWS:,} ids, {STEPS} steps"
    )
    pairs = (
        ("bytes a step", "recis plan", sent / 1e6, planned / 1e6, "MB"),
        ("seconds a step", "cost model", 1e3 * taken, 1e3 * reckoned, "ms"),
    )
    return [
        Result(name=f"{what}, {ranks} ranks, {batch} rows", rival=rival, ratio=theirs / ours, worst_ratio=theirs / ours,
               ours=ours, theirs=theirs, unit=unit, shapes=shapes, threads=1)
        for what, rival, ours, theirs, unit in pairs
    ]  # fmt: skip
