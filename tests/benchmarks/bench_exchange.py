"""What a step's exchange between ranks costs, against what `recis plan` says: 1, 2 and 4 ranks over gloo.

A step is a lookup and backward of 8 tables in one group, a bag of 4 ids a row in each; tables hold all ids already. Its
exchange is all that `Exchange.fetch` and `Exchange.leave` do: partition of ids, all-to-alls, packing, lookups for other
ranks, sums of gradients. The plan's costs are measured by the same processes: latency and bandwidth by bare all-to-alls
of 1 kB and 4 MB, caches cold as in a step; work for each group, id, row and byte by bare partitions, by steps of one
row, and by steps at widths 4 and 128. What is held against the model are steps of other batches and another width. All
take turns, and each is the mean of the middle half of its times.

The ranks meet before and behind each all-to-all, so that none waits in it for another, nor for a core that another
uses: PASS is a model within a factor of 1.5 of that. Steps in which they do not meet are timed besides: what their
all-to-alls take longer is waiting, for the slowest rank and for cores, which depends on all else that a step does, and
no model covers it. On one rank nothing is exchanged, and its route may take no longer than the lookup alone.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist

from recis_lightning.embedding import EmbeddingCollection
from recis_lightning.embedding.exchange import Exchange
from recis_lightning.embedding.route import OneRank, Request
from recis_lightning.ragged import Ragged
from recis_lightning.schema import Schema
from recis_lightning.training.plan import ALL_TO_ALLS, ExchangeCosts, Workload, make_plan
from tests.benchmarks.report import Result
from tests.ranks import run_ranks
from triton_ops.index import SHARDS
from triton_ops.partition import partition_ids

TABLES, DIM, BAG, ROWS = 8, 16, 4, 1 << 15
RANKS, BATCHES = (2, 4), (256, 4096)  # rows of each rank
ROUNDS, WARM = 20, 3
SMALL, LARGE = 1 << 10, 1 << 22  # bytes for each other rank in bare all-to-alls
NARROW, WIDE, BETWEEN = 4, 128, 1024  # widths and rows of a batch by which work is measured, and a batch of one row
WIDTHS = (NARROW, DIM, WIDE)
COLD = 1 << 25  # bytes that push all else out of the caches
FACTOR = 1.5


def schema(dim: int) -> Schema:
    names = [f"c{number}" for number in range(TABLES)]
    return Schema.from_dict(
        {
            "columns": [{"name": name, "dtype": "int64", "layout": "list"} for name in names],
            "tables": [{"name": name, "dim": dim, "optimizer": "adagrad"} for name in names],
            "features": [{"name": name, "table": name} for name in names],
            "tasks": [],
        }
    )


def workload(ranks: int, batch: int, dim: int) -> Workload:
    declared = schema(dim)
    names = [table.name for table in declared.tables]
    rows, ids = dict.fromkeys(names, ROWS), dict.fromkeys(names, float(BAG))
    return Workload(schema=declared, batch_size=batch * ranks, rows=rows, ids=ids)


@dataclass(frozen=True)
class Step:
    sent: float
    """Bytes."""
    transfer: float
    """Seconds in all-to-alls."""
    work: float
    """Seconds in the exchange, and not in all-to-alls."""


class Timed(Exchange):
    """Takes the time of all that it does, and of its all-to-alls; with ``meets`` ranks meet before and behind these."""

    def __init__(self) -> None:
        assert dist.group.WORLD is not None
        super().__init__(dist.group.WORLD)
        self.meets, self.busy, self.between = True, 0.0, 0.0

    def fetch(self, *arguments: Any) -> Any:
        return self._time(super().fetch, *arguments)

    def leave(self, *arguments: Any) -> Any:
        return self._time(super().leave, *arguments)

    def _time(self, action: Callable[..., Any], *arguments: Any) -> Any:
        begin = time.perf_counter()
        result = action(*arguments)
        self.busy += time.perf_counter() - begin
        return result

    def _all_to_all(self, *arguments: Any) -> None:
        begin = time.perf_counter()
        if self.meets:
            dist.barrier()
        super()._all_to_all(*arguments)
        if self.meets:
            dist.barrier()
        self.between += time.perf_counter() - begin

    def take(self) -> Step:
        costs = self.take_costs()
        step = Step(costs["exchange/bytes"], costs["exchange/seconds"], self.busy - self.between)
        self.busy = self.between = 0.0
        return step


def make_inputs(names: Sequence[str], batch: int, generator: torch.Generator) -> dict[str, Ragged]:
    offsets = torch.arange(batch + 1) * BAG
    return {name: Ragged(torch.randint(ROWS, (batch * BAG,), generator=generator), offsets) for name in names}


def train(collection: EmbeddingCollection, inputs: dict[str, Ragged]) -> None:
    outputs: Any = collection(inputs)
    torch.stack([output.sum() for output in outputs.values()]).sum().backward()
    for group in collection.groups:
        group.pending.clear()


def fill(collection: EmbeddingCollection) -> None:
    every = Ragged(torch.arange(ROWS), torch.arange(ROWS // BAG + 1) * BAG)
    train(collection, dict.fromkeys(collection.features, every))


class Bench:
    """What a rank times by turns with the others."""

    def __init__(self) -> None:
        self.ranks, self.generator = dist.get_world_size(), torch.Generator().manual_seed(dist.get_rank())
        self.collections = {dim: EmbeddingCollection(schema(dim), max_rows=2 * TABLES * ROWS) for dim in WIDTHS}
        self.exchanges = {dim: Timed() for dim in WIDTHS}
        for dim, collection in self.collections.items():
            collection.shard(self.exchanges[dim])
            fill(collection)

    def step(self, batch: int, dim: int, meets: bool) -> Step:
        exchange, collection = self.exchanges[dim], self.collections[dim]
        inputs = make_inputs(collection.features, batch, self.generator)
        exchange.meets = meets
        exchange.take()
        dist.barrier()
        train(collection, inputs)
        return exchange.take()

    def all_to_all(self, size: int) -> float:
        """Seconds of one of so many bytes for each rank, the mean of as many as a step has."""
        outgoing, cold = torch.zeros(size * self.ranks, dtype=torch.uint8), torch.zeros(COLD, dtype=torch.uint8)
        incoming, splits, taken = torch.zeros_like(outgoing), [size] * self.ranks, 0.0
        for turn in range(ALL_TO_ALLS):
            cold.fill_(turn)
            dist.barrier()
            taken += time_call(dist.all_to_all_single, incoming, outgoing, splits, splits)
            dist.barrier()
        return taken / ALL_TO_ALLS

    def partition(self, batch: int) -> float:
        """Seconds of the partition of a batch's ids, on all ranks at once."""
        splits, owners = torch.arange(TABLES + 1) * batch * BAG, torch.arange(SHARDS) * self.ranks // SHARDS
        ids = torch.randint(ROWS, (TABLES * batch * BAG,), generator=self.generator)
        dist.barrier()
        return time_call(partition_ids, ids, splits, torch.arange(TABLES), TABLES, owners, self.ranks)


