"""The iterable a Trainer takes: exact in length, late to start its threads, and able to go on behind a batch."""

import math
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from recis_lightning.data.columns import Selection
from recis_lightning.data.delivery import Delivery
from recis_lightning.data.errors import DataError
from recis_lightning.data.files.checksums import Checks
from recis_lightning.data.files.manifest import Manifest
from recis_lightning.data.files.stripes import StripeReader
from recis_lightning.data.packing import BatchPacker
from recis_lightning.data.plan import EpochPlan, Order
from recis_lightning.data.stream import KEPT_STRIPES, Pipeline, Skips
from recis_lightning.data.window import WindowPacker
from recis_lightning.ragged import Batch

FILES_IN_STATE = 10_000  # with more files a state names none, and a change is told by their number and fingerprint


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
        prefetch_bytes: int = 1 << 30,
        checks: Checks | None = None,
        day: str | None = None,
        skip_limit: int | None = None,
        on_skips: Callable[[Skips], None] = lambda skips: None,
        first_epoch: Callable[[], int] = lambda: 0,
        epoch_limit: Callable[[], float] = lambda: math.inf,
        device: torch.device | None = None,
    ) -> None:
        """``prefetch_bytes`` bounds what is read ahead: windows, batches, and stripes kept for a second use. Corrupt
        stripes are an error, or left out where ``skip_limit`` says how many at
        most; ``on_skips`` is told of them at the end of an epoch. ``day`` names the day of a schedule
        that the files are.

        ``first_epoch`` numbers the first epoch where no state does, ``epoch_limit`` says how many of its batches are
        used; both are asked when an iteration starts.

        Where ``device`` is a GPU, batches come on their way there: `delivery.receive` them before they are read.
        """
        self.manifest, self.selection, self.order = manifest, selection, order
        self._streams = order.streams_of(rank, world_size)
        self._read_threads = default_read_threads() if read_threads is None else read_threads
        self._prefetch = prefetch
        self.prefetch_bytes, self._checks = prefetch_bytes, checks
        self.skips = None if skip_limit is None else Skips(skip_limit)
        self._on_skips = on_skips
        for name, value in (
            ("read_threads", self._read_threads),
            ("prefetch", prefetch),
            ("prefetch_bytes", prefetch_bytes),
        ):
            if value < 1:
                raise ValueError(f"{name} is {value}, need at least 1")
        self._identity = {
            **order.to_dict(),
            "files": len(manifest.files),
            "rows": manifest.rows,
            "fingerprint": manifest.fingerprint,
            **({} if day is None else {"day": day}),
        }
        self._contents = manifest.contents if len(manifest.files) <= FILES_IN_STATE else None
        if manifest.row_filter is not None:
            self._identity["filter"] = str(manifest.row_filter)
        is_sent = device is not None and device.type == "cuda"
        self._delivery = Delivery(device) if is_sent and device is not None else None
        # Kept from epoch to epoch, with the memory they use again.
        self._windows, self._packer = WindowPacker(manifest, selection), BatchPacker(selection, is_sent)
        self._first_epoch, self._epoch_limit = first_epoch, epoch_limit
        self._next_epoch: int | None = None
        self._resume: tuple[int, int] | None = None
        self._committed: Mapping[str, Any] = self._token(0, 0)
        self._iterator: weakref.ref[_Batches] | None = None

    def __len__(self) -> int:
        """Batches of an epoch, the same for every rank and epoch."""
        return self.order.steps(self.manifest.rows)

    @property
    def identity(self) -> Mapping[str, Any]:
        """What a saved place belongs to: settings of the order, and what tells the files."""
        return self._identity

    def iterate(self, epoch: int, step: int) -> Iterator[Batch]:
        """The batches of an epoch from a step on."""
        self._resume = (epoch, step)
        return iter(self)

    def __iter__(self) -> Iterator[Batch]:
        self.close()
        iterator = _Batches(self._start, self._tell_skips)
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
        uses, kept_bytes = plan.border_uses(self._streams), int(KEPT_STRIPES * self.prefetch_bytes)
        stripes = StripeReader(self.manifest, self._file_columns(), uses, kept_bytes, self._checks)
        return Pipeline(
            stripes,
            self._windows,
            self._packer,
            plan,
            self._streams,
            step,
            token,
            self._read_threads,
            self._prefetch,
            self.prefetch_bytes,
            self.skips,
            self._delivery,
        )

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
        return {**self._committed, **({} if self._contents is None else {"contents": self._contents})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at a saved place with the next iteration; DataError where files or order are no longer the same."""
        if self._is_day_before(state):
            return
        self.check_identity(state)
        self._resume = (int(state["epoch"]), int(state["step"]))
        self._committed = dict(state)

    def check_identity(self, state: Mapping[str, Any], of: str = "") -> None:
        """DataError with what differs, where a place was saved over other files or in another order of them."""
        differences = [
            f"{name} was {state.get(name)}, is {value}"
            for name, value in self._identity.items()
            if state.get(name) != value
        ]
        if differences:
            raise DataError(
                f"the saved position {of}belongs to other data or another order of them: {'; '.join(differences)}"
                f"{self._describe_change(state.get('contents'))}; train on the same files with the same settings, or "
                "start without the saved position"
            )

    def _is_day_before(self, state: Mapping[str, Any]) -> bool:
        """Whether a state is the end of another day, behind which this one begins, in an order of the same settings."""
        day, saved = self._identity.get("day"), state.get("day")
        if day is None or saved in (None, day) or state["step"]:
            return False
        return all(state.get(name) == value for name, value in self.order.to_dict().items())

    def _tell_skips(self) -> None:
        if self.skips is not None and self.skips.stripes:
            self._on_skips(self.skips)

    def _describe_change(self, saved: Mapping[str, str] | None) -> str:
        """Which files came, went or changed since a state was saved."""
        if saved is None or self._contents is None or saved == self._contents:
            return ""
        now = self._contents
        changes = (
            ("added", [name for name in now if name not in saved]),
            ("gone", [name for name in saved if name not in now]),
            ("changed", [name for name in now if name in saved and now[name] != saved[name]]),
        )
        return "".join(f"; {what}: {_list_some(names)}" for what, names in changes if names)


def _list_some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


class _Batches(Iterator[Batch]):
    """One iteration: begins its pipeline with the first batch, and ends it with the last, an error, or itself."""

    def __init__(self, start: Callable[[], Pipeline], at_end: Callable[[], None]) -> None:
        self._at_end = at_end
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
            self._at_end()
            raise StopIteration
        return batch

    def close(self) -> None:
        pipeline, self._start, self._pipeline = self._pipeline, None, None
        if pipeline is not None:
            pipeline.close()
