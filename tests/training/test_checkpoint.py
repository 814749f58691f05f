import io
import os
import pickle
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from recis_lightning.schema import OPTIMIZERS, Adagrad, Adam, Table
from recis_lightning.tables import DynamicTable, TableSlice, build_groups, virtual_shard
from recis_lightning.training.checkpoint import (
    READER,
    as_json,
    load_checkpoint,
    load_dense,
    load_tables,
    random_state,
    save_checkpoint,
    set_random_state,
)
from recis_lightning.training.files import CheckpointError, DirectoryReader, DirectoryWriter

ROWS = 1000


def make_tables(*tables: Table, rows: int = 0) -> dict[str, DynamicTable]:
    tables = tables or (Table(name="user", dim=3), Table(name="item", dim=5))
    found = {table.name: table for group in build_groups(tables, max_rows=1 << 16) for table in group}
    for seed, table in enumerate(found.values() if rows else ()):
        fill(table, rows, seed)
    return found


def fill(table: DynamicTable, rows: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-(2**63), 2**63 - 1, (rows,), generator=generator)
    slots = {name: torch.rand(rows, *slot.shape[1:]) for name, slot in table.export(0, 0).slots.items()}
    steps = torch.arange(rows)
    table.load(TableSlice(ids, torch.rand(rows, table.dim, generator=generator), slots, steps, steps * 2))
    table.step = seed + 5


def lightning_checkpoint(**entries: Any) -> dict[str, Any]:
    """What Lightning hands to a strategy, in small."""
    return {
        "epoch": 1,
        "global_step": 12,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": OrderedDict(weight=torch.arange(6.0).view(2, 3)),
        "optimizer_states": [],
        "hyper_parameters": {"seed": 0},
        **entries,
    }


def contents(tables: dict[str, DynamicTable]) -> dict[str, bytes]:
    found = {}
    for name, table in tables.items():
        rows = table.export()
        for key, value in {**vars(rows), **rows.slots, "step": torch.tensor(table.step)}.items():
            if isinstance(value, Tensor):
                found[f"{name}/{key}"] = value.contiguous().numpy().tobytes()
    return found


@pytest.mark.parametrize("part_bytes", [1 << 20, 4000, 500])
def test_every_row_comes_back_in_parts_of_any_size(part_bytes: int, tmp_path: Path) -> None:
    tables = make_tables(rows=ROWS)
    save_checkpoint(lightning_checkpoint(), str(tmp_path / "x.ckpt"), tables, part_bytes)
    read = make_tables(rows=7)
    load_tables(read, load_checkpoint(str(tmp_path / "x.ckpt"))[READER])
    assert contents(read) == contents(tables)


def test_parts_are_of_bounded_size_and_ranges_are_complete(tmp_path: Path) -> None:
    tables = make_tables(rows=ROWS)
    save_checkpoint(lightning_checkpoint(), str(tmp_path / "x.ckpt"), tables, part_bytes=8000)
    reader = DirectoryReader(str(tmp_path / "x.ckpt"))
    parts = reader.manifest["tables"]["item"]["parts"]
    assert [part["first_shard"] for part in parts] == list(range(0, 4096, 512))  # 8 parts for 1000 rows of 64 bytes
    assert [part["last_shard"] for part in parts] == list(range(512, 4097, 512))
    files = [reader.manifest["files"][part["file"]] for part in parts]
    assert sum(file["rows"] for file in files) == ROWS
    assert max(file["bytes"] for file in files) < 2 * 8000


@pytest.mark.parametrize("bounds", [(0, 4096), (0, 1), (100, 1111), (2048, 4096), (4095, 4096), (5, 5)])
def test_a_rank_reads_its_range_of_shards_alone(bounds: tuple[int, int], tmp_path: Path) -> None:
    tables = make_tables(rows=ROWS)
    save_checkpoint(lightning_checkpoint(), str(tmp_path / "x.ckpt"), tables, part_bytes=8000)
    read = make_tables()
    load_tables(read, DirectoryReader(str(tmp_path / "x.ckpt")), *bounds)
    for name, table in read.items():
        assert torch.equal(table.export().ids, tables[name].export(*bounds).ids)
        assert torch.equal(table.export().weight, tables[name].export(*bounds).weight)


