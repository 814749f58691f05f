"""Which segment of slots holds which ids of a table, and how segments grow: what the CPU and a GPU have in common.

T tables, G segments, E directory entries.

The top bits of a mixed id pick an entry of its table's directory, and so a segment. A table starts with one segment of
64 slots. A segment doubles until it has 2^18 slots; from there it splits in two by the next top bit of the mixed id,
and the table's directory doubles where that bit is new to it. Past 12 bits, the virtual shards, segments double again.
So none of these steps moves more than 2^17 ids (a few milliseconds on a CPU) below half a billion ids a table, and a
segment never spans shards that another one has a part of. Since ids fill all segments of a table alike, large ones
would all split within one batch: each has a limit of its own, between three eighths and a half, which spreads their
splits over many batches.
"""

import copy
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from triton_ops.index.layout import SHARDS

FIRST_SEGMENT = 64  # slots: 1 KB
LARGEST_SEGMENT = 1 << 18  # slots: 4 MB
FILLED_SEGMENT = 1 << 16  # slots, of tables that are filled at once: 1 MB, which stays in the second cache meanwhile
DEEPEST = SHARDS.bit_length() - 1

DIRECTORY, SHIFT, COUNT = 0, 1, 2  # a table's first directory entry, 63 - the bits its directory is picked by, its ids
BEGIN, MASK = 0, 1  # where a segment begins, as its memory says; its slots - 1
HELD, LIMIT = 0, 1


