"""Batches from a pipeline of threads: some decode stripes and place their rows in windows, one cuts batches.

The order is the plan's whatever the threads do: windows are asked for in the order of their first use, each is a
function of its place in the plan alone, and one thread cuts the batches. A stripe's rows are placed by the thread that
decoded them: they are near still, and their memory serves for the next stripe. No thread holds a reference to the
iterator, so that an abandoned one is collected, and cancels its pipeline.
"""

import atexit
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

from recis_lightning.data.delivery import Delivery
from recis_lightning.data.errors import DataError
from recis_lightning.data.files.checksums import CorruptStripe
from recis_lightning.data.files.stripes import StripeReader
from recis_lightning.data.packing import BatchPacker, Span
from recis_lightning.data.plan import EpochPlan, Piece, Window
from recis_lightning.data.window import Block, Packing, WindowPacker
from recis_lightning.ragged import Batch

log = logging.getLogger(__name__)

# Shares of `prefetch_bytes`; what is left is for stripes being decoded, and for what allocators hold back.
WINDOWS, BATCHES, KEPT_STRIPES = 3 / 8, 1 / 8, 1 / 8

NICER = 10


def give_way() -> None:
    """Let other threads go before the calling one where cores are short: a step that waits for one delays training.

    By 10 of the system's 40 levels; only on Linux, where each thread has a priority of its own.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(os.getpriority(os.PRIO_PROCESS, thread) + NICER, 19))


class Cancelled(Exception):
    """The pipeline was closed while a thread worked for it."""


class Channel:
    """A bounded queue between two threads that either side can end: what was put before a failure is still taken.

    It holds so many batches, and so many bytes, or one batch that is larger.
    """

    def __init__(self, capacity: int, nbytes: int) -> None:
        self._capacity, self._room = capacity, nbytes
        self._items: deque[Batch] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._error: BaseException | None = None

    def put(self, item: Batch) -> None:
        """Wait for room; raises Cancelled once the channel is ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or not self._items or self._has_room(item))
            if self._ended:
                raise Cancelled
            self._items.append(item)
            self._room -= item.buffer.nbytes
            self._changed.notify_all()

    def _has_room(self, item: Batch) -> bool:
        return len(self._items) < self._capacity and item.buffer.nbytes <= self._room

    def take(self) -> Batch | None:
        """Wait for an item; None at the end, or the error that ended it."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(self._items) > 0)
            if self._items:
                item = self._items.popleft()
                self._room += item.buffer.nbytes
                self._changed.notify_all()
                return item
            if self._error is not None:
                raise self._error
            return None

    def end(self, error: BaseException | None = None) -> None:
        with self._changed:
            if not self._ended:
                self._ended, self._error = True, error
                self._changed.notify_all()

    def cancel(self) -> None:
        """End it and forget what is in it."""
        with self._changed:
            self._ended, self._error = True, None
            self._items.clear()
            self._changed.notify_all()


class Skips:
    """Counts the corrupt stripes that a loader leaves out; safe to use from several threads."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.stripes: set[int] = set()
        self.rows = 0
        self._lock = threading.Lock()

    def add(self, piece: Piece, error: CorruptStripe) -> bool:
        """Note that a piece of a stripe is left out; False where that would be one stripe too many."""
        with self._lock:
            is_new = piece.stripe not in self.stripes
            if is_new and len(self.stripes) == self.limit:
                return False
            self.stripes.add(piece.stripe)
            self.rows += piece.rows
        if is_new:
            log.warning("a corrupt stripe is left out (%d of at most %d): %s", len(self.stripes), self.limit, error)
        return True


