import pytest
import torch

from triton_ops.streaming import FEWEST, lay


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8])
@pytest.mark.parametrize("widths", [(1,), (16,), (3, 5), (1, 1, 1, 1), (2, 7)])
@pytest.mark.parametrize("rows", [0, 1, 63, 9001])
def test_columns_lie_side_by_side(dtype: torch.dtype, widths: tuple[int, ...], rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    columns = [torch.randint(0, 200, (rows, width), generator=generator).to(dtype) for width in widths]
    around = torch.full((rows + 2, sum(widths)), 7, dtype=dtype)
    lay(columns, around[1 : rows + 1])
    assert torch.equal(around[1 : rows + 1], torch.cat(columns, dim=1))
    assert (around[[0, -1]] == 7).all(), "and nothing around them is touched"


def test_columns_that_begin_anywhere_in_memory_are_read() -> None:
    memory = torch.randint(0, 100, (4 * FEWEST + 9,), dtype=torch.uint8)
    for first in (1, 2, 4, 8):
        column = memory[first : first + 2 * FEWEST].view(-1, 8)
        target = torch.zeros_like(column)
        lay([column], target)
        assert torch.equal(target, column)
