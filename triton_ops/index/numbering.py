"""Launches of the index's kernels that number ids: which of a call's ids are new, or there, and the how manieth.

N ids in a call, K runs of ids that belong to one table each, B blocks of ids, J listed ids, T tables.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from triton_ops.index.device_layout import HITS, MISSES, RUN_ROWS
from triton_ops.index.layout import NO_ROW
from triton_ops.index.segments import send


class Runs(NamedTuple):
    """Runs of ids, ordered by table, without those that are empty."""

    array: Tensor
    """`runs` in kernels.py, on the device."""
    number: int
    blocks: int
    first_blocks: np.ndarray
    """int64 [T + 1]: each table's first block of ids, and their number."""


class Numbered(NamedTuple):
    """Listed ids of a call: tables in order, the ids of one in the order of the call. See kernels.py."""

    records: Tensor
    """int64 [B * BLOCK]."""
    listed: Tensor
    """int64 [B]: how many are listed of each block."""
    ends: Tensor
    """int64 [B]."""
    positions: Tensor
    """int64 [J]: the record of each."""
    spots: Tensor
    """int64 [J]."""
    firsts: Tensor
    """int32 [N]: 1 for each listed id that is the first of its equals."""
    sums: Tensor
    """int32 [N]."""
    new_rows: Tensor
    """int64 [N] of -1."""


def make_runs(splits: np.ndarray, tables_of_runs: np.ndarray, tables: int, device: torch.device) -> Runs:
    """The runs of splits [0, 2, 2, 3] and tables [1, 0, 0], of 2, are ids 2 : 3 of table 0 and 0 : 2 of table 1."""
    block = _kernels().BLOCK
    order = np.argsort(tables_of_runs, kind="stable")
    order = order[np.diff(splits)[order] > 0]
    of_runs, count = tables_of_runs[order], len(order)
    blocks = np.zeros(count + 1, dtype=np.int64)
    np.cumsum(-(-np.diff(splits)[order] // block), out=blocks[1:])
    first_blocks = blocks[np.searchsorted(of_runs, np.arange(tables + 1))]
    array = np.zeros((RUN_ROWS, count + 1), dtype=np.int64)
    array[0] = blocks
    array[1:4, :-1] = splits[order], splits[order + 1], of_runs
    array[3, -1] = -1
    array[4, :-1] = first_blocks[of_runs]
    on_device = torch.empty(array.shape, dtype=torch.int64, device=device)
    send(array, on_device)
    return Runs(on_device, count, int(blocks[-1]), first_blocks)


def find(
    ids_N: Tensor, rows_N: Tensor, runs: Runs, tables: Tensor, missing: int, lists: int, *listed: Tensor,
    wanted_N: Tensor | None = None,
) -> None:  # fmt: skip
    """Write the row of each id; with MISSES or HITS, write the records and how many there are of each block too."""
    kernels = _kernels()
    records, counts = listed or (rows_N, rows_N)
    steps = kernels.steps_for(runs.number, kernels.RUN_STEPS)
    wanted = None if wanted_N is None else wanted_N.view(torch.uint8)
    arguments = ids_N, rows_N, runs.array, runs.number, tables, missing, lists, records, counts, wanted
    launch("find", runs.blocks, *arguments, STEPS=steps)


def room_for(ids_N: Tensor, runs: Runs) -> Numbered:
    """Memory for `number`, which is to ask for none between its launches."""
    block = _kernels().BLOCK
    size = -(-len(ids_N) // block) * block
    records, listed, ends, positions, spots = (
        ids_N.new_empty(count) for count in (runs.blocks * block, runs.blocks, runs.blocks, size, size)
    )
    firsts, sums = (torch.empty_like(ids_N, dtype=torch.int32) for _ in range(2))
    return Numbered(records, listed, ends, positions, spots, firsts, sums, torch.empty_like(ids_N))


def number(
    ids_N: Tensor,
    rows_N: Tensor,
    runs: Runs,
    tables: Tensor,
    into: Numbered,
    erase: int = 0,
    wanted_N: Tensor | None = None,
) -> None:
    """List the ids that have no row, or with ``erase`` those that do; give them slots, and count firsts of equals.

    Where ``wanted_N``, bool [N], is given, of those alone that are wanted.
    """
    kernels, count = _kernels(), len(ids_N)
    find(ids_N, rows_N, runs, tables, NO_ROW, HITS if erase else MISSES, into.records, into.listed, wanted_N=wanted_N)
    torch.cumsum(into.listed, 0, out=into.ends)
    steps = kernels.steps_for(runs.blocks, kernels.BLOCK_STEPS)
    claimed = into.records, into.ends, runs.blocks, into.positions, into.spots
    launch_for_each("claim", count, ids_N, runs.array, runs.number, tables, *claimed, ERASE=erase, STEPS=steps)
    ranked = into.ends, runs.blocks, into.spots, into.firsts, into.new_rows
    launch_for_each("rank", count, *ranked, count, ERASE=erase)
    torch.cumsum(into.firsts, 0, dtype=torch.int32, out=into.sums)


def launch_for_each(kernel: str, count: int, *arguments: Any, **constants: Any) -> None:
    """Launch a kernel for so many ids or runs."""
    launch(kernel, -(-count // _kernels().BLOCK), *arguments, **constants)


def launch(kernel: str, programs: int, *arguments: Any, **constants: Any) -> None:
    """Launch so many programs of a kernel."""
    kernels = _kernels()
    getattr(kernels, kernel)[(programs,)](*arguments, **constants, BLOCK=kernels.BLOCK, num_warps=kernels.WARPS)


def _kernels() -> Any:
    from triton_ops.index import kernels

    return kernels
