"""Four processes claim slots of one index at once, by the interpreted kernel: `python -m tests.triton_ops.index_race`.

The interpreter runs the programs of one launch one after another, so only several processes can race. Its atomics are
the processor's own. Prints how many trials of each kind went wrong: with the kernel as it is, with two in five of its
reads stale, and with its compare-and-swap made a read and a write. Arguments: kinds and how many trials of each, as in
`right 100 stale 20 two_steps 10`.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
from torch import Tensor
from triton.runtime import interpreter

from triton_ops.index import kernels
from triton_ops.index.device_layout import EMPTY, PLACES, SHIFT, TABLE_COLUMNS

PROCESSES = 4
SLOTS, IDS = 16, 12
STALE = 0.4


@contextmanager
def stale_reads(begin: int, before: np.ndarray, seed: int) -> Iterator[None]:
    """Let two in five of the words that kernels read behind an address be what they were ``before``, int64 [S]."""
    random, load = np.random.default_rng(seed), interpreter.InterpreterBuilder.create_masked_load

    def read(self: Any, pointers: Any, *arguments: Any) -> Any:
        found = load(self, pointers, *arguments)
        places = (pointers.data.astype(np.int64) - begin) // 8
        is_old = (places >= 0) & (places < len(before)) & (random.random(places.shape) < STALE)
        found.data[is_old] = before[places[is_old]]
        return found

    interpreter.InterpreterBuilder.create_masked_load = read
    try:
        yield
    finally:
        interpreter.InterpreterBuilder.create_masked_load = load


@contextmanager
def swaps_in_two_steps() -> Iterator[None]:
    """Make a compare-and-swap a read, and then a write."""
    swap = interpreter.InterpreterBuilder.create_atomic_cas

    def read_then_write(self: Any, pointer: Any, compared: Any, value: Any, semantics: Any, scope: Any) -> Any:
        everywhere = np.ones_like(pointer.data, dtype=bool)
        native = interpreter._interpreter
        old = native.load(pointer.data, everywhere, np.zeros_like(compared.data), np.dtype(np.int64))
        time.sleep(0.001)
        native.store(pointer.data, np.where(old == compared.data, value.data, old), everywhere)
        return interpreter.TensorHandle(old, compared.dtype.scalar)

    interpreter.InterpreterBuilder.create_atomic_cas = read_then_write
    try:
        yield
    finally:
        interpreter.InterpreterBuilder.create_atomic_cas = swap


def claim(ids: Tensor, slots: Tensor, spots: Tensor) -> None:
    """Claim a slot for each id, in a table of one segment; ``spots`` get their addresses."""
    places = torch.tensor([[slots.data_ptr(), len(slots) - 1, 0, 0]] * 2)
    tables = torch.zeros((1, TABLE_COLUMNS), dtype=torch.int64)
    tables[0, PLACES], tables[0, SHIFT] = places.data_ptr(), 63
    runs = torch.tensor([[0, 1], [0, 0], [len(ids), 0], [0, -1], [0, 0]])
    records, ends = torch.arange(kernels.BLOCK), torch.tensor([len(ids)])
    positions, found = torch.empty_like(records), torch.empty_like(records)
    arguments = ids, runs, 1, tables, records, ends, 1, positions, found
    kernels.claim[(1,)](*arguments, ERASE=0, STEPS=0, BLOCK=kernels.BLOCK)
    spots.copy_(found[: len(ids)])


def _work(number: int, mode: str, trials: int, ids: Tensor, slots: Tensor, spots: Tensor, barrier: Any) -> None:
    torch.set_num_threads(1)
    before = np.full(slots.numel(), EMPTY)
    for trial in range(trials):
        order = torch.randperm(IDS, generator=torch.Generator().manual_seed(trial * PROCESSES + number))
        barrier.wait()
        if mode == "stale":
            with stale_reads(slots.data_ptr(), before, seed=trial * PROCESSES + number):
                claim(ids[order], slots, spots[number])
        elif mode == "two_steps":
            with swaps_in_two_steps():
                claim(ids[order], slots, spots[number])
        else:
            claim(ids[order], slots, spots[number])
        spots[number] = spots[number][order.argsort()]
        barrier.wait()


def _is_right(ids: Tensor, slots: Tensor, spots: Tensor) -> bool:
    """Whether each id has one slot, and all processes found it there."""
    held = slots[:, 0][slots[:, 0] != EMPTY]
    places = (spots - slots.data_ptr()) // 16
    is_found = (places >= 0) & (places < SLOTS)
    return (
        bool(is_found.all())
        and torch.equal(held.sort().values, ids.sort().values)
        and torch.equal(slots[places, 0], ids.expand(PROCESSES, -1))
    )


def count_wrong(mode: str, trials: int) -> int:
    """How many trials end with an id that has no slot, or two, or not the one that a process was told."""
    ids = torch.arange(IDS) * 7919 - 5
    slots = torch.full((SLOTS, 2), EMPTY, dtype=torch.int64).share_memory_()
    spots = torch.zeros((PROCESSES, IDS), dtype=torch.int64).share_memory_()
    context = get_context("fork")  # so that the slots have one address in all
    barrier = context.Barrier(PROCESSES + 1, timeout=120)
    shared = mode, trials, ids, slots, spots, barrier
    processes = [context.Process(target=_work, args=(number, *shared), daemon=True) for number in range(PROCESSES)]
    for process in processes:
        process.start()
    wrong = 0
    for _ in range(trials):
        slots.fill_(EMPTY)
        spots.zero_()
        barrier.wait()
        barrier.wait()
        wrong += not _is_right(ids, slots, spots)
    for process in processes:
        process.join()
    return wrong


if __name__ == "__main__":
    torch.set_num_threads(1)
    for mode, trials in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        print(mode, count_wrong(mode, int(trials)), flush=True)
