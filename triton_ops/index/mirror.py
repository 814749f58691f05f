"""The directories of a GPU's id index: kept on the host, mirrored on the device, grown by what the host knows.

T tables, G segments, E directory entries of a table.

What the host knows of how full segments are is old (see device.py), so all here are bounds: what segments held when
they were last counted, and the most that can have come since.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from triton_ops.index import directory
from triton_ops.index.device_layout import SPECIALS
from triton_ops.index.directory import BEGIN, HELD, LIMIT, MASK, Directory
from triton_ops.index.layout import SHARDS
from triton_ops.index.segments import Segments, copy, lasting, send

SIDE_SEGMENT = 16  # slots for them, four times as many: erased ones serve again when a segment is rebuilt
GROWN_AT_ONCE = 16  # segments past their limit: up to 64 MB to be moved between two steps


class Mirror:
    """Directories of tables, and of each the segment for ids that are no keys, on the host and on the device."""

    def __init__(self, tables: int, device: torch.device) -> None:
        self._device = device
        self._segments = Segments(device)
        self._directory = Directory(tables, self._segments)
        self._side_places = np.zeros((tables, 2), dtype=np.uint64)
        self._side_segments = np.zeros(tables, dtype=np.int32)
        self._places: dict[int, Tensor] = {}
        """Of each table int64 [E + 1, 4], as kernels.py says."""
        self.held = lasting((0, 2), device)
        """int64 [G, 2] on the device: slots of a segment that are not empty, and how many of them are erased."""
        self._erased_G = np.zeros(0, dtype=np.int64)
        self._behind: set[int] = set()
        """Tables whose places the device does not know yet."""
        self._emptied: set[int] = set()
        """Segments of which it does not know that they hold nothing."""
        for table in range(tables):
            self._start_side(table)
        self._apply(range(tables))

    def _start_side(self, table: int) -> None:
        place = self._segments.allocate(SIDE_SEGMENT)
        if place is None:
            raise MemoryError(f"{self._segments} have no room for the slots of table {table}")
        self._side_places[table] = place
        self._side_segments[table] = self._directory.new_segment(SIDE_SEGMENT)

    # ----------------------------------------------------------------------------------------------------- on the host

    def learn(self, held: Tensor) -> None:
        """Take note of `held` as it was some time ago."""
        self._directory.used[: len(held), HELD] = held[:, 0].numpy()
        self._erased_G[: len(held)] = held[:, 1].numpy()

    def slots(self, table: int, first_shard: int = 0, last_shard: int = SHARDS) -> Iterator[tuple[Tensor, bool]]:
        """The slots, [S, 2], that may hold ids of some virtual shards; whether they are for ids that are no keys."""
        for place in self._directory.places_of(table, first_shard, last_shard):
            yield self._segments[place], False
        yield self._segments[self._side_places[table]], True

    def describe(self, table: int) -> tuple[int, int]:
        """Where the table's directory is on the device, and 63 - the bits that pick an entry of it."""
        return self._places[table].data_ptr(), 63 - self._directory.depth(table)

    def short(self, ids_T: np.ndarray, calls: int) -> np.ndarray:
        """The segments that may be full before so many ids of each table have come, in so many calls."""
        room_G = self._slots_G - self._directory.used[:, HELD]
        return np.flatnonzero((self._slots_G > 0) & (room_G < self._demand_G(ids_T, calls)))

    def _demand_G(self, ids_T: np.ndarray, calls: int) -> np.ndarray:
        """How many ids may come to each segment: all of its table's, bar so many that chance spreads them evenly."""
        ids_G = ids_T[self._table_G]
        share_G = ids_G * self._share_G
        even_G = np.maximum(np.ceil(share_G + 12 * np.sqrt(share_G)), directory.LARGEST_SEGMENT // 2)
        return np.minimum(ids_G, np.where(self._is_side_G, SPECIALS * calls, even_G)).astype(np.int64)

    def make_room(self, ids_T: np.ndarray, calls: int) -> int | None:
        """Grow segments until none is `short`; the table that there is no memory for, if there is one."""
        while len(short := self.short(ids_T, calls)):
            demand_G, tables = self._demand_G(ids_T, calls), np.unique(self._table_G[short]).tolist()
            for segment in short.tolist():
                # Three quarters full at most, should all of them come: fuller ones take long to probe.
                slots = _power_of_two((self._bound_live(segment) + int(demand_G[segment])) * 4 // 3)
                if not self._grow(segment, max(slots, int(self._slots_G[segment]))):
                    self._apply(tables)
                    return int(self._table_G[segment])
            self._apply(tables)
        return None

    def relieve(self) -> bool:
        """Grow some of the segments that are past their limit, the fullest first; whether there were any."""
        past_G = np.where(self._slots_G > 0, self._directory.used[:, HELD] - self._directory.used[:, LIMIT], -1)
        fullest = np.argsort(-past_G, kind="stable")[:GROWN_AT_ONCE]
        chosen = fullest[past_G[fullest] >= 0]
        for segment in chosen.tolist():
            slots = int(self._slots_G[segment])
            # A segment that is mostly erased ids is only rebuilt.
            if not self._grow(segment, slots if 4 * self._bound_live(segment) <= slots else 2 * slots):
                break  # it goes on filling up, which `make_room` watches
        if len(chosen):
            self._apply(np.unique(self._table_G[chosen]).tolist())
        return len(chosen) > 0

    def _bound_live(self, segment: int) -> int:
        return int(self._directory.used[segment, HELD] - self._erased_G[segment])

    def _grow(self, segment: int, slots: int) -> bool:
        table = int(self._table_G[segment])
        live = self._bound_live(segment)
        if self._is_side_G[segment]:
            place = self._segments.allocate(slots)
            if place is None:
                return False
            old, self._side_places[table] = self._side_places[table].copy(), place
            self._segments.move(old, 0, ((place, segment), (place, segment)))
            self._segments.free(old)
            self._directory.set_limit(segment, slots)
            self._directory.used[segment, HELD] = live
        else:
            held, self._directory.used[segment, HELD] = self._directory.used[segment, HELD].copy(), live
            if not self._directory.grow(table, segment, slots):
                self._directory.used[segment, HELD] = held
                return False
        self._erased_G[segment] = 0
        return True

    # --------------------------------------------------------------------------------------------------- on the device

    def _apply(self, tables: Iterable[int], emptied: Iterable[int] = ()) -> None:
        """Make the moves that wait, forget what ``emptied`` segments held, and tell the device where all are now."""
        self._behind.update(tables)
        self._emptied.update(emptied)
        self.catch_up()

    def catch_up(self) -> None:
        """Do what `_apply` is to do, as far as it is not done: an error may have come in between."""
        count = len(self._directory.used)
        if count > len(self.held):
            grown = lasting((count, 2), self._device)
            grown[: len(self.held)] = self.held
            self.held = grown
            self._erased_G = np.concatenate([self._erased_G, np.zeros(count - len(self._erased_G), np.int64)])
        self._segments.launch(self.held, self._emptied)
        for table in self._behind:
            self._upload(table)
        self._survey()
        self._behind.clear()
        self._emptied.clear()

    def _upload(self, table: int) -> None:
        entries = self._directory.entries(table)
        lines = np.zeros((entries.stop - entries.start + 1, 4), dtype=np.int64)
        lines[:-1, :2] = self._directory.places[entries].view(np.int64)
        lines[:-1, 2] = self._directory.segments[entries]
        lines[-1, :2] = self._side_places[table].view(np.int64)
        lines[-1, 2] = self._side_segments[table]
        if table not in self._places or len(self._places[table]) != len(lines):
            self._places[table] = lasting(lines.shape, self._device)
        send(lines, self._places[table])

    def _survey(self) -> None:
        """Whose each segment is, how many slots it has, and which share of its table's ids go to it."""
        count = len(self._directory.used)
        self._table_G, self._slots_G = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        self._share_G, self._is_side_G = np.zeros(count), np.zeros(count, dtype=bool)
        for table in range(len(self._side_segments)):
            entries = self._directory.entries(table)
            segments = self._directory.segments[entries]
            self._table_G[segments] = table
            self._slots_G[segments] = self._directory.places[entries, MASK].astype(np.int64) + 1
            np.add.at(self._share_G, segments, 1 / len(segments))
        sides = self._side_segments
        self._table_G[sides], self._is_side_G[sides] = np.arange(len(sides)), True
        self._slots_G[sides] = self._side_places[:, MASK].astype(np.int64) + 1

    def clear(self, table: int) -> None:
        """Forget all ids of a table."""
        self._directory.clear(table)
        self._segments.free(self._side_places[table])
        self._directory.free_segment(int(self._side_segments[table]))
        self._start_side(table)
        emptied = [int(self._directory.segments[self._directory.entries(table)][0]), int(self._side_segments[table])]
        self._erased_G[emptied] = 0
        self._apply([table], emptied)

    # ------------------------------------------------------------------------------------------------------- copying

    def snapshot(self) -> dict[str, Any]:
        """All it holds, as copies."""
        return {
            "directory": self._directory.snapshot(),
            "sides": (self._side_places.copy(), self._side_segments.copy()),
            "segments": self._segments.snapshot(),
            "held": self.held.clone(),
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Become what a snapshot holds."""
        self._behind.clear()
        self._emptied.clear()
        now = self._segments.restore(snapshot["segments"])
        self._directory.restore(snapshot["directory"])
        self._side_places, self._side_segments = (array.copy() for array in snapshot["sides"])
        self._directory.relocate(now)
        for place in self._side_places:
            place[BEGIN] = now[int(place[BEGIN])]
        self.held = copy(snapshot["held"], self._device)
        self._erased_G = np.zeros(len(self.held), dtype=np.int64)
        self.learn(self.held.cpu())
        self._apply(range(len(self._side_segments)))


def _power_of_two(count: int) -> int:
    """The least that is not below: 65 -> 128."""
    return 1 << (max(count, 1) - 1).bit_length()
