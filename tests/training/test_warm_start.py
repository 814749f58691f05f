"""What a run begins with: tables and dense weights from checkpoints, files of rows and state_dicts."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from recis_lightning.embedding.exchange import owned_shards
from recis_lightning.schema import Schema
from recis_lightning.tables import DynamicTable, export_table, virtual_shard
from recis_lightning.training import RecModule
from recis_lightning.training.files import CheckpointError, DirectoryReader
from recis_lightning.training.ranks import Ranks
from recis_lightning.training.warm_start import Report, WarmStart, warm_start
from tests.ranks import run_trainers
from tests.tables.test_recis_files import ADAM, IDS, write_checkpoint
from tests.tables.test_table import assert_equal_slices
from tests.training.helpers import (
    Losses,
    MemoryLoader,
    SmallNet,
    everything,
    make_module,
    make_schema,
    make_trainer,
    table_bytes,
)


def settings_of(**item: Any) -> dict[str, Any]:
    """Adam, and no dropout; ``item`` changes that table's declaration."""
    settings = json.loads(json.dumps(make_schema(kind="adam").to_dict()))
    settings["tables"][1] |= item
    return settings


def fresh(*entries: WarmStart, schema: Schema | None = None, seed: int = 5, **options: Any) -> RecModule:
    """A module of other first values than those of what it begins from."""
    options = {"network": partial(SmallNet, dropout=0.0), **options}
    return make_module(schema or make_schema(kind="adam"), seed=seed, warm_start=list(entries), **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[RecModule, str]:
    root = tmp_path_factory.mktemp("trained")
    module = make_module(make_schema(kind="adam"), network=partial(SmallNet, dropout=0.0))
    trainer = make_trainer(root)
    trainer.fit(module, MemoryLoader())
    trainer.save_checkpoint(root / "x.ckpt")
    return module, str(root / "x.ckpt")


def fill(module: RecModule, *entries: WarmStart, **options: Any) -> Report:
    return warm_start(module, entries, **options)


def validated(module: RecModule, root: Path) -> RecModule:
    make_trainer(root).validate(module, MemoryLoader(1), verbose=False)
    return module


# --------------------------------------------------------------------------------------------------------- checkpoints


def test_a_run_begins_where_the_checkpoint_ended_and_trains_as_a_resumed_one(
    trained: tuple[RecModule, str], tmp_path: Path
) -> None:
    source, path = trained
    assert everything(validated(fresh(WarmStart(path=path)), tmp_path)) == everything(source)
    resumed, warm = fresh(), fresh(WarmStart(path=path))
    losses = [Losses(), Losses()]
    loader = MemoryLoader()
    make_trainer(tmp_path, losses[0], max_epochs=3).fit(resumed, loader, ckpt_path=path)
    loader = MemoryLoader()
    loader.committed = {"epoch": 2, "batch": 0}
    make_trainer(tmp_path, losses[1], max_epochs=1).fit(warm, loader)
    assert list(losses[0].by_batch.values()) == list(losses[1].by_batch.values())
    assert everything(resumed) == everything(warm), "the state of both optimizers is taken too"


def test_what_was_taken_left_and_not_filled_is_told(trained: tuple[RecModule, str], tmp_path: Path) -> None:
    source, path = trained
    settings = settings_of(name="goods")
    settings["features"][1]["table"] = "goods"
    settings["tables"].append({"name": "more", "dim": 4})
    settings["columns"].append({"name": "more", "dtype": "int64"})
    settings["features"].append({"name": "more", "table": "more"})
    module = fresh(schema=Schema.from_dict(settings))
    report = fill(module, WarmStart(path=path, exclude=("network.body.*",)))
    (taken,) = report.taken
    assert taken.rows == {"tables.user": len(source.tables["user"])}
    assert taken.dense == ["network.heads.0.weight", "network.heads.0.bias"]
    assert taken.left == ["tables.item"]
    assert report.unfilled == ["tables.goods", "tables.more", "network.body.0.weight", "network.body.0.bias"]
    assert "left, since nothing here is called so: tables.item" in report.describe()
    assert "begin as new: tables.goods, tables.more, network.body.0.weight" in report.describe()


def test_the_report_is_told_once_and_nothing_is_where_a_checkpoint_is_loaded(
    trained: tuple[RecModule, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, path = trained
    told: list[str] = []
    monkeypatch.setattr("recis_lightning.training.warm_start.rank_zero_info", told.append)
    module = fresh(WarmStart(path=path))
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, MemoryLoader(), MemoryLoader(1))
    trainer.fit(module, MemoryLoader())
    assert len(told) == 1
    assert told[0].startswith(f"begins from '{path}': tables.user (")
    missing = WarmStart(path=str(tmp_path / "gone.ckpt"))
    resumed = fresh(missing)
    make_trainer(tmp_path, max_epochs=3).fit(resumed, MemoryLoader(), ckpt_path=path)
    before = everything(resumed)
    make_trainer(tmp_path).validate(resumed, MemoryLoader(1), verbose=False)
    loaded = RecModule.load_from_checkpoint(path, warm_start=[missing])
    assert everything(validated(loaded, tmp_path)) == everything(source)
    assert everything(resumed) == before
    assert len(told) == 1
    with pytest.raises(CheckpointError, match=r"warm_start\[0\]: there is no checkpoint .*gone.ckpt"):
        make_trainer(tmp_path).fit(fresh(missing), MemoryLoader())


def test_names_are_chosen_by_wildcards_and_carried_over_by_renaming(trained: tuple[RecModule, str]) -> None:
    source, path = trained
    module = fresh()
    before = everything(module)
    fill(module, WarmStart(path=path, include=("tables.*",)))
    assert table_bytes(module) == table_bytes(source)
    assert all(value == before[name] for name, value in everything(module).items() if name.startswith("network"))
    module = fresh()
    swap = {"tables.us*": "tables.it*", "tables.it*": "tables.us*"}  # user -> iter?
    with pytest.raises(CheckpointError, match=r"this model has no 'tables.iter'|both become"):
        fill(module, WarmStart(path=path, include=("tables.user",), rename=swap))
    report = fill(module, WarmStart(path=path, rename={"tables.user": "tables.item", "tables.item": "tables.user"}))
    assert_equal_slices(module.tables["item"].export(), source.tables["user"].export())
    assert_equal_slices(module.tables["user"].export(), source.tables["item"].export())
    assert not report.unfilled


def test_later_entries_win_or_go_on_top(trained: tuple[RecModule, str], tmp_path: Path) -> None:
    source, path = trained
    vectors = pa.table({"ids": [0, 10**12], "weight": [[1.0, 2.0, 3.0, 4.0]] * 2})
    pq.write_table(vectors, tmp_path / "item.parquet")
    first, second = WarmStart(path=path), str(tmp_path / "item.parquet")
    replaced = fresh()
    report = fill(replaced, first, WarmStart(path=second))
    assert replaced.tables["item"].export().ids.sort().values.tolist() == [0, 10**12]
    assert list(report.taken[0].rows) == ["tables.user"], "what a later one replaces is not read"
    on_top = fresh()
    fill(on_top, first, WarmStart(path=second, clear=False))
    table, before = on_top.tables["item"], source.tables["item"]
    assert len(table) == len(before) + (2 if before.find(torch.tensor([0])) < 0 else 1)
    assert table.weight(table.find(torch.tensor([0, 10**12]))).tolist() == [[1.0, 2.0, 3.0, 4.0]] * 2
    others = before.export().ids
    others = others[others != 0]
    assert torch.equal(table.weight(table.find(others)), before.weight(before.find(others)))
    back = fresh()
    fill(back, WarmStart(path=second), first)
    assert_equal_slices(back.tables["item"].export(), before.export())


def test_reset_optimizer_takes_weights_alone(trained: tuple[RecModule, str]) -> None:
    source, path = trained
    module = fresh()
    optimizer = module.configure_optimizers()[0][0]
    fill(module, WarmStart(path=path, reset_optimizer=True), optimizer=optimizer)
    table = module.tables["item"]
    assert torch.equal(table.export().weight, source.tables["item"].export().weight)
    assert table.step == 0
    assert not any(slot.any() for slot in table.export().slots.values())
    assert not table.export().count.any()
    assert not optimizer.dense.state
    fill(module, WarmStart(path=path), optimizer=optimizer)
    assert table_bytes(module) == table_bytes(source)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    assert {names[id(parameter)] for parameter in optimizer.dense.state} == set(names.values())
    assert all(state["step"] == 12 for state in optimizer.dense.state.values())


def test_ages_of_rows_stay_what_they_were_where_sources_stood_at_different_steps(
    trained: tuple[RecModule, str], tmp_path: Path
) -> None:
    source, path = trained
    older = make_module(make_schema(kind="adam"))
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(older, MemoryLoader(2))
    trainer.save_checkpoint(tmp_path / "y.ckpt")

    def ages(module: RecModule, name: str) -> Tensor:
        return module.tables[name].group.clock - module.tables[name].export().last_step

    user, item = (
        WarmStart(path=path, include=("tables.user",)),
        WarmStart(path=f"{tmp_path}/y.ckpt", include=("tables.item",)),
    )
    for entries in ((user, item), (item, user)):
        module = fresh()
        fill(module, *entries)
        assert torch.equal(ages(module, "user"), ages(source, "user"))
        assert torch.equal(ages(module, "item"), ages(older, "item"))
        assert [module.tables[name].step for name in ("user", "item")] == [12, 2]
    module = fresh()
    fill(module, WarmStart(path=path, include=("tables.item",), reset_optimizer=True), user)
    assert (ages(module, "item") == 1).all(), "rows without a last step count from now"


class OneOf(Ranks):
    """Rank ``rank`` of several, as far as they ask for no other's."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__()
        self.rank, self.world_size = rank, world_size


def test_each_rank_takes_the_rows_that_it_owns_and_reads_no_parts_of_others(
    trained: tuple[RecModule, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, path = trained
    for format in ("parquet", "safetensors"):
        export_table(source.tables["item"], tmp_path / format / f"item.{format}")
    places = [path, *(str(tmp_path / format / f"item.{format}") for format in ("parquet", "safetensors"))]
    for place in places:
        taken = []
        for rank in range(3):
            module = fresh()
            fill(module, WarmStart(path=place, include=("tables.item",)), ranks=OneOf(rank, 3))
            found = module.tables["item"].export()
            first, last = owned_shards(rank, 3)
            assert ((virtual_shard(found.ids) >= first) & (virtual_shard(found.ids) < last)).all()
            taken.append(found)
        for name in ("ids", "weight", "last_step", "count"):
            joined = torch.cat([getattr(part, name) for part in taken])
            assert torch.equal(joined, getattr(source.tables["item"].export(), name)), name


def fit_warm(path: str, root: str, strategy: str) -> tuple[list[float], dict[str, Tensor], int]:
    module, losses = fresh(WarmStart(path=path)), Losses()
    trainer = make_trainer(root, losses, max_epochs=1, devices=2, strategy=strategy)
    trainer.fit(module, MemoryLoader(3))
    weights = {name: value.clone() for name, value in trainer.strategy.lightning_module_state_dict().items()}  # type: ignore[attr-defined]
    return list(losses.by_batch.values()), weights, len(module.tables["item"])


@pytest.mark.parametrize("strategy", ["recis_sharded", "recis_sharded_fsdp2"])
def test_two_ranks_begin_warm_under_either_strategy(
    trained: tuple[RecModule, str], tmp_path: Path, strategy: str
) -> None:
    source, path = trained
    first, second = run_trainers(2, fit_warm, path, str(tmp_path), strategy)
    one, losses = fresh(WarmStart(path=path)), Losses()
    make_trainer(tmp_path, losses, max_epochs=1).fit(one, MemoryLoader(3))
    assert first[2] + second[2] == len(one.tables["item"]), "each holds its share"
    np.testing.assert_allclose(first[0], list(losses.by_batch.values()), rtol=0, atol=1e-5)


# -------------------------------------------------------------------------------------------------------------- others


@pytest.mark.parametrize("form", ["safetensors", "pt", "lightning"])
def test_dense_weights_and_matrices_come_from_plain_state_dicts(tmp_path: Path, form: str) -> None:
    module = fresh()
    state = {f"model.{name}": torch.full_like(value, 0.5) for name, value in module.network.state_dict().items()}
    state["emb_item.weight"] = torch.arange(40.0).view(10, 4)
    state["emb_old.weight"] = torch.zeros(3, 9)
    place = tmp_path / f"model.{'safetensors' if form == 'safetensors' else 'pt'}"
    if form == "safetensors":
        save_file(state, place)
    else:
        torch.save(state if form == "pt" else {"state_dict": state, "epoch": 3, "hyper_parameters": {"a": 1}}, place)
    rename = {"model.*": "network.*", "emb_item.weight": "tables.item"}
    report = fill(module, WarmStart(path=str(place), rename=rename))
    assert all((value == 0.5).all() for value in module.network.state_dict().values())
    table = module.tables["item"]
    assert torch.equal(table.weight(table.find(torch.arange(10))), torch.arange(40.0).view(10, 4))
    assert report.taken[0].rows == {"tables.item": 10}
    assert report.taken[0].left == ["emb_old.weight"]
    assert report.unfilled == ["tables.user"]


def test_a_recis_checkpoint_fills_tables_by_name(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "recis", ADAM, table="clicks_emb")
    module = fresh(schema=Schema.from_dict(settings_of(dim=3)))
    report = fill(module, WarmStart(path=str(tmp_path / "recis"), rename={"tables.clicks_emb": "tables.item"}))
    table = module.tables["item"]
    assert report.taken[0].rows == {"tables.item": len(IDS)}
    assert torch.equal(table.weight(table.find(IDS)), ADAM["embedding"])
    assert torch.equal(table.slice(table.find(IDS)).slots["exp_avg"], ADAM["sparse_adamw_tf_exp_avg"])
    assert table.step == 7


class Malice:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


def test_what_does_not_fit_is_listed_before_anything_is_changed(trained: tuple[RecModule, str], tmp_path: Path) -> None:
    _, path = trained
    module = fresh(schema=Schema.from_dict(settings_of(dim=6, optimizer={"kind": "adagrad"})))
    before = everything(module)
    with pytest.raises(CheckpointError) as caught:
        fill(module, WarmStart(path=path))
    text = str(caught.value)
    assert "table 'item' of" in text
    assert "has dim 4, table 'item' here has 6; exclude 'tables.item', or rename it to a table of its width" in text
    assert "has the optimizer state exp_avg, exp_avg_sq, table 'item' is updated by adagrad, with sum" in text
    assert "reset_optimizer: true" in text
    assert "'network.body.0.weight' of" in text
    assert "has shape [8, 9], 'network.body.0.weight' here has [8, 11]; exclude 'network.body.0.weight'" in text
    assert everything(module) == before
    fill(module, WarmStart(path=path, exclude=("tables.item", "network.body.0.weight")))
    save_file({"emb": torch.zeros(3, 5)}, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"'emb' .* has shape \[3, 5\]; table 'user' takes a matrix \[ids, 4\]"):
        fill(module, WarmStart(path=str(tmp_path / "m.safetensors"), rename={"emb": "tables.user"}))


def test_mistakes_in_an_entry_are_told(trained: tuple[RecModule, str], tmp_path: Path) -> None:
    _, path = trained
    torch.save({"weight": Malice()}, tmp_path / "code.pt")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    torn = tmp_path / "torn.ckpt"
    (torn / "tables").mkdir(parents=True)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"include": ("tables.itm",)}, r"include 'tables.itm' fits nothing in .*did you mean 'tables.item'"),
        ({"exclude": ("tables.itm",)}, r"exclude 'tables.itm' fits nothing"),
        ({"rename": {"tables.itm": "tables.user"}}, r"rename 'tables.itm' fits nothing"),
        (
            {"rename": {"tables.item": "tables.goods"}},
            r"'tables.item' is asked for, and this model has no 'tables.goods'",
        ),
        ({"rename": {"tables.item": "tables.user"}}, r"both become 'tables.user'"),
        ({"rename": {"tables.item": "tables.*"}}, r"has more stars"),
        ({"rename": {"tables.item": "network.body.0.bias"}, "exclude": ("network.*",)}, r"is a table, .* is none here"),
        ({"path": "${NO_SUCH_VARIABLE}/x.ckpt"}, r"needs the environment variable NO_SUCH_VARIABLE"),
        ({"path": str(tmp_path / "code.pt")}, r"is refused: it holds more than tensors"),
        ({"path": str(tmp_path / "none.pt")}, r"holds no state_dict"),
        ({"path": str(torn)}, r"has no manifest.json"),
    ]
    for options, message in wrong:
        with pytest.raises(CheckpointError, match=message):
            fill(fresh(), WarmStart(**{"path": path, **options}))


def test_entries_that_are_none_are_told_when_the_module_is_made() -> None:
    for entry, message in (
        ({"path": "x", "pth": 1}, r"warm_start\[0\] has no option 'pth'; did you mean 'path'"),
        ({"include": ["*"]}, r"warm_start\[0\] is .*, need a mapping with a path"),
        ({"path": "x", "include": "tables.*"}, r"include is 'tables.\*', need a list of names"),
        ({"path": "x", "rename": ["a"]}, r"rename is \['a'\], need a mapping"),
        ({"path": "x", "clear": "no"}, r"clear is 'no', need true or false"),
    ):
        with pytest.raises(CheckpointError, match=message):
            make_module(warm_start=[entry])


def test_the_state_of_another_dense_optimizer_is_refused(trained: tuple[RecModule, str]) -> None:
    module = fresh(dense_optimizer=partial(torch.optim.SGD, lr=0.1))
    optimizer = module.configure_optimizers()[0][0]
    with pytest.raises(
        CheckpointError, match="state of the dense optimizer Adam, this run's is SGD; leave the state out"
    ):
        fill(module, WarmStart(path=trained[1]), optimizer=optimizer)


def test_a_damaged_checkpoint_is_refused_by_the_name_of_its_file(
    trained: tuple[RecModule, str], tmp_path: Path
) -> None:
    module = make_module(make_schema(kind="adam"))
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, MemoryLoader(1))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    part = DirectoryReader(f"{tmp_path}/x.ckpt").manifest["tables"]["item"]["parts"][0]["file"]
    file = tmp_path / "x.ckpt" / part
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"warm_start\[0\]: .*{part} has checksum"):
        fill(fresh(), WarmStart(path=f"{tmp_path}/x.ckpt"))


def test_changed_transforms_are_warned_of(trained: tuple[RecModule, str]) -> None:
    settings = settings_of()
    settings["features"][0]["transforms"] = [{"kind": "modulo", "divisor": 7}]
    with pytest.warns(UserWarning, match=r"(?s)warm_start\[0\]: transforms are others .*'user' had transforms none"):
        fill(fresh(schema=Schema.from_dict(settings)), WarmStart(path=trained[1]))


# ---------------------------------------------------------------------------------------------------------- pretrained


def with_pretrained(path: str | Path, **options: Any) -> Schema:
    return Schema.from_dict(settings_of(pretrained={"path": str(path), **options}))


@pytest.mark.parametrize("format", ["parquet", "orc", "safetensors"])
def test_pretrained_vectors_load_by_id_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    rows = [[1.0, 2.0, 3.0, 4.0], [0.0] * 4, [-1.5, 0.5, 2.0, 1.0]]
    vectors = pa.table({"id": [5, -1, 2**62], "vector": rows, "title": ["a", "b", "c"]})
    path = tmp_path / f"v.{format}"
    if format == "safetensors":
        save_file({"id": torch.tensor([5, -1, 2**62]), "vector": torch.tensor(rows, dtype=torch.float64)}, path)
    else:
        (pq.write_table if format == "parquet" else pyarrow.orc.write_table)(vectors, path)
    monkeypatch.setenv("VECTORS", os.fspath(tmp_path))
    module = fresh(schema=with_pretrained(f"${{VECTORS}}/v.{format}"))
    assert fill(module).taken[0].rows == {"tables.item": 3}
    table: DynamicTable = module.tables["item"]
    assert table.weight(table.find(torch.tensor([5, -1, 2**62]))).tolist() == rows
    assert not table.export().slots["exp_avg"].any()
    assert fill(module).taken == [], "what is trained must not be overwritten"
    assert table.weight(table.find_or_insert(torch.tensor([77]))).any(), "others begin as the initializer says"


def test_pretrained_that_cannot_be_read_names_table_and_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "vector": [[1.0]]}), tmp_path / "v.parquet")
    for schema, message in (
        (with_pretrained(tmp_path / "v.parquet"), r"pretrained vectors of table 'item': .* has dim 4, .*v.parquet"),
        (with_pretrained(tmp_path / "v.parquet", vector="v"), r"has no column 'v'; .*vector"),
        (with_pretrained("${NO_SUCH_VARIABLE}/v.parquet"), "vectors of table 'item': path .* needs the environment"),
    ):
        with pytest.raises(CheckpointError, match=message):
            fill(fresh(schema=schema))


def test_pretrained_vectors_are_there_before_the_first_batch_and_are_trained(tmp_path: Path) -> None:
    vectors = pa.table({"id": list(range(40)), "vector": [[float(id_)] * 4 for id_ in range(40)]})
    pq.write_table(vectors, tmp_path / "v.parquet")
    schema = with_pretrained(tmp_path / "v.parquet")
    table = validated(fresh(schema=schema), tmp_path).tables["item"]
    assert torch.equal(table.weight(table.find(torch.tensor([7]))), torch.full((1, 4), 7.0))
    module, plain = make_module(schema), make_module(make_schema(kind="adam"))
    trainer = make_trainer(tmp_path)
    trainer.fit(module, MemoryLoader(), MemoryLoader(1))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    make_trainer(tmp_path).fit(plain, MemoryLoader())
    table = module.tables["item"]
    assert len(table) == 40 > len(plain.tables["item"])
    trained = table.weight(table.find(torch.arange(40)))
    moved = (trained != torch.arange(40.0)[:, None]).any(dim=1)
    assert torch.equal(moved, plain.tables["item"].find(torch.arange(40)) >= 0)
    assert moved.any()
    (tmp_path / "v.parquet").unlink()
    trainer = make_trainer(tmp_path, max_epochs=3)
    trainer.fit(make_module(schema), MemoryLoader(), ckpt_path=tmp_path / "x.ckpt")  # whose rows they are now
    trainer.fit(module, MemoryLoader())  # nor does a second fit ask for them
