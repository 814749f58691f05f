"""What a checkpoint holds, and how it is put there and taken out again.

    x.ckpt/manifest.json                   format version, rows and checksum of every file, schema, hyper-parameters,
                                           tables: width, dtype, optimizer, step
    x.ckpt/dense.safetensors               the module's state_dict
    x.ckpt/tables/<name>/0000-4096.safetensors
                                           rows of virtual shards [0, 4096), in their order: ids, weight, last_step,
                                           count, slot.<name> of the optimizer, shard_offsets: where each shard starts,
                                           admission.<name> of what its admission has counted
    x.ckpt/towers/<name>/adapter_model.safetensors
                                           LoRA weights of a tower once more, and adapter_config.json: what peft reads
    x.ckpt/trainer.pt                      the rest: loops with the loader's position, optimizer, schedulers,
                                           callbacks, random state; loads with weights_only=True

Nothing in it depends on the number of ranks or on a device. Tables are written and read in pieces of bounded size.

N rows of a part, D row width, S virtual shards of a part.
"""

import dataclasses
import io
import json
import math
import mmap
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

import recis_lightning
from recis_lightning.embedding.exchange import owned_shards
from recis_lightning.tables import DynamicTable, TableSlice, virtual_shard
from recis_lightning.tables.row_files import SAFETENSORS_DTYPES
from recis_lightning.training.dense_shards import cut_state
from recis_lightning.training.files import (
    CheckpointError,
    DirectoryReader,
    DirectoryWriter,
    Files,
    NotPlainError,
    load_plain,
)
from recis_lightning.training.ranks import Ranks
from triton_ops.index import SHARDS

PART_BYTES = 64 << 20  # rows that are in memory twice while they are written or read
SLOT = "slot."  # how optimizer state is named among a part's tensors
ADMISSION = "admission."  # and how what admission has counted is
READER = "recis_lightning.reader"  # where a loaded checkpoint carries its directory on to the tables


# -------------------------------------------------------------------------------------------------------------- writing


def save_checkpoint(
    checkpoint: dict[str, Any],
    path: str,
    tables: Mapping[str, DynamicTable],
    part_bytes: int = PART_BYTES,
    files: Mapping[str, bytes] | None = None,  # to lie beside the others, by their names in the directory
    ranks: Ranks | None = None,
) -> None:
    """Write Lightning's ``checkpoint`` and the rows of ``tables`` into the directory ``path``, whole or not at all.

    On several ranks all of them call it: rank 0 writes what is the same for all, each the rows that it owns.
    """
    ranks = ranks or Ranks()
    path = ranks.broadcast(path)
    shards = owned_shards(ranks.rank, ranks.world_size)
    with_optimizer = "optimizer_states" in checkpoint
    writer = DirectoryWriter(path)
    common: dict[str, Any] = dict(files or {})
    contents: dict[str, Any] = {}

    def begin() -> None:
        if ranks.rank == 0:
            contents.update(_common_files(checkpoint, common))
            writer.begin()

    def write() -> tuple[Files, dict[str, Any]]:
        for name in list(common) if ranks.rank == 0 else ():
            writer.add(name, common.pop(name))
        return writer.files, {
            name: save_table(writer, table, shards, with_optimizer, part_bytes) for name, table in tables.items()
        }

    ranks.together(begin)
    written = ranks.together(write)
    contents["tables"] = _joined_tables([saved for _, saved in written])
    everything = {name: entry for own, _ in written for name, entry in own.items()}
    ranks.together(lambda: writer.commit(contents, everything) if ranks.rank == 0 else None)


def _common_files(checkpoint: dict[str, Any], files: dict[str, Any]) -> dict[str, Any]:
    """Put what all ranks have alike among ``files``, by name; returns what the manifest says of it."""
    rest = dict(checkpoint)
    dense, other = _split_state(rest.pop("state_dict"))
    contents = {
        "written_by": {"recis_lightning": recis_lightning.__version__, "torch": torch.__version__},
        "epoch": rest["epoch"],
        "global_step": rest["global_step"],
        "world_size": len(rest.get("random_states", ())) or 1,
        "schema": as_json(rest.pop("schema", None), "the schema"),
        "hyper_parameters": as_json(rest.pop("hyper_parameters", {}), "hyper_parameters"),
        "datamodule_hyper_parameters": as_json(
            rest.pop("datamodule_hyper_parameters", {}), "datamodule_hyper_parameters"
        ),
    }
    rest["other_state"] = other
    trainer = io.BytesIO()
    torch.save(_loadable(rest, "checkpoint"), trainer)
    files["dense.safetensors"], files["trainer.pt"] = safetensors.torch.save(dense), trainer.getbuffer()
    return contents


