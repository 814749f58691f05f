"""Reading ORC: shuffled, hashed and packed batches against a bare loop over `read_stripe`, which only decodes.

Data: label, 13 float32 (0, 10, 20, 30 % null), 13 ids that look like hashes, 13 small ids ("40 columns"); and with 2
string columns and 2 lists of 30 int64 ("44 columns"); zstd. A bare loop on several threads gives each every n-th
stripe. Contestants run by turns in one process, everything in the page cache; a ratio is that of one turn.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import orc

from recis_lightning.data.columns import Selection
from recis_lightning.data.loader import OrcLoader
from recis_lightning.data.manifest import Manifest, read_manifest
from recis_lightning.data.orc_writer import PartWriter
from recis_lightning.data.plan import Order
from recis_lightning.schema import Schema
from tests.benchmarks.report import Result

ROWS, PART_ROWS, BATCH, TURNS = 1_000_000, 250_000, 4096, 5


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


def decode_only(manifest: Manifest, names: list[str], threads: int) -> None:
    """The rival: every stripe decoded and let go of."""
    stripes = [(file.path, stripe) for file in manifest.files for stripe in range(len(file.stripe_rows))]

    def decode(first: int) -> None:
        for path, stripe in stripes[first::threads]:
            orc.ORCFile(path).read_stripe(stripe, columns=names)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(decode, range(threads)))


def run() -> list[Result]:
    with tempfile.TemporaryDirectory() as folder:
        with PartWriter(folder, PART_ROWS) as writer:
            for seed in range(ROWS // PART_ROWS):
                writer.write(make_rows(PART_ROWS, seed))
        manifest, _ = read_manifest(folder)
        shuffled, in_order = Order(batch_size=BATCH), Order(batch_size=BATCH, streams=1, window_rows=1, shuffle=False)
        results = []
        for columns in (40, 44):
            selection = Selection.of(make_schema(with_lists=columns == 44))
            for what, order, threads in (
                ("shuffled, packed", shuffled, 1),
                ("shuffled, packed", shuffled, 2),
                ("in file order, packed", in_order, 1),
            ):
                results += compare(f"read {columns} columns, {what}", manifest, selection, order, threads)
        return results


def compare(name: str, manifest: Manifest, selection: Selection, order: Order, threads: int) -> list[Result]:
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
                ours=ROWS / statistics.median(own for _, own in pairs) / 1e3,
                theirs=ROWS / statistics.median(rival for rival, _ in pairs) / 1e3,
                unit=unit,
                shapes=shapes,
                threads=threads,
            )
        )
    return results
