"""What a GPU makes of it, in one command: python -m tests.benchmarks.gpu --out build/bench/gpu.json

First that results are right, then copies, random reads, the index, gathers, updates, a whole step, and a DLRM beside
torch's nn.EmbeddingBag at equal loss; all of it under 8 minutes, what there is no time for is left out and named. Needs
no network and no package beyond torch, triton, numpy, numba, pyarrow, lightning and what this package imports.
--smoke runs everything once, tiny, in Triton's interpreter on the CPU: its times mean nothing.

N ids of a step, D row width, T tables.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

BUDGET = 440.0  # seconds


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    repeats: int = 20
    copy_bytes: int = 4 << 30
    read_bytes: int = 8 << 30
    row_bytes: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    index_ids: tuple[int, ...] = (1 << 20, 1 << 24, 1 << 26)
    batch: int = 1 << 20
    """Ids of a lookup in the index."""
    new_percent: tuple[int, ...] = (0, 1, 5, 20, 100)
    rows: int = 1 << 22
    """Of the table that is gathered from and updated."""
    dim: int = 128
    step_tables: int = 10
    step_ids: int = 1_048_570
    step_universe: int = 10_000_000
    """Ids that each of these tables may see."""
    model_tables: int = 26
    model_rows: int = 16_384
    """Samples of a step."""
    model_universe: int = 200_000
    model_dim: int = 64
    model_steps: int = 60


SMOKE = Sizes(
    repeats=1, copy_bytes=1 << 12, read_bytes=1 << 14, row_bytes=(32, 128), index_ids=(200,), batch=64,
    new_percent=(0, 100), rows=128, dim=8, step_tables=2, step_ids=24, step_universe=40, model_tables=2, model_rows=8,
    model_universe=20, model_dim=4, model_steps=2,
)  # fmt: skip


@dataclass
class Report:
    """What is written: measures by part, and what they were taken on."""

    about: dict[str, Any]
    parts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def add(self, part: str, **measures: Any) -> None:
        self.parts.setdefault(part, []).append(measures)
        print(f"{part}: " + ", ".join(f"{key} {value}" for key, value in measures.items()), flush=True)


class Clock:
    """Measures on one device, and knows how much time is left."""

    def __init__(self, device: Any, sizes: Sizes, budget: float) -> None:
        self.device, self.sizes, self._end = device, sizes, time.monotonic() + budget

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self._end

    def seconds(self, call: Callable[[], Any], before: Callable[[], Any] = lambda: None) -> float:
        """The median time of ``call``, without that of ``before``."""
        call_once = self._on_gpu if self.device.type == "cuda" else self._on_cpu
        for _ in range(min(3, self.sizes.repeats)):
            before()
            call()
        times = []
        for _ in range(self.sizes.repeats):
            before()
            times.append(call_once(call))
            if self.is_over:
                break
        return statistics.median(times)

    def _on_gpu(self, call: Callable[[], Any]) -> float:
        import torch

        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize(self.device)
        return float(start.elapsed_time(end)) / 1000

    @staticmethod
    def _on_cpu(call: Callable[[], Any]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start


def zipf(ids: int, universe: int, generator: Any, exponent: float = 1.05) -> Any:
    """So many ids below ``universe``, the k-th most frequent as often as k^-exponent says; int64 on the CPU."""
    import torch

    # The inverse of the continuous distribution with that density between 1 and universe + 1.
    uniform = torch.rand(ids, generator=generator, dtype=torch.float64)
    power = 1.0 - exponent
    rank = (1.0 + uniform * ((universe + 1.0) ** power - 1.0)) ** (1.0 / power)
    return (rank.long() - 1).clamp(0, universe - 1)


# ------------------------------------------------------------------------------------------------------------- parts


def make_tables(count: int, dim: int, kind: str = "adam", **options: Any) -> list[Any]:
    from recis_lightning.schema import Adagrad, Adam, RowwiseAdagrad, Sgd, Table

    optimizer = {"adam": Adam, "adagrad": Adagrad, "rowwise_adagrad": RowwiseAdagrad, "sgd": Sgd}[kind](lr=0.01)
    return [Table(name=f"t{n}", dim=dim, optimizer=optimizer, **options) for n in range(count)]


def make_group(tables: list[Any], device: Any, max_rows: int) -> Any:
    from recis_lightning.tables import TableGroup

    return TableGroup(tables, seed=1, max_rows=max_rows, device=device)


def one_run(ids: Any) -> tuple[Any, Any]:
    import torch

    return torch.tensor([0, len(ids)]), torch.tensor([0])


def check(report: Report, clock: Clock) -> None:
    """The same steps here and on the CPU give the same rows; what is wrong ends the run."""
    import torch

    from recis_lightning.optim import SparseOptimizer
    from recis_lightning.tables import PendingGrad
    from triton_ops.gather_pool import gather_pool

    sizes, generator = clock.sizes, torch.Generator().manual_seed(1)
    count = min(20_000, sizes.batch)
    runs = torch.tensor([0, count // 2, count]), torch.tensor([0, 1])

    def train(kind: str, device: Any) -> Any:
        group = make_group(make_tables(2, 8, kind), device, 8 * count + 512)
        optimizer = SparseOptimizer([group])
        generator.manual_seed(2)
        for _ in range(3):
            ids = zipf(count, count, generator).to(device)
            unique, inverse = group.unique_rows(group.lookup(ids, *runs, insert=True), record=True)
            sums = torch.zeros(len(unique), 8, device=device)
            sums.index_add_(0, inverse, torch.randn(count, 8, generator=generator).to(device))
            group.leave(PendingGrad(unique, sums, frozenset({0, 1})))
            optimizer.step()
        group.raise_lost(wait=True)
        return group

    for kind in ("adam", "adagrad"):
        with on_the_cpu():
            expected = [table.export() for table in train(kind, torch.device("cpu"))]
        group = train(kind, clock.device)
        for table, rows in zip(group, expected, strict=True):
            found = table.export()
            assert torch.equal(found.ids, rows.ids), f"{kind}: ids differ from those on the CPU"
            torch.testing.assert_close(found.weight, rows.weight, rtol=1e-4, atol=1e-5)
        ids = expected[0].ids.to(clock.device)
        rows = group[0].find(ids)
        pooled = gather_pool(group.weight, rows, torch.arange(len(ids) + 1, device=clock.device)[None])[:, 0]
        torch.testing.assert_close(pooled.cpu(), group[0].export().weight)
    report.add("check", ids=count, optimizers="adam, adagrad", equal=True)


@contextmanager
def on_the_cpu() -> Iterator[None]:
    """Have the CPU's own kernels run, where the interpreter runs those of GPUs otherwise."""
    before = os.environ.pop("TRITON_OPS", None)
    try:
        yield
    finally:
        if before is not None:
            os.environ["TRITON_OPS"] = before


