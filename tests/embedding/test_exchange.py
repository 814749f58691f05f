"""The exchange: tables shared by two and three ranks read and train as those of one rank do, on CPUs and on GPUs."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from recis_lightning.embedding import EmbeddingCollection
from recis_lightning.embedding.exchange import Exchange, owned_shards
from recis_lightning.embedding.wire import Parcels, codec_of
from recis_lightning.optim import SparseOptimizer
from recis_lightning.ragged import Ragged
from recis_lightning.schema import Schema
from tests.interpreter import import_interpreted
from tests.pretend_gpu import GPU, on_pretended_gpu, pretending
from tests.ranks import run_ranks
from triton_ops.index import SHARDS, virtual_shard

STEPS, ROWS = 4, 24
ON_GPU = 2  # steps, since kernels are interpreted


def make_schema(dtype: str = "float64", admission: str = "always") -> Schema:
    uniform = {"kind": "uniform", "low": -0.5, "high": 0.5}
    admissions: dict[str, Any] = {"always": {}, "counter": {"admission": {"kind": "counter", "threshold": 3}}}
    table = {"dtype": dtype, "initializer": uniform}
    return Schema.from_dict(
        {
            "columns": [{"name": name, "dtype": "int64", "layout": "list"} for name in ("a", "b", "c", "d", "idle")],
            "tables": [
                {"name": "t", "dim": 4, "optimizer": {"kind": "adam", "lr": 0.1}, **table, **admissions[admission]},
                {"name": "u", "dim": 4, "optimizer": {"kind": "adam", "lr": 0.05}, **table},
                {"name": "v", "dim": 3, "optimizer": {"kind": "adagrad", "lr": 0.1}, **table},
            ],
            "features": [
                {"name": "a", "table": "t", "pooling": "mean"},
                {"name": "b", "table": "t"},
                {"name": "c", "table": "u", "pooling": "none"},
                {"name": "d", "table": "v"},
                {"name": "idle", "table": "v"},
            ],
        }
    )


def batch(step: int, feature: int) -> Ragged:
    generator = torch.Generator().manual_seed(100 * step + feature)
    lengths = torch.randint(4, (ROWS,), generator=generator)
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    ids = torch.randint(-20, 20, (int(offsets[-1]),), generator=generator)
    return Ragged(torch.where(ids == 7, torch.iinfo(torch.int64).min, ids), offsets)


def share(ragged: Ragged, rank: int, world_size: int, empty: bool) -> Ragged:
    """The rows of a rank; of none on the last rank where one is to be empty."""
    ranks = world_size - empty
    first, last = (min(place, ranks) * ROWS // ranks for place in (rank, rank + 1))
    begin, end = int(ragged.offsets[first]), int(ragged.offsets[last])
    return Ragged(ragged.values[begin:end], ragged.offsets[first : last + 1] - begin)


def train(
    schema: dict[str, Any],
    exchange_options: dict[str, Any],
    empty: bool = False,
    on_gpu: bool = False,
    steps: int = STEPS,
) -> dict[str, Any]:
    """A few steps of a fixed loss on this rank's rows; what it read, and what its tables hold in the end."""
    if on_gpu:
        import_interpreted()
    with pretending() if on_gpu else nullcontext() as gpu:
        device = GPU if on_gpu else torch.device("cpu")
        collection = EmbeddingCollection(Schema.from_dict(schema), seed=3, max_rows=10_000)
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if world_size > 1:
            group = dist.group.WORLD
            assert group is not None
            collection.shard(Exchange(group, **exchange_options, device=device))
        collection.to(device)
        optimizer = SparseOptimizer(collection.groups)
        read, waits = [], []
        for step in range(steps):
            inputs = {name: batch(step, number) for number, name in enumerate(collection.features)}
            inputs = {name: share(ids, rank, world_size, empty).to(device) for name, ids in inputs.items()}
            before = 0 if gpu is None else len(gpu.waits)
            outputs = collection(inputs)
            sums = [outputs[name].square().sum() for name in ("a", "b", "d")] + [outputs["c"].values.square().sum()]
            loss = torch.stack([value.double() for value in sums]).sum()
            (loss * world_size / ROWS).backward()
            optimizer.step()
            waits.append([] if gpu is None else gpu.waits[before:])
            read.append(outputs["a"].detach().cpu().clone())
        tables = {}
        for name, table in collection.tables.items():
            part = table.export()
            tables[name] = {"ids": part.ids, "weight": part.weight, "count": part.count, "last_step": part.last_step}
            tables[name] |= {f"slot.{slot}": value for slot, value in part.slots.items()}
            tables[name]["step"] = torch.tensor(table.step)
            tables[name]["refused"] = torch.tensor(table.stats()["refused"])
    return {"read": read, "tables": tables, "waits": waits}


