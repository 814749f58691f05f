"""Write a trained model as files that score without this package.

    exported/manifest.json                  format, versions, columns, features, tables, tasks
    exported/features.pt2                   torch.export: columns -> ids and dense features
    exported/scores.pt2                     torch.export: rows and dense features -> scores
    exported/tables/<name>.safetensors      ids int64 [U], rising; weight [U, D]
    exported/tables/<name>.parquet          id int64, vector fixed_size_list<float>[D]: the same, for stores and queries
    exported/scorer.py                      scores with these files; needs torch and NumPy

U rows of a table, D their width.
"""

import inspect
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from numpy.typing import NDArray
from torch import Tensor

import recis_lightning
from recis_lightning.data.columns import Selection
from recis_lightning.schema import Column, Schema
from recis_lightning.serving import scorer
from recis_lightning.serving.programs import trace_features, trace_scores
from recis_lightning.training import RecModule
from triton_ops.hash_bytes import reference as hash_reference

CHUNK = 65_536  # rows of a table that are in memory at once, besides all ids
KINDS = {dtype: kind for kind, (_, dtype) in scorer.Table.KINDS.items()}
STORED = {kind: stored for kind, (stored, _) in scorer.Table.KINDS.items()}


def export_model(module: RecModule, folder: str | Path) -> dict[str, int]:
    """Write ``module`` into ``folder``, whole or not at all; returns the bytes of each file by name.

    Scores are those of `RecModule.predict_step` without autocast: in the dtype of the module's parameters. Raises
    MisconfigurationException where ``folder`` holds something already, and for a model with towers.
    """
    if module.schema.towers:
        names = ", ".join(tower.name for tower in module.schema.towers)
        raise MisconfigurationException(
            f"the model reads texts through towers ({names}), and the scorer has no tokenizer; write vectors of items "
            "with recis text export-vectors, and export a model that takes them as numbers"
        )
    unreadable = [f"'{column.name}' ({reason})" for column, reason in _find_unreadable(module.schema)]
    if unreadable:
        raise MisconfigurationException(
            f"the scorer does not read columns {', '.join(unreadable)} as training does; "
            "declare them as numbers, strings and whole lists, and have transforms cut them"
        )
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise MisconfigurationException(f"{target} exists and is not empty; remove it, or export to another folder")
    aside = target.with_name(target.name + ".unfinished")
    shutil.rmtree(aside, ignore_errors=True)
    (aside / "tables").mkdir(parents=True)
    training = module.training
    try:
        _write(module.eval(), aside)
    except BaseException:
        shutil.rmtree(aside)
        raise
    finally:
        module.train(training)
    if target.exists():
        target.rmdir()
    aside.rename(target)
    files = sorted(path for path in target.rglob("*") if path.is_file())
    return {str(path.relative_to(target)): path.stat().st_size for path in files}


def _find_unreadable(schema: Schema) -> Iterator[tuple[Column, str]]:
    """Columns that a request to the scorer could not hold as files do, and why."""
    for column in schema.input_columns:
        if column.dtype == "binary" or column.layout in ("nested_list", "vector"):
            yield column, column.dtype if column.dtype == "binary" else f"layout: {column.layout}"
        elif column.split is not None:
            yield column, "split"
        elif column.max_length is not None:
            yield column, "max_length"


def _write(module: RecModule, folder: Path) -> None:
    columns = describe_columns(module.schema)
    is_ragged = {column["name"]: column["form"] != "dense" for column in columns}
    torch.export.save(trace_features(module, is_ragged), folder / "features.pt2")
    torch.export.save(trace_scores(module), folder / "scores.pt2")
    for name in module.tables:
        _write_table(module, name, folder / "tables")
    manifest = _describe(module, columns)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    (folder / "scorer.py").write_text(scorer_source())


def describe_columns(schema: Schema) -> list[dict[str, Any]]:
    """The columns that scoring reads, with the form in which the graph takes each: ids, dense or lists."""
    selection = Selection.of(schema, labels=False)
    forms = {"ids": selection.ids + selection.id_lists, "dense": selection.dense, "lists": selection.float_lists}
    return [_describe_column(column, form) for form, columns in forms.items() for column in columns]


def _describe_column(column: Column, form: str) -> dict[str, Any]:
    names = ("name", "dtype", "layout", "hash", "parse", "default")
    return {name: getattr(column, name) for name in names} | {"form": form}


