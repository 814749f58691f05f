"""Ragged rows and the packed batch that carries them: the one structure every layer shares.

B batch rows, N values in the batch, S longest row, L level of nesting.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of unequal length, one behind the other: [[1, 2], [], [3]] is values [1, 2, 3] with offsets [0, 2, 2, 3].

    ``values`` is [N, ...]; ``offsets`` is int64 [B + 1], starts at 0, never falls and ends at N; ``weights`` is [N] or
    None. Nested lists have more offsets, outermost first: ``offsets`` then counts the rows of ``inner_offsets[0]``, and
    the last of ``inner_offsets`` counts values: [[[1, 2], [3]], []] has offsets [0, 2, 2], inner_offsets ([0, 2, 3],).

    Raises ValueError where dtypes or ranks do not fit. That the numbers inside offsets fit is not checked here, since
    reading them would wait for the device: `Ragged.check` does.
    """

    values: Tensor
    offsets: Tensor
    weights: Tensor | None = None
    inner_offsets: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        plain = self.weights is None and not self.inner_offsets
        if plain and self.offsets.dtype == torch.int64 and self.offsets.dim() == 1 and self.values.dim() > 0:
            return  # by far the most, and made for every feature
        for name, offsets in self._named_offsets():
            if offsets.dtype != torch.int64 or offsets.dim() != 1:
                raise ValueError(f"{name} is {offsets.dtype} {list(offsets.shape)}, need int64 [rows + 1]")
        if self.values.dim() == 0:
            raise ValueError("values are one number, need [N, ...]; give one value for each entry of the rows")
        if torch.compiler.is_compiling():  # sizes that data decides can be compared when the graph runs, no sooner
            if self.weights is not None:
                torch._check(self.weights.shape[0] == self.values.shape[0])
        elif self.weights is not None and self.weights.shape != self.values.shape[:1]:
            raise ValueError(
                f"weights are {list(self.weights.shape)} for values {list(self.values.shape)}; give one weight a value"
            )

    def _named_offsets(self) -> Iterator[tuple[str, Tensor]]:
        yield "offsets", self.offsets
        for level, offsets in enumerate(self.inner_offsets):
            yield f"inner_offsets[{level}]", offsets

    def check(self) -> "Ragged":
        """This ragged; ValueError where offsets do not start at 0, fall, or end elsewhere than their values."""
        bounds = [*(len(inner) - 1 for inner in self.inner_offsets), len(self.values)]
        for (name, offsets), bound in zip(self._named_offsets(), bounds, strict=True):
            if len(offsets) == 0 or int(offsets[0]) != 0:
                raise ValueError(f"{name} must start at 0, starts {offsets[:1].tolist()}; offsets are int64 [rows + 1]")
            if int(offsets[-1]) != bound:
                raise ValueError(
                    f"{name} ends at {int(offsets[-1])}, but there are {bound} values below it; "
                    "pass the offsets of these values"
                )
            if bool((offsets.diff() < 0).any()):
                raise ValueError(f"{name} falls at row {int((offsets.diff() < 0).nonzero()[0])}; offsets never fall")
        return self

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.offsets) - 1

    @property
    def innermost_offsets(self) -> Tensor:
        """The offsets that count values: ``offsets`` itself where nothing is nested."""
        return self.inner_offsets[-1] if self.inner_offsets else self.offsets

    @property
    def lengths(self) -> Tensor:
        """Entries of each outer row: offsets [0, 2, 2, 3] -> [2, 0, 1]."""
        return self.offsets.diff()

    @property
    def device(self) -> torch.device:
        return self.values.device

    def with_values(self, values: Tensor) -> "Ragged":
        """The same rows over other values of the same count, e.g. embeddings [N, D] in the place of ids [N]."""
        if torch.compiler.is_compiling():
            torch._check(values.shape[0] == self.values.shape[0])
        elif values.dim() == 0 or values.shape[0] != self.values.shape[0]:
            raise ValueError(f"{len(values)} values for rows of {len(self.values)}; give one for each")
        return Ragged.of_parts(values, self.offsets, self.weights, self.inner_offsets)

    @staticmethod
    def of_parts(
        values: Tensor, offsets: Tensor, weights: Tensor | None = None, inner_offsets: tuple[Tensor, ...] = ()
    ) -> "Ragged":
        """A Ragged of parts that are known to fit: unchecked, which takes a third of the time.

        Made for every feature of every batch.
        """
        if torch.compiler.is_compiling():
            return Ragged(values, offsets, weights, inner_offsets)
        ragged = object.__new__(Ragged)
        fields = ragged.__dict__  # a frozen dataclass lets nothing else be set
        fields["values"], fields["offsets"] = values, offsets
        fields["weights"], fields["inner_offsets"] = weights, inner_offsets
        return ragged

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> "Ragged":
        """Apply a function to every tensor inside."""
        weights = None if self.weights is None else function(self.weights)
        inner = tuple(function(offsets) for offsets in self.inner_offsets)
        return Ragged(function(self.values), function(self.offsets), weights, inner)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Ragged":
        return self.map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Ragged":
        return self.map_tensors(Tensor.pin_memory)

    def record_stream(self, stream: "torch.cuda.Stream") -> None:
        """Tell the allocator that ``stream`` still reads these tensors."""
        for tensor in pytree.tree_leaves(self):
            tensor.record_stream(stream)

    @staticmethod
    def from_lists(rows: list[Any], dtype: torch.dtype = torch.int64) -> "Ragged":
        """Build from Python lists of one depth: [[1, 2], []] -> values [1, 2], offsets [0, 2, 2]."""
        levels: list[Tensor] = []
        level: list[Any] = rows
        while True:
            lengths = [len(row) for row in level]
            levels.append(torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0))
            level = [entry for row in level for entry in row]
            if not level or not isinstance(level[0], list | tuple):
                break
        return Ragged(torch.tensor(level, dtype=dtype), levels[0], None, tuple(levels[1:]))

    def to_lists(self) -> list[Any]:
        """The rows as Python lists, for reading and tests."""
        level: list[Any] = self.values.tolist()
        for offsets in [*reversed(self.inner_offsets), self.offsets]:
            bounds = offsets.tolist()
            level = [level[start:stop] for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]
        return level

    def to_padded(self, padding: float = 0, length: int | None = None) -> Tensor:
        """Dense [B, S, ...] with ``padding`` behind short rows: [[1, 2], []] -> [[1, 2], [0, 0]].

        S is ``length``, or the longest row where none is given. A row longer than ``length`` raises ValueError: cutting
        is a transform, and declared.
        """
        if self.inner_offsets:
            raise ValueError(f"{len(self.inner_offsets)} inner levels; only unnested rows convert to a padded tensor")
        lengths = self.lengths
        longest = int(lengths.max()) if len(lengths) else 0
        if length is not None and longest > length:
            raise ValueError(f"the longest row has {longest} values, length is {length}; truncate first or give more")
        width = longest if length is None else length
        padded = self.values.new_full((len(self), width, *self.values.shape[1:]), padding)
        row = torch.repeat_interleave(torch.arange(len(self), device=self.device), lengths)
        position = torch.arange(len(self.values), device=self.device) - self.offsets[:-1][row]
        return padded.index_put((row, position), self.values)

    @staticmethod
    def from_padded(padded: Tensor, lengths: Tensor) -> "Ragged":
        """Cut rows out of dense [B, S, ...]: [[1, 2], [9, 9]] with lengths [2, 0] -> [[1, 2], []].

        ``lengths`` are integers [B]. Raises ValueError where one is negative or above S.
        """
        if padded.dim() < 2 or lengths.shape != padded.shape[:1]:
            raise ValueError(f"lengths are {list(lengths.shape)} for {list(padded.shape)}; give one length a row")
        misfit = (lengths < 0) | (lengths > padded.shape[1])
        if bool(misfit.any()):
            row = int(misfit.nonzero()[0])
            raise ValueError(f"row {row} has length {int(lengths[row])}, but there are {padded.shape[1]} places a row")
        kept = torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
        offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64, device=padded.device)
        torch.cumsum(lengths, 0, out=offsets[1:])
        return Ragged(padded[kept], offsets)

    def to_nested(self) -> Tensor:
        """A torch nested tensor (jagged layout) over the same values and innermost offsets; weights stay apart."""
        return torch.nested.nested_tensor_from_jagged(self.values, self.innermost_offsets)

    @staticmethod
    def from_nested(nested: Tensor, weights: Tensor | None = None) -> "Ragged":
        """The rows of a nested tensor in jagged layout, without a copy where it has no holes.

        Raises ValueError for other layouts, and where another dimension than the second is the ragged one.
        """
        if nested.layout is not torch.jagged or isinstance(nested.shape[1], int):
            raise ValueError(
                f"the tensor is {nested.layout} {list(nested.shape)}; need a jagged nested tensor [B, *, ...]"
            )
        packed: Any = nested.contiguous()  # a narrowed one has holes between its rows
        return Ragged(packed.values(), packed.offsets().to(torch.int64), weights)


