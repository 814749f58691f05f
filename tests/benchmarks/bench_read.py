"""Reading ORC: shuffled, hashed and packed batches against a bare loop over `read_stripe`, which only decodes.

Data: label, 13 float32 (0, 10, 20, 30 % null), 13 ids that look like hashes, 13 small ids ("40 columns"); and with 2
string columns and 2 lists of 30 int64 ("44 columns"); zstd, stripes of 8 MB, as `recis data convert` writes them. A
bare loop on several threads gives each every n-th stripe. Contestants run by turns in one process, everything in the
page cache; a ratio is that of one turn. Loaders start anew each turn, and their start counts.

What users would write otherwise: a DataLoader over pandas batches, and one whose two workers send a tensor a column;
neither shuffles rows; both read a sixth of the data, and are compared by rows a second. And beside training: what a
step of 10 ms on one thread (products of matrices, which let go of the interpreter lock as training does) waits for its
batch once the first is there, and how much longer it takes than alone, waiting included. Until the first batch is there
a stripe of each stream has to be decoded, at the start of an epoch alone: that is told by itself.
"""

import functools
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pyarrow import orc
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from recis_lightning.data.columns import Selection
from recis_lightning.data.files.manifest import Manifest, read_manifest
from recis_lightning.data.files.orc_writer import PartWriter
from recis_lightning.data.loader import OrcLoader
from recis_lightning.data.plan import Order
from recis_lightning.schema import Schema
from tests.benchmarks.report import Result

PART_ROWS, PARTS, COPIES = 250_000, 2, 6  # each part is there six times: the more data, the less its ends weigh
ROWS, STRIPE_BYTES = PART_ROWS * PARTS * COPIES, 8 << 20
RIVAL_ROWS = PART_ROWS * PARTS
BATCH, TURNS = 4096, 5


def hashed(ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """63-bit ids, one for each rank."""
    mixed = (ranks.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ mixed >> np.uint64(32)) * np.uint64(0xD6E8FEB86659FD93)
    return ((mixed ^ mixed >> np.uint64(32)) >> np.uint64(1)).astype(np.int64)


def make_rows(rows: int, seed: int) -> pa.Table:
    random = np.random.default_rng(seed)
    columns: dict[str, pa.Array] = {"label": pa.array((random.random(rows) < 0.03).astype(np.float32))}
    for index in range(13):
        values = np.round(random.gamma(1.5, 20, rows)).astype(np.float32)
        columns[f"f{index}"] = pa.array(values, mask=random.random(rows) < 0.1 * (index % 4))
    for index in range(13):
        columns[f"h{index}"] = pa.array(hashed(random.zipf(1.2, rows) % 1_000_000 + index * 10_000_000))
        columns[f"s{index}"] = pa.array(random.integers(0, 10 ** (1 + index % 5), rows))
    for index, uniques in enumerate((28_000, 500)):
        columns[f"t{index}"] = pa.array([f"k{rank:06d}" for rank in random.zipf(1.3, rows) % uniques])
    for index in range(2):
        offsets = np.concatenate([[0], np.cumsum(random.poisson(30, rows))]).astype(np.int32)
        ranks = random.zipf(1.2, offsets[-1]) % (1 << 20)
        columns[f"l{index}"] = pa.ListArray.from_arrays(offsets, hashed(ranks) if index else ranks)
    return pa.table(columns)


def make_schema(with_lists: bool) -> Schema:
    columns: list[dict[str, Any]] = [
        {"name": "label", "dtype": "float32"},
        {"name": "f{0..12}", "dtype": "float32", "default": 0.0},
        {"name": "h{0..12}", "dtype": "int64"},
        {"name": "s{0..12}", "dtype": "int64"},
    ]
    if with_lists:
        columns.append({"name": "t{0..1}", "dtype": "string", "hash": "farm"})
        columns.append({"name": "l{0..1}", "dtype": "int64", "layout": "list"})
    ids = [column["name"] for column in columns[2:]]
    return Schema.from_dict(
        {
            "columns": columns,
            "tables": [{"name": name, "dim": 4} for name in ids],
            "features": [{"name": "f{0..12}"}, *({"name": name, "table": name} for name in ids)],
            "tasks": [{"name": "ctr", "label": "label"}],
        }
    )


@dataclass
class Turn:
    wall: float
    cpu: float


def clock(work: Callable[[], Any]) -> Turn:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Turn(time.perf_counter() - wall, time.process_time() - cpu)


def decode_only(manifest: Manifest, names: list[str], threads: int, first: int | None = None) -> None:
    """The rival: every stripe, or the first few, decoded and let go of."""
    stripes = [(file.path, stripe) for file in manifest.files for stripe in range(len(file.stripe_rows))][:first]

    def decode(thread: int) -> None:
        for path, stripe in stripes[thread::threads]:
            orc.ORCFile(path).read_stripe(stripe, columns=names)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(decode, range(threads)))