def copies(report: Report, clock: Clock) -> None:
    import torch

    source = torch.empty(clock.sizes.copy_bytes // 4, dtype=torch.float32, device=clock.device).fill_(1.0)
    target = torch.empty_like(source)
    seconds = clock.seconds(lambda: target.copy_(source))
    assert bool((target[-10:] == 1).all())
    report.about["copy_bytes_per_s"] = 2 * source.nbytes / seconds
    report.add("copy", bytes=source.nbytes, tb_per_s=round(2 * source.nbytes / seconds / 1e12, 3))


def reads(report: Report, clock: Clock) -> None:
    """Random rows of 32 to 1024 bytes: what share of the copy's bandwidth they are read at."""
    import torch

    from triton_ops.gather_pool import gather_pool

    for row_bytes in clock.sizes.row_bytes:
        width = row_bytes // 4
        store = torch.arange(clock.sizes.read_bytes // 4, dtype=torch.float32, device=clock.device).view(-1, width)
        rows = torch.randint(len(store), (clock.sizes.batch,), device=clock.device)
        out = torch.empty(len(rows), width, device=clock.device)
        offsets = torch.arange(len(rows) + 1, device=clock.device)[None]
        ways: Mapping[str, Callable[[], Any]] = {
            "index_select": lambda s=store, r=rows, o=out: torch.index_select(s, 0, r, out=o),
            "gather_pool": lambda s=store, r=rows, f=offsets, o=out: gather_pool(s, r, f, None, o[:, None]),
        }
        for name, call in ways.items():
            out.fill_(-1.0)
            call()
            assert torch.equal(out[:64], store[rows[:64]]), f"{name} reads other rows"
            seconds = clock.seconds(call)
            rate = len(rows) / seconds
            share = 2 * row_bytes * rate / report.about["copy_bytes_per_s"]
            report.add(
                "read", how=name, row_bytes=row_bytes, g_rows_per_s=round(rate / 1e9, 3), of_copy=round(share, 3)
            )
            if name == "index_select" and row_bytes == 64:
                report.about["reads_of_64_bytes_per_s"] = rate


def index(report: Report, clock: Clock) -> None:
    import torch

    sizes = clock.sizes
    for held in sizes.index_ids:
        group = make_group(make_tables(1, 4, "sgd"), clock.device, held + 64 * sizes.batch)
        for begin in range(0, held, 1 << 20):
            ids = torch.arange(begin, min(begin + (1 << 20), held), device=clock.device)
            group.index.find_or_insert(ids, *one_run(ids), group.rows.pool)
        assert len(group[0]) == held
        hits = torch.randint(held, (sizes.batch,), device=clock.device)
        misses = hits + held
        assert bool((group.index.find(hits, *one_run(hits)) >= 0).all())
        assert bool((group.index.find(misses, *one_run(hits)) < 0).all())
        for name, ids in (("hit", hits), ("miss", misses)):
            rate = sizes.batch / clock.seconds(partial(group.index.find, ids, *one_run(ids)))
            share = rate / report.about.get("reads_of_64_bytes_per_s", rate)
            report.add("find", what=name, held=held, g_ids_per_s=round(rate / 1e9, 3), of_64_byte_reads=round(share, 3))
        fresh = 1 << 40
        for percent in sizes.new_percent:
            new = sizes.batch * percent // 100
            ids = hits.clone()

            def renew(ids: Any = ids, new: int = new) -> None:
                nonlocal fresh
                ids[:new] = torch.arange(fresh, fresh + new, device=ids.device)
                fresh += new

            few = Clock(clock.device, Sizes(repeats=min(8, sizes.repeats)), 60)
            insert = partial(group.index.find_or_insert, ids, *one_run(ids), group.rows.pool)
            rate = sizes.batch / few.seconds(insert, renew)
            report.add("find_or_insert", new_percent=percent, held=held, g_ids_per_s=round(rate / 1e9, 3))
        assert not group.index.lost(wait=True).any(), "rows ran out, and the last numbers mean little"
        if clock.is_over:
            return


def gathers(report: Report, clock: Clock) -> None:
    """Unique rows of a table in blocks, against a copy of as many bytes."""
    import torch

    from triton_ops.gather_pool import gather_pool

    sizes = clock.sizes
    for dtype in ("float32", "bfloat16"):
        group = fill_group(make_tables(1, sizes.dim, "sgd", dtype=dtype), clock)
        rows = group.lookup(
            torch.randperm(sizes.rows, device=clock.device)[: sizes.batch], *run_of(sizes), insert=False
        )
        offsets = torch.arange(len(rows) + 1, device=clock.device)[None]
        out = torch.empty(len(rows), 1, sizes.dim, device=clock.device)
        gather_pool(group.weight, rows, offsets, None, out)
        torch.testing.assert_close(out[:32, 0], group.weight[rows[:32]].float())
        seconds = clock.seconds(lambda g=group, r=rows, f=offsets, o=out: gather_pool(g.weight, r, f, None, o))
        nbytes = len(rows) * (sizes.dim * (group.weight.itemsize + 4) + 8)
        share = nbytes / seconds / report.about["copy_bytes_per_s"]
        rate = round(len(rows) / seconds / 1e9, 3)
        report.add("gather", dtype=dtype, dim=sizes.dim, rows=len(rows), g_rows_per_s=rate, of_copy=round(share, 3))


def run_of(sizes: Sizes) -> tuple[Any, Any]:
    import torch

    return torch.tensor([0, min(sizes.batch, sizes.rows)]), torch.tensor([0])


def fill_group(tables: list[Any], clock: Clock) -> Any:
    """A group whose first table holds ids 0, 1, ... of `Sizes.rows`."""
    import torch

    group = make_group(tables, clock.device, clock.sizes.rows + 4 * clock.sizes.batch)
    for begin in range(0, clock.sizes.rows, 1 << 20):
        ids = torch.arange(begin, min(begin + (1 << 20), clock.sizes.rows), device=clock.device)
        group.insert(ids, *one_run(ids))
    return group


def updates(report: Report, clock: Clock) -> None:
    """One gradient a row, against the bytes that must move."""
    import torch

    from triton_ops.row_update import hyper_row, row_update

    sizes = clock.sizes
    for kind in ("adam", "adagrad", "rowwise_adagrad", "sgd"):
        group = fill_group(make_tables(1, sizes.dim, kind), clock)
        count = min(sizes.batch, sizes.rows)
        rows = group.lookup(torch.randperm(sizes.rows, device=clock.device)[:count], *run_of(sizes), insert=False)
        grads = torch.randn(count, sizes.dim, device=clock.device)
        settings = {"lr": 0.01, "eps": 1e-8, "betas": (0.9, 0.999)}
        hyper = torch.tensor([hyper_row(group.layout.rule, 1, settings)], dtype=torch.float64, device=clock.device)
        keys = torch.zeros(1, dtype=torch.int64, device=clock.device)
        arrays = group.weight, group.state, group.meta, rows, grads, group.granule_table, hyper, keys
        before = group.weight[rows[:32]]
        row_update(group.layout.rule, *arrays)
        assert bool((group.weight[rows[:32]] != before).any()), f"{kind} changes nothing"
        seconds = clock.seconds(lambda g=group, a=arrays: row_update(g.layout.rule, *a))
        nbytes = count * ((3 * sizes.dim + 2 * group.state.shape[1]) * 4 + 8)
        share = nbytes / seconds / report.about["copy_bytes_per_s"]
        rate = round(count / seconds / 1e9, 3)
        report.add("update", rule=kind, dim=sizes.dim, rows=count, g_rows_per_s=rate, of_copy=round(share, 3))


def step(report: Report, clock: Clock) -> None:
    """Lookup, backward and Adam of ten tables, ids by zipf(1.05): plain, and as a CUDA graph."""
    import torch

    from recis_lightning.optim import CompositeOptimizer, SparseOptimizer
    from recis_lightning.ragged import Ragged
    from recis_lightning.training.step_graph import StepGraph

    sizes, generator = clock.sizes, torch.Generator().manual_seed(3)
    rows = sizes.step_ids // sizes.step_tables
    embedding = make_embedding(sizes.step_tables, sizes.dim, clock.device, 12 * sizes.step_ids + (1 << 12))
    optimizer = CompositeOptimizer(None, SparseOptimizer(embedding.groups))
    offsets = torch.arange(rows + 1, device=clock.device)
    inputs = {
        name: Ragged(zipf(rows, sizes.step_universe, generator).to(clock.device), offsets)
        for name in embedding.features
    }
    unique = sum(len(part.values.unique()) for part in inputs.values())
    grad = torch.ones(rows, sizes.dim, device=clock.device)

    def run() -> Any:
        outputs = list(embedding(inputs).values())
        torch.autograd.backward(outputs, [grad] * len(outputs))
        optimizer.step()

    def forward() -> Any:
        with torch.no_grad():
            embedding(inputs)

    run()
    total = {name: len(table) for name, table in embedding.tables.items()}
    assert sum(total.values()) == unique, "each id has one row"
    measures: dict[str, float] = {"forward": clock.seconds(forward), "plain": clock.seconds(run)}
    if clock.device.type == "cuda":
        graph = StepGraph(run, embedding, optimizer)
        measures["graph"] = clock.seconds(graph)
    assert {name: len(table) for name, table in embedding.tables.items()} == total
    shape = f"{sizes.step_tables} tables, dim {sizes.dim}, {rows * sizes.step_tables} ids, {unique} unique"
    for how, seconds in measures.items():
        report.add("step", how=how, ms=round(seconds * 1000, 4), shape=shape)


def make_embedding(tables: int, dim: int, device: Any, max_rows: int, dense: int = 0) -> Any:
    from recis_lightning.embedding import EmbeddingCollection

    schema = make_schema(tables, dim, dense)
    return EmbeddingCollection(schema, seed=1, max_rows=max_rows).to(device)


def make_schema(tables: int, dim: int, dense: int) -> Any:
    from recis_lightning.schema import Schema

    names = [f"f{n}" for n in range(tables)]
    numbers = [f"d{n}" for n in range(dense)]
    return Schema.from_dict(
        {
            "columns": [{"name": name, "dtype": "int64"} for name in names]
            + [{"name": name, "dtype": "float32"} for name in [*numbers, "label"]],
            "tables": [
                {
                    "name": name, "dim": dim, "optimizer": {"kind": "adam", "lr": 0.01},
                    "initializer": {"kind": "uniform", "low": -0.05, "high": 0.05},
                }
                for name in names
            ],
            "features": [{"name": name, "table": name} for name in names] + [{"name": name} for name in numbers],
            "tasks": [{"name": "ctr", "label": "label"}],
        }
    )  # fmt: skip


def model(report: Report, clock: Clock) -> None:
    """A DLRM on tables that find rows by id, beside one on nn.EmbeddingBag of as many rows: same ids, same loss."""
    import torch
    import torch.nn.functional as F

    from recis_lightning.models import DLRM
    from recis_lightning.optim import CompositeOptimizer, SparseOptimizer
    from recis_lightning.ragged import Ragged

    sizes, generator = clock.sizes, torch.Generator().manual_seed(4)
    device, dense = clock.device, 13 if clock.sizes.model_rows > 100 else 2
    schema = make_schema(sizes.model_tables, sizes.model_dim, dense)
    most = sizes.model_tables * (sizes.model_universe + 4 * sizes.model_rows) + (1 << 12)
    embedding = make_embedding(sizes.model_tables, sizes.model_dim, device, most, dense)
    everything = torch.arange(sizes.model_universe, device=device)
    for table in embedding.tables.values():
        table.find_or_insert(everything)
    weights = [table.weight(table.find(everything)) for table in embedding.tables.values()]
    bags = [torch.nn.EmbeddingBag.from_pretrained(w.clone(), freeze=False, mode="sum", sparse=True) for w in weights]
    torch.manual_seed(5)
    networks = [DLRM(schema).to(device)]
    networks.append(DLRM(schema).to(device))
    networks[1].load_state_dict(networks[0].state_dict())
    adams = [torch.optim.Adam(network.parameters(), lr=1e-3) for network in networks]
    ours = CompositeOptimizer(adams[0], SparseOptimizer(embedding.groups))
    theirs = torch.optim.SparseAdam([bag.weight for bag in bags], lr=0.01)
    names, offsets = embedding.features, torch.arange(sizes.model_rows + 1, device=device)
    batches = []
    for _ in range(4):
        ids = [zipf(sizes.model_rows, sizes.model_universe, generator) for _ in names]
        numbers = torch.rand(sizes.model_rows, dense, generator=generator)
        label = ((ids[0] % 7 + ids[1] % 5) / 12 > numbers[:, 0]).float()
        batches.append(([each.to(device) for each in ids], numbers.to(device), label.to(device)))

    def loss_of(network: Any, fields: dict[str, Any], numbers: Any, label: Any) -> Any:
        columns = {f"d{n}": numbers[:, n : n + 1] for n in range(dense)}
        return F.binary_cross_entropy_with_logits(network({**fields, **columns})["ctr"], label)

    def run_ours(ids: list[Any], numbers: Any, label: Any) -> Any:
        ours.zero_grad()
        fields = embedding({name: Ragged(each, offsets) for name, each in zip(names, ids, strict=True)})
        loss = loss_of(networks[0], fields, numbers, label)
        loss.backward()
        ours.step()
        return loss.detach()

    def run_theirs(ids: list[Any], numbers: Any, label: Any) -> Any:
        theirs.zero_grad()
        adams[1].zero_grad()
        fields = {name: bag(each, offsets[:-1]) for name, bag, each in zip(names, bags, ids, strict=True)}
        loss = loss_of(networks[1], fields, numbers, label)
        loss.backward()
        theirs.step()
        adams[1].step()
        return loss.detach()

    rates, losses = {}, {}
    for name, run in (("tables", run_ours), ("nn.EmbeddingBag", run_theirs)):
        seen, started = [], 0.0
        for number in range(sizes.model_steps):
            if number == sizes.model_steps // 6:
                synchronize(device)
                started = time.perf_counter()
            seen.append(run(*batches[number % len(batches)]))
        synchronize(device)
        timed = sizes.model_steps - sizes.model_steps // 6
        rates[name] = timed * sizes.model_rows / (time.perf_counter() - started)
        losses[name] = [float(each) for each in seen]
    for number, (own, other) in enumerate(zip(*losses.values(), strict=True)):
        assert abs(own - other) <= 2e-3 * max(other, 0.1), f"step {number}: loss {own}, nn.EmbeddingBag has {other}"
    shape = f"{sizes.model_tables} tables of {sizes.model_universe} ids, dim {sizes.model_dim}, {sizes.model_rows} rows"
    for name, rate in rates.items():
        report.add("model", how=name, samples_per_s=round(rate), last_loss=round(losses[name][-1], 5), shape=shape)


def synchronize(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


PARTS = {
    "check": check, "copy": copies, "read": reads, "index": index, "gather": gathers, "update": updates, "step": step,
    "model": model,
}  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- all


def describe(device: Any) -> dict[str, Any]:
    import numba
    import numpy
    import torch
    import triton

    versions = {module.__name__: module.__version__ for module in (torch, triton, numpy, numba)}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()}, interpreted"
    now = time.strftime("%FT%TZ", time.gmtime())
    return {"device": name, "versions": versions, "python": platform.python_version(), "time": now}


def run(sizes: Sizes, device: Any, budget: float) -> Report:
    """All parts, as far as the time goes; `check` always."""
    import torch

    torch.manual_seed(0)
    report, clock = Report(describe(device)), Clock(device, sizes, budget)
    for name, part in PARTS.items():
        if clock.is_over:
            report.left_out.append(name)
            continue
        part(report, clock)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return report


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m tests.benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench/gpu.json"))
    parser.add_argument("--smoke", action="store_true", help="tiny, in Triton's interpreter on the CPU")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds after which no part is begun")
    options = parser.parse_args(arguments)
    if options.smoke:
        os.environ |= {"TRITON_INTERPRET": "1", "TRITON_OPS": "triton"}
    import torch

    if not options.smoke and not torch.cuda.is_available():
        print("there is no GPU that torch can use; --smoke runs everything tiny, in the interpreter", file=sys.stderr)
        return 2
    device = torch.device("cpu" if options.smoke else "cuda:0")
    report = run(SMOKE if options.smoke else Sizes(), device, options.budget)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(asdict(report), indent=1) + "\n")
    print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
