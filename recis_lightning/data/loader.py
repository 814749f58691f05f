"""The iterable a Trainer takes: exact in length, late to start its threads, and able to go on behind a batch."""

import math
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from recis_lightning.data.columns import Selection
from recis_lightning.data.errors import DataError
from recis_lightning.data.manifest import Manifest
from recis_lightning.data.packing import BatchPacker
from recis_lightning.data.plan import EpochPlan, Order
from recis_lightning.data.stream import Pipeline
from recis_lightning.data.stripes import StripeReader
from recis_lightning.data.window import WindowPacker
from recis_lightning.ragged import Batch


def default_read_threads() -> int:
    """One thread, or two where there are cores to spare: reading rarely gains from more."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(2, cores - 1))


class OrcLoader:
    """Batches of one rank, epoch by epoch.

    Each `iter` is an epoch of its own once a batch was taken from it; its threads start with the first batch, and a new
    `iter` ends the one before. `Batch.token` is what to go on with behind that batch: `commit` the tokens of batches
    that are used up, and `state_dict` is the last of them; batches that were only read ahead are read again.

    A state fits any world size that divides the number of streams. DataError where it was saved over other files or
    with other settings.
    """

    def __init__(
        self,
        manifest: Manifest,
        selection: Selection,
        order: Order,
        *,
        rank: int = 0,
        world_size: int = 1,
        read_threads: int | None = None,
        prefetch: int = 16,
        first_epoch: Callable[[], int] = lambda: 0,
        epoch_limit: Callable[[], float] = lambda: math.inf,
    ) -> None:
        """``first_epoch`` numbers the first epoch where no state does, ``epoch_limit`` says how many of its batches are
        used; both are asked when an iteration starts.
        """
        self.manifest, self.selection, self.order = manifest, selection, order
        self._streams = order.streams_of(rank, world_size)
        self._read_threads = default_read_threads() if read_threads is None else read_threads
        self._prefetch = prefetch
        for name, value in (("read_threads", self._read_threads), ("prefetch", prefetch)):
            if value < 1:
                raise ValueError(f"{name} is {value}, need at least 1")
        self._identity = {
            **order.to_dict(),
            "files": len(manifest.files),
            "rows": manifest.rows,
            "fingerprint": manifest.fingerprint,
        }
        # Kept from epoch to epoch, with the memory they use again.
        self._windows, self._packer = WindowPacker(manifest, selection), BatchPacker(selection)
        self._first_epoch, self._epoch_limit = first_epoch, epoch_limit
        self._next_epoch: int | None = None
        self._resume: tuple[int, int] | None = None
        self._committed: Mapping[str, Any] = self._token(0, 0)
        self._iterator: weakref.ref[_Batches] | None = None

    def __len__(self) -> int:
        """Batches of an epoch, the same for every rank and epoch."""
        return self.order.steps(self.manifest.rows)

    def __iter__(self) -> Iterator[Batch]:
        self.close()
        iterator = _Batches(self._start)
        self._iterator = weakref.ref(iterator)
        return iterator

    def close(self) -> None:
        """End the running iteration, if any, and its threads."""
        iterator = self._iterator() if self._iterator is not None else None
        if iterator is not None:
            iterator.close()
        self._iterator = None

    def _start(self) -> Pipeline:
        epoch, step = self._begin()
        self._next_epoch = epoch + 1
        steps = len(self)

        def token(next_step: int) -> Mapping[str, Any]:
            return self._token(epoch, next_step) if next_step < steps else self._token(epoch + 1, 0)

        plan = EpochPlan(self.manifest.stripe_rows, self.order, epoch)
        stripes = StripeReader(self.manifest, self._file_columns(), plan.border_uses(self._streams))
        threads, prefetch = self._read_threads, self._prefetch
        return Pipeline(stripes, self._windows, self._packer, plan, self._streams, step, token, threads, prefetch)

    def _file_columns(self) -> list[str]:
        """What to read of the files, which all have the same columns of those that are declared."""
        return self.selection.file_columns(self.manifest.files[0].columns) if self.manifest.files else []

    def _begin(self) -> tuple[int, int]:
        """The epoch and step to start with."""
        saved, self._resume = self._resume, None
        if saved is None:
            return (self._first_epoch() if self._next_epoch is None else self._next_epoch), 0
        epoch, step = saved
        # A Trainer may end epochs early; the one that was saved at such an end is over.
        return (epoch + 1, 0) if step >= self._epoch_limit() else (epoch, step)

    def _token(self, epoch: int, step: int) -> dict[str, Any]:
        return {"epoch": epoch, "step": step, **self._identity}

    def commit(self, token: Mapping[str, Any]) -> None:
        """Note that the batch with this token, and all before it, are used up."""
        self._committed = token

    def state_dict(self) -> dict[str, Any]:
        """Where to go on: behind the last committed batch, which at the end of an epoch is the start of the next."""
        return dict(self._committed)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at a saved place with the next iteration; DataError where files or order are no longer the same."""
        differences = [
            f"{name} was {state.get(name)}, is {value}"
            for name, value in self._identity.items()
            if state.get(name) != value
        ]
        if differences:
            raise DataError(
                f"the saved position belongs to other data or another order of them: {'; '.join(differences)}; "
                "train on the same files with the same settings, or start without the saved position"
            )
        self._resume = (int(state["epoch"]), int(state["step"]))
        self._committed = dict(state)


class _Batches(Iterator[Batch]):
    """One iteration: begins its pipeline with the first batch, and ends it with the last, an error, or itself."""

    def __init__(self, start: Callable[[], Pipeline]) -> None:
        self._start: Callable[[], Pipeline] | None = start
        self._pipeline: Pipeline | None = None

    def __next__(self) -> Batch:
        if self._start is not None:
            self._pipeline, self._start = self._start(), None
            weakref.finalize(self, self._pipeline.cancel)
        if self._pipeline is None:
            raise StopIteration
        try:
            batch = self._pipeline.take()
        except BaseException:
            self.close()
            raise
        if batch is None:
            self.close()
            raise StopIteration
        return batch

    def close(self) -> None:
        pipeline, self._start, self._pipeline = self._pipeline, None, None
        if pipeline is not None:
            pipeline.close()