def measure() -> tuple[dict[str, float], dict[tuple[int, int, bool], Step]]:
    """Seconds by name of what is bare, and steps by rows of a batch, width, and whether the ranks met."""
    torch.set_num_threads(1)
    bench = Bench()
    kinds = [(1, NARROW, True), (BETWEEN, NARROW, True), (BETWEEN, WIDE, True)]
    kinds += [(batch, DIM, meets) for batch in BATCHES for meets in (True, False)]
    bare, steps = [], []
    for _ in range(WARM + ROUNDS):
        bare.append((bench.all_to_all(SMALL), bench.all_to_all(LARGE), bench.partition(BETWEEN)))
        steps.append([bench.step(*kind) for kind in kinds])
    names = ("small", "large", "partition")
    return (
        dict(zip(names, map(middle, zip(*bare[WARM:], strict=True)), strict=True)),
        dict(zip(kinds, map(middle_step, zip(*steps[WARM:], strict=True)), strict=True)),
    )


def middle(values: Sequence[float]) -> float:
    """The mean of the middle half."""
    quarter = len(values) // 4
    return statistics.mean(sorted(values)[quarter : len(values) - quarter])


def middle_step(steps: Sequence[Step]) -> Step:
    return Step(*map(middle, zip(*((step.sent, step.transfer, step.work) for step in steps), strict=True)))


Found = tuple[dict[str, float], dict[tuple[int, int, bool], Step]]


