"""What the transforms of rows mean, column by column, in plain torch.

B rows, N values of a column; row b of a column is values[offsets[b] : offsets[b + 1]].
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from triton_ops.transform.reference import murmur

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


class Rows(NamedTuple):
    """Rows of values, with a weight each or without."""

    values: Tensor
    offsets: Tensor
    weights: Tensor | None = None


def rows_of(offsets: Tensor, count: int) -> Tensor:
    """The row of each value: offsets [0, 2, 2, 3] -> [0, 0, 2]."""
    rows = torch.arange(len(offsets) - 1, device=offsets.device)
    return torch.repeat_interleave(rows, offsets.diff(), output_size=count)


def to_offsets(lengths: Tensor) -> Tensor:
    """[2, 0, 1] -> [0, 2, 2, 3]."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def take_ranges(values: Tensor, starts: Tensor, offsets: Tensor) -> Tensor:
    """Row b is values[starts[b] : starts[b] + offsets[b + 1] - offsets[b]]."""
    count = int(offsets[-1])
    places = torch.arange(count, device=values.device) + (starts - offsets[:-1])[rows_of(offsets, count)]
    return values[places]


def unique(rows: Rows) -> Rows:
    """Each row's values once, in the order of their first occurrence, with the weight of that."""
    row = rows_of(rows.offsets, len(rows.values))
    order = torch.argsort(rows.values, stable=True)
    order = order[torch.argsort(row[order], stable=True)]
    sorted_values, sorted_rows = rows.values[order], row[order]
    repeats = (sorted_values[1:] == sorted_values[:-1]) & (sorted_rows[1:] == sorted_rows[:-1])
    keep = torch.ones(len(order), dtype=torch.bool, device=order.device)
    keep[order[1:][repeats]] = False
    lengths = torch.zeros(len(rows.offsets) - 1, dtype=torch.int64, device=row.device).index_add(0, row, keep.long())
    places = keep.nonzero()[:, 0]  # once for both, so that a graph knows them to be equally many
    weights = None if rows.weights is None else rows.weights[places]
    return Rows(rows.values[places], to_offsets(lengths), weights)


def cross(sides: Sequence[Rows]) -> Rows:
    """Every combination of the sides' values, hashed; sides hold each value once."""
    lengths = torch.stack([side.offsets.diff() for side in sides])
    offsets = to_offsets(lengths.prod(0))
    count = int(offsets[-1])
    row = rows_of(offsets, count)
    left = torch.arange(count, device=row.device) - offsets[:-1][row]
    words: list[Tensor] = []
    weights: list[Tensor] = []
    for side, length in zip(reversed(sides), reversed(lengths), strict=True):
        place = side.offsets[:-1][row] + left % length[row]
        left = left // length[row]
        words.insert(0, side.values[place])
        if side.weights is not None:
            weights.insert(0, side.weights[place])
    product = None
    for weight in weights:
        product = weight if product is None else product * weight
    return Rows(murmur(words), offsets, product)


def count_common(first: Rows, second: Rows) -> tuple[Tensor, Tensor]:
    """How many different values of the first's rows are in the second's, and how many there are."""
    first, second = unique(first), unique(second)
    joined = torch.cat([second.values, first.values])
    rows = torch.cat([rows_of(each.offsets, len(each.values)) for each in (second, first)])
    order = torch.argsort(joined, stable=True)
    order = order[torch.argsort(rows[order], stable=True)]
    same = (joined[order][1:] == joined[order][:-1]) & (rows[order][1:] == rows[order][:-1])
    counts = first.offsets.diff()
    return torch.zeros_like(counts).index_add(0, rows[order][1:][same], same[same].long()), counts


def find_keys(ids: Rows, keys: Rows) -> Tensor:
    """Where each id first is among the keys of its row, as a place in all keys; -1 where it is not."""
    count = len(keys.values)
    key_rows, id_rows = rows_of(keys.offsets, count), rows_of(ids.offsets, len(ids.values))
    joined, rows = torch.cat([keys.values, ids.values]), torch.cat([key_rows, id_rows])
    order = torch.argsort(joined, stable=True)
    order = order[torch.argsort(rows[order], stable=True)]  # by row, then value; keys before ids, first keys first
    values, in_row = joined[order], rows[order]
    begins = torch.ones_like(order, dtype=torch.bool)
    begins[1:] = (values[1:] != values[:-1]) | (in_row[1:] != in_row[:-1])
    group = begins.cumsum(0) - 1
    leader = order[begins][group]  # the first key of its run, or an id where there is no such key
    found = torch.empty_like(order)
    found[order] = torch.where(leader < count, leader, -1)
    return found[count:]


def time_gap(times: Rows, now: Tensor, unit: int) -> Tensor:
    """(now - time) // unit, rounded down; differences stay inside 64 bits."""
    later = now[rows_of(times.offsets, len(times.values))]
    gaps = later - times.values
    # It overflows where the signs differ and the result has not the sign of now.
    overflows = ((later ^ times.values) & (later ^ gaps)) < 0
    gaps = torch.where(overflows, torch.where(later < 0, INT64_MIN, INT64_MAX), gaps)
    return torch.div(gaps, unit, rounding_mode="floor")


def reduce(rows: Rows, how: str, empty: float) -> Tensor:
    """One number a row, float32."""
    lengths, numbers = rows.offsets.diff(), rows.values.to(torch.float32)
    if how == "count":
        found = lengths.to(torch.float32)
    elif how in ("first", "last"):
        padded = torch.cat([numbers, numbers.new_zeros(1)])
        places = rows.offsets[:-1] if how == "first" else rows.offsets[1:] - 1
        found = padded[torch.where(lengths > 0, places, len(numbers))]
    elif how in ("sum", "mean"):
        row = rows_of(rows.offsets, len(numbers))
        found = torch.zeros(len(lengths), dtype=torch.float64, device=row.device).index_add(0, row, numbers.double())
        found = (found / lengths if how == "mean" else found).to(torch.float32)
    else:
        row = rows_of(rows.offsets, len(numbers))
        start = torch.full((len(lengths),), float("inf" if how == "min" else "-inf"), device=row.device)
        found = start.scatter_reduce(0, row, numbers, "amin" if how == "min" else "amax")
    return torch.where(lengths > 0, found, torch.tensor(empty, dtype=torch.float32, device=found.device))
