"""partition_ids: hand-checked, and the kernels equal to the reference."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.triton_ops.conftest import ON_TRITON
from tests.triton_ops.test_index import choose
from triton_ops.index import SHARDS, virtual_shard
from triton_ops.partition import Partition, partition_ids, reference

EXTREMES = [0, -1, 1, 2**63 - 1, -(2**63), 2**63 - 2, -(2**63) + 1]


def owners_of(world: int) -> Tensor:
    return torch.arange(SHARDS) * world // SHARDS


@pytest.fixture(params=["reference", "cpu", "triton"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    choose(request.param, monkeypatch)
    return request.param


def partition(runs: list[tuple[int, list[int]]], tables: int, world: int) -> Partition:
    device = ON_TRITON if os.environ.get("TRITON_OPS") == "triton" else torch.device("cpu")
    ids_N = torch.tensor([id_ for _, ids in runs for id_ in ids], dtype=torch.int64, device=device)
    splits_K1 = torch.tensor([0, *(len(ids) for _, ids in runs)]).cumsum(0)
    tables_K = torch.tensor([table for table, _ in runs], dtype=torch.int64)
    found = Partition(
        *(part.cpu() for part in partition_ids(ids_N, splits_K1, tables_K, tables, owners_of(world).to(device), world))
    )
    unique = int(found.sizes.sum())  # by Triton there is room for as many as there are ids
    return found._replace(ids=found.ids[:unique], counts=found.counts[:unique])


def test_ids_come_once_by_owner_and_table(implementation: str) -> None:
    ids = torch.arange(100)
    first_owner = (owners_of(2)[virtual_shard(ids)] == 0).nonzero().squeeze(1)
    second_owner = (owners_of(2)[virtual_shard(ids)] == 1).nonzero().squeeze(1)
    (a, b), (c, _) = first_owner[:2].tolist(), second_owner[:2].tolist()
    found = partition([(1, [c, a, c]), (0, [a, b]), (1, [b, c])], tables=2, world=2)
    assert found.ids.tolist() == [a, b, a, b, c]
    assert found.sizes.tolist() == [[2, 2], [0, 1]]
    assert found.counts.tolist() == [1, 1, 1, 1, 3]
    assert found.inverse.tolist() == [4, 2, 4, 0, 1, 3, 4]


runs_of_ids = st.lists(
    st.tuples(st.integers(0, 3), st.lists(st.sampled_from(EXTREMES) | st.integers(-5, 40), max_size=30)), max_size=6
)


def equals_the_reference(runs: list[tuple[int, list[int]]], world: int) -> None:
    got = partition(runs, 4, world)
    ids_N = torch.tensor([id_ for _, ids in runs for id_ in ids], dtype=torch.int64)
    splits_K1 = torch.tensor([0, *(len(ids) for _, ids in runs)]).cumsum(0)
    tables_K = torch.tensor([table for table, _ in runs], dtype=torch.int64)
    expected = Partition(*reference.partition_ids(ids_N, splits_K1, tables_K, 4, owners_of(world), world))
    for name, value in expected._asdict().items():
        assert torch.equal(getattr(got, name), value), name
    assert torch.equal(got.ids[got.inverse], ids_N)
    assert int(got.counts.sum()) == len(ids_N)


@given(runs=runs_of_ids, world=st.integers(1, 5))
def test_cpu_equals_the_reference(runs: list[tuple[int, list[int]]], world: int) -> None:
    equals_the_reference(runs, world)


@settings(max_examples=15)
@given(runs=runs_of_ids, world=st.sampled_from([1, 2, 5, 40]))
def test_triton_equals_the_reference(runs: list[tuple[int, list[int]]], world: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        choose("triton", patch)
        equals_the_reference(runs, world)


def test_batch_of_several_blocks_equals_the_reference(implementation: str) -> None:
    ids = torch.randint(-50, 50, (400,), generator=torch.Generator().manual_seed(3)).tolist()
    equals_the_reference([(2, ids[:150]), (0, ids[150:151]), (2, ids[151:300]), (1, ids[300:])], 3)


def test_many_equal_ids_and_ids_of_one_slot() -> None:
    found = partition([(0, [7] * 1000), (1, list(range(0, 64_000, 64)))], tables=2, world=3)
    assert len(found.ids) == 1001
    assert int(found.counts.max()) == 1000


def test_other_dtypes_and_shapes_are_refused() -> None:
    splits, table, owners = torch.tensor([0, 1]), torch.tensor([0]), owners_of(1)
    with pytest.raises(ValueError, match="ids are torch.int32"):
        partition_ids(torch.tensor([1], dtype=torch.int32), splits, table, 1, owners, 1)
    with pytest.raises(ValueError, match="2 splits stand beside 2 tables"):
        partition_ids(torch.tensor([1]), splits, torch.tensor([0, 0]), 2, owners, 1)
