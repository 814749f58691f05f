"""What a checkpoint holds, whether it is what was written, and the same in other files.

describe("x.ckpt")["tables"]["item"]["rows"]
verify("x.ckpt") == []                             # or what is wrong with which file
reshard("x.ckpt", "y.ckpt", parts=8)               # a file for each of 8 ranks, or several

N rows of a part, S virtual shards of it.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from recis_lightning.embedding.exchange import owned_shards
from recis_lightning.tables import virtual_shard
from recis_lightning.training.checkpoint import PART_BYTES, load_table, load_trainer_state, save_table, tensors_in
from recis_lightning.training.files import CheckpointError, DirectoryReader, DirectoryWriter
from recis_lightning.training.table_files import saved_table
from triton_ops.index import SHARDS

DENSE = "dense.safetensors"
POSITION = "CommitLoader"  # the callback that keeps the loader's position


# -------------------------------------------------------------------------------------------------------------- looking


def describe(path: str) -> dict[str, Any]:
    """What a checkpoint says of itself, as plain values; rows are not read.

    Gives version, step, epoch, world_size, written_by, position, tables by name (rows, bytes, files, dim, dtype,
    optimizer, state, step), dense by name (shape, dtype), bytes, files. CheckpointError where it is torn.
    """
    reader = DirectoryReader(path)
    manifest, trainer = reader.manifest, load_trainer_state(reader)
    return {
        "path": path,
        "version": manifest["version"],
        "written_by": manifest["written_by"],
        "world_size": manifest.get("world_size", len(trainer.get("random_states", ())) or 1),
        "epoch": manifest["epoch"],
        "global_step": manifest["global_step"],
        "position": trainer.get("callbacks", {}).get(POSITION, {}).get("position"),
        "has_optimizer": "optimizer_states" in trainer,
        "tables": {name: _describe_table(reader, entry) for name, entry in manifest["tables"].items()},
        "dense": _describe_dense(reader),
        "files": len(manifest["files"]),
        "bytes": sum(file["bytes"] for file in manifest["files"].values()),
    }


def _describe_table(reader: DirectoryReader, entry: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: entry[key] for key in ("rows", "dim", "dtype", "state", "step")}
    files = [reader.manifest["files"][part["file"]] for part in entry["parts"]]
    optimizer = entry["optimizer"]["kind"] if entry["optimizer"] else None
    return kept | {"optimizer": optimizer, "bytes": sum(file["bytes"] for file in files), "files": len(files)}


def _describe_dense(reader: DirectoryReader) -> dict[str, dict[str, Any]]:
    """Shapes and dtypes by name, of the file's header alone."""
    size = int.from_bytes(reader.read_range(DENSE, 0, 8), "little")
    header = json.loads(reader.read_range(DENSE, 8, 8 + size))
    header.pop("__metadata__", None)
    return {name: {"shape": about["shape"], "dtype": about["dtype"]} for name, about in header.items()}


# ------------------------------------------------------------------------------------------------------------ verifying


def verify(path: str, on_bytes: Callable[[int], None] = lambda count: None) -> list[str]:
    """Read every file, and hold it against the manifest: what is wrong, a line for each file; none where all is right.

    Sizes, checksums, and of tables the number of rows and that each lies in its virtual shard. CheckpointError where
    there is no manifest to go by.
    """
    reader = DirectoryReader(path, check_sizes=False)
    tables = reader.manifest["tables"]
    parts = {part["file"]: part for entry in tables.values() for part in entry["parts"]}
    problems = []
    for name, about in reader.manifest["files"].items():
        problem = reader.size_problem(name) or _content_problem(reader, name, parts.get(name))
        problems += [problem] if problem else []
        on_bytes(about["bytes"])
    return problems + [line for name, entry in tables.items() for line in _table_problems(reader, name, entry)]