def joined(ranks: list[dict[str, Any]], name: str, key: str) -> Tensor:
    """Of all ranks' shards, in the order of virtual shards: as one rank's export has them."""
    return torch.cat([rank["tables"][name][key] for rank in ranks])


def on_gpus(*case: Any) -> Any:
    return pytest.param(*case, True, marks=on_pretended_gpu)


@pytest.mark.trap(11)
@pytest.mark.parametrize(
    ("world_size", "empty", "admission", "on_gpu"),
    [
        *((*ranks, admission, False) for ranks in ((2, False), (3, True)) for admission in ("always", "counter")),
        on_gpus(2, False, "counter"),
        on_gpus(3, True, "always"),
    ],
)
def test_shared_tables_train_as_those_of_one_rank(world_size: int, empty: bool, admission: str, on_gpu: bool) -> None:
    schema = make_schema(admission=admission).to_dict()
    steps = ON_GPU if on_gpu else STEPS
    one = train(schema, {}, steps=steps)
    ranks = run_ranks(world_size, train, schema, {}, empty, on_gpu, steps)
    if on_gpu:
        sizes_read = ["aten._to_copy.default"]
        assert [rank["waits"] for rank in ranks] == [[sizes_read] * steps] * world_size, "else nobody waits for a GPU"
    for step in range(steps):
        whole = torch.cat([rank["read"][step] for rank in ranks])
        torch.testing.assert_close(whole, one["read"][step], rtol=0, atol=1e-12)
    for name, expected in one["tables"].items():
        for number, rank in enumerate(ranks):
            first, last = owned_shards(number, world_size)
            shards = virtual_shard(rank["tables"][name]["ids"])
            assert ((shards >= first) & (shards < last)).all()
            assert rank["tables"][name]["step"] == expected["step"]
        assert sum(int(rank["tables"][name]["refused"]) for rank in ranks) == expected["refused"]
        for key in ("ids", "count", "last_step"):
            assert torch.equal(joined(ranks, name, key), expected[key]), (name, key)
        for key in expected.keys() - {"ids", "count", "last_step", "step", "refused"}:
            torch.testing.assert_close(joined(ranks, name, key), expected[key], rtol=0, atol=1e-12)
    if admission == "counter":
        assert one["tables"]["t"]["refused"] > 0


def other_kinds() -> Schema:
    """As `make_schema`, with means over occurrences, narrow rows, and tables that are not trained."""
    settings = make_schema().to_dict()
    settings["tables"][0]["grad_reduce"] = "mean"
    settings["tables"][1] |= {
        "trainable": False,
        "optimizer": "adagrad",
        "admission": {"kind": "counter", "threshold": 2},
    }
    settings["tables"][2] |= {"dtype": "bfloat16", "optimizer": {"kind": "sgd", "lr": 2.0**-20}}
    return Schema.from_dict(settings)


@pytest.mark.parametrize("on_gpu", [False, on_gpus()])
def test_means_narrow_rows_and_frozen_tables_are_shared_as_well(on_gpu: bool) -> None:
    schema = other_kinds().to_dict()
    steps = ON_GPU if on_gpu else STEPS
    one, ranks = train(schema, {}, steps=steps), run_ranks(2, train, schema, {}, False, on_gpu, steps)
    for name, expected in one["tables"].items():
        for key in ("ids", "count", "last_step"):
            assert torch.equal(joined(ranks, name, key), expected[key]), (name, key)
        assert [int(rank["tables"][name]["step"]) for rank in ranks] == [int(expected["step"])] * 2
        weight = joined(ranks, name, "weight")
        assert weight.dtype == expected["weight"].dtype
        # A sum in another order may be rounded to the other side of a bfloat16.
        torch.testing.assert_close(weight, expected["weight"], rtol=2**-7 if name == "v" else 0, atol=1e-12)
    assert one["tables"]["u"]["step"] == steps


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 2.0**-8), ("fp16", 2.0**-11)])
def test_rows_that_travel_narrower_are_rounded_to_the_nearest(precision: str, bound: float) -> None:
    schema = make_schema(dtype="float32").to_dict()
    one = train(schema, {})["read"][0]
    ranks = run_ranks(2, train, schema, {"rows_as": precision, "grads_as": precision})
    rounded = torch.cat([rank["read"][0] for rank in ranks])
    assert not torch.equal(rounded, one)
    assert (rounded - one).abs().max() <= bound * 0.5
    assert torch.equal(joined(ranks, "t", "ids"), joined([train(schema, {})], "t", "ids"))