def test_rows_of_a_part_are_in_the_order_of_their_shards(tmp_path: Path) -> None:
    tables = make_tables(rows=ROWS)
    save_checkpoint(lightning_checkpoint(), str(tmp_path / "x.ckpt"), tables, part_bytes=8000)
    reader = DirectoryReader(str(tmp_path / "x.ckpt"))
    part = reader.manifest["tables"]["user"]["parts"][1]
    tensors = safetensors.torch.load(reader.read(part["file"]))
    shards = virtual_shard(tensors["ids"])
    assert (shards.diff() >= 0).all()
    for shard in range(part["first_shard"], part["last_shard"]):
        start, stop = tensors["shard_offsets"][shard - part["first_shard"] :][:2].tolist()
        assert (shards[start:stop] == shard).all()
    assert tensors["shard_offsets"][-1] == len(shards)


def test_an_empty_table_stays_empty(tmp_path: Path) -> None:
    save_checkpoint(lightning_checkpoint(), str(tmp_path / "x.ckpt"), make_tables())
    read = make_tables(rows=9)
    load_tables(read, DirectoryReader(str(tmp_path / "x.ckpt")))
    assert [len(table) for table in read.values()] == [0, 0]


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "rowwise_adagrad", "adam", "adamw"])
def test_state_of_every_optimizer_comes_back(kind: str, tmp_path: Path) -> None:
    table = Table(name="user", dim=3, dtype="float64", optimizer=OPTIMIZERS[kind]())
    tables = {"user": build_groups([table], max_rows=1000)[0][0]}
    tables["user"].find_or_insert(torch.arange(10))
    tables["user"].group.state.random_(0, 100)
    save_checkpoint(lightning_checkpoint(), str(tmp_path / "x.ckpt"), tables)
    read = {"user": build_groups([table], max_rows=1000)[0][0]}
    load_tables(read, DirectoryReader(str(tmp_path / "x.ckpt")))
    assert contents(read) == contents(tables)


def test_a_checkpoint_of_weights_alone_gives_the_state_of_new_rows(tmp_path: Path) -> None:
    table = Table(name="user", dim=3, optimizer=Adagrad(initial_accumulator_value=0.25))
    tables = make_tables(table, rows=10)
    weights_only = lightning_checkpoint()
    del weights_only["optimizer_states"]
    save_checkpoint(weights_only, str(tmp_path / "x.ckpt"), tables)
    read = make_tables(table)
    load_tables(read, DirectoryReader(str(tmp_path / "x.ckpt")))
    rows = read["user"].export()
    assert torch.equal(rows.weight, tables["user"].export().weight)
    assert (rows.slots["sum"] == 0.25).all()


def test_tables_of_another_model_are_listed_with_what_differs(tmp_path: Path) -> None:
    save_checkpoint(lightning_checkpoint(), str(tmp_path / "x.ckpt"), make_tables(rows=3))
    other = make_tables(Table(name="user", dim=4, dtype="float64", optimizer=Adam()), Table(name="query", dim=2))
    with pytest.raises(CheckpointError) as error:
        load_tables(other, DirectoryReader(str(tmp_path / "x.ckpt")))
    for line in (
        "x.ckpt' holds the tables of another model",
        "table 'user' has dim 3, this model's has 4",
        "table 'user' has dtype float32, this model's has float64",
        "table 'user' has the state of optimizer adagrad, this model's is adam",
        "table 'query' is not in it",
        "table 'item' is none of this model's",
        "Take the recipe of the run that wrote it",
    ):
        assert line in str(error.value)


@pytest.mark.parametrize("byte", [0, 7, 20, 600, 700, 900, 2000, -1])  # of the header, and of columns behind it
def test_a_damaged_part_leaves_no_row_behind(byte: int, tmp_path: Path) -> None:
    save_checkpoint(lightning_checkpoint(), str(tmp_path / "x.ckpt"), make_tables(rows=ROWS), part_bytes=8000)
    reader = DirectoryReader(str(tmp_path / "x.ckpt"))
    place = tmp_path / "x.ckpt" / reader.manifest["tables"]["item"]["parts"][3]["file"]
    data = bytearray(place.read_bytes())
    data[byte] ^= 128
    place.write_bytes(data)
    read = make_tables(rows=9)
    with pytest.raises(CheckpointError, match="item/1536-2048.safetensors has checksum"):
        load_tables(read, reader)
    assert [len(table) for table in read.values()] == [0, 0]


def test_what_lightning_gave_comes_back(tmp_path: Path) -> None:
    given = lightning_checkpoint(
        callbacks={"ModelCheckpoint{'monitor': None}": {"best": torch.tensor(0.5), "dirpath": Path("/runs")}},
        lr_schedulers=[{"last_epoch": np.int64(3), "lrs": (0.1, 0.2)}],
        schema={"columns": []},
    )
    save_checkpoint(given, str(tmp_path / "x.ckpt"), {})
    read = load_checkpoint(str(tmp_path / "x.ckpt"))
    assert torch.equal(read["state_dict"]["weight"], given["state_dict"]["weight"])
    assert read["callbacks"]["ModelCheckpoint{'monitor': None}"] == {"best": torch.tensor(0.5), "dirpath": "/runs"}
    assert read["lr_schedulers"] == [{"last_epoch": 3, "lrs": (0.1, 0.2)}]
    assert (read["epoch"], read["global_step"], read["hyper_parameters"]) == (1, 12, {"seed": 0})
    assert read["schema"] == {"columns": []}


