"""A step's calls launch as much for one feature of one table as for many, and never wait for the device."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from tests.triton_ops.launched import launches
from tests.triton_ops.test_initialize import first_value
from tests.triton_ops.test_places import in_blocks
from triton_ops.gather_pool import GradSums, PooledGrad, gather_pool, gather_rows, pool_grads
from triton_ops.group_by_row import group_by_row
from triton_ops.initialize import FirstValues, initialize
from triton_ops.row_layout import GRANULE, RECORD
from triton_ops.row_update import hyper_row, row_update

WIDTH = 4


def step(features: int, tables: int, device: torch.device) -> Counter[str]:
    """What one step on so many features and tables launches, rows and all."""
    values, bags = 300, 5
    rows = GRANULE * (1 + tables)
    arrays = (torch.ones(rows, WIDTH), torch.zeros(rows, 2 * WIDTH), torch.zeros(rows, RECORD, dtype=torch.int64))
    weight, state, meta = (in_blocks(array.to(device)) for array in arrays)
    granule_table = torch.arange(-1, tables, dtype=torch.int32).to(device)
    first = FirstValues.of([first_value("uniform", {"low": -1.0, "high": 1.0}, state=(0.0,) * 8)] * tables)
    first.on(device)  # copied once, when the tables are made
    rows_N = torch.randint(rows, (values,)).to(device)
    offsets_KB1 = torch.linspace(0, values, features * bags + 1).long()
    offsets_KB1 = offsets_KB1.as_strided((features, bags + 1), (bags, 1)).contiguous().to(device)
    sequence_M = torch.randint(rows, (9,)).to(device)
    hyper = torch.tensor([hyper_row("adam", 1, {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8})] * tables).double()
    keys, skip = torch.zeros(tables, dtype=torch.int64).to(device), torch.zeros(1, device=device)
    tick, number = torch.ones(2, 1, dtype=torch.int64, device=device)
    coefficients = torch.rand(values).to(device)
    grads = torch.ones(bags, features, WIDTH, device=device)
    hyper_TH = hyper.to(device)

    with launches() as found:
        new_rows, _ = group_by_row(rows_N, meta, granule_table, tick)
        initialize(weight, state, meta, new_rows, granule_table, first)
        gather_pool(weight, rows_N, offsets_KB1, coefficients)
        gather_rows(weight, sequence_M)
        rows_U, inverse_N = group_by_row(rows_N, meta, granule_table, tick + 1, number)
        sums = GradSums([PooledGrad(grads, offsets_KB1, coefficients)], inverse_N)
        row_update("adam", weight, state, meta, rows_U, sums, granule_table, hyper_TH, keys, skip)
        pool_grads(sums.parts, inverse_N, torch.empty(len(rows_U), WIDTH, device=device))
    return found


def test_launches_do_not_grow_with_features_and_tables(on_triton: torch.device) -> None:
    few, many = step(1, 1, on_triton), step(12, 7, on_triton)
    assert few == many
    assert few["update_rows"] == few["initialize_rows"] == 1
    assert few["pool_bags"] == 3, "forward, the sequence, and the sums that were asked for"
    assert few["mark_firsts"] == 2


@pytest.mark.parametrize(
    "look", [Tensor.item, Tensor.nonzero, bool, lambda x: torch.repeat_interleave(x, x), lambda x: x[x > 0]]
)
def test_a_look_at_numbers_is_found(look: object) -> None:
    numbers = torch.tensor([1])
    with pytest.raises(AssertionError, match="would wait for the device"), launches():
        look(numbers)  # type: ignore[operator]