def _content_problem(reader: DirectoryReader, name: str, part: Mapping[str, Any] | None) -> str | None:
    try:
        data = reader.view(name)
    except CheckpointError as error:
        return str(error).removeprefix(f"checkpoint '{reader.path}': ").removesuffix(", use another checkpoint")
    if part is None:
        return None
    tensors, rows = tensors_in(data), reader.manifest["files"][name]["rows"]
    ids_N, offsets_S = tensors["ids"], tensors["shard_offsets"]
    if len(ids_N) != rows or int(offsets_S[-1]) != rows:
        return f"file {name} holds {len(ids_N)} rows, and says {int(offsets_S[-1])}; {rows} were written"
    shards = part["last_shard"] - part["first_shard"]
    if len(offsets_S) != shards + 1:
        return f"file {name} holds {len(offsets_S) - 1} virtual shards, need {shards}"
    expected_N = torch.arange(part["first_shard"], part["last_shard"]).repeat_interleave(offsets_S.diff())
    astray = (virtual_shard(ids_N) != expected_N).nonzero()
    return (
        f"file {name}: id {int(ids_N[astray[0]])} lies in another virtual shard than its own" if len(astray) else None
    )


def _table_problems(reader: DirectoryReader, name: str, entry: Mapping[str, Any]) -> Iterator[str]:
    rows = sum(reader.manifest["files"][part["file"]]["rows"] for part in entry["parts"])
    if rows != entry["rows"]:
        yield f"table '{name}': its files hold {rows} rows, {entry['rows']} were written"
    bounds = [(part["first_shard"], part["last_shard"]) for part in entry["parts"]]
    if [0, *(last for _, last in bounds)] != [*(first for first, _ in bounds), SHARDS]:
        yield f"table '{name}': its files cover virtual shards {bounds}, not each of {SHARDS} once"


# ----------------------------------------------------------------------------------------------------------- resharding


def reshard(
    path: str,
    out: str,
    parts: int = 1,
    part_bytes: int = PART_BYTES,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> dict[str, int]:
    """Write ``out``, the same checkpoint in other files: its files by table, how many.

    No file holds rows of two of ``parts`` ranks, nor more than about ``part_bytes``, which are in memory at a time.
    CheckpointError where ``parts`` is no number of ranks, ``out`` is ``path``, or the checkpoint is damaged.
    """
    if not 1 <= parts <= SHARDS:
        raise CheckpointError(f"parts is {parts}, need 1 to {SHARDS}: a rank owns a virtual shard at least")
    reader, writer = DirectoryReader(path), DirectoryWriter(out)
    if writer.is_place_of(reader):
        raise CheckpointError(f"'{out}' is what is read; write to another place, and move it there when you like it")
    writer.begin()
    of_tables = {part["file"] for entry in reader.manifest["tables"].values() for part in entry["parts"]}
    for name in (name for name in reader.manifest["files"] if name not in of_tables):
        writer.add(name, reader.read(name))
        on_bytes(reader.manifest["files"][name]["bytes"])
    has_state = "optimizer_states" in load_trainer_state(reader)
    tables = {}
    for name, entry in reader.manifest["tables"].items():
        written: list[dict[str, Any]] = []
        for first, last in _ranges(reader, entry, parts, part_bytes):
            table = saved_table(reader, name)
            load_table(table, reader, entry, first, last)
            written += save_table(writer, table, (first, last), has_state, part_bytes=2**63)["parts"]
            on_bytes(writer.files[written[-1]["file"]]["bytes"])
        tables[name] = entry | {"parts": written}
    made = ("format", "version", "checksum", "files")
    writer.commit({key: value for key, value in reader.manifest.items() if key not in made} | {"tables": tables})
    return {name: len(entry["parts"]) for name, entry in tables.items()}


def _ranges(
    reader: DirectoryReader, entry: Mapping[str, Any], parts: int, part_bytes: int
) -> Iterator[tuple[int, int]]:
    """Virtual shards of each file: those of a rank, cut so that none gets more than so many bytes."""
    size = sum(reader.manifest["files"][part["file"]]["bytes"] for part in entry["parts"])
    for part in range(parts):
        first, last = owned_shards(part, parts)
        pieces = min(last - first, -(-size * (last - first) // (SHARDS * part_bytes)) or 1)
        bounds = [first + number * (last - first) // pieces for number in range(pieces + 1)]
        yield from zip(bounds[:-1], bounds[1:], strict=True)
