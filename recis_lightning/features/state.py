"""What columns and features are on their way through the plan, and what a transform can't take of them."""

import torch
from torch import Tensor

from recis_lightning.features.plan import Source
from recis_lightning.ragged import Ragged

Values = Tensor | Ragged


class Misfit(ValueError):
    """A row of one call of a step, or with ``place`` one of its values; all count from 0.

    Said where the transform runs, completed where the feature is known.
    """

    def __init__(self, call: int, found: str, need: str, *, row: int = -1, place: int | None = None) -> None:
        super().__init__(f"call {call}, {f'row {row}' if place is None else f'value {place}'}: {found}, need {need}")
        self.call, self.found, self.need, self.row, self.place = call, found, need, row, place


def values_of(entry: Values) -> Tensor:
    return entry.values if isinstance(entry, Ragged) else entry


def as_rows(entry: Values) -> Ragged:
    """One value a row, as rows of length 1."""
    if isinstance(entry, Ragged):
        return entry
    return Ragged(entry, torch.arange(len(entry) + 1, device=entry.device))


def row_of(rows: Ragged | None, place: int) -> int:
    """The outermost row that holds a value; of no rows each holds one."""
    if rows is not None:
        for offsets in [*reversed(rows.inner_offsets), rows.offsets]:
            place = int(torch.searchsorted(offsets, place, right=True)) - 1
    return place


class State:
    """What columns and features are so far: their values, and apart from them the rows that these lie in.

    Apart, since most transforms change values and leave rows: 26 columns through hash and modulo are 26 Ragged in the
    end, not 78. ``rows`` are Ragged over older values of the same count, or None where each row has one value.

    A graph can't stop at a value that has no result: ``misfits`` then holds, for each look a transform takes at its
    values, the first row it refuses, or the number of rows where it refuses none.
    """

    def __init__(self) -> None:
        self.values: dict[Source, Tensor] = {}
        self.rows: dict[Source, Ragged | None] = {}
        self.misfits: list[Tensor] = []

    def put(self, source: Source, entry: Values) -> None:
        if isinstance(entry, Ragged):
            self.values[source], self.rows[source] = entry.values, entry
        else:
            self.values[source], self.rows[source] = entry, None

    def get(self, source: Source) -> Values:
        values, rows = self.values[source], self.rows[source]
        if rows is None:
            return values
        if rows.values is values:
            return rows
        return Ragged.of_parts(values, rows.offsets, rows.weights, rows.inner_offsets)

    def note(self, unfit: Tensor, rows: Ragged | None = None) -> None:
        """Keep the first row of a graph's values, or without ``rows`` of its rows, that are unfit (bool)."""
        place = (~unfit).long().cumprod(0).sum()  # how many fit before the first that does not
        if rows is not None:
            for offsets in [*reversed(rows.inner_offsets), rows.offsets]:
                place = torch.searchsorted(offsets, place, right=True) - 1
        self.misfits.append(place)