def costs_of(found: Sequence[Found], ranks: int) -> ExchangeCosts:
    """What the plan's model has as numbers, from measures that are none of those it is held against."""
    small, large, partition = (
        statistics.mean(bare[name] for bare, _ in found) for name in ("small", "large", "partition")
    )
    kinds = ((1, NARROW, True), (BETWEEN, NARROW, True), (BETWEEN, WIDE, True))
    per_group, narrow, wide = (statistics.mean(steps[kind].work for _, steps in found) for kind in kinds)
    of_narrow, of_wide = (make_plan(workload(ranks, BETWEEN, dim), ranks) for dim in (NARROW, WIDE))
    per_id = partition / of_narrow.looked_up
    per_byte = max((wide - narrow) / (of_wide.packed - of_narrow.packed), 0.0)
    of_rows = narrow - per_group - per_id * of_narrow.looked_up - per_byte * of_narrow.packed
    return ExchangeCosts(
        latency=small,
        bandwidth=LARGE * (ranks - 1) / (large - small),
        per_group=per_group,
        per_id=per_id,
        per_row=max(of_rows, 0.0) / of_narrow.unique,
        per_byte=per_byte,
    )


def run() -> list[Result]:
    results = [compare_one_rank(batch) for batch in BATCHES]
    for ranks in RANKS:
        found = run_ranks(ranks, measure)
        costs = costs_of(found, ranks)
        tell(f"{ranks} ranks: " + ", ".join(f"{name} {value:.3g}" for name, value in asdict(costs).items()))
        for batch in BATCHES:
            met, free = (middle_step([steps[batch, DIM, meets] for _, steps in found]) for meets in (True, False))
            results += compare(ranks, batch, met, free, costs)
    return results


def compare(ranks: int, batch: int, met: Step, free: Step, costs: ExchangeCosts) -> list[Result]:
    plan = make_plan(workload(ranks, batch, DIM), ranks, costs)
    seconds = plan.exchange
    measured, model = met.transfer + met.work, seconds.total
    where = f"{ranks} ranks, {batch} rows"
    tell(
        f"{where}: all-to-alls {ms(met.transfer)}, model {ms(seconds.all_to_alls)}; work {ms(met.work)}, model "
        f"{ms(seconds.work)}; where ranks do not meet {ms(free.transfer)} and {ms(free.work)}: waiting "
        f"{ms(free.transfer - met.transfer)}"
    )
    verdict(where, model / measured)
    shapes = f"{TABLES} tables of width {DIM}, {BAG} ids a row of each, {batch} rows a rank, {ROWS:,} ids a table"
    pairs = (
        ("bytes a step", met.sent / 1e6, plan.sent / 1e6, "MB"),
        ("ms a step, ranks meeting", 1e3 * measured, 1e3 * model, "ms"),
        ("ms a step, as it comes", 1e3 * (free.transfer + free.work), 1e3 * model, "ms"),
    )
    return [result(f"{what}, {where}", "recis plan", ours, theirs, unit, shapes) for what, ours, theirs, unit in pairs]


def compare_one_rank(batch: int) -> Result:
    """The route of one rank beside a bare lookup, by turns."""
    collection, generator = EmbeddingCollection(schema(DIM), max_rows=2 * TABLES * ROWS), torch.Generator()
    fill(collection)
    route, (group,) = OneRank(), collection.groups
    splits, tables = torch.arange(TABLES + 1) * batch * BAG, torch.arange(TABLES)
    routed, alone = list[float](), list[float]()
    for _ in range(WARM + ROUNDS):
        ids = torch.randint(ROWS, (TABLES * batch * BAG,), generator=generator)
        routed.append(time_call(route.fetch, [Request(group, ids, splits, tables)], True))
        alone.append(time_call(group.lookup, ids, splits, tables, True))
    ours, theirs = middle(routed[WARM:]), middle(alone[WARM:])
    verdict(f"1 rank, {batch} rows", theirs / ours)
    shapes = f"{TABLES} tables of width {DIM}, {BAG} ids a row of each, {batch} rows, {ROWS:,} ids a table"
    return result(f"ms a step, 1 rank, {batch} rows", "lookup alone", 1e3 * ours, 1e3 * theirs, "ms", shapes)


def time_call(action: Callable[..., Any], *arguments: Any) -> float:
    begin = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - begin


def verdict(where: str, ratio: float) -> None:
    right = 1 / FACTOR <= ratio <= FACTOR
    print(
        f"{'PASS' if right else 'FAIL'}: {where}: the model says {ratio:.2f} of what is measured; promised are "
        f"{1 / FACTOR:.2f} to {FACTOR}"
    )


def result(name: str, rival: str, ours: float, theirs: float, unit: str, shapes: str) -> Result:
    ratio = theirs / ours
    return Result(
        name=name,
        rival=rival,
        ratio=ratio,
        worst_ratio=ratio,
        ours=ours,
        theirs=theirs,
        unit=unit,
        shapes=shapes,
        threads=1,
    )


def ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms"


def tell(line: str) -> None:
    print(line, file=sys.stderr)
