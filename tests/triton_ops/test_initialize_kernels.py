"""First values in Triton: the CPU's bits, for normal ones within 4 units in the last place."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.triton_ops.test_initialize import INT64, KINDS, first_value
from tests.triton_ops.test_places import in_blocks
from triton_ops.initialize import FirstValues, initialize
from triton_ops.places import Rows
from triton_ops.row_layout import GRANULE, ID, RECORD

TABLES = [first_value(kind, arguments, state=(0.5, 0.1, -3.0)) for kind, arguments in KINDS]


def run(
    implementation: str, dtype: torch.dtype, dim: int, as_blocks: bool, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, state and records after 4 rows of each table have been initialised, each table's in its own granule."""
    rows = GRANULE * (1 + len(TABLES))
    generator = torch.Generator().manual_seed(dim)
    meta = torch.full((rows, RECORD), 77)
    meta[:, ID] = torch.randint(INT64.min, INT64.max, (rows,), generator=generator)
    state_dtype = dtype if dtype in (torch.float64, torch.bfloat16) else torch.float32
    arrays = [torch.full((rows, dim), 99).to(dtype), torch.full((rows, 3), math.nan, dtype=state_dtype), meta]
    granule_table = torch.tensor([-1, *range(len(TABLES))], dtype=torch.int32)
    new_rows = torch.cat([GRANULE * (table + 1) + torch.tensor([0, 5, 6, 63]) for table in range(len(TABLES))])
    new_rows = new_rows[torch.randperm(len(new_rows), generator=generator)]
    if implementation == "triton":
        new_rows = torch.cat([new_rows, torch.tensor([-1, -1, -1])])
    there: list[Rows] = [array.to(device) for array in arrays]
    there = [in_blocks(array) for array in there if isinstance(array, Tensor)] if as_blocks else there
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_OPS", implementation)
        initialize(*there, new_rows.to(device), granule_table.to(device), FirstValues.of(TABLES))
    weight, state, records = (array[:rows].cpu() for array in there)
    return weight, state, records


@pytest.mark.parametrize("as_blocks", [False, True])
@pytest.mark.parametrize(("dtype", "dim"), [
    (torch.float32, 8), (torch.float64, 3), (torch.bfloat16, 5), (torch.float16, 1),
])  # fmt: skip
def test_rows_begin_as_on_the_cpu(dtype: torch.dtype, dim: int, as_blocks: bool, on_triton: torch.device) -> None:
    expected = run("cpu", dtype, dim, False, torch.device("cpu"))
    found = run("triton", dtype, dim, as_blocks, on_triton)
    for want, got in zip(expected[1:], found[1:], strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    weight, wanted = found[0], expected[0]
    drawn = slice(0, GRANULE * 4)  # those of constants and uniform values
    assert torch.equal(weight[drawn], wanted[drawn])
    if dtype.itemsize == 2:
        assert (weight != wanted).sum() <= 1
    else:
        spacing = torch.from_numpy(np.spacing(wanted.abs().numpy()))
        assert ((weight - wanted).abs() <= 4 * spacing).all()
    assert (weight[drawn.stop :] != 99).any(dim=1).sum() == 4 * (len(TABLES) - 3)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64])
def test_integers_begin_with_their_constant(dtype: torch.dtype, on_triton: torch.device) -> None:
    weight, state = torch.zeros(GRANULE, 2, dtype=dtype), torch.zeros(GRANULE, 0)
    meta, rows = torch.zeros(GRANULE, RECORD, dtype=torch.int64), torch.tensor([3, 5])
    arrays = [each.to(on_triton) for each in (weight, state, meta, rows, torch.zeros(1, dtype=torch.int32))]
    initialize(*arrays, FirstValues.of([first_value("constant", {"value": -7.0}, state=())]))
    assert arrays[0][rows.to(on_triton)].tolist() == [[-7, -7], [-7, -7]]
    assert int(arrays[0].ne(0).sum()) == 4
