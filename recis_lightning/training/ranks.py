"""The processes of a run, as far as they have to agree: on a path, on whether all went well, on who failed first."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment

T = TypeVar("T")

FAILURE = "failure"  # under which the store holds what the first rank that failed said
# Seconds that a rank whose peers have gone waits for one of them to say why. They say it before they close connections;
# and five seconds after a rank was killed, at most, Lightning's launcher kills the others in the midst of a word.
PATIENCE = 1.0
EVERY, GRACE = 1.0, 10.0  # seconds between looks for word of a failure, and until a rank that waits nevertheless ends
STARTED_BY = "RECIS_STARTED_BY"  # environment of ranks that another has started: its process
UNSAID = "another rank, which has ended without a word: killed, perhaps for want of memory"


class RanksError(RuntimeError):
    """Something failed on another rank; the message says which, and what it said."""


class Ranks:
    """Rank ``rank`` of ``world_size``, which talk over a process group on CPUs; on one rank everything is immediate."""

    def __init__(self, group: dist.ProcessGroup | None = None, store: dist.Store | None = None) -> None:
        self._group, self._store = group, store
        self._watching: threading.Event | None = None
        self.rank = dist.get_rank(group) if group is not None else 0
        self.world_size = dist.get_world_size(group) if group is not None else 1

    def gather(self, value: T) -> list[T]:
        """What each rank gave, on every rank; plain values, whose size is no matter."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def broadcast(self, value: T) -> T:
        """What rank 0 gave."""
        if self._group is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def together(self, action: Callable[[], T]) -> list[T]:
        """Do something on each rank; what each got, or RanksError on all ranks where one of them failed.

        For actions that one rank may fail at while the others would wait for it: writing files. The rank that failed
        raises its own error.
        """
        error, result = None, None
        try:
            result = action()
        except Exception as caught:
            error = caught
        outcomes = self.gather((None if error is None else f"{type(error).__name__}: {error}", result))
        if error is not None:
            raise error
        for rank, (failure, _) in enumerate(outcomes):
            if failure is not None:
                raise RanksError(f"rank {rank} of {self.world_size} failed: {failure}")
        return [value for _, value in outcomes]  # type: ignore[misc]

    def tell_failure(self, error: BaseException, find_killed: Callable[[], str | None] = lambda: None) -> None:
        """Leave word of a failure for the other ranks, where none has done so before; else add theirs to ``error``.

        A rank that fails closes its connections, and the others see no more than that. So the first one's error is
        added to what they raise. One that was killed says nothing; ``find_killed`` does where somebody knows of it.
        """
        if self._store is None:
            return
        own = f"rank {self.rank}: {type(error).__name__}: {error}"
        try:
            first = self._await_word(find_killed) if _is_of_connections(error) else self._leave_word(own)
        except RuntimeError:  # the store went with its rank
            first = None
        if first != own:
            error.add_note(f"The first failure was that of {first or UNSAID}")

    def watch(self) -> None:
        """From here on end this process where another rank has failed and this one does not notice.

        A rank whose process goes on after its error, behind an `except` or in a notebook, keeps its connections, and
        the others wait for it in collectives that nothing interrupts. They have `GRACE` to fail by themselves.
        """
        if self._store is not None and self._watching is None:
            self._watching = threading.Event()
            threading.Thread(target=self._end_if_failed, args=(self._watching, self._word()), daemon=True).start()

    def stop_watching(self) -> None:
        if self._watching is not None:
            self._watching.set()
            self._watching = None

    def _end_if_failed(self, is_over: threading.Event, before: str | None) -> None:
        while not is_over.wait(EVERY):
            try:
                word = self._word()
            except RuntimeError:  # the store went with its rank, and the connections to it
                return
            if word != before and not is_over.wait(GRACE):
                text = f"recis: rank {self.rank} ends, as it waits for one that has failed: the first was {word}\n"
                os.write(2, text.encode())
                os._exit(1)

    def _word(self) -> str | None:
        assert self._store is not None
        return self._store.get(FAILURE).decode() if self._store.check([FAILURE]) else None

    def _await_word(self, find_killed: Callable[[], str | None]) -> str | None:
        """What the first rank that failed has said, or what is known of one that was killed."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if (word := self._word()) is not None:
                return word
            if (killed := find_killed()) is not None:
                return self._leave_word(killed)
            time.sleep(0.05)
        return None

    def _leave_word(self, own: str) -> str:
        """Leave word unless there is one; the one that is there."""
        assert self._store is not None
        return self._store.compare_set(FAILURE, "", own).decode()


def _is_of_connections(error: BaseException) -> bool:
    """Whether an error says only that another rank is gone."""
    words = ("connection", "peer", "gloo", "timed out", "nccl")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def tell_started() -> None:
    """Let the ranks that this process is about to start know whose end is theirs, until they are connected."""
    os.environ[STARTED_BY] = str(os.getpid())


def connect(
    environment: ClusterEnvironment, backend: str, timeout: timedelta | None, device: torch.device
) -> dist.Store:
    """Set up the default process group, as Lightning would, and keep the store that it met over."""
    os.environ["MASTER_ADDR"] = environment.main_address
    os.environ["MASTER_PORT"] = str(environment.main_port)
    rank, world_size = environment.global_rank(), environment.world_size()
    options = {} if timeout is None else {"timeout": timeout}
    starter = int(os.environ.pop(STARTED_BY, "0"))
    is_started = isinstance(environment, LightningEnvironment) and starter not in (0, os.getpid())
    with _ending_with(starter) if is_started else nullcontext():
        store, rank, world_size = next(dist.rendezvous("env://", rank, world_size, **options))
        # torchrun keeps its store when it starts ranks again: they would call those of the last time, who are gone.
        store = dist.PrefixStore(f"recis/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("default", store),
            rank=rank,
            world_size=world_size,
            timeout=timeout,
            device_id=None if device.type == "cpu" else device,
        )
    return store


@contextmanager
def _ending_with(starter: int) -> Iterator[None]:
    """Within this the process ends once the one that started it has: waiting for rank 0 would take until the timeout.

    Later it is told by its connections.
    """
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.2):
            if os.getppid() != starter:
                os.write(
                    2, f"recis: process {starter}, which started this rank, has ended; so does this one\n".encode()
                )
                os._exit(1)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
