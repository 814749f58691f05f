"""Transforms that look at whole rows, several columns in one call, each column read where it lies.

B rows, N values of a column, K columns, S sides of all crosses.
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triton_ops.columns import addresses, allocate
from triton_ops.dispatch import choose
from triton_ops.row_transform import reference
from triton_ops.row_transform.reference import Rows, to_offsets


class RowError(ValueError):
    """What a row holds, that a transform cannot take."""

    def __init__(self, column: int, row: int, found: str) -> None:
        super().__init__(f"column {column}, row {row}: {found}")
        self.column, self.row, self.found = column, row, found


def take_ranges(
    inputs: Sequence[Tensor],  # K times int64 or float32 [N]
    starts: Sequence[Tensor],  # K times int64 [B]
    lengths: Sequence[Tensor],  # K times int64 [B]
) -> list[Rows]:
    """A piece of every row: values [7, 8, 9], starts [0, 2], lengths [1, 1] -> values [7, 9], offsets [0, 1, 2].

    The pieces must lie inside the values. Columns of one table of lengths share their offsets.
    """
    offsets: list[Tensor] = []
    for k, each in enumerate(lengths):
        same = next((at for at in range(k) if lengths[at] is each), None)
        offsets.append(to_offsets(each) if same is None else offsets[same])
    if _is_reference(inputs):
        pieces = [reference.take_ranges(*each) for each in zip(inputs, starts, offsets, strict=True)]
        return [Rows(values, each) for values, each in zip(pieces, offsets, strict=True)]
    from triton_ops.row_transform import cpu

    inputs, starts = _contiguous(inputs), _contiguous(starts)
    outputs = [torch.empty(int(each[-1]), dtype=values.dtype) for values, each in zip(inputs, offsets, strict=True)]
    table_K2 = np.stack([addresses(inputs), addresses(outputs)], 1)
    wide_K = np.array([values.element_size() == 8 for values in inputs])
    cpu.take_ranges(table_K2, addresses(starts), addresses(offsets), wide_K, len(lengths[0]))
    return [Rows(values, each) for values, each in zip(outputs, offsets, strict=True)]


def cross(
    crosses: Sequence[Sequence[Rows]],  # of each cross its sides: int64 ids with float32 weights or without
    max_ids: Sequence[int],  # of each cross
) -> list[Rows]:
    """Every combination of a row's ids, hashed: sides [[1001]] and [[1]] -> [[-7808879811642834040]].

    The MurmurHash64A (seed 0) of the sides' ids, 8 bytes each. An id that a side's row repeats counts once, with its
    first weight; weights are multiplied, sides without count 1. The last side runs fastest. Raises RowError where a row
    gives more than ``max_ids``, naming the cross and the row.
    """
    sides = [side for each in crosses for side in each]
    splits = np.array([*accumulate(map(len, crosses), initial=0)])
    if _is_reference([side.values for side in sides]):
        return _cross_by_reference(crosses, max_ids)
    from triton_ops.row_transform import cpu

    sides = [_contiguous_rows(side) for side in sides]
    rows = sides[0].offsets.shape[0] - 1
    values = allocate([side.values.shape[0] for side in sides], torch.int64, torch.device("cpu"))
    weights = [None if side.weights is None else torch.empty_like(side.weights) for side in sides]
    kept = [(each.data_ptr(), _address(weight)) for each, weight in zip(values, weights, strict=True)]
    sides_S5 = np.array([(*_addresses_of(side), *each) for side, each in zip(sides, kept, strict=True)], np.int64)
    lengths_SB, offsets_CB1 = np.empty((len(sides), rows), np.int64), np.empty((len(crosses), rows + 1), np.int64)
    k, row = cpu.unique(sides_S5, splits, np.array(max_ids, np.int64), lengths_SB, offsets_CB1)
    if k >= 0:
        raise _too_many(k, row, lengths_SB[splits[k] : splits[k + 1], row])
    results = []
    for offsets_B1, each in zip(offsets_CB1, crosses, strict=True):
        count, is_weighted = int(offsets_B1[-1]), any(side.weights is not None for side in each)
        ids = torch.empty(count, dtype=torch.int64)
        results.append(Rows(ids, torch.from_numpy(offsets_B1), torch.empty(count) if is_weighted else None))
    cpu.cross(sides_S5, lengths_SB, splits, np.array([_addresses_of(each) for each in results], np.int64))
    return results


def _cross_by_reference(crosses: Sequence[Sequence[Rows]], max_ids: Sequence[int]) -> list[Rows]:
    once = [[reference.unique(side) for side in each] for each in crosses]
    if not torch.compiler.is_compiling():
        for k, each in enumerate(once):
            lengths_SB = torch.stack([side.offsets.diff() for side in each])
            is_large_B = lengths_SB.double().prod(0) > max_ids[k]  # float64 saturates where integers would wrap
            if bool(is_large_B.any()):
                row = int(is_large_B.nonzero()[0])
                raise _too_many(k, row, lengths_SB[:, row].cpu().numpy())
    return [reference.cross(each) for each in once]


def _too_many(k: int, row: int, lengths_S: NDArray[np.int64]) -> RowError:
    return RowError(k, row, f"gives {' x '.join(map(str, lengths_S.tolist()))} combinations")


def count_common(pairs: Sequence[tuple[Rows, Rows]]) -> list[tuple[Tensor, Tensor]]:
    """How many different ids of the first's rows are in the second's, and how many different ids the first's rows have.

    [[1, 2, 2]] and [[2, 3]] -> ([1], [2]), int64 [B] each.
    """
    if _is_reference([first.values for first, _ in pairs]):
        return [reference.count_common(*pair) for pair in pairs]
    from triton_ops.row_transform import cpu

    parts = [_contiguous([*first[:2], *second[:2]]) for first, second in pairs]
    counts = torch.empty(2, len(pairs), len(parts[0][1]) - 1, dtype=torch.int64)
    cpu.count_common(np.stack([addresses(each) for each in parts]), counts[0].numpy(), counts[1].numpy())
    return list(zip(counts[0].unbind(0), counts[1].unbind(0), strict=True))


def find_keys(pairs: Sequence[tuple[Rows, Rows]]) -> list[Tensor]:
    """Where ids are among their row's keys: ids [[9], [9]], keys [[7, 9], [8]] -> [1, -1], int64 [N].

    A place counts from the first key of all rows; of equal keys the first is found; -1 is none.
    """
    if _is_reference([ids.values for ids, _ in pairs]):
        return [reference.find_keys(*pair) for pair in pairs]
    from triton_ops.row_transform import cpu

    parts = [_contiguous([*ids[:2], *keys[:2]]) for ids, keys in pairs]
    places = allocate([len(ids.values) for ids, _ in pairs], torch.int64, torch.device("cpu"))
    table_K5 = np.stack([addresses([*each, out]) for each, out in zip(parts, places, strict=True)])
    cpu.find_keys(table_K5, len(parts[0][1]) - 1)
    return places


def time_gap(
    columns: Sequence[tuple[Rows, Tensor]],  # times, and now int64 [B]
    units: Sequence[int],  # at least 1
) -> list[Tensor]:
    """How long before now: times [[0, 90]], now [100], unit 60 -> [1, 0]; rounded down, negative for what lies ahead.

    int64 [N]; differences that pass 64 bits stay at their ends.
    """
    if _is_reference([times.values for times, _ in columns]):
        return [reference.time_gap(*each, unit) for each, unit in zip(columns, units, strict=True)]
    from triton_ops.row_transform import cpu

    parts = [_contiguous([*times[:2], now]) for times, now in columns]
    gaps = allocate([len(times.values) for times, _ in columns], torch.int64, torch.device("cpu"))
    table_K4 = np.stack([addresses([*each, out]) for each, out in zip(parts, gaps, strict=True)])
    cpu.time_gap(table_K4, np.array(units, np.int64), len(parts[0][2]))
    return gaps


def reduce(columns: Sequence[Rows], hows: Sequence[str], empties: Sequence[float]) -> list[Tensor]:
    """One number a row: [[1, 4], []] by mean, empty 0 -> [2.5, 0], float32 [B]; sums are kept in float64.

    By sum, mean, min, max, count, first or last.
    """
    columns = [Rows(each.values.to(torch.float32), each.offsets) for each in columns]
    if _is_reference([each.values for each in columns]):
        return [reference.reduce(*each) for each in zip(columns, hows, empties, strict=True)]
    from triton_ops.row_transform import cpu

    parts = [_contiguous(each[:2]) for each in columns]
    rows = len(parts[0][1]) - 1
    results = allocate([rows] * len(parts), torch.float32, torch.device("cpu"))
    table_K3 = np.stack([addresses([*each, out]) for each, out in zip(parts, results, strict=True)])
    hows_K = np.array([cpu.HOWS.index(how) for how in hows], np.int64)
    cpu.reduce(table_K3, hows_K, np.array(empties, np.float32), rows)
    return results


# ------------------------------------------------------------------------------------------------------------ inside


def _is_reference(tensors: Sequence[Tensor]) -> bool:
    """Whether plain torch runs: on every device but the CPU, whose rows want no sorting."""
    if torch.compiler.is_compiling() or not tensors or tensors[0].device.type != "cpu":
        return True
    return choose("row_transform", tensors[0].device) == "reference"


def _contiguous(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors if tensor is not None]


def _contiguous_rows(rows: Rows) -> Rows:
    weights = None if rows.weights is None else rows.weights.contiguous()
    return Rows(rows.values.contiguous(), rows.offsets.contiguous(), weights)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _addresses_of(rows: Rows) -> tuple[int, int, int]:
    return rows.values.data_ptr(), rows.offsets.data_ptr(), _address(rows.weights)