class Pipeline:
    """The threads of one pass over the data from a step on: they start at once, and end with the data or `close`."""

    def __init__(
        self,
        stripes: StripeReader,
        windows: WindowPacker,
        packer: BatchPacker,
        plan: EpochPlan,
        streams: Sequence[int],
        first_step: int,
        token: Callable[[int], Mapping[str, Any]],  # next step -> what a batch carries to go on there
        read_threads: int,
        prefetch: int,
        prefetch_bytes: int,
        skips: Skips | None = None,
        delivery: Delivery | None = None,
    ) -> None:
        self._delivery = delivery
        self._skips, self._prefetch_bytes = skips, prefetch_bytes
        self._stripes, self._windows, self._packer = stripes, windows, packer
        self._plan, self._streams = plan, streams
        self._first_step, self._token, self._read_threads = first_step, token, read_threads
        self._batches = Channel(prefetch, int(BATCHES * prefetch_bytes))
        self._readers = ThreadPoolExecutor(read_threads, thread_name_prefix="recis-read", initializer=give_way)
        self._thread = threading.Thread(target=self._run, name="recis-batch", daemon=True)
        # A thread that is within C++ code when the interpreter has ended aborts the process.
        atexit.register(self.close)
        self._thread.start()

    def take(self) -> Batch | None:
        """The next batch, None behind the last; raises what went wrong in a thread at the batch it belongs to."""
        return self._batches.take()

    def cancel(self) -> None:
        """Have all threads end soon. Waits for nothing, since the garbage collector may call it in any of them."""
        self._batches.cancel()

    def close(self) -> None:
        """End all threads and wait for them: no longer than the stripes take that are being decoded."""
        self.cancel()
        self._end_readers(wait=False)
        self._thread.join()

    def _run(self) -> None:
        give_way()
        try:
            for batch in self._pack():
                self._batches.put(batch if self._delivery is None else self._delivery.send(batch))
            self._batches.end()
        except (Cancelled, CancelledError):
            pass
        except BaseException as error:
            self._batches.end(error)
        finally:
            self._end_readers(wait=True)
            atexit.unregister(self.close)

    def _end_readers(self, wait: bool) -> None:
        self._readers.shutdown(wait=wait, cancel_futures=True)

    def _pack(self) -> Iterator[Batch]:
        blocks = _ReadAhead(
            self._plan,
            self._streams,
            self._first_step,
            self._submit,
            self._read_threads,
            int(WINDOWS * self._prefetch_bytes),
        )
        for step in range(self._first_step, self._plan.steps):
            spans = [span for stream in self._streams for span in blocks.take(stream, *self._plan.span(step, stream))]
            yield self._packer.pack(spans, self._token(step + 1))

    def _submit(self, window: Window) -> Callable[[], Block]:
        packing = self._windows.begin(window, self._plan.row_order(window))
        pieces = [self._readers.submit(self._add, packing, index) for index in range(len(window.pieces))]

        def finish() -> Block:
            for piece in pieces:
                piece.result()
            return packing.finish()

        return finish

    def _add(self, packing: Packing, index: int) -> None:
        piece = packing.pieces[index]
        try:
            batch = self._stripes.read(piece.stripe)
        except CorruptStripe as error:
            if self._skips is None or not self._skips.add(piece, error):
                packing.fail(index, error)
            else:
                packing.skip(index)
        except DataError as error:
            packing.fail(index, error)
        else:
            packing.add(index, batch)


class _ReadAhead:
    """The windows that batches are being cut from, and those being read for the batches to come.

    Held at once: a window of each stream, and beyond these as many rows again (one window and one a thread at least);
    fewer where that would take more than ``nbytes``, but never less than a window of each stream and one to come. What
    a window takes is known once it was read; before that, by the largest of those before it.

    As many as are held, not as were asked for: where stripes are alike and larger than a stream's share, windows of all
    streams end at the same step, and what is not there by then is waited for.
    """

    def __init__(
        self,
        plan: EpochPlan,
        streams: Sequence[int],
        first_step: int,
        submit: Callable[[Window], Callable[[], Block]],  # starts to read; what it gives waits for the block
        read_threads: int,
        nbytes: int,
    ) -> None:
        self._submit, self._read_threads, self._nbytes = submit, read_threads, nbytes
        self._row_bytes = 0.0
        self._order = plan.reading_order(streams, first_step)
        self._current: dict[int, Block] = {}
        self._ahead: dict[int, deque[Callable[[], Block]]] = {stream: deque() for stream in streams}
        self._room = plan.order.window_rows * len(streams) // plan.order.streams
        self._rows_ahead: deque[int] = deque()

    def take(self, stream: int, first: int, last: int) -> list[Span]:
        """The spans that hold rows [first, last) of a stream; rows before them are never asked for again."""
        spans = []
        while first < last:
            block = self._current.get(stream) or self._advance(stream)
            begin, end = block.window.first, block.window.first + block.window.rows
            stop = min(last, end)
            spans.append(Span(block, first - begin, stop - begin))
            first = stop
            if stop == end:
                del self._current[stream]
        return spans

    def _advance(self, stream: int) -> Block:
        self._top_up()
        block = self._ahead[stream].popleft()()
        self._rows_ahead.popleft()
        self._current[stream] = block
        self._row_bytes = max(self._row_bytes, block.nbytes / block.window.rows)
        self._top_up()
        return block

    def _top_up(self) -> None:
        while not self._rows_ahead or (self._wants_more() and self._has_room()):
            window = next(self._order, None)
            if window is None:
                return
            self._rows_ahead.append(window.rows)
            self._ahead[window.stream].append(self._submit(window))

    def _wants_more(self) -> bool:
        held = sum(block.window.rows for block in self._current.values())
        return len(self._rows_ahead) < self._read_threads or sum(self._rows_ahead) < max(self._room, held)

    def _has_room(self) -> bool:
        """Whether one more window, as large as the largest ahead, fits beside all that are held."""
        if not self._row_bytes:
            return len(self._rows_ahead) < self._read_threads
        held = sum(block.nbytes for block in self._current.values())
        return held + self._row_bytes * (sum(self._rows_ahead) + max(self._rows_ahead)) <= self._nbytes
