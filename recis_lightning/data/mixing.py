"""Several sources in every batch, by weight; or one behind the other, for evaluation.

    shares = share_out({"ads": 3, "feed": 1}, batch_size=4096, streams=8)      # ads 3072, feed 1024 rows of a batch
    MixedLoader({"ads": OrcLoader(...), "feed": OrcLoader(...)})

Each source keeps an order of its own, as if it were read alone with its share for a batch size; a step takes the next
rows of each. So a mix is a pure function of its sources' orders, and its place is (epoch, step) as well.

``batch.token["source_rows"]`` tells which rows of a batch come from which source: {"ads": 3072, "feed": 1024}, in this
order.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from recis_lightning.data.errors import DataError
from recis_lightning.data.loader import OrcLoader
from recis_lightning.ragged import ALIGNMENT, Batch, Part, Ragged, RaggedParts

Until = Literal["longest", "shortest"]
SOURCE_ROWS = "source_rows"


def share_out(weights: Mapping[str, float], batch_size: int, streams: int) -> dict[str, int]:
    """Rows of a batch for each source: multiples of ``streams``, by largest remainders, at least one multiple each.

    Weights 3 and 1 of 4096 rows in 8 streams are 3072 and 1024. DataError where there are too few rows to share.
    """
    wrong = [f"{name}: {weight}" for name, weight in weights.items() if not 0 < weight < math.inf]
    if wrong:
        raise DataError(f"weights of sources are above 0, but there is {', '.join(wrong)}; leave a source out instead")
    pieces, total = batch_size // streams, sum(weights.values())
    if pieces < len(weights):
        raise DataError(
            f"a batch of {batch_size} rows in {streams} streams can't be shared by {len(weights)} sources; set "
            f"batch_size={len(weights) * streams} at least, or fewer streams"
        )
    exact = {name: pieces * weight / total for name, weight in weights.items()}
    shares = {name: max(1, math.floor(part)) for name, part in exact.items()}
    while sum(shares.values()) < pieces:
        name = max(shares, key=lambda each: exact[each] - shares[each])
        shares[name] += 1
    while sum(shares.values()) > pieces:  # those of at least one took from the others
        name = min((each for each in shares if shares[each] > 1), key=lambda each: exact[each] - shares[each])
        shares[name] -= 1
    return {name: share * streams for name, share in shares.items()}


class MixedLoader:
    """Batches that each hold rows of all sources; as `OrcLoader`, with a place of its own.

    An epoch ends with the source that takes most steps (``until: longest``; the others begin anew as often as they
    must, in another order), or with the one that takes fewest.
    """

    def __init__(
        self,
        loaders: Mapping[str, OrcLoader],
        until: Until = "longest",
        first_epoch: Callable[[], int] = lambda: 0,
        epoch_limit: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self.loaders, self.until = dict(loaders), until
        self._first_epoch, self._epoch_limit = first_epoch, epoch_limit
        self._next_epoch: int | None = None
        self._resume: tuple[int, int] | None = None
        self._committed = self._token(0, 0)

    def __len__(self) -> int:
        """Batches of an epoch."""
        steps = [len(loader) for loader in self.loaders.values()]
        return max(steps) if self.until == "longest" else min(steps)

    def place_of(self, name: str, epoch: int, step: int) -> tuple[int, int]:
        """The epoch and step of a source at a place of the mix: step 7 of a source of 5 steps is step 2 of its next."""
        own = len(self.loaders[name])
        passes = -(-len(self) // own)
        return epoch * passes + step // own, step % own

    def __iter__(self) -> Iterator[Batch]:
        self.close()
        return self._batches()

    def _batches(self) -> Iterator[Batch]:
        epoch, first = self._begin()
        self._next_epoch = epoch + 1
        iterators: dict[str, Iterator[Batch]] = {}
        for step in range(first, len(self)):
            batches = {}
            for name, loader in self.loaders.items():
                own_epoch, own_step = self.place_of(name, epoch, step)
                if name not in iterators or own_step == 0:
                    iterators[name] = loader.iterate(own_epoch, own_step)
                batches[name] = next(iterators[name])
            is_last = step + 1 == len(self)
            token = self._token(epoch + 1, 0) if is_last else self._token(epoch, step + 1)
            rows = {name: batch.size for name, batch in batches.items()}
            yield join_batches(list(batches.values()), {**token, SOURCE_ROWS: rows})
        self.close()

    def _begin(self) -> tuple[int, int]:
        saved, self._resume = self._resume, None
        if saved is None:
            return (self._first_epoch() if self._next_epoch is None else self._next_epoch), 0
        epoch, step = saved
        return (epoch + 1, 0) if step >= self._epoch_limit() else (epoch, step)

    def close(self) -> None:
        """End the threads of all sources."""
        for loader in self.loaders.values():
            loader.close()

    def _token(self, epoch: int, step: int) -> dict[str, Any]:
        sources = {name: loader.identity for name, loader in self.loaders.items()}
        return {"epoch": epoch, "step": step, "until": self.until, "sources": sources}

    def commit(self, token: Mapping[str, Any]) -> None:
        """Note that the batch with this token, and all before it, are used up."""
        self._committed = {key: value for key, value in token.items() if key != SOURCE_ROWS}

    def state_dict(self) -> dict[str, Any]:
        """Where to go on: behind the last committed batch."""
        return dict(self._committed)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at a saved place with the next iteration; DataError where a source or the mix is another."""
        saved = state.get("sources")
        if not isinstance(saved, Mapping) or set(saved) != set(self.loaders) or state.get("until") != self.until:
            found = f"{', '.join(saved)} until {state.get('until')}" if isinstance(saved, Mapping) else "no mix"
            raise DataError(
                f"the saved position belongs to {found}, not to {', '.join(self.loaders)} until {self.until}; train on "
                "the same sources, or start without the saved position"
            )
        for name, loader in self.loaders.items():
            loader.check_identity(saved[name], f"of source '{name}' ")
        self._resume = (int(state["epoch"]), int(state["step"]))
        self.commit(state)