def _flatten_ragged(ragged: Ragged) -> tuple[list[Any], bool]:
    # torch's pytrees take None for a leaf, so absent weights go into the context.
    children: list[Any] = [ragged.values, ragged.offsets, ragged.inner_offsets]
    return (children if ragged.weights is None else [*children, ragged.weights]), ragged.weights is not None


def _unflatten_ragged(children: Iterable[Any], has_weights: bool) -> Ragged:
    # Not through __post_init__: a pytree may carry anything in a leaf's place while it is being mapped.
    ragged, fields = object.__new__(Ragged), ("values", "offsets", "inner_offsets", "weights")
    for name, child in zip(fields, [*children, None][:4], strict=True):
        object.__setattr__(ragged, name, child)
    return ragged


pytree.register_pytree_node(Ragged, _flatten_ragged, _unflatten_ragged, serialized_type_name="recis_lightning.Ragged")


def stack_features(features: Sequence[Tensor]) -> Tensor:
    """Pooled features side by side: F times [B, D] -> [B, F, D], as torch.stack along dim 1.

    Features that one lookup has gathered side by side, all of them and in that order, are given as they lie in memory,
    not copied. The result shares their memory then, so change neither in place; autograd refuses what would go wrong.
    """
    # A graph knows nothing of memory: under torch.compile and torch.export it stacks.
    base = features[0]._base if len(features) and not torch.compiler.is_compiling() else None
    if base is not None and base.dim() == 3 and base.is_contiguous() and base.shape[1] == len(features):
        pieces = zip(features, base.detach().unbind(1), strict=True)
        if all(feature._base is base and feature.is_set_to(piece) for feature, piece in pieces):
            return base
    return torch.stack([*features], dim=1)