def run() -> list[Result]:
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder))
        manifest, _ = read_manifest(folder)
        print(f"medians of {TURNS} turns, load average {os.getloadavg()[0]:.1f} before", flush=True)
        shuffled, in_order = Order(batch_size=BATCH), Order(batch_size=BATCH, streams=1, window_rows=1, shuffle=False)
        few, all_columns = (Selection.of(make_schema(with_lists)) for with_lists in (False, True))
        results = compare("read 40 columns, shuffled, packed", manifest, few, shuffled, 1)
        results += compare_training("train on 40 columns", manifest, few, shuffled, longest_wait=0.02)
        name = "read 44 columns, shuffled, packed"
        results += compare(name, manifest, all_columns, shuffled, 1, {"wall": 0.75, "cpu": 0.60})
        results += compare(name, manifest, all_columns, shuffled, 2, {"wall": 0.55})
        results += compare("read 44 columns, in file order, packed", manifest, all_columns, in_order, 1, {"wall": 0.85})
        results += compare_training("train on 44 columns", manifest, all_columns, shuffled, longest_wait=0.04)
        results += compare_loaders(name, manifest, all_columns, shuffled)
        print(f"load average {os.getloadavg()[0]:.1f} after", flush=True)
        return results


def write_data(folder: Path) -> None:
    with PartWriter(folder, PART_ROWS, STRIPE_BYTES) as writer:
        for seed in range(PARTS):
            writer.write(make_rows(PART_ROWS, seed))
    for path in writer.paths:
        for copy in range(1, COPIES):
            shutil.copyfile(path, path.with_name(f"{path.stem}-{copy}.orc"))


def compare(
    name: str,
    manifest: Manifest,
    selection: Selection,
    order: Order,
    threads: int,
    bars: Mapping[str, float] | None = None,
) -> list[Result]:
    loader = OrcLoader(manifest, selection, order, read_threads=threads)

    def ours() -> None:
        assert sum(batch.size for batch in loader) == ROWS

    def theirs() -> None:
        decode_only(manifest, selection.names, threads)

    ours()  # compiles the kernels, and fills the page cache
    turns = [(clock(theirs), clock(ours)) for _ in range(TURNS)]
    stripes = len(manifest.stripe_rows)
    shapes = f"{ROWS} rows, {stripes} stripes, batch {BATCH}, window {order.window_rows}, {order.streams} streams"
    results = []
    for unit, measure in (("k rows/s wall", "wall"), ("k rows/s CPU", "cpu")):
        pairs = [(getattr(rival, measure), getattr(own, measure)) for rival, own in turns]
        ratios = [rival / own for rival, own in pairs]
        results.append(
            Result(
                name=name,
                rival=f"bare read_stripe, {threads} thread{'s' if threads > 1 else ''}",
                ratio=statistics.median(ratios),
                worst_ratio=min(ratios),
                bar=(bars or {}).get(measure),
                ours=ROWS / statistics.median(own for _, own in pairs) / 1e3,
                theirs=ROWS / statistics.median(rival for rival, _ in pairs) / 1e3,
                unit=unit,
                shapes=shapes,
                threads=threads,
            )
        )
    return results


# ------------------------------------------------------------------------------------------- what users write otherwise


class Stripes(IterableDataset):
    """Batches of unshuffled stripes, made by a function of a slice of a stripe; each worker reads every n-th stripe."""

    def __init__(self, manifest: Manifest, names: list[str], make: Callable[[pa.RecordBatch], Any]) -> None:
        self.manifest, self.names, self.make = manifest, names, make

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        ends = self.manifest.stripe_rows.cumsum()
        for stripe in range(first, int(np.searchsorted(ends, RIVAL_ROWS)) + 1, step):
            file, index = self.manifest.locate(stripe)
            batch = orc.ORCFile(file.path).read_stripe(index, columns=self.names)
            for start in range(0, batch.num_rows, BATCH):
                yield self.make(batch.slice(start, BATCH))


def through_pandas(batch: pa.RecordBatch) -> list[Tensor]:
    """Columns by way of a frame, missing values filled, strings hashed; lists as values and lengths."""
    import pandas as pd

    tensors = []
    for _, column in batch.to_pandas().items():
        if len(column) and isinstance(column.iloc[0], np.ndarray):
            tensors += [torch.from_numpy(np.concatenate(column.to_numpy())), torch.tensor(column.str.len().to_numpy())]
        elif column.dtype.kind in "if":
            tensors.append(torch.from_numpy(column.fillna(0).to_numpy(copy=True)))
        else:
            tensors.append(torch.from_numpy(pd.util.hash_array(column.to_numpy(object)).view(np.int64)))
    return tensors


def column_tensors(batch: pa.RecordBatch) -> list[Tensor]:
    """Columns by way of NumPy, missing values filled; strings as codes of a dictionary, lists as values and offsets."""
    tensors = []
    for column in batch.columns:
        if pa.types.is_list(column.type):
            tensors += [torch.tensor(column.flatten().to_numpy()), torch.tensor(column.offsets.to_numpy())]
        elif pa.types.is_string(column.type):
            tensors.append(torch.tensor(column.dictionary_encode().indices.to_numpy()))
        else:
            tensors.append(torch.tensor(column.fill_null(0).to_numpy()))
    return tensors


