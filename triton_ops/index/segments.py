"""Segments of a GPU's id index: tensors of slots, and what is to be moved between them by the next launch.

G segments. A slot is {key, row}, int64 [2]: see kernels.py.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from triton_ops.index.device_layout import EMPTY, JOB_COLUMNS
from triton_ops.index.directory import BEGIN, MASK


def send(array: np.ndarray, target: Tensor) -> None:
    """Write an array to a tensor on any device, behind what has been launched there, without waiting."""
    source = torch.from_numpy(array)
    target.copy_(source.pin_memory() if target.device.type == "cuda" else source, non_blocking=True)


def lasting(shape: tuple[int, ...], device: torch.device, fill: int = 0) -> Tensor:
    """An int64 tensor that later calls write to: not one of inference mode, which they could not."""
    with torch.inference_mode(False):
        return torch.full(shape, fill, dtype=torch.int64, device=device)


def copy(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy that lasts."""
    return lasting(tuple(tensor.shape), device).copy_(tensor)


class Segments:
    """A tensor [slots, 2] for each segment. Moves are collected, and made together by `launch`."""

    def __init__(self, device: torch.device) -> None:
        from triton_ops.index import kernels

        self._kernels = kernels
        self._device = device
        self._tensors: dict[int, Tensor] = {}  # by their address, which is a segment's BEGIN
        self._left: list[Tensor] = []  # what the moves that wait read from
        self._jobs: list[list[int]] = []

    def __str__(self) -> str:
        return f"the tensors of {self._device}"

    def __getitem__(self, place: np.ndarray) -> Tensor:
        """The slots at a place."""
        return self._tensors[int(place[BEGIN])]

    def allocate(self, size: int) -> np.ndarray | None:
        try:
            slots = lasting((size, 2), self._device, EMPTY)
        except torch.OutOfMemoryError:
            return None
        return self._add(slots)

    def _add(self, slots: Tensor) -> np.ndarray:
        self._tensors[slots.data_ptr()] = slots
        return np.array([slots.data_ptr(), len(slots) - 1], dtype=np.uint64)

    def free(self, place: np.ndarray) -> None:
        self._left.append(self._tensors.pop(int(place[BEGIN])))

    def halves(self, place: np.ndarray, bit: int, held: int) -> tuple[tuple[int, int], tuple[int, int]]:
        # Of the old size, so that all ids may go to either: to count them first would mean to wait for the GPU.
        size = int(place[MASK]) + 1
        return (size, size), (held, held)

    def move(self, old: np.ndarray, bit: int, parts: tuple[tuple[np.ndarray, int], tuple[np.ndarray, int]]) -> None:
        new = [number for place, segment in parts for number in (int(place[BEGIN]), int(place[MASK]), segment)]
        self._jobs.append([int(old[BEGIN]), int(old[MASK]) + 1, bit, *new])

    def launch(self, held: Tensor, emptied: Iterable[int] = ()) -> None:
        """Make the moves that wait, and note in ``held``, int64 [G, 2], what segments hold then: ``emptied`` none."""
        counted = sorted({*emptied, *(segment for job in self._jobs for segment in (job[5], job[8]))})
        if counted:
            numbers = torch.empty(len(counted), dtype=torch.int64, device=self._device)
            send(np.array(counted, dtype=np.int64), numbers)
            held.index_fill_(0, numbers, 0)
        if self._jobs:
            jobs = torch.empty((len(self._jobs), JOB_COLUMNS), dtype=torch.int64, device=self._device)
            send(np.array(self._jobs, dtype=np.int64), jobs)
            programs = -(-max(job[1] for job in self._jobs) // self._kernels.BLOCK)
            grid = (programs, len(self._jobs))
            self._kernels.move[grid](jobs, held, BLOCK=self._kernels.BLOCK, num_warps=self._kernels.WARPS)
        self._jobs.clear()
        self._left.clear()  # what is allocated anew is written behind this launch

    def snapshot(self) -> dict[int, Tensor]:
        """Copies of all segments by their address."""
        return {address: slots.clone() for address, slots in self._tensors.items()}

    def restore(self, snapshot: dict[int, Tensor]) -> dict[int, int]:
        """Hold copies of a snapshot's segments; where each is now, by its address there."""
        self._tensors.clear()
        self._jobs.clear()
        self._left.clear()
        return {old: int(self._add(copy(slots, self._device))[BEGIN]) for old, slots in snapshot.items()}