class Memory(Protocol):
    """Where segments lie: slots in an array, or tensors of a GPU; str() of it names it in the plural."""

    def allocate(self, size: int) -> np.ndarray | None:
        """BEGIN and MASK, uint64 [2], of a run of empty slots; None where there is no memory."""

    def free(self, place: np.ndarray) -> None:
        """Give a run back."""

    def halves(self, place: np.ndarray, bit: int, held: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Slots for the ids of a run with this bit of the mixed id clear and set, and how many they are at most."""

    def move(self, old: np.ndarray, bit: int, parts: tuple[tuple[np.ndarray, int], tuple[np.ndarray, int]]) -> None:
        """Copy ids to the second part's place where this bit of the mixed id is set, else to the first's.

        A part is a place and its segment's number; the two may be one.
        """


class Directory:
    """The directories of several tables over one memory."""

    def __init__(self, tables: int, memory: Memory) -> None:
        self._memory = memory
        self.tables = np.zeros((tables, 3), dtype=np.int64)
        """int64 [T, 3]: DIRECTORY, SHIFT and COUNT of each table."""
        self.tables[:, DIRECTORY] = np.arange(tables)
        self.places = np.zeros((tables, 2), dtype=np.uint64)
        """uint64 [E, 2]: BEGIN and MASK of the entry's segment, repeated so that a probe reads one line."""
        self.segments = np.zeros(tables, dtype=np.int32)
        """int32 [E]: the number of the entry's segment."""
        self.used = np.zeros((tables, 2), dtype=np.int64)
        """int64 [G, 2]: how many ids a segment holds, and how many it may hold before it grows."""
        self._free_segments = list(range(tables - 1, -1, -1))
        self._awaited: dict[int, int] = {}
        """To how many slots a segment is to grow at first, by its number; others double."""
        for table in range(tables):
            if not self.start(table):
                raise MemoryError(f"{memory} have no room for a first segment of each of {tables} tables")

    def start(self, table: int) -> bool:
        """Give a table its first, empty segment; False where there is no memory."""
        self.tables[table, SHIFT] = 63
        self.tables[table, COUNT] = 0
        place = self._memory.allocate(FIRST_SEGMENT)
        if place is None:
            return False
        entry = self.entries(table)
        self.places[entry] = place
        self.segments[entry] = self.new_segment(FIRST_SEGMENT)
        return True

    def clear(self, table: int) -> None:
        """Forget all segments of a table but an empty first one."""
        self._drop(table)
        if not self.start(table):
            raise MemoryError(f"{self._memory} have no room for a first segment of table {table}")

    def _drop(self, table: int) -> None:
        """Give a table's segments back."""
        for place in self.places_of(table):
            self._memory.free(place)
        self._free_segments += np.unique(self.segments[self.entries(table)]).tolist()

    def reserve(self, table: int, ids: int, first_shard: int, last_shard: int) -> None:
        """Let the segments of an empty table be those that it would split into, each of which grows once, to its size.

        That is when the first ids come to it. They mostly come segment by segment, to slots that were just cleared, and
        the caches hold them.
        """
        depth, each, fullest = 0, ids, FILLED_SEGMENT * 3 // 8
        while depth < DEEPEST and each > fullest:
            depth += 1
            each = min(ids, -(-ids * (SHARDS >> depth) // (last_shard - first_shard)))
        room = 2 * each if depth == 0 else max(FILLED_SEGMENT, -(-each * FILLED_SEGMENT // fullest))
        size = max(FIRST_SEGMENT, 1 << (room - 1).bit_length())
        places: list[np.ndarray] = []
        for _ in range(1 << depth):
            if (place := self._memory.allocate(FIRST_SEGMENT)) is None:
                for place in places:
                    self._memory.free(place)
                return
            places.append(place)
        self._drop(table)
        self.tables[table, DIRECTORY] = len(self.segments)
        self.tables[table, SHIFT] = 63 - depth
        segments = [self.new_segment(FIRST_SEGMENT) for _ in places]
        self._awaited |= dict.fromkeys(segments, size)
        self.places = np.concatenate([self.places, places])
        self.segments = np.concatenate([self.segments, np.array(segments, dtype=np.int32)])

    def entries(self, table: int) -> slice:
        """The table's part of the directory."""
        begin = int(self.tables[table, DIRECTORY])
        return slice(begin, begin + (1 << self.depth(table)))

    def depth(self, table: int) -> int:
        """The number of top bits that pick an entry of the table's directory."""
        return 63 - int(self.tables[table, SHIFT])

    def places_of(self, table: int, first_shard: int = 0, last_shard: int = SHARDS) -> np.ndarray:
        """Where the segments lie that may hold ids of a range of virtual shards."""
        shards_per_entry = SHARDS >> self.depth(table)
        chosen = slice(first_shard // shards_per_entry, -(-last_shard // shards_per_entry))
        return np.unique(self.places[self.entries(table)][chosen], axis=0)

    # ------------------------------------------------------------------------------------------------------- growth

    def grow(self, table: int, segment: int, size: int | None = None) -> bool:
        """Make room in a segment, by doubling it or to this many slots, or by splitting; False without memory."""
        mine = self.entries(table).start + np.flatnonzero(self.segments[self.entries(table)] == segment)
        shared = self.depth(table) - (len(mine).bit_length() - 1)  # top bits that its ids share
        if self._rebuild(mine, self._awaited.pop(segment, 0)):
            return True
        size = size or 2 * (int(self.places[mine[0], MASK]) + 1)
        if size <= LARGEST_SEGMENT or shared == DEEPEST:
            return self._rebuild(mine, size)
        if len(mine) == 1:
            mine = self._double_directory(table, mine[0])
        return self._split(mine, bit=63 - shared)

    def _rebuild(self, mine: np.ndarray, size: int) -> bool:
        """Move the segment of these entries into one of this size; False where it has it, or there is no memory."""
        if size <= self.places[mine[0], MASK]:
            return False
        old, segment = self.places[mine[0]].copy(), int(self.segments[mine[0]])
        place = self._memory.allocate(size)
        if place is None:
            return False
        self._memory.move(old, 0, ((place, segment), (place, segment)))
        self.places[mine] = place
        self.set_limit(segment, size)
        self._memory.free(old)
        return True

    def _split(self, mine: np.ndarray, bit: int) -> bool:
        """Give the upper half of these entries a segment of their own, with the ids whose mixed id has this bit set."""
        old, segment, half = self.places[mine[0]].copy(), int(self.segments[mine[0]]), len(mine) // 2
        sizes, counts = self._memory.halves(old, bit, int(self.used[segment, HELD]))
        low, high = self._memory.allocate(sizes[0]), self._memory.allocate(sizes[1])
        if low is None or high is None:
            for place in (low, high):
                if place is not None:
                    self._memory.free(place)
            return False
        new_segment = self.new_segment(sizes[1])
        self._memory.move(old, bit, ((low, segment), (high, new_segment)))
        self.places[mine[:half]], self.places[mine[half:]] = low, high
        self.segments[mine[half:]] = new_segment
        self.set_limit(segment, sizes[0])
        self.used[segment, HELD], self.used[new_segment, HELD] = counts
        self._memory.free(old)
        return True

    def new_segment(self, size: int) -> int:
        """The number of a new segment, with so many slots and no ids."""
        if not self._free_segments:
            count = len(self.used)
            self.used = np.concatenate([self.used, np.zeros_like(self.used)])
            self._free_segments = list(range(2 * count - 1, count - 1, -1))
        segment = self._free_segments.pop()
        self.used[segment, HELD] = 0
        self.set_limit(segment, size)
        self._awaited.pop(segment, None)
        return segment

    def free_segment(self, segment: int) -> None:
        """Let a segment's number serve again."""
        self._free_segments.append(segment)

    def set_limit(self, segment: int, size: int) -> None:
        """Say how many ids a segment of so many slots may hold before it grows."""
        spread = size // 8 if size >= LARGEST_SEGMENT else 0
        # Multiples of the golden ratio lie evenly between whole numbers, however many there are.
        self.used[segment, LIMIT] = size // 2 - int(spread * (0.6180339887498949 * int(segment) % 1))

    def _double_directory(self, table: int, entry: int) -> np.ndarray:
        """Give a table a directory of one bit more, behind all others, and say which two entries were ``entry``.

        Its old entries are left unused: all of them together are fewer than those it has.
        """
        old = self.entries(table)
        self.tables[table, DIRECTORY] = len(self.segments)
        self.tables[table, SHIFT] -= 1
        self.segments = np.concatenate([self.segments, np.repeat(self.segments[old], 2)])
        self.places = np.concatenate([self.places, np.repeat(self.places[old], 2, axis=0)])
        first = self.tables[table, DIRECTORY] + 2 * (entry - old.start)
        return np.array([first, first + 1])

    # ------------------------------------------------------------------------------------------------------ copying

    def snapshot(self) -> dict[str, Any]:
        """Everything but the memory, as copies."""
        return copy.deepcopy({name: value for name, value in vars(self).items() if name != "_memory"})

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Become what a snapshot holds, over this memory."""
        vars(self).update(copy.deepcopy(snapshot))

    def relocate(self, now: Mapping[int, int]) -> None:
        """Look for segments where they are now, by where they began."""
        for place in self.places:
            place[BEGIN] = now.get(int(place[BEGIN]), 0)  # entries left behind by a directory that doubled name none


def slots_for(ids: int) -> int:
    """About how many slots an index of so many ids has: 100 -> 256, 98_304 -> 262_144, 1_000_000 -> 3_000_000 or so.

    From a quarter full, right behind growth, to three eighths where the first of the large segments split; small ones
    to a half.
    """
    if ids <= LARGEST_SEGMENT * 3 // 8:
        return max(FIRST_SEGMENT, 1 << (2 * ids - 1).bit_length()) if ids else FIRST_SEGMENT
    slots = LARGEST_SEGMENT
    while 2 * ids > slots:
        slots *= 2
    split = min(max((ids / slots - 3 / 8) * 8, 0.0), 1.0)  # limits lie evenly between three eighths and a half
    return round(slots * (1 + split))
