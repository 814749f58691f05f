"""TableGroup: many tables, one lookup, one store of rows."""

import copy
import pickle

import pytest
import torch

from recis_lightning.schema import Adagrad, Adam, Constant, Table, Uniform
from recis_lightning.tables import TableFullError, TableGroup, build_groups
from triton_ops.row_layout import COUNT, ID, LAST_STEP

UNIFORM = Uniform(low=-1.0, high=1.0)


def make_group(*names: str, dim: int = 4, max_rows: int = 4096, seed: int = 0) -> TableGroup:
    return TableGroup([Table(name=n, dim=dim, initializer=UNIFORM) for n in names], seed=seed, max_rows=max_rows)


def test_lookup_serves_several_tables_and_runs_in_one_call() -> None:
    group = make_group("user", "item")
    ids, splits, tables = torch.tensor([5, 7, 5, 5]), torch.tensor([0, 2, 3, 4]), torch.tensor([0, 1, 0])
    rows = group.lookup(ids, splits, tables, insert=True)
    assert rows[0] == rows[3]
    assert len(set(rows.tolist())) == 3
    assert [len(table) for table in group] == [2, 1]
    assert group.granule_table[rows // 64].tolist() == [0, 0, 1, 0]
    assert group.meta[rows, ID].tolist() == [5, 7, 5, 5]
    assert group[1].find(torch.tensor([5, 7])).tolist() == [int(rows[2]), -1]


def test_unknown_ids_read_zeros_and_change_nothing_without_insert() -> None:
    group = make_group("user")
    rows = group.lookup(torch.tensor([1, 2]), torch.tensor([0, 2]), torch.tensor([0]), insert=False)
    assert rows.tolist() == [group.default_row] * 2
    assert not group.weight[rows].any()
    assert len(group[0]) == 0
    assert group.granule_table[0] == -1


def test_first_values_depend_on_seed_table_name_and_id_alone() -> None:
    first, second = make_group("other", "user"), make_group("user")
    ids = torch.arange(-50, 50)
    first[0].find_or_insert(ids)
    weights = first[1].weight(first[1].find_or_insert(ids))
    reordered = second[0].find_or_insert(ids.flip(0)).flip(0)
    assert torch.equal(weights, second[0].weight(reordered))
    assert not torch.equal(weights, first[0].weight(first[0].find(ids)))
    assert not torch.equal(weights, (other := make_group("user", seed=1))[0].weight(other[0].find_or_insert(ids)))


def test_new_rows_start_with_the_optimizers_first_state_and_an_empty_record() -> None:
    optimizer = Adagrad(initial_accumulator_value=0.25)
    group = TableGroup([Table(name="t", dim=3, initializer=Constant(value=2.0), optimizer=optimizer)], max_rows=128)
    rows = group[0].find_or_insert(torch.tensor([9]))
    group.meta[rows, COUNT] = 7
    group.state[rows] = 9.0
    group[0].erase(torch.tensor([9]))
    again = group[0].find_or_insert(torch.tensor([11]))
    assert again.tolist() == rows.tolist()
    assert group.weight[again].tolist() == [[2.0] * 3]
    assert group.state[again].tolist() == [[0.25] * 3]
    assert group.meta[again].tolist() == [[0, 0, 0, 11]]


def test_ids_of_several_tables_are_erased_in_one_call() -> None:
    group = make_group("user", "item", "shop")
    ids, splits, tables = torch.arange(60), torch.tensor([0, 20, 40, 60]), torch.tensor([0, 1, 2])
    group.lookup(ids, splits, tables, insert=True)
    erased = torch.tensor([0, 1, 99, 1, 0, 40, 41, 5, 5])
    assert group.erase(erased, torch.tensor([0, 4, 5, 7, 9]), torch.tensor([0, 1, 2, 0])) == [3, 0, 2]
    assert [len(table) for table in group] == [17, 20, 18]
    assert [table.stats()["inserted"] for table in group] == [20] * 3
    assert (group[0].find(torch.tensor([0, 1, 5])) == -1).all()
    assert (group[1].find(torch.arange(20, 40)) >= 0).all()


def test_full_group_is_an_error_that_names_the_table_and_keeps_the_ids_before() -> None:
    group = make_group("user", "item", max_rows=128)

    def look_up_too_many() -> None:
        group.lookup(torch.arange(200), torch.tensor([0, 64, 200]), torch.tensor([0, 1]), insert=True)
        group.raise_lost(wait=True)  # a device has told nobody yet

    with pytest.raises(TableFullError, match="table 'item' is full: its group of 2 tables has room for 128 rows"):
        look_up_too_many()
    assert [len(table) for table in group] == [64, 64]
    rows = group[1].find(torch.arange(64, 128))
    assert (rows >= 0).all()
    assert group.weight[rows].any(dim=1).all()
    group[1].erase(torch.tensor([64]))
    assert group[1].find_or_insert(torch.tensor([1000])) >= 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda table: pickle.loads(pickle.dumps(table))])
def test_copy_of_a_table_is_a_copy_of_its_group_that_goes_its_own_way(copied) -> None:  # type: ignore[no-untyped-def]
    group = make_group("user", "item")
    rows = group[1].find_or_insert(torch.arange(500))
    group[1].step = 3
    group.meta[rows, LAST_STEP] = 2
    twin = copied(group[1])
    assert twin.group is not group
    assert twin is twin.group[1]
    assert (twin.name, twin.step, len(twin)) == ("item", 3, 500)
    assert twin.stats() == group[1].stats()
    assert torch.equal(twin.find(torch.arange(500)), rows)
    assert torch.equal(twin.weight(rows), group[1].weight(rows))
    twin.group.weight[rows] = 0
    new = twin.find_or_insert(torch.arange(500, 1000))
    assert len(group[1]) == 500
    assert group.weight[rows].any(dim=1).all()
    assert torch.equal(new, group[1].find_or_insert(torch.arange(500, 1000)))
    assert torch.equal(twin.weight(new), group[1].weight(new))


def test_two_hundred_small_tables_take_megabytes() -> None:
    group = make_group(*(f"t{number}" for number in range(200)), dim=16, max_rows=1 << 20)
    group.lookup(torch.arange(20_000), torch.arange(201) * 100, torch.arange(200), insert=True)
    sizes = [table.stats() for table in group]
    assert sum(size["row_bytes"] + size["index_bytes"] for size in sizes) < 8 << 20
    assert [len(table) for table in group] == [100] * 200


def test_groups_hold_tables_of_one_width_dtype_and_kind() -> None:
    tables = [
        Table(name="a", dim=4),
        Table(name="b", dim=8),
        Table(name="c", dim=4, optimizer=Adagrad(lr=1.0)),
        Table(name="d", dim=4, optimizer=Adam()),
        Table(name="e", dim=4, dtype="float64"),
    ]
    groups = build_groups(tables, max_rows=64)
    assert [[table.name for table in group] for group in groups] == [["a", "c"], ["b"], ["d"], ["e"]]
    assert groups[3].weight.dtype == torch.float64
    with pytest.raises(ValueError, match="a, b are of 2 kinds"):
        TableGroup(tables[:2], max_rows=64)