@pytest.mark.trap(20)
def test_trainer_state_loads_with_weights_only(tmp_path: Path) -> None:
    save_checkpoint(lightning_checkpoint(random_state=random_state()), str(tmp_path / "x.ckpt"), {})
    data = DirectoryReader(str(tmp_path / "x.ckpt")).read("trainer.pt")
    assert torch.load(io.BytesIO(data), weights_only=True)["global_step"] == 12


@pytest.mark.trap(20)
@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"callbacks": {"Mine": {"seen": object()}}}, r"checkpoint\['callbacks'\]\['Mine'\]\['seen'\] is a object"),
        ({"hyper_parameters": {"table": Table(name="user", dim=3)}}, r"hyper_parameters.table is a Table"),
    ],
)
def test_what_could_not_be_loaded_again_is_not_saved(entries: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(lightning_checkpoint(**entries), str(tmp_path / "x.ckpt"), {})
    assert os.listdir(tmp_path) == []


class RunsCode:
    """As an object in a pickle that runs something when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("as_torch", [True, False])
def test_code_in_the_place_of_a_file_is_refused_and_not_run(as_torch: bool, tmp_path: Path) -> None:
    save_checkpoint(lightning_checkpoint(), str(tmp_path / "x.ckpt"), {})
    saved, marker = DirectoryReader(str(tmp_path / "x.ckpt")), tmp_path / "has run"
    evil = io.BytesIO()
    if as_torch:
        torch.save({"loops": RunsCode(marker)}, evil)
    else:
        pickle.dump(RunsCode(marker), evil)
    forged = DirectoryWriter(str(tmp_path / "y.ckpt"))
    forged.begin()
    for name in saved.manifest["files"]:
        forged.add(name, evil.getvalue() if name == "trainer.pt" else saved.read(name))
    forged.commit({key: value for key, value in saved.manifest.items() if key not in ("files", "checksum")})
    with pytest.raises(CheckpointError, match=r"y.ckpt': trainer.pt holds more than tensors .* nothing of it was run"):
        load_checkpoint(str(tmp_path / "y.ckpt"))
    assert not marker.exists()
    pickle.loads(pickle.dumps(RunsCode(marker)))
    assert marker.exists()


def test_tied_and_strided_weights_are_saved_whole(tmp_path: Path) -> None:
    module = nn.Linear(3, 3, bias=False)
    shared = OrderedDict(a=module.weight, b=module.weight, c=module.weight.t(), d=module.weight[1:], extra=7)
    save_checkpoint(lightning_checkpoint(state_dict=shared), str(tmp_path / "x.ckpt"), {})
    read = load_checkpoint(str(tmp_path / "x.ckpt"))["state_dict"]
    for name, value in shared.items():
        assert torch.equal(read[name], value) if isinstance(value, Tensor) else read[name] == value


def test_dense_weights_of_another_model_are_listed(tmp_path: Path) -> None:
    save_checkpoint(lightning_checkpoint(state_dict=nn.Linear(3, 2).state_dict()), str(tmp_path / "x.ckpt"), {})
    checkpoint = load_checkpoint(str(tmp_path / "x.ckpt"))
    with pytest.raises(CheckpointError, match=r"'weight' has shape \[2, 3\], this model's has \[2, 4\]"):
        load_dense(nn.Linear(4, 2), checkpoint)
    with pytest.raises(CheckpointError, match="'bias' is none of this model's"):
        load_dense(nn.Linear(3, 2, bias=False), checkpoint)
    load_dense(nn.Linear(3, 2, bias=False), checkpoint, strict=False)


def test_random_numbers_go_on_where_they_were() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.normal()), torch.rand(()).item()

    state = random_state()
    first = [draw(), draw()]
    set_random_state(state)
    assert [draw(), draw()] == first


def test_plain_values_pass_as_json_and_others_are_named() -> None:
    assert as_json({"a": (1, 2.5, None), 3: ["x", True]}, "it") == {"a": [1, 2.5, None], "3": ["x", True]}
    with pytest.raises(CheckpointError, match=r"it.a\[1\] is a set"):
        as_json({"a": [1, {2}]}, "it")
