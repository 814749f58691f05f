"""Item vectors out of a trained tower: `export_vectors(module, "items", "movie_id", "text", "vectors.parquet")`.

N rows of a stripe, U items, D width of the tower.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from recis_lightning.data.check import find_mismatches
from recis_lightning.data.columns import to_numbers
from recis_lightning.data.errors import DataError
from recis_lightning.data.files.formats import read_stripe
from recis_lightning.data.files.manifest import Manifest, Paths, read_manifest
from recis_lightning.data.tokens import find_tokenizer_problems
from recis_lightning.ragged import Ragged
from recis_lightning.schema import Column, Feature, did_you_mean
from recis_lightning.towers.errors import TowerError
from recis_lightning.towers.text import TextTower
from recis_lightning.training.module import RecModule


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    items: int
    dim: int
    ambiguous: int
    """Items that came with other texts later on; the first counts."""


def export_vectors(module: RecModule, paths: Paths, id_column: str, feature: str, out: str | Path) -> Exported:
    """Write (id, vector) of each distinct id in ``paths`` to a Parquet file: id as stored, vector a list of D float32.

    ``feature`` is a feature of the module's schema that goes through a tower; its column is read beside ``id_column``.
    Rows without an id are left out; a row without text has the tower's default vector. DataError where a column is
    missing or of another type, TowerError where the feature has no tower.
    """
    chosen = _feature(module, feature)
    column = module.schema.column_of(chosen)
    manifest, problems = read_manifest(paths)
    problems += [*find_mismatches(manifest, [column]), *find_tokenizer_problems([column])]
    problems += _find_id_problems(manifest, id_column)
    if problems:
        raise DataError(problems)
    tower = module.towers[str(chosen.tower)]
    was_training = tower.training
    tower.eval()
    try:
        return _write(tower, manifest, id_column, column, Path(out))
    finally:
        tower.train(was_training)


def _feature(module: RecModule, name: str) -> Feature:
    known = [feature.name for feature in module.schema.tower_features]
    if name not in known:
        raise TowerError(f"feature '{name}' goes through no tower of this model{did_you_mean(name, known)}")
    return module.schema.feature(name)


def _find_id_problems(manifest: Manifest, name: str) -> Iterator[str]:
    for file in manifest.files:
        found = file.columns.get(name)
        if found is None:
            yield f"{file.path} has no column '{name}'{did_you_mean(name, file.columns)}"
        elif not (pa.types.is_integer(found) or pa.types.is_string(found)):
            yield f"column '{name}' is {found} in {file.path}, need integers or strings"


def _write(tower: TextTower, manifest: Manifest, id_column: str, column: Column, out: Path) -> Exported:
    if not manifest.files:
        raise DataError("there are no rows to read; name other files")
    kind = pa.schema([("id", manifest.files[0].columns[id_column]), ("vector", pa.list_(pa.float32(), tower.dim))])
    out.parent.mkdir(parents=True, exist_ok=True)
    seen: dict[int | str, int] = {}  # id -> hash of its first text
    ambiguous: set[int | str] = set()
    aside = out.with_name(out.name + ".tmp")
    with pq.ParquetWriter(aside, kind) as writer:
        for rows in _read(manifest, [id_column, column.name]):
            new_U = _find_new(rows[id_column], rows[column.name], seen, ambiguous)
            if len(new_U):
                texts = rows[column.name].take(pa.array(new_U))
                vectors_UD = _encode(tower, texts, column)
                ids = rows[id_column].take(pa.array(new_U)).cast(kind.field("id").type)
                writer.write(pa.table([ids, _as_lists(vectors_UD)], schema=kind))
    aside.replace(out)
    return Exported(out, len(seen), tower.dim, len(ambiguous))


def _read(manifest: Manifest, columns: list[str]) -> Iterator[pa.RecordBatch]:
    for file in manifest.files:
        for stripe in range(len(file.stripe_rows)):
            yield read_stripe(file.path, file.format, stripe, columns)


def _find_new(
    ids: pa.Array, texts: pa.Array, seen: dict[int | str, int], ambiguous: set[int | str]
) -> NDArray[np.int64]:
    """The first row of each id that was not seen before."""
    new = []
    for row, (key, text) in enumerate(zip(ids.to_pylist(), texts.to_pylist(), strict=True)):
        if key is None:
            continue
        content = hash(tuple(text) if isinstance(text, list) else text)
        if key not in seen:
            seen[key] = content
            new.append(row)
        elif seen[key] != content:
            ambiguous.add(key)
    return np.array(new, np.int64)


@torch.no_grad()
def _encode(tower: TextTower, texts: pa.Array, column: Column) -> Tensor:
    lists, _ = to_numbers(texts, column)
    values, offsets = (torch.tensor(array.to_numpy(), dtype=torch.int64) for array in (lists.values, lists.offsets))
    tokens = Ragged(values, offsets)
    tower.check(tokens, f"column '{column.name}'")
    device = tower.projection.weight.device
    return tower(tokens.to(device)).float().cpu()


def _as_lists(vectors_UD: Tensor) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors_UD.numpy().ravel()), vectors_UD.shape[1])