@dataclass(frozen=True)
class Part:
    """Where one tensor lies in a batch's buffer: dtype, shape, first byte."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @cached_property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @cached_property
    def span(self) -> slice:
        """Which elements it is of the buffer seen as its dtype."""
        first = self.start // self.dtype.itemsize
        return slice(first, first + math.prod(self.shape))


@dataclass(frozen=True)
class RaggedParts:
    """Where the tensors of one Ragged lie in a batch's buffer."""

    values: Part
    offsets: Part
    weights: Part | None = None
    inner_offsets: tuple[Part, ...] = ()


ALIGNMENT = 64  # bytes: a cache line, and more than any vector load asks for


@dataclass(frozen=True, eq=False)
class Batch(Mapping[str, Tensor | Ragged]):
    """One step's rows for one rank: named tensors and Ragged over one packed buffer, so that one copy moves them all.

    ``buffer`` is uint8 [bytes]; ``layout`` says which bytes are which tensor; ``size`` is the number of rows;
    ``token`` is what the loader needs to go on behind this batch (plain integers and strings, JSON-friendly).
    """

    buffer: Tensor
    layout: Mapping[str, Part | RaggedParts]
    size: int
    token: Mapping[str, Any] = field(default_factory=dict)
    arrival: Any = field(default=None, repr=False)
    """The event behind the copy that brings the buffer to a GPU, while nobody has waited for it; else None."""
    _typed: dict[torch.dtype, Tensor] = field(default_factory=dict, init=False, repr=False)
    _offsets: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __getitem__(self, name: str) -> Tensor | Ragged:
        parts = self.layout[name]
        if isinstance(parts, Part):
            return self._view(parts)
        offsets = self._offsets.get(id(parts.offsets))
        if offsets is None:  # several entries may share them, and then share the tensor
            offsets = self._offsets[id(parts.offsets)] = self._view(parts.offsets)
        values = self._view(parts.values)
        if parts.weights is None and not parts.inner_offsets:
            return Ragged.of_parts(values, offsets)
        weights = None if parts.weights is None else self._view(parts.weights)
        return Ragged.of_parts(values, offsets, weights, tuple(map(self._view, parts.inner_offsets)))

    def _view(self, part: Part) -> Tensor:
        """A part as a tensor that shares the buffer's memory."""
        words = self._typed.get(part.dtype)
        if words is None:  # one view of the whole for each dtype: a slice of it costs a third of a slice and a view
            whole = self.buffer.numel() // part.dtype.itemsize * part.dtype.itemsize
            words = self._typed[part.dtype] = self.buffer[:whole].view(part.dtype)
        flat = words[part.span]
        return flat if len(part.shape) == 1 else flat.view(part.shape)

    def __contains__(self, name: object) -> bool:
        return name in self.layout  # Mapping's would view the entry to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout)

    def __len__(self) -> int:
        """Number of named entries, as for every mapping; the number of rows is ``size``."""
        return len(self.layout)

    # Not Mapping's, which would compare tensors: a batch is equal to itself.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def device(self) -> torch.device:
        return self.buffer.device

    def with_buffer(self, buffer: Tensor) -> "Batch":
        return Batch(buffer, self.layout, self.size, self.token)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        return self.with_buffer(self.buffer.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        return self.with_buffer(self.buffer.pin_memory())

    def record_stream(self, stream: "torch.cuda.Stream") -> None:
        """Tell the allocator that ``stream`` still reads the buffer."""
        self.buffer.record_stream(stream)

    @staticmethod
    def pack(entries: Mapping[str, Tensor | Ragged], size: int, token: Mapping[str, Any] | None = None) -> "Batch":
        """Copy named tensors and Ragged into one buffer: the plain definition, for tests and small jobs.

        Raises ValueError where an entry does not have ``size`` rows.
        """
        copies: list[tuple[Part, Tensor]] = []
        end = 0

        placed: dict[int, Part] = {}

        def place(tensor: Tensor) -> Part:
            nonlocal end
            if id(tensor) in placed:  # offsets that several entries share stay shared
                return placed[id(tensor)]
            start = -(-end // ALIGNMENT) * ALIGNMENT
            part = Part(tensor.dtype, tuple(tensor.shape), start)
            end = start + part.nbytes
            copies.append((part, tensor))
            placed[id(tensor)] = part
            return part

        layout: dict[str, Part | RaggedParts] = {}
        for name, entry in entries.items():
            if len(entry) != size:
                raise ValueError(f"entry '{name}' has {len(entry)} rows, the batch has {size}")
            if isinstance(entry, Ragged):
                layout[name] = RaggedParts(
                    place(entry.values),
                    place(entry.offsets),
                    None if entry.weights is None else place(entry.weights),
                    tuple(place(offsets) for offsets in entry.inner_offsets),
                )
            else:
                layout[name] = place(entry)
        batch = Batch(torch.empty(end, dtype=torch.uint8), layout, size, token or {})
        for part, tensor in copies:
            batch._view(part).copy_(tensor)
        return batch


def _flatten_batch(batch: Batch) -> tuple[list[Any], Any]:
    return [batch.buffer], (batch.layout, batch.size, batch.token)


def _unflatten_batch(children: Any, context: Any) -> Batch:
    layout, size, token = context
    return Batch(next(iter(children)), layout, size, token)


pytree.register_pytree_node(Batch, _flatten_batch, _unflatten_batch, serialized_type_name="recis_lightning.Batch")