class ChainedLoader:
    """All batches of one source, then of the next: each is of one source."""

    def __init__(self, loaders: Mapping[str, OrcLoader]) -> None:
        self.loaders = dict(loaders)

    def __len__(self) -> int:
        return sum(len(loader) for loader in self.loaders.values())

    def __iter__(self) -> Iterator[Batch]:
        for name, loader in self.loaders.items():
            for batch in loader:
                yield replace(batch, token={**batch.token, SOURCE_ROWS: {name: batch.size}})

    def close(self) -> None:
        """End the threads of all sources."""
        for loader in self.loaders.values():
            loader.close()


# ------------------------------------------------------------------------------------------------- joining batches


def join_batches(batches: Sequence[Batch], token: Mapping[str, Any]) -> Batch:
    """The rows of batches of one selection of columns, one behind the other, in one buffer.

    [[1], [2, 3]] and [[4]] are [[1], [2, 3], [4]]: values as they are, offsets moved on.
    """
    pieces: list[tuple[Part, Sequence[Tensor]]] = []
    shared: dict[tuple[int, ...], Part] = {}
    end = 0

    def place(tensors: Sequence[Tensor]) -> Part:
        nonlocal end
        rows = sum(len(tensor) for tensor in tensors)
        part = Part(tensors[0].dtype, (rows, *tensors[0].shape[1:]), end)
        end = -(-(end + part.nbytes) // ALIGNMENT) * ALIGNMENT
        pieces.append((part, tensors))
        return part

    def place_ragged(name: str, entries: Sequence[Ragged]) -> RaggedParts:
        offsets = tuple(id(batch.layout[name].offsets) for batch in batches)  # type: ignore[union-attr]
        if offsets not in shared:  # columns that share their offsets go on to share them
            shared[offsets] = place(_join_offsets([entry.offsets for entry in entries]))
        levels = zip(*(entry.inner_offsets for entry in entries), strict=True)
        inner = tuple(place(_join_offsets(level)) for level in levels)
        return RaggedParts(place([entry.values for entry in entries]), shared[offsets], None, inner)

    layout: dict[str, Part | RaggedParts] = {}
    for name in batches[0]:
        entries = [batch[name] for batch in batches]
        ragged = [entry for entry in entries if isinstance(entry, Ragged)]
        layout[name] = place_ragged(name, ragged) if ragged else place([e for e in entries if isinstance(e, Tensor)])
    buffer = torch.zeros(end, dtype=torch.uint8)
    for part, tensors in pieces:
        torch.cat(list(tensors), out=buffer.view(part.dtype)[part.span].view(part.shape))
    return Batch(buffer, layout, sum(batch.size for batch in batches), token)


def _join_offsets(offsets: Sequence[Tensor]) -> list[Tensor]:
    """[0, 2, 3] and [0, 4] -> [0, 2, 3] and [7]."""
    joined, last = [offsets[0]], offsets[0][-1]
    for each in offsets[1:]:
        joined.append(each[1:] + last)
        last = last + each[-1]
    return joined
