"""Which rows make up which batch: a pure function of (stripes, seed, epoch, batch size, window, streams).

The stripes of an epoch, in an order drawn from (seed, epoch), are one long line of rows. It is cut into V streams whose
lengths differ by at most one row. Each stream is cut into windows of whole stripe pieces, and the rows of a window are
shuffled by a generator keyed by (seed, epoch, stream, window). Step t takes the next G / V rows of every stream; rank r
reads streams [r * V / world, (r + 1) * V / world). So the batches of all ranks together are the same rows in the same
order for every world size that divides V, and the place to go on from is (epoch, step).

S stripes, V streams, G rows of a global batch, W rows of a window
"""

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recis_lightning.data.errors import DataError

_STRIPES, _WINDOWS = 0, 1  # what a generator is drawn for


@dataclass(frozen=True, kw_only=True)
class Order:
    """The settings the order of rows depends on, besides the files and the epoch."""

    batch_size: int
    streams: int = 8
    window_rows: int = 131_072
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "streams", "window_rows"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} is {getattr(self, name)}, need at least 1")
        if self.seed < 0:
            raise DataError(f"seed is {self.seed}, need at least 0")
        if self.batch_size % self.streams:
            lower = self.batch_size // self.streams * self.streams
            sizes = " or ".join(str(size) for size in (lower, lower + self.streams) if size)
            fitting = max(v for v in range(1, self.streams + 1) if self.batch_size % v == 0)
            raise DataError(
                f"batch_size {self.batch_size} is not a multiple of streams {self.streams}, of which each gives an "
                f"equal share; set batch_size={sizes}, or streams={fitting}"
            )

    @property
    def share(self) -> int:
        """Rows that each stream gives to a full batch."""
        return self.batch_size // self.streams

    def streams_of(self, rank: int, world_size: int) -> range:
        """The streams a rank reads: rank 1 of 2 reads [4, 8) of 8; DataError where ranks would get unequal shares."""
        if self.streams % world_size:
            fitting = next(v for v in range(self.streams, self.streams + world_size) if v % world_size == 0)
            raise DataError(
                f"streams {self.streams} can't be shared equally by {world_size} ranks; set streams={fitting} (and a "
                f"batch_size that is a multiple of it), or use a number of ranks that divides {self.streams}"
            )
        share = self.streams // world_size
        return range(rank * share, (rank + 1) * share)

    def steps(self, rows: int) -> int:
        """Batches of an epoch over so many rows, the same for every rank: 10 rows by 4 are 3, with `drop_last` 2."""
        shortest, longest = rows // self.streams, -(-rows // self.streams)
        return shortest // self.share if self.drop_last else -(-longest // self.share)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Piece:
    """Rows [first, last) of one stripe."""

    stripe: int
    first: int
    last: int

    @property
    def rows(self) -> int:
        return self.last - self.first


@dataclass(frozen=True)
class Window:
    """Consecutive pieces of a stream whose rows are shuffled among each other."""

    stream: int
    number: int
    first: int
    """Where in the stream it begins."""
    pieces: tuple[Piece, ...]

    @cached_property
    def rows(self) -> int:
        return sum(piece.rows for piece in self.pieces)


