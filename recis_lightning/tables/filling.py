"""Writing what a slice says of ids to their rows.

N ids, D row width, W width of the optimizer's state.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from triton_ops import streaming
from triton_ops.row_layout import COUNT, ID, LAST_STEP, RECORD, STAMP

if TYPE_CHECKING:
    from recis_lightning.tables.group import TableGroup
    from recis_lightning.tables.table import TableSlice

SHORTEST_RUNS = 256  # rows on average; to write shorter ones costs more than each row by its number


def fill_rows(group: "TableGroup", rows_N: Tensor, part: "TableSlice") -> None:
    """Have rows hold all that a slice says, which names their ids in the order of ``rows_N``."""
    slots, stamp_N = [part.slots[name] for name in group.state_slices], torch.zeros_like(part.ids)
    record = {STAMP: stamp_N, LAST_STEP: part.last_step, COUNT: part.count, ID: part.ids}
    columns = [record[column].view(-1, 1) for column in range(RECORD)]
    runs = _runs(rows_N) if isinstance(group.weight, Tensor) else []
    for array, parts in ((group.weight, [part.weight]), (group.state, slots), (group.meta, columns)):
        if not parts:
            continue
        if not runs:
            array[rows_N] = torch.cat(parts, dim=1)
        for row, begin, end in runs:
            streaming.lay([each[begin:end].contiguous() for each in parts], array[row : row + end - begin])


def _runs(rows_N: Tensor) -> list[tuple[int, int, int]]:
    """Rows as runs that follow each other: [5, 6, 7, 64, 65] -> (5, 0, 3), (64, 3, 5); none where they are short.

    New ids get rows in such runs, and these are copied several times as fast.
    """
    breaks = (rows_N.diff() != 1).nonzero().squeeze(1) + 1
    if len(breaks) * SHORTEST_RUNS > len(rows_N) or not len(rows_N):
        return []
    bounds = [0, *breaks.tolist(), len(rows_N)]
    return list(zip(rows_N[bounds[:-1]].tolist(), bounds[:-1], bounds[1:], strict=True))