def compare_loaders(name: str, manifest: Manifest, selection: Selection, order: Order) -> list[Result]:
    """All columns by our loader, against DataLoaders over the same files."""
    loader = OrcLoader(manifest, selection, order, read_threads=1)
    rivals = {
        "DataLoader over pandas batches": DataLoader(
            Stripes(manifest, selection.names, through_pandas), batch_size=None
        ),
        "DataLoader, 2 workers, a tensor a column": DataLoader(
            Stripes(manifest, selection.names, column_tensors), batch_size=None, num_workers=2
        ),
    }
    return [
        summarise(
            name,
            rival,
            [(clock(functools.partial(drain, each)), clock(functools.partial(drain, loader))) for _ in range(TURNS)],
        )
        for rival, each in rivals.items()
    ]


def drain(batches: Any) -> None:
    for _ in batches:
        pass


def summarise(name: str, rival: str, turns: list[tuple[Turn, Turn]]) -> Result:
    rates = [(RIVAL_ROWS / theirs.wall, ROWS / ours.wall) for theirs, ours in turns]
    ratios = [ours / theirs for theirs, ours in rates]
    return Result(
        name=name,
        rival=rival,
        ratio=statistics.median(ratios),
        worst_ratio=min(ratios),
        bar=2,
        ours=statistics.median(ours for _, ours in rates) / 1e3,
        theirs=statistics.median(theirs for theirs, _ in rates) / 1e3,
        unit="k rows/s wall",
        shapes=f"{ROWS} rows, of which the rival reads {RIVAL_ROWS}, batch {BATCH}",
        threads=1,
    )


# ------------------------------------------------------------------------------------------------------ beside training


STEPS = 200


def compare_training(
    name: str, manifest: Manifest, selection: Selection, order: Order, longest_wait: float
) -> list[Result]:
    """Steps of about 10 ms of one thread, alone and on our batches: their ratio, and the share that is waiting."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    left, right = torch.rand(512, 512), torch.rand(512, 512)
    product = statistics.median(clock(lambda: left @ right).wall for _ in range(100))
    products = max(1, round(0.01 / product))

    def step() -> None:
        for _ in range(products):
            left @ right

    def alone() -> None:
        for _ in range(STEPS):
            step()

    waits: list[float] = []
    starts: list[tuple[float, float]] = []

    def beside() -> Turn:
        loader = OrcLoader(manifest, selection, order, read_threads=1)
        batches = iter(loader)
        bare = clock(lambda: decode_only(manifest, selection.names, 1, order.streams))
        starts.append((bare.wall, clock(lambda: next(batches)).wall))
        waited = 0.0

        def steps() -> None:
            nonlocal waited
            for _ in range(STEPS):
                waited += clock(lambda: next(batches)).wall
                step()

        turn = clock(steps)
        loader.close()  # or it would read on beside the next turn
        waits.append(waited)
        return turn

    try:
        turns = [(clock(alone), beside()) for _ in range(TURNS)]
    finally:
        torch.set_num_threads(threads)
    return summarise_training(name, turns, waits, starts, order, longest_wait)


def summarise_training(
    name: str,
    turns: list[tuple[Turn, Turn]],  # steps alone, and beside reading
    waits: list[float],
    starts: list[tuple[float, float]],  # bare decoding, and the first batch
    order: Order,
    longest_wait: float,
) -> list[Result]:
    shares = [waited / turn.wall for waited, (_, turn) in zip(waits, turns, strict=True)]
    ratios = [lone.wall / with_data.wall for lone, with_data in turns]
    shapes = f"{STEPS} steps, batch {BATCH}, 1 read thread"
    milliseconds = [1e3 * statistics.median(turn[side].wall for turn in turns) / STEPS for side in (1, 0)]
    share = statistics.median(shares)
    return [
        Result(
            name=f"{name}, a step beside reading",
            rival="a step alone",
            ratio=statistics.median(ratios),
            worst_ratio=min(ratios),
            bar=1 / 1.15,
            ours=milliseconds[0],
            theirs=milliseconds[1],
            unit="ms a step",
            shapes=shapes,
            threads=1,
        ),
        Result(
            name=f"{name}, waiting for data",
            rival=f"{longest_wait:.0%} of the time",
            ratio=longest_wait / share,
            worst_ratio=longest_wait / max(shares),
            bar=1,
            ours=100 * share,
            theirs=100 * longest_wait,
            unit="% of the time",
            shapes=shapes,
            threads=1,
        ),
        Result(
            name=f"{name}, until the first batch",
            rival=f"bare read_stripe of {order.streams} stripes",
            ratio=statistics.median(bare / own for bare, own in starts),
            worst_ratio=min(bare / own for bare, own in starts),
            bar=None,
            ours=1e3 * statistics.median(own for _, own in starts),
            theirs=1e3 * statistics.median(bare for bare, _ in starts),
            unit="ms",
            shapes=shapes,
            threads=1,
        ),
    ]
