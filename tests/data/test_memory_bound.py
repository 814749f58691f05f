"""What reading takes stays below what `prefetch_bytes` says, on data five times as large: asked of a real process."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from recis_lightning.data.files.manifest import read_manifest
from recis_lightning.data.files.orc_writer import PartWriter

ROWS, COLUMNS = 2_200_000, 30
PREFETCH, READ_THREADS = 40 << 20, 2

SCRIPT = """
import json, resource, sys, threading, time
from recis_lightning.data.columns import Selection
from recis_lightning.data.loader import OrcLoader
from recis_lightning.data.files.manifest import read_manifest
from recis_lightning.data.plan import Order
from recis_lightning.schema import Schema

folder, bound, columns = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
names = [f"id{n}" for n in range(columns)]
schema = Schema.from_dict({
    "columns": [{"name": name, "dtype": "int64"} for name in names],
    "tables": [{"name": name, "dim": 4} for name in names],
    "features": [{"name": name, "table": name} for name in names],
})
manifest, _ = read_manifest(folder)
order = Order(batch_size=4096, window_rows=1 << 22)

def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def load(rows):
    options = {"read_threads": int(sys.argv[5]), "prefetch": 10**6, "prefetch_bytes": bound}
    loader = OrcLoader(manifest, Selection.of(schema), order, **options)
    peak = taken = 0
    for batch in loader:
        taken += batch.size
        if taken % (1 << 15) == 0:
            time.sleep(0.02)  # reading gets ahead as far as it may
        peak = max(peak, rss())
        if taken >= rows:
            break
    loader.close()
    return taken, peak

order = Order(batch_size=4096, window_rows=1 << 10)
load(4096)  # compiles, imports
before = rss()
order = Order(batch_size=4096, window_rows=int(sys.argv[4]))
taken, peak = load(10**9)
print(json.dumps({"rows": taken, "grown": peak - before}))
"""


def bound_of(folder: Path) -> int:
    """What the documentation says: 32 MB on top, and one and a half decoded stripes a thread."""
    manifest, _ = read_manifest(str(folder))
    stripe_rows = max(rows for file in manifest.files for rows in file.stripe_rows)
    return PREFETCH + (32 << 20) + 3 * READ_THREADS * stripe_rows * COLUMNS * 8 // 2


def write_data(folder: Path) -> None:
    random = np.random.default_rng(0)
    with PartWriter(folder, ROWS // 2) as writer:
        for first in range(0, ROWS, 1 << 16):
            rows = min(1 << 16, ROWS - first)
            # Numbers that pack well, so that it is quick to write.
            columns = {f"id{n}": random.integers(0, 1 << 8, rows) for n in range(COLUMNS)}
            writer.write(pa.table(columns))


def grow(folder: Path, bound: int, window_rows: int) -> dict[str, int]:
    arguments = [str(folder), str(bound), str(COLUMNS), str(window_rows), str(READ_THREADS)]
    ended = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_reading_stays_below_its_bound(tmp_path: Path) -> None:
    write_data(tmp_path)
    bound = bound_of(tmp_path)
    assert 5 * bound < 8 * ROWS * COLUMNS
    bounded, free = grow(tmp_path, PREFETCH, window_rows=1 << 16), grow(tmp_path, 1 << 30, window_rows=1 << 17)
    assert bounded["rows"] == free["rows"] == ROWS
    assert bounded["grown"] < bound < free["grown"]
