"""Which rows of a batch hold the same values, so that what they need is computed once.

N values, R rows, U distinct rows.
"""

import torch
from torch import Tensor

from recis_lightning.ragged import Ragged

# Odd constants with well-mixed bits, as signed int64; multiplication wraps around.
_PLACE, _VALUE, _LENGTH = -7046029254386353131, -4658895280553007687, -7723592293110705685


def distinct_rows(rows: Ragged) -> tuple[Tensor, Tensor]:
    """Find equal rows: [[5, 6], [7], [5, 6]] -> first [0, 1], inverse [0, 1, 0], both int64.

    ``first`` [U] names the first row of each content, in the order of the rows; ``inverse`` [R] the content of each
    row. Reads how many there are, so it waits for the device.
    """
    key_R = _hash_rows(rows)
    _, group_R = key_R.unique(return_inverse=True)
    row_R = torch.arange(len(rows), device=rows.device)
    first_G = torch.full_like(row_R, len(rows)).scatter_reduce_(0, group_R, row_R, "amin")
    leader_R = first_G[group_R]
    # A hash decides nothing: a row that shares its hash with another content leads itself.
    leader_R = torch.where(_rows_differ(rows, leader_R), row_R, leader_R)
    first_U, inverse_R = leader_R.unique(return_inverse=True)
    return first_U, inverse_R


def _hash_rows(rows: Ragged) -> Tensor:
    """A 64-bit hash of each row's values and their places [R]."""
    row_N = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), rows.lengths)
    place_N = torch.arange(len(rows.values), device=rows.device) - rows.offsets[:-1][row_N]
    mixed_N = _mix(_mix(rows.values * _VALUE) + place_N * _PLACE)
    return _mix((rows.lengths * _LENGTH).index_add(0, row_N, mixed_N))


def _mix(x: Tensor) -> Tensor:
    """Let every bit reach the others: xor-shift, multiply, xor-shift, on int64 that wraps around."""
    x = (x ^ (x >> 32)) * _VALUE
    return x ^ (x >> 29)


def _rows_differ(rows: Ragged, other_R: Tensor) -> Tensor:
    """Whether row r holds other values than row ``other_R[r]``: bool [R]."""
    differ_R = rows.lengths != rows.lengths[other_R]
    row_N = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), rows.lengths)
    shift_N = (rows.offsets[:-1][other_R] - rows.offsets[:-1])[row_N]
    place_N = (torch.arange(len(rows.values), device=rows.device) + shift_N).clamp(max=max(len(rows.values) - 1, 0))
    wrong_N = (rows.values != rows.values[place_N]).to(torch.int64)
    return differ_R | (torch.zeros_like(other_R).index_add(0, row_N, wrong_N) > 0)


def select_rows(rows: Ragged, chosen_U: Tensor) -> Ragged:
    """Some rows, in the order asked for: rows [2, 0] of [[5, 6], [7], []] -> [[], [5, 6]]."""
    lengths_U = rows.lengths[chosen_U]
    offsets = torch.zeros(len(chosen_U) + 1, dtype=torch.int64, device=rows.device)
    torch.cumsum(lengths_U, 0, out=offsets[1:])
    row_M = torch.repeat_interleave(torch.arange(len(chosen_U), device=rows.device), lengths_U)
    shift_U = rows.offsets[chosen_U] - offsets[:-1]
    return Ragged(rows.values[torch.arange(len(row_M), device=rows.device) + shift_U[row_M]], offsets)
