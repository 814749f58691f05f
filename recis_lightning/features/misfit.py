"""What a transform cannot take, said where the transform runs, completed where the feature is known."""

import torch
from torch import Tensor

from recis_lightning.ragged import Ragged

Values = Tensor | Ragged


class Misfit(ValueError):
    """One value or row of one call of a step; `call` counts from 0."""

    def __init__(self, call: int, row: int, found: str, need: str) -> None:
        super().__init__(f"call {call}, row {row}: {found}, need {need}")
        self.call, self.row, self.found, self.need = call, row, found, need


def values_of(entry: Values) -> Tensor:
    return entry.values if isinstance(entry, Ragged) else entry


def with_values(entry: Values, values: Tensor) -> Values:
    """The same rows over other values of the same count."""
    return entry.with_values(values) if isinstance(entry, Ragged) else values


def as_rows(entry: Values) -> Ragged:
    """One value a row, as rows of length 1."""
    if isinstance(entry, Ragged):
        return entry
    return Ragged(entry, torch.arange(len(entry) + 1, device=entry.device))


def row_of(entry: Values, place: int) -> int:
    """The outermost row that holds a value."""
    if isinstance(entry, Ragged):
        for offsets in [*reversed(entry.inner_offsets), entry.offsets]:
            place = int(torch.searchsorted(offsets, place, right=True)) - 1
    return place