def _joined_tables(tables_of_ranks: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """What the manifest says of tables, by what each rank says of its share."""
    joined = {}
    for name, first in tables_of_ranks[0].items():
        shares = [tables[name] for tables in tables_of_ranks]
        joined[name] = dict(first) | {
            "rows": sum(share["rows"] for share in shares),
            "parts": [part for share in shares for part in share["parts"]],
        }
        if "policies" in first:
            events = [share["policies"]["events"] for share in shares]
            joined[name]["policies"] = first["policies"] | {"events": [sum(each) for each in zip(*events, strict=True)]}
    return joined


def _split_state(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Separate tensors from what else modules put into a state_dict; no two tensors share memory afterwards."""
    dense: dict[str, Tensor] = {}
    other: dict[str, Any] = {}
    seen: set[int] = set()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            other[name] = value
            continue
        # safetensors refuses tied weights; a copy of each loads into tied ones all the same.
        storage = value.untyped_storage().data_ptr()
        whole = value.detach().cpu().contiguous()
        dense[name] = whole.clone() if storage in seen else whole
        seen.add(storage)
    return dense, other


def _describe(table: DynamicTable) -> dict[str, Any]:
    state_dtype = str(table.group.layout.state_dtype).removeprefix("torch.")
    optimizer = {"kind": table.optimizer.kind, **dataclasses.asdict(table.optimizer)} if table.trainable else None
    return {
        "dim": table.dim,
        "dtype": str(table.dtype).removeprefix("torch."),
        "optimizer": optimizer,
        "state": dict.fromkeys(table.group.state_slices, state_dtype),
        "step": table.step,
        "rows": len(table),
    } | ({"policies": table.policy_state()} if table.has_policies else {})


def save_table(
    writer: DirectoryWriter,
    table: DynamicTable,
    shards: tuple[int, int],
    with_optimizer: bool,
    part_bytes: int = PART_BYTES,
) -> dict[str, Any]:
    """Write the virtual shards of a table that are here part by part, each as many as fit ``part_bytes``.

    Returns the table's entry in the manifest.
    """
    parts = []
    for first, last in table.shard_ranges(part_bytes, *shards):
        rows = table.export(first, last)
        name = f"tables/{table.name}/{first:04d}-{last:04d}.safetensors"
        tensors = _as_tensors(rows, first, last, with_optimizer)
        if with_optimizer:
            counted = table.export_admission(first, last)
            tensors |= {ADMISSION + key: tensor.contiguous() for key, tensor in counted.items()}
        writer.add(name, safetensors.torch.save(tensors), rows=len(rows.ids))
        parts.append({"file": name, "first_shard": first, "last_shard": last})
    return _describe(table) | {"parts": parts}


def _as_tensors(rows: TableSlice, first: int, last: int, with_optimizer: bool) -> dict[str, Tensor]:
    counts_S = torch.bincount(virtual_shard(rows.ids) - first, minlength=last - first)
    shard_offsets = torch.zeros(last - first + 1, dtype=torch.int64)
    torch.cumsum(counts_S, 0, out=shard_offsets[1:])
    tensors = {"ids": rows.ids, "weight": rows.weight, "last_step": rows.last_step, "count": rows.count}
    if with_optimizer:
        tensors |= {SLOT + name: slot for name, slot in rows.slots.items()}
    return {name: tensor.contiguous() for name, tensor in tensors.items()} | {"shard_offsets": shard_offsets}


# -------------------------------------------------------------------------------------------------------------- reading


def load_checkpoint(path: str) -> dict[str, Any]:
    """Read all but the rows: the dictionary that Lightning expects, and a reader of the directory for `load_tables`."""
    reader = DirectoryReader(path)
    dense, checkpoint = load_dense_files(reader)
    checkpoint["state_dict"] = dense | checkpoint.pop("other_state")
    for key in ("schema", "hyper_parameters", "datamodule_hyper_parameters"):
        checkpoint[key] = reader.manifest[key]
    checkpoint[READER] = reader
    return checkpoint


def load_trainer_state(reader: DirectoryReader) -> dict[str, Any]:
    """What trainer.pt holds; CheckpointError where it is more than tensors and plain values; nothing of it is run."""
    try:
        state: dict[str, Any] = load_plain(reader.read("trainer.pt"))
        return state
    except NotPlainError as error:
        raise CheckpointError(
            f"checkpoint '{reader.path}': trainer.pt holds more than tensors and plain values, or is no such file; "
            f"nothing of it was run ({error}); use a checkpoint from where you trust"
        ) from error


def load_dense_files(reader: DirectoryReader) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The dense weights by name, and what trainer.pt holds."""
    return safetensors.torch.load(reader.read("dense.safetensors")), load_trainer_state(reader)


def load_dense(module: nn.Module, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
    """Load the dense state; CheckpointError lists what is missing, left over or of another shape."""
    saved, wanted = checkpoint["state_dict"], module.state_dict()
    problems = [
        f"'{name}' has shape {list(saved[name].shape)}, this model's has {list(wanted[name].shape)}"
        for name in saved.keys() & wanted.keys()
        if isinstance(saved[name], Tensor) and saved[name].shape != wanted[name].shape
    ]
    if strict:
        problems += [f"'{name}' is not in it" for name in wanted.keys() - saved.keys()]
        problems += [f"'{name}' is none of this model's" for name in saved.keys() - wanted.keys()]
    if problems:
        raise _other_model(checkpoint[READER], "dense weights", problems)
    module.load_state_dict(cut_state(saved, module), strict=strict)


def load_tables(
    tables: Mapping[str, DynamicTable], reader: DirectoryReader, first_shard: int = 0, last_shard: int = SHARDS
) -> None:
    """Fill ``tables`` with the saved rows of virtual shards [first_shard, last_shard), and nothing else.

    CheckpointError where the checkpoint holds other tables, or is damaged. All tables are empty where reading failed.
    """
    saved = reader.manifest["tables"]
    problems = list(_table_mismatches(tables, saved))
    if problems:
        raise _other_model(reader, "tables", problems)
    try:
        for name, table in tables.items():
            load_table(table, reader, saved[name], first_shard, last_shard)
    except Exception:
        for table in tables.values():
            table.clear()
        raise


def load_table(
    table: DynamicTable,
    reader: DirectoryReader,
    saved: Mapping[str, Any],
    first_shard: int = 0,
    last_shard: int = SHARDS,
) -> None:
    """Fill one table with what the manifest's entry ``saved`` says of it; errors are those of the table itself."""
    table.clear()
    parts = [part for part in saved["parts"] if part["first_shard"] < last_shard and first_shard < part["last_shard"]]
    if parts:
        # Ids spread evenly over virtual shards: those that are read, in the range that is wanted.
        read = parts[-1]["last_shard"] - parts[0]["first_shard"]
        wanted = min(last_shard, parts[-1]["last_shard"]) - max(first_shard, parts[0]["first_shard"])
        rows_read = sum(reader.manifest["files"][part["file"]]["rows"] for part in parts)
        table.reserve(rows_read * wanted // read, first_shard, last_shard)
    for part in parts:
        rows, counted = _read_part(reader, part, first_shard, last_shard)
        if not rows.slots:  # of a checkpoint of the weights alone
            rows = table.complete(rows.ids, rows.weight, None, rows.last_step, rows.count)
        table.load(rows)
        table.load_admission(counted, first_shard, last_shard)
    table.step = saved["step"]
    if "policies" in saved:
        # What has happened to ids is counted once: by the rank that holds the first of them.
        events = saved["policies"]["events"]
        table.load_policy_state(saved["policies"] | {"events": events if first_shard == 0 else [0] * len(events)})


def read_rows(
    reader: DirectoryReader, name: str, first_shard: int = 0, last_shard: int = SHARDS
) -> Iterator[TableSlice]:
    """The saved rows of a table in virtual shards [first_shard, last_shard), a part after the other.

    They are ordered by mix64(id) as unsigned. Slots are empty where the checkpoint holds the weights alone.
    """
    for part in reader.manifest["tables"][name]["parts"]:
        if part["first_shard"] < last_shard and first_shard < part["last_shard"]:
            yield _read_part(reader, part, first_shard, last_shard)[0]


def _table_mismatches(tables: Mapping[str, DynamicTable], saved: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"table '{name}' is not in it" for name in tables.keys() - saved.keys())
    yield from (f"table '{name}' is none of this model's" for name in saved.keys() - tables.keys())
    for name in tables.keys() & saved.keys():
        wanted = _describe(tables[name])
        for key in ("dim", "dtype"):
            if saved[name][key] != wanted[key]:
                yield f"table '{name}' has {key} {saved[name][key]}, this model's has {wanted[key]}"
        kinds = [(entry["optimizer"] or {"kind": "none, it is not trained"})["kind"] for entry in (saved[name], wanted)]
        if kinds[0] != kinds[1]:
            yield f"table '{name}' has the state of optimizer {kinds[0]}, this model's is {kinds[1]}"
        elif saved[name].get("state", wanted["state"]) != wanted["state"]:
            states = (_listed(entry["state"]) for entry in (saved[name], wanted))
            yield f"table '{name}' has the state {next(states)}, this model's is {next(states)}"


def _listed(state: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in state.items()) or "(none)"


def _other_model(reader: DirectoryReader, what: str, problems: list[str], shown: int = 12) -> CheckpointError:
    lines = sorted(problems)[:shown] + ([f"and {len(problems) - shown} more"] if len(problems) > shown else [])
    return CheckpointError(
        f"checkpoint '{reader.path}' holds the {what} of another model:\n"
        + "\n".join(f"  - {line}" for line in lines)
        + "\nTake the recipe of the run that wrote it (its schema and hyper-parameters are in the checkpoint's "
        "manifest.json), or start without a checkpoint."
    )


def _read_part(
    reader: DirectoryReader, part: Mapping[str, Any], first_shard: int, last_shard: int
) -> tuple[TableSlice, dict[str, Tensor]]:
    """The rows of a part that lie in a range of virtual shards, and what admission has counted in all of its shards."""
    tensors = tensors_in(reader.view(part["file"]))
    counted = {name: tensors.pop(name) for name in list(tensors) if name.startswith(ADMISSION)}
    offsets = tensors.pop("shard_offsets")
    start = int(offsets[max(first_shard - part["first_shard"], 0)])
    stop = int(offsets[min(last_shard, part["last_shard"]) - part["first_shard"]])
    tensors = {name: tensor[start:stop] for name, tensor in tensors.items()}
    slots = {name.removeprefix(SLOT): tensors[name] for name in tensors if name.startswith(SLOT)}
    rows = TableSlice(
        ids=tensors["ids"],
        weight=tensors["weight"],
        slots=slots,
        last_step=tensors["last_step"],
        count=tensors["count"],
    )
    return rows, {name.removeprefix(ADMISSION): tensor for name, tensor in counted.items()}


def tensors_in(data: mmap.mmap | bytearray) -> dict[str, Tensor]:
    """The tensors of a safetensors file as views of its bytes: nothing is copied, as safetensors' own `load` does.

    The format: https://huggingface.co/docs/safetensors#format.
    """
    size = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(bytes(data[8 : 8 + size]))
    header.pop("__metadata__", None)
    tensors = {}
    for name, about in header.items():
        dtype, shape = SAFETENSORS_DTYPES[about["dtype"]], about["shape"]
        count, offset = math.prod(shape), 8 + size + about["data_offsets"][0]
        flat = torch.frombuffer(data, dtype=dtype, count=count, offset=offset) if count else torch.empty(0, dtype=dtype)
        tensors[name] = flat.view(shape)
    return tensors


# --------------------------------------------------------------------------------------------------------- random state


def random_state() -> dict[str, Any]:
    """The state of Python's, NumPy's and torch's global generators, in types that load with weights_only=True."""
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "torch": torch.get_rng_state(),
        # Of the GPU that this process trains on: asked for the others', it would take memory on each of them.
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Go on where `random_state` was taken; with the generator of a GPU only where there is one."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"][0])


# --------------------------------------------------------------------------------------------------------- plain values


def as_json(value: Any, where: str) -> Any:
    """The value as JSON holds it, tuples as lists; CheckpointError names the entry that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return json.loads(json.dumps(value))
    raise CheckpointError(
        f"{where} is a {type(value).__name__}, which a checkpoint cannot hold; give plain numbers, strings, lists and "
        "mappings, or leave it out with save_hyperparameters(ignore=...)"
    )


def _loadable(value: Any, where: str) -> Any:
    """The value as torch.load(weights_only=True) accepts it; CheckpointError names the entry that it would refuse."""
    if isinstance(value, Mapping):
        return {_loadable(key, where): _loadable(item, f"{where}[{key!r}]") for key, item in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(_loadable(item, f"{where}[{index}]") for index, item in enumerate(value))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or type(value) in (bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device):
        return value
    if isinstance(value, Tensor):
        return value.detach().cpu()
    raise CheckpointError(
        f"{where} is a {type(value).__name__}, which cannot be loaded again safely; let the state_dict() of callbacks "
        "and schedulers hold tensors and plain values"
    )
