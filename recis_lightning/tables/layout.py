"""What the tables of a group have in common: how their rows lie in memory, and by which arithmetic they are updated."""

from typing import NamedTuple

import torch

from recis_lightning.schema import Table
from triton_ops.gather_pool import read_dtype
from triton_ops.row_update import state_slices

FROZEN = "frozen"
"""The rule of tables that are not trained."""


class Layout(NamedTuple):
    """Tables of one layout can be looked up, and updated, by one call."""

    dim: int
    dtype: torch.dtype
    rule: str
    """The arithmetic of updates, of those of `triton_ops.row_update`; FROZEN for none."""
    state_dtype: torch.dtype

    @staticmethod
    def of(table: Table) -> "Layout":
        """That of {dim: 16, dtype: bfloat16, optimizer: adamw} is (16, torch.bfloat16, "adam", torch.float32)."""
        dtype: torch.dtype = getattr(torch, table.dtype)
        rule = table.optimizer.rule if table.trainable else FROZEN
        state_dtype = table.optimizer.state_dtype if state_slices(rule, table.dim) else None
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return Layout(table.dim, dtype, rule, wide if state_dtype is None else getattr(torch, state_dtype))

    @property
    def read_dtype(self) -> torch.dtype:
        """What lookups give, and updates are computed in: see `triton_ops.gather_pool.read_dtype`."""
        return read_dtype(self.dtype)

    @property
    def rounds(self) -> bool:
        """Whether updates are rounded to fewer digits than they are computed in."""
        narrow = (torch.bfloat16, torch.float16)
        return self.rule != FROZEN and (self.dtype in narrow or self.state_dtype in narrow)

    @property
    def state_slices(self) -> dict[str, slice]:
        """Where in a row's state each part of it lies, by name."""
        return state_slices(self.rule, self.dim)

    @property
    def state_width(self) -> int:
        return max((columns.stop for columns in self.state_slices.values()), default=0)
