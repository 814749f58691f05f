"""How a step's ids come to rows, and the rows' gradients to where the optimizer takes them.

A lookup asks for the rows of ids with `fetch`, and gets a matrix and which of its rows each id is. What backward finds
for these rows goes back with `leave`. On one rank the matrix is the group's own store; `embedding.exchange` asks the
ranks that own the ids.

N ids of all features of a group, U rows that backward has gradients for, R rows of a matrix, D row width.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from recis_lightning.tables import PendingGrad, TableGroup


class Request(NamedTuple):
    """Ids of one group: int64 [N] in runs, run k from splits[k] to splits[k + 1] of the table tables[k]."""

    group: TableGroup
    ids: Tensor
    splits: Tensor
    tables: Tensor


class Fetched(Protocol):
    """The rows of a request."""

    weight: Tensor
    """[R, D]; over the group's reserved memory on one rank: for ops that read rows."""
    rows: Tensor
    """int64 [N]: which of them each id has."""

    def unique(self, unused: Sequence[slice], record: bool) -> tuple[Tensor, Tensor]:
        """Each row once, and where each id's row is among them, -1 for those in ``unused`` and without a row.

        ``record`` says that this is a step of training, which rows remember.
        """


class Route(Protocol):
    """A way to rows and back, and what else the ranks at its ends tell each other."""

    rank: int
    world_size: int

    def fetch(self, requests: Sequence[Request], insert: bool) -> Sequence[Fetched]:
        """The rows of all groups' ids; with ``insert`` new ids get rows, where their tables admit them."""

    def leave(self, fetched: Sequence[Any], grads: Sequence[PendingGrad | None], record: bool) -> None:
        """Hand over what backward has found for the rows that `Fetched.unique` named; None where it found nothing."""

    def sum(self, value: Tensor) -> Tensor:
        """The sum over ranks of a tensor, on each of them."""

    def take_costs(self) -> dict[str, float]:
        """What a step of training has cost on the way, on average since this was last asked; by name for a log."""


class OwnRows:
    """A request whose rows are all here."""

    def __init__(self, group: TableGroup, rows_N: Tensor) -> None:
        self.group, self.weight, self.rows = group, group.weight, rows_N

    def unique(self, unused: Sequence[slice], record: bool) -> tuple[Tensor, Tensor]:
        rows_N = self.rows
        if unused:
            rows_N = rows_N.clone()
            for values in unused:
                rows_N[values] = self.group.default_row
        return self.group.unique_rows(rows_N, record)


class OneRank:
    """The route of a single rank: ids are looked up as they are, repeated ones too."""

    rank, world_size = 0, 1

    def fetch(self, requests: Sequence[Request], insert: bool) -> list[OwnRows]:
        return [
            OwnRows(request.group, request.group.lookup(request.ids, request.splits, request.tables, insert))
            for request in requests
        ]

    def leave(self, fetched: Sequence[OwnRows], grads: Sequence[PendingGrad | None], record: bool) -> None:
        for rows, pending in zip(fetched, grads, strict=True):
            if pending is not None:
                rows.group.leave(pending)

    def sum(self, value: Tensor) -> Tensor:
        return value

    def take_costs(self) -> dict[str, float]:
        return {}
