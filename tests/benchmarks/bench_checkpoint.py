"""Rows of a checkpoint onto two ranks, against nothing but reading the files: 10 M rows of width 16 under Adam.

The checkpoint is one of three ranks, so that the two find no file boundary where theirs is. Each rank is a process;
both load at once into empty tables, and verify checksums. The rival reads every file into one buffer by `readinto`,
alone on the machine, with all files in the system's cache; another line gives it two processes as well. By turns,
medians. On a machine that others use, processes wait for cores: a line of its own compares time on the processor.

Memory is that of an earlier load, as the rival's buffer is used before; what the system takes to hand out fresh memory,
three bytes of table for two of file, is in the last line, where the rival keeps all that it reads.

    python -m tests.benchmarks.bench_checkpoint 1000000          # of other sizes
"""

import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from recis_lightning.embedding.exchange import owned_shards
from recis_lightning.schema import Adam, Table
from recis_lightning.tables import DynamicTable, TableGroup, TableSlice, virtual_shard
from recis_lightning.training.checkpoint import load_tables, save_table
from recis_lightning.training.files import DirectoryReader, DirectoryWriter
from tests.benchmarks.report import Result
from triton_ops.index import unmix64

ROWS, DIM, RANKS, WRITERS, ROUNDS = 10_000_000, 16, 2, 3, 5
BOUND = 0.5
PLACE = Path("build/bench-checkpoint/x.ckpt")


def make_table(rows: int) -> DynamicTable:
    return TableGroup([Table(name="item", dim=DIM, optimizer=Adam())], max_rows=rows + 4096)[0]


def write(rows: int, path: Path) -> None:
    """A checkpoint as so many ranks write it; a rank's rows are in memory at a time."""
    writer = DirectoryWriter(str(path))
    writer.begin()
    mixed_N = torch.randint(-(2**63), 2**63 - 1, (rows,), generator=torch.Generator().manual_seed(0))
    ids_N = unmix64(mixed_N)
    shard_N = virtual_shard(ids_N)
    parts, entry = [], {}
    for rank in range(WRITERS):
        first, last = owned_shards(rank, WRITERS)
        ids = ids_N[(shard_N >= first) & (shard_N < last)]
        table = make_table(len(ids))
        for piece in ids.split(1 << 18):
            slots = {name: torch.rand(len(piece), DIM) for name in ("exp_avg", "exp_avg_sq")}
            steps = torch.arange(len(piece))
            table.load(TableSlice(piece, torch.rand(len(piece), DIM), slots, steps, steps))
        entry = save_table(writer, table, (first, last), with_optimizer=True)
        parts += entry["parts"]
    writer.commit({"tables": {"item": entry | {"parts": parts, "rows": rows}}})


Seconds = tuple[float, float]
"""By the clock, and on the processor."""


def now() -> Seconds:
    return time.perf_counter(), time.process_time()


def since(begin: Seconds) -> Seconds:
    end = now()
    return end[0] - begin[0], end[1] - begin[1]


def load(path: str, table: DynamicTable, rank: int) -> Seconds:
    """How long a rank takes to load its rows."""
    begin = now()
    load_tables({"item": table}, DirectoryReader(path), *owned_shards(rank, RANKS))
    return since(begin)


def read(files: list[Path], fresh: bool = False) -> Seconds:
    """How long files take to be read, and nothing to be done with them; into fresh memory, or into the same again."""
    sizes = [file.stat().st_size for file in files]
    buffers = [] if fresh else [np.ones(max(sizes), np.uint8)] * len(files)
    begin = now()
    for number, (file, size) in enumerate(zip(files, sizes, strict=True)):
        if fresh:
            buffers.append(np.empty(size, np.uint8))
        with open(file, "rb", buffering=0) as opened:
            done = 0
            while done < size:
                done += opened.readinto(buffers[number][done:size])
    return since(begin)


def serve(path: str, rows: int, rank: int) -> None:
    """Load, or read half of the files, as often as asked; the first time unasked, to have kernels compiled."""
    torch.set_num_threads(1)
    files = sorted(Path(path).rglob("*.safetensors"))
    table = make_table(rows)
    load(path, table, rank)
    print("ready", flush=True)
    for line in sys.stdin:
        if line == "fresh\n":
            del table
            table = make_table(rows)
        print(*(read(files[rank::RANKS]) if line == "read\n" else load(path, table, rank)), flush=True)


class Rank:
    """A process that does what it is told."""

    def __init__(self, path: Path, rows: int, rank: int) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.bench_checkpoint", "serve", str(path), str(rows), str(rank)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answer()

    def ask(self, what: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


def at_once(ranks: list[Rank], what: str) -> Seconds:
    """How long the last rank takes."""
    for rank in ranks:
        rank.ask(what)
    wall, busy = zip(*(map(float, rank.answer().split()) for rank in ranks), strict=True)
    return max(wall), max(busy)


def measure(rows: int) -> tuple[dict[str, list[Seconds]], int]:
    """What each contestant took, and bytes of the files."""
    shutil.rmtree(PLACE.parent, ignore_errors=True)
    try:
        write(rows, PLACE)
        files = sorted(PLACE.rglob("*.safetensors"))
        ranks = [Rank(PLACE, rows, rank) for rank in range(RANKS)]
        found: dict[str, list[Seconds]] = {name: [] for name in ("load", "read", "by two", "load fresh", "read fresh")}
        for _ in range(ROUNDS):
            found["read"].append(read(files))
            found["load"].append(at_once(ranks, "load"))
            found["by two"].append(at_once(ranks, "read"))
            found["read fresh"].append(read(files, fresh=True))
            found["load fresh"].append(at_once(ranks, "fresh"))
        for rank in ranks:
            rank.process.kill()
            rank.process.wait()
        return found, sum(file.stat().st_size for file in files)
    finally:
        shutil.rmtree(PLACE.parent, ignore_errors=True)


def run(rows: int = ROWS) -> list[Result]:
    found, size = measure(rows)
    results = []
    for name, against, rival, clock in (
        ("load", "read", "readinto", 0),
        ("load", "read", "readinto, both on the processor", 1),
        ("load", "by two", "readinto by two processes", 0),
        ("load fresh", "read fresh", "readinto, both into fresh memory", 0),
    ):
        ours, theirs = ([times[clock] for times in found[each]] for each in (name, against))
        ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
        results.append(
            Result(
                name="load onto 2 ranks",
                rival=rival,
                ratio=statistics.median(ratios),
                worst_ratio=min(ratios),
                bar=BOUND if rival == "readinto" else None,
                ours=size / statistics.median(ours) / 1e9,
                theirs=size / statistics.median(theirs) / 1e9,
                unit="GB/s",
                shapes=f"{rows:,} rows, width {DIM}, Adam, {size:,} bytes of {WRITERS} ranks, {ROUNDS} rounds by turns",
                threads=1,
            )
        )
    return results


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        from tests.benchmarks.report import print_table

        print_table(run(int(sys.argv[1])))
