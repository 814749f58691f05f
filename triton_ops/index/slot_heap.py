"""Where the segments of an index lie: a buddy allocator over one array of slots."""

import copy
from collections import defaultdict


class SlotHeap:
    """Hands out runs of slots: power-of-two sizes, each beginning at a multiple of its size, freed ones joined again.

    Of 16 slots, allocate(4) -> 0 and allocate(8) -> 8; free(0, 4) joins slots 0..3 with 4..7, so allocate(8) -> 0.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.end = 0
        """Slots behind this one are not in use."""
        self._free: defaultdict[int, set[int]] = defaultdict(set)  # size -> where free runs of that size begin

    def allocate(self, size: int) -> int | None:
        """The first slot of a free run, or None where the array has no room."""
        fitting = min((free for free, begins in self._free.items() if begins and free >= size), default=None)
        if fitting is None:
            return self._extend(size)
        begin = self._free[fitting].pop()
        while fitting > size:
            fitting //= 2
            self._free[fitting].add(begin + fitting)
        return begin

    def _extend(self, size: int) -> int | None:
        begin = -(-self.end // size) * size
        if begin + size > self.capacity:
            return None
        skipped, self.end = self.end, begin + size
        while skipped < begin:  # what alignment skips is free
            step = skipped & -skipped
            self.free(skipped, step)
            skipped += step
        return begin

    def free(self, begin: int, size: int) -> None:
        """Give a run back."""
        while (buddy := begin ^ size) in self._free[size]:
            self._free[size].remove(buddy)
            begin = min(begin, buddy)
            size *= 2
        self._free[size].add(begin)
        while last := next((size for size, begins in self._free.items() if self.end - size in begins), 0):
            self.end -= last
            self._free[last].remove(self.end)

    def copy(self) -> "SlotHeap":
        """One that goes its own way from here."""
        return copy.deepcopy(self)