class EpochPlan:
    """The order of one epoch over stripes of the given lengths (int64 [S])."""

    def __init__(self, stripe_rows: NDArray[np.int64] | Sequence[int], order: Order, epoch: int) -> None:
        self.order, self.epoch = order, epoch
        self._stripe_rows = np.asarray(stripe_rows, np.int64)
        self.rows = int(self._stripe_rows.sum())
        self._line = self._shuffled(len(self._stripe_rows), _STRIPES)
        # where in the line of all rows each stripe begins, and the end
        self._starts = np.concatenate([[0], np.cumsum(self._stripe_rows[self._line])])

    def _shuffled(self, n: int, *key: int) -> NDArray[np.int64]:
        return shuffled(n, self.order.seed, self.epoch, *key) if self.order.shuffle else np.arange(n)

    @property
    def steps(self) -> int:
        """Batches of this epoch, the same for every rank."""
        return self.order.steps(self.rows)

    def _bounds(self, stream: int) -> tuple[int, int]:
        return stream * self.rows // self.order.streams, (stream + 1) * self.rows // self.order.streams

    def stream_rows(self, stream: int) -> int:
        """Rows of a stream: 10 rows in 4 streams are 2, 3, 2, 3."""
        first, last = self._bounds(stream)
        return last - first

    def span(self, step: int, stream: int) -> tuple[int, int]:
        """Which rows [first, last) of a stream a step takes."""
        rows, share = self.stream_rows(stream), self.order.share
        return min(step * share, rows), min((step + 1) * share, rows)

    def windows(self, stream: int) -> Iterator[Window]:
        """Cut a stream into windows, each as soon as it holds W / V rows; a stripe is never cut by a window."""
        enough = max(1, self.order.window_rows // self.order.streams)
        pieces: list[Piece] = []
        number = first = rows = 0
        for piece in self._pieces(stream):
            pieces.append(piece)
            rows += piece.rows
            if rows >= enough:
                yield Window(stream, number, first, tuple(pieces))
                number, first, rows, pieces = number + 1, first + rows, 0, []
        if pieces:
            yield Window(stream, number, first, tuple(pieces))

    def _pieces(self, stream: int) -> Iterator[Piece]:
        first, last = self._bounds(stream)
        place = self._place(first)
        while first < last:
            start, stop = int(self._starts[place]), min(int(self._starts[place + 1]), last)
            if stop > first:
                yield Piece(int(self._line[place]), first - start, stop - start)
            first, place = stop, place + 1

    def _place(self, row: int) -> int:
        """Which stripe of the line holds a row of the line."""
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def row_order(self, window: Window) -> NDArray[np.int64] | None:
        """Which row of a window comes first, second, ...: int64 [rows]; None for the order in which they lie."""
        if not self.order.shuffle:
            return None
        return self._shuffled(window.rows, _WINDOWS, window.stream, window.number)

    def over_decode(self, streams: Sequence[int]) -> float:
        """How many rows are decoded for each row that is used, where no stripe is kept: 1 stripe, 2 streams -> 2.0."""
        decoded = used = 0
        for stream in streams:
            first, last = self._bounds(stream)
            if first < last:
                decoded += int(self._starts[self._place(last - 1) + 1] - self._starts[self._place(first)])
                used += last - first
        return decoded / used if used else 1.0

    def border_uses(self, streams: Sequence[int]) -> Counter[int]:
        """How often the stripes at the ends of some streams are read: twice or more where streams share them."""
        uses: Counter[int] = Counter()
        for stream in streams:
            first, last = self._bounds(stream)
            if first < last:
                ends = {self._place(first), self._place(last - 1)}
                uses.update(int(self._line[place]) for place in ends)
        return uses

    def reading_order(self, streams: Sequence[int], first_step: int) -> Iterator[Window]:
        """The windows of some streams in the order in which steps from ``first_step`` on come to need them."""
        share = self.order.share

        def needed(stream: int) -> Iterator[tuple[int, int, Window]]:
            for window in self.windows(stream):
                first_use = max(window.first // share, first_step)
                if window.first + window.rows > first_step * share and first_use < self.steps:
                    yield first_use, stream, window

        return (window for _, _, window in heapq.merge(*map(needed, streams), key=lambda entry: entry[:2]))

    def addresses(self, step: int, streams: Sequence[int]) -> list[tuple[int, int]]:
        """The (stripe, row) of each row of a batch, in its order: the definition, for tests and small tools."""
        found = []
        for stream in streams:
            line: list[tuple[int, int]] = []
            for window in self.windows(stream):
                rows = [(piece.stripe, row) for piece in window.pieces for row in range(piece.first, piece.last)]
                order = self.row_order(window)
                line += rows if order is None else [rows[index] for index in order]
            first, last = self.span(step, stream)
            found += line[first:last]
        return found


def shuffled(n: int, seed: int, *key: int) -> NDArray[np.int64]:
    """A permutation of [0, n) that depends on (n, seed, key) alone: not on the version of NumPy, nor the machine.

    Each number gets random high bits from Philox, whose raw output NumPy promises never to change (the promise does not
    cover `Generator.permutation`), and keeps itself in the low bits, so that sorting has no ties to break.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=key)
    draws = np.random.Philox(sequence).random_raw(n).astype(np.uint64, copy=False)
    bits = np.uint64(max(n - 1, 1).bit_length())
    draws <<= bits
    draws |= np.arange(n, dtype=np.uint64)
    draws.sort()
    draws &= (np.uint64(1) << bits) - np.uint64(1)
    return draws.view(np.int64)