def disagree() -> tuple[list[int], str]:
    """On rank 0 a loss depends on tables t and v, on rank 1 on v alone, on pretended GPUs: what is told by step 2."""
    import_interpreted()
    with pretending():
        collection, group = EmbeddingCollection(make_schema(), seed=3, max_rows=10_000), dist.group.WORLD
        assert group is not None
        collection.shard(Exchange(group, device=GPU))
        collection.to(GPU)
        inputs = {name: batch(0, number).to(GPU) for number, name in enumerate(collection.features)}
        outputs = collection(inputs)
        names = ("a", "d") if dist.get_rank() == 0 else ("d",)
        torch.stack([outputs[name].sum() for name in names]).sum().backward()
        SparseOptimizer(collection.groups).step()
        with pytest.raises(RuntimeError) as found:
            collection(inputs)
        return [table.step for table in collection.tables.values()], str(found.value)


@on_pretended_gpu
def test_a_table_that_only_some_ranks_of_gpus_train_is_told_by_a_later_step() -> None:
    ranks = run_ranks(2, disagree)
    assert all("table 't': at step 1 a loss depended on it on some ranks" in message for _, message in ranks)
    assert [steps[2] for steps, _ in ranks] == [1, 1]


def test_ranks_own_ranges_that_cover_all_virtual_shards() -> None:
    assert owned_shards(1, 3) == (1366, 2731)
    for world_size in (1, 2, 3, 7, 1024, 4096):
        ranges = [owned_shards(rank, world_size) for rank in range(world_size)]
        assert [first for first, _ in ranges] == [0, *(last for _, last in ranges[:-1])]
        assert ranges[-1][1] == SHARDS


def test_parcels_give_each_rank_its_sections_in_one_buffer() -> None:
    parcels = Parcels([[(torch.int64, (3,)), (torch.bool, (5,))], [], [(torch.float32, (2, 3))]])
    assert parcels.splits == [48, 0, 32]
    for sections in parcels.sections:
        for section in sections:
            section.fill_(1)
    assert parcels.sections[0][0].tolist() == [1, 1, 1]
    assert parcels.sections[2][0].shape == (2, 3)


def test_codecs_do_not_widen_what_travels() -> None:
    assert codec_of("bf16").sections(4, 3, torch.bfloat16) == [(torch.bfloat16, (4, 3))]
    assert codec_of("fp16").sections(4, 3, torch.float64) == [(torch.float16, (4, 3))]
    with pytest.raises(ValueError, match="not as 'int8'"):
        codec_of("int8")  # type: ignore[arg-type]


class OneOfThree:
    rank, world_size = 1, 3


def test_of_rows_that_tables_hold_a_rank_keeps_its_own() -> None:
    schema = make_schema(admission="counter")
    whole, shared = (EmbeddingCollection(schema, seed=0, max_rows=10_000) for _ in range(2))
    ids = torch.arange(-500, 500)
    for collection in (whole, shared):
        collection.tables["t"].find_or_insert(ids)
        group = collection.tables["t"].group
        number = torch.tensor([collection.tables["t"].number])
        group.lookup(torch.arange(1000, 1300), torch.tensor([0, 300]), number, insert=True)
    shared.shard(OneOfThree())  # type: ignore[arg-type]
    assert torch.equal(shared.tables["t"].export().ids, whole.tables["t"].export(*owned_shards(1, 3)).ids)
    assert 0 < len(shared.tables["t"]) < len(ids)
    waiting = shared.tables["t"].export_admission()["ids"]
    assert torch.equal(waiting, whole.tables["t"].export_admission(*owned_shards(1, 3))["ids"])
    assert shared.tables["t"].stats()["evicted"] == 0