def _describe(module: RecModule, columns: list[dict[str, Any]]) -> dict[str, Any]:
    schema, names = module.schema, {column["name"] for column in columns}
    return {
        "format": scorer.FORMAT,
        "written_by": {"recis_lightning": recis_lightning.__version__, "torch": torch.__version__},
        "columns": columns,
        "aligned": [[name for name in group if name in names] for group in schema.aligned_columns],
        "looks": [{"where": where, "need": need} for where, need in module.features.looks],
        "features": [
            {"name": each.name, "table": each.table, "pooling": each.pooling}
            for each in schema.features
            if not each.internal
        ],
        "tables": {name: _describe_table(module, name) for name in module.tables},
        "tasks": [asdict(task) for task in schema.tasks],
        "schema": schema.to_dict(),
    }


def _describe_table(module: RecModule, name: str) -> dict[str, Any]:
    table = module.tables[name]
    return {"rows": len(table), "dim": table.dim, "dtype": str(table.dtype).removeprefix("torch.")}


def scorer_source() -> str:
    """The text of scorer.py: `recis_lightning.serving.scorer` with the hashes of strings put in."""
    source, hashes = inspect.getsource(scorer), inspect.getsource(hash_reference)
    imported = "from triton_ops.hash_bytes.reference import HASHES\n"
    assert source.count(imported) == 1
    # What both import, and the hashes' own docstring, stand in the scorer already.
    body = re.sub(r'\A""".*?"""\n+(?:(?:from|import) [^\n]*\n+)*', "", hashes, flags=re.DOTALL)
    return source.replace(imported, "").replace("FORMAT = 1\n", f"{body}\n\nFORMAT = 1\n", 1)


# --------------------------------------------------------------------------------------------------------------- tables


def _write_table(module: RecModule, name: str, folder: Path) -> None:
    table = module.tables[name]
    path = folder / f"{name}.safetensors"
    ids_U = torch.cat([torch.empty(0, dtype=torch.int64), *(ids for ids, _ in _chunks(module, name))]).numpy()
    stored_ids, weight_UD = _create(path, len(ids_U), table.dim, KINDS[table.dtype])
    # Rows come in the order of the index, and go where their ids stand in order.
    place_U = np.empty(len(ids_U), np.int64)
    order_U = np.argsort(ids_U)
    place_U[order_U] = np.arange(len(ids_U))
    stored_ids[:] = ids_U[order_U]
    first = 0
    for ids, rows in _chunks(module, name):
        weight_UD[place_U[first : first + len(ids)]] = _bits(rows)
        first += len(ids)
    _write_parquet(folder / f"{name}.parquet", stored_ids, weight_UD, table.dtype)


def _chunks(module: RecModule, name: str) -> Iterator[tuple[Tensor, Tensor]]:
    return module.catalogue(table=name, chunk=CHUNK)


def _bits(rows: Tensor) -> NDArray[Any]:
    """As NumPy holds them: of bfloat16, which it lacks, the bits."""
    return rows.view(torch.uint16).numpy() if rows.dtype == torch.bfloat16 else rows.numpy()


def _create(path: Path, rows: int, dim: int, kind: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """A safetensors file of ids [rows] and weight [rows, dim], and both as arrays that write to it."""
    dtype = np.dtype(STORED[kind])
    ids_bytes, weight_bytes = rows * 8, rows * dim * dtype.itemsize
    header = {
        "ids": {"dtype": "I64", "shape": [rows], "data_offsets": [0, ids_bytes]},
        "weight": {"dtype": kind, "shape": [rows, dim], "data_offsets": [ids_bytes, ids_bytes + weight_bytes]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + ids_bytes + weight_bytes)
    if not rows:
        return np.empty(0, np.int64), np.empty((0, dim), dtype)
    start = 8 + len(text)
    weight_UD = np.memmap(path, dtype, "r+", start + ids_bytes, (rows, dim))
    return np.memmap(path, np.int64, "r+", start, (rows,)), weight_UD


def _write_parquet(path: Path, ids_U: NDArray[Any], weight_UD: NDArray[Any], dtype: torch.dtype) -> None:
    read = dtype if not dtype.is_floating_point else torch.promote_types(dtype, torch.float32)
    value_type = pa.from_numpy_dtype(torch.empty(0, dtype=read).numpy().dtype)
    types: Mapping[str, pa.DataType] = {"id": pa.int64(), "vector": pa.list_(value_type, weight_UD.shape[1])}
    schema = pa.schema(types)
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
        for first in range(0, len(ids_U), CHUNK):
            rows = torch.from_numpy(np.array(weight_UD[first : first + CHUNK])).view(dtype)
            flat = pa.array(rows.to(read).flatten().numpy())
            vectors = pa.FixedSizeListArray.from_arrays(flat, weight_UD.shape[1])
            ids = pa.array(np.array(ids_U[first : first + CHUNK]))
            writer.write_table(pa.table([ids, vectors.cast(schema.field("vector").type)], schema=schema))
