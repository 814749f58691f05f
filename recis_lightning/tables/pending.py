"""Gradients on their way from backward to the optimizer. U unique rows, N rows with repetitions, D row width."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from recis_lightning.tables.buffers import BufferPool
from triton_ops.gather_pool import GradSums, PooledGrad, pool_grads


class PendingGrad(NamedTuple):
    """Gradients that wait for the optimizer's step."""

    rows: Tensor
    """int64 [U], each row once."""
    grads: Tensor | GradSums
    """[U, D]; off the CPU not summed up yet, so that an update may do so itself and nobody writes them."""
    tables: frozenset[int]
    """The tables, by their number in the group, whose lookup left them: theirs is the step, rows or no rows."""
    counts: Tensor | None = None
    """[U]: of how many occurrences each row's is the sum; once a group keeps it, the mean. 1 in tables that take sums,
    None in groups of these alone."""

    def summed(self, buffers: BufferPool) -> "PendingGrad":
        """With gradients that are a tensor."""
        if isinstance(self.grads, Tensor):
            return self
        grads_UD = buffers.take((len(self.rows), self.grads.width), self.grads.dtype)
        return self._replace(grads=pool_grads(self.grads.parts, self.grads.inverse_N, grads_UD))

    def clone(self) -> "PendingGrad":
        """A copy of what `summed` gives."""
        assert isinstance(self.grads, Tensor)
        counts = None if self.counts is None else self.counts.clone()
        return PendingGrad(self.rows.clone(), self.grads.clone(), self.tables, counts)


def sum_by_row(
    pending: Sequence[PendingGrad], unique_rows: Callable[[Tensor], tuple[Tensor, Tensor]], buffers: BufferPool
) -> PendingGrad:
    """Sum what was left for the same row: rows [7], [8, 7] with grads [[1]], [[2], [3]] -> rows [7, 8], [[4], [2]].

    Means become sums over all their occurrences, ``counts`` says how many.
    """
    pending = [part.summed(buffers) for part in pending]
    rows_U, inverse_N = unique_rows(torch.cat([part.rows for part in pending]))
    parts, begin = [], 0
    for part in pending:
        assert isinstance(part.grads, Tensor)
        end = begin + len(part.rows)
        offsets = torch.arange(begin, end + 1, device=inverse_N.device)
        parts.append(PooledGrad(part.grads[:, None], offsets[None], part.counts))
        begin = end
    grads_UD = buffers.take((len(rows_U), parts[0].grads_BKD.shape[2]), pending[0].grads.dtype)
    tables = frozenset().union(*(part.tables for part in pending))
    return PendingGrad(rows_U, pool_grads(parts, inverse_N, grads_UD), tables, _sum_counts(pending, inverse_N, rows_U))


def _sum_counts(pending: Sequence[PendingGrad], inverse_N: Tensor, rows_U: Tensor) -> Tensor | None:
    counts = [part.counts for part in pending if part.counts is not None]
    if len(counts) < len(pending):
        return None
    return add_by_row(torch.cat(counts), inverse_N, len(rows_U))


def add_by_row(values_N: Tensor, inverse_N: Tensor, unique: int) -> Tensor:
    """The sum of each unique row's values: values [1, 2, 3] with inverse [0, -1, 0] -> [4]; -1 is left out."""
    # What is left out goes behind the others: to choose instead would wait for the device.
    places_N = torch.where(inverse_N < 0, unique, inverse_N)
    return values_N.new_zeros(unique + 1).index_add_(0, places_N, values_N)[:unique]
