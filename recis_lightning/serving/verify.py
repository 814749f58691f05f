"""Compare the scores of exported files with those of the model, on rows of real data.

The files are asked in a process of their own, in which neither this package nor its kernels can be imported.
"""

import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recis_lightning.data.datamodule import OrcDataModule
from recis_lightning.ragged import Batch, Ragged
from recis_lightning.training import RecModule

_ALONE = """
import pickle, sys, time
sys.modules.update(dict.fromkeys(("recis_lightning", "triton_ops", "lightning", "numba", "pyarrow")))
folder, source, target = sys.argv[1:]
sys.path.insert(0, folder)
started = time.perf_counter()
import torch
from scorer import Scorer
imported = time.perf_counter()
scorer = Scorer(folder)
loaded = time.perf_counter()
with open(source, "rb") as file:
    batches = pickle.load(file)
ready = time.perf_counter()
scores = [scorer.score(rows) for rows in batches]
done = time.perf_counter()
seconds = {"import": imported - started, "load": loaded - imported, "score": done - ready}
with open(target, "wb") as file:
    pickle.dump((scores, seconds), file)
"""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the comparison found."""

    rows: int
    unknown_ids: int
    """Ids of these rows that have no row in their table."""
    missing_ids: int
    """Rows without an id, over all features."""
    largest: dict[str, float]
    """The largest difference of scores, by task."""
    seconds: dict[str, float]
    """What the process alone took: to import torch, to load the files, to score the rows."""


def score_alone(folder: Path, batches: Sequence[Mapping[str, Any]]) -> tuple[dict[str, NDArray[Any]], dict[str, float]]:
    """The scores of columns by name, from the files in ``folder`` and nothing else; and what it took."""
    with tempfile.TemporaryDirectory() as place:
        source, target = Path(place) / "rows", Path(place) / "scores"
        source.write_bytes(pickle.dumps(batches))
        command = [sys.executable, "-I", "-B", "-c", _ALONE, str(folder.absolute()), str(source), str(target)]
        subprocess.run(command, check=True, cwd=place)
        found, seconds = pickle.loads(target.read_bytes())
    tasks = list(found[0]) if found else []
    return {task: np.concatenate([scores[task] for scores in found]) for task in tasks}, seconds


def verify(module: RecModule, data: OrcDataModule, folder: str | Path, rows: int) -> Verdict:
    """Score the first ``rows`` rows of the predict data of ``data``, which keeps the model's columns, both ways."""
    data.setup("predict")
    module.eval()
    expected, batches, count, unknown, missing = [], [], 0, 0, 0
    for kept, batch in _rows(data, rows):
        with torch.no_grad():
            expected.append(module.predict_step(batch, 0))
            found = _count_ids(module, batch)
        batches.append(kept)
        count, unknown, missing = count + batch.size, unknown + found[0], missing + found[1]
    scores, seconds = score_alone(Path(folder), batches)
    ours = {task: torch.cat([each[task] for each in expected]).float().numpy() for task in scores}
    largest = {task: float(np.abs(scores[task] - ours[task]).max(initial=0)) for task in scores}
    return Verdict(rows=count, unknown_ids=unknown, missing_ids=missing, largest=largest, seconds=seconds)


def _rows(data: OrcDataModule, rows: int) -> Iterator[tuple[dict[str, Any], Batch]]:
    kept_rows, count = data.kept_rows(), 0
    loader = data.predict_dataloader()
    for step, batch in enumerate(loader):
        yield {name: column.to_pylist() for name, column in _columns(kept_rows.take(step))}, batch
        count += batch.size
        if count >= rows:
            break
    loader.close()


def _columns(table: Any) -> Iterator[tuple[str, Any]]:
    return zip(table.column_names, table.columns, strict=True)


def _count_ids(module: RecModule, batch: Batch) -> tuple[int, int]:
    """How many ids are unknown, and how many rows have none."""
    unknown = missing = 0
    features = module.features(batch)
    for feature in module.schema.embedded_features:
        ids = features[feature.name]
        assert isinstance(ids, Ragged)
        unknown += int((module.tables[str(feature.table)].find(ids.values) < 0).sum())
        missing += int((ids.lengths == 0).sum())
    return unknown, missing
