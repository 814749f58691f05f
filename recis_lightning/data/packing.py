"""Cut a batch out of blocks: every column of every span copied once, into one buffer.

B batch rows, I id columns, F dense columns, L list columns of one dtype
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from recis_lightning.data.columns import Selection, levels_of
from recis_lightning.data.memory import BufferPool, PinnedBuffers
from recis_lightning.data.window import Block
from recis_lightning.ragged import ALIGNMENT, Batch, Part, RaggedParts
from recis_lightning.schema import Column
from triton_ops.pack.op import Kernels, kernels


class Span(NamedTuple):
    """Rows [first, last) of a block."""

    block: Block
    first: int
    last: int


@dataclass(frozen=True)
class _Plan:
    """Where everything of a batch goes; it depends on the numbers of rows and values alone."""

    layout: Mapping[str, Part | RaggedParts]
    nbytes: int
    gaps: NDArray[np.int64]
    """Which lines of 64 bytes are not filled to their end."""
    dense_F: NDArray[np.int64]
    vectors: Sequence[int]
    shared_offsets: int
    ids: "_Starts"
    word_lists: "_Starts"
    float_lists: "_Starts"
    byte_lists: "_Starts"
    inner_offsets: Sequence[tuple[int, int]]
    """Where inner offsets are to be made of lengths: the first and the last but one."""


class _Starts(NamedTuple):
    """First element of the values and of the offsets of each column, in elements of their own size."""

    values: NDArray[np.int64]
    offsets: NDArray[np.int64]


def _without_gaps(span: Span) -> Span:
    """The same rows by their places among those that are kept."""
    kept_R1 = span.block.kept_R1
    return span if kept_R1 is None else Span(span.block, int(kept_R1[span.first]), int(kept_R1[span.last]))


class BatchPacker:
    """Packs spans of blocks of one selection of columns into batches."""

    def __init__(self, selection: Selection, pinned: bool = False) -> None:
        """``pinned`` asks for batches in memory that a GPU can copy from by itself."""
        self.selection = selection
        self._pool: BufferPool | PinnedBuffers = PinnedBuffers() if pinned else BufferPool()
        self._key = b"", b"", b""
        self._last_singles: _Singles | None = None
        self._last_plan: _Plan | None = None

    def pack(self, spans: Sequence[Span], token: Mapping[str, Any]) -> Batch:
        """One batch of the spans' rows, one behind the other; raises the error of a row that has a problem."""
        for span in spans:
            # Rows before the span count too: a resumed run must not step over what the first run would have stopped at.
            if span.block.problem is not None and span.block.problem.place < span.last:
                raise span.block.problem.error
        spans = [_without_gaps(span) for span in spans]
        rows = sum(span.last - span.first for span in spans)
        pack, sources = kernels(), _Sources.of(spans, self.selection)
        plan = self._plan(rows, self._count_values(pack, sources))
        buffer = self._pool.take(plan.nbytes)
        self._fill(pack, buffer.numpy(), plan, sources, rows)
        _fill_vectors(buffer.numpy().view(np.float32), plan, spans)
        return Batch(buffer, plan.layout, rows, token)

    def _count_values(self, pack: Kernels, sources: "_Sources") -> NDArray[np.int64]:
        ends = list(itertools.accumulate(map(len, (self.selection.ids, *_list_columns(self.selection)))))
        counts = np.zeros(ends[-1], np.int64)
        pack.count_present(sources.present_PI, sources.spans_P2, counts[: ends[0]])
        for lists, first, last in zip(sources.lists, ends, ends[1:], strict=False):
            pack.count_lists(lists.lengths_PL, sources.spans_P2, counts[first:last])
        return counts

    def _plan(self, rows: int, counts: NDArray[np.int64]) -> _Plan:
        ids = len(self.selection.ids)
        key = rows.to_bytes(8, "little"), counts[:ids].tobytes(), counts[ids:].tobytes()
        if self._last_singles is None or key[:2] != self._key[:2]:
            self._last_singles = _plan_singles(self.selection, rows, counts[:ids].tolist())
        if self._last_plan is None or key != self._key:
            self._last_plan = _plan_lists(self.selection, rows, counts[ids:].tolist(), self._last_singles)
        self._key = key
        return self._last_plan

    def _fill(self, pack: Kernels, buffer: NDArray[np.uint8], plan: _Plan, sources: "_Sources", rows: int) -> None:
        words, floats = buffer.view(np.int64), buffer.view(np.float32)
        if not rows:
            buffer[:] = 0  # all there is are offsets of one 0
            return
        buffer.reshape(-1, ALIGNMENT)[plan.gaps] = 0
        if plan.shared_offsets >= 0:
            words[plan.shared_offsets : plan.shared_offsets + rows + 1] = np.arange(rows + 1)
        singles = (sources.ids_PI, sources.present_PI, sources.dense_PF, sources.spans_P2)
        pack.append_rows(*singles, words, floats, *plan.ids, plan.dense_F)
        starts = (plan.word_lists, plan.float_lists, plan.byte_lists)
        buffers: tuple[NDArray[Any], ...] = (words, floats, buffer)
        for lists, typed, targets in zip(sources.lists, buffers, starts, strict=True):
            pack.append_lists(*lists, sources.spans_P2, words, typed, *targets)
        for start, count in plan.inner_offsets:
            words[start] = 0
            np.cumsum(words[start + 1 : start + 1 + count], out=words[start + 1 : start + 1 + count])


def _fill_vectors(floats: NDArray[np.float32], plan: _Plan, spans: Sequence[Span]) -> None:
    row = 0
    for block, first, last in spans:
        for vector_RD, start in zip(block.vectors, plan.vectors, strict=True):
            dim = vector_RD.shape[1]
            at = start + row * dim
            floats[at : at + (last - first) * dim] = vector_RD[first:last].reshape(-1)
        row += last - first


def _list_columns(selection: Selection) -> tuple[tuple[Column, ...], ...]:
    """The columns packed as lists, by dtype: int64, float32, uint8."""
    return selection.word_lists, selection.float_lists, selection.byte_lists


class _ListSources(NamedTuple):
    """The lists of one dtype."""

    lengths_PL: NDArray[np.int64]
    starts_PL: NDArray[np.int64]


class _Sources(NamedTuple):
    """Where the rows of a batch lie: of each of P spans and each column as `window.Block`."""

    spans_P2: NDArray[np.int64]
    ids_PI: NDArray[np.int64]
    present_PI: NDArray[np.int64]
    dense_PF: NDArray[np.int64]
    lists: tuple[_ListSources, ...]
    """Of each dtype."""

    @staticmethod
    def of(spans: Sequence[Span], selection: Selection) -> "_Sources":
        lengths = [len(selection.ids)] * 2 + [len(selection.dense)]
        lengths += [len(columns) for columns in _list_columns(selection) for _ in range(2)]
        ends = list(itertools.accumulate(lengths))
        table = np.array([span.block.addresses for span in spans], np.int64).reshape(len(spans), ends[-1])
        parts = [table[:, end - length : end] for end, length in zip(ends, lengths, strict=True)]
        spans_P2 = np.array([(span.first, span.last) for span in spans], np.int64).reshape(-1, 2)
        ids_PI, present_PI, dense_PF = parts[:3]
        lists = tuple(_ListSources(*pair) for pair in zip(parts[3::2], parts[4::2], strict=True))
        return _Sources(spans_P2, ids_PI, present_PI, dense_PF, lists)


class _Layout:
    """Lays parts out one behind the other."""

    def __init__(self, end: int = 0, gaps: Sequence[int] = ()) -> None:
        self.end, self.gaps = end, list(gaps)

    def place(self, dtype: torch.dtype, *shape: int) -> Part:
        part = Part(dtype, shape, self.end)
        stop = self.end + part.nbytes
        self.end = -(-stop // ALIGNMENT) * ALIGNMENT
        if stop != self.end:
            self.gaps.append(stop // ALIGNMENT)
        return part


@dataclass(frozen=True)
class _Singles:
    """Where all but lists goes, which is the same for many batches."""

    layout: Mapping[str, Part | RaggedParts]
    end: int
    gaps: Sequence[int]
    dense_F: NDArray[np.int64]
    vectors: Sequence[int]
    shared_offsets: int
    ids: "_Starts"


def _plan_singles(selection: Selection, rows: int, counts_I: Sequence[int]) -> _Singles:
    """Id columns that miss nothing share their offsets 0, 1, 2, ..."""
    layout = _Layout()
    dense = [layout.place(torch.float32, rows) for _ in selection.dense]
    vectors = [layout.place(torch.float32, rows, column.dim or 1) for column in selection.vectors]
    shared = layout.place(torch.int64, rows + 1) if rows in counts_I else None
    ids = [
        RaggedParts(
            layout.place(torch.int64, count),
            shared if count == rows and shared else layout.place(torch.int64, rows + 1),
        )
        for count in counts_I
    ]
    columns = (*selection.dense, *selection.vectors, *selection.ids)
    parts: list[Part | RaggedParts] = [*dense, *vectors, *ids]
    return _Singles(
        layout=dict(zip((column.name for column in columns), parts, strict=True)),
        end=layout.end,
        gaps=layout.gaps,
        dense_F=np.array([part.start // 4 for part in dense], np.int64),
        vectors=[part.start // 4 for part in vectors],
        shared_offsets=shared.start // 8 if shared else -1,
        ids=_starts(ids, shared),
    )


def _plan_lists(selection: Selection, rows: int, counts: Sequence[int], singles: _Singles) -> _Plan:
    """Lists behind all else."""
    layout, list_counts = _Layout(singles.end, singles.gaps), iter(counts)

    def place_lists(dtype: torch.dtype, columns: Sequence[Column], more: int = 0) -> list[RaggedParts]:
        place = layout.place
        return [RaggedParts(place(dtype, next(list_counts) + more), place(torch.int64, rows + 1)) for _ in columns]

    id_lists = place_lists(torch.int64, selection.id_lists)
    # A level holds lengths, of which offsets are made in place: one more than there are.
    levels = place_lists(torch.int64, selection.levels, more=1)
    float_lists = place_lists(torch.float32, selection.float_lists)
    byte_lists = place_lists(torch.uint8, selection.byte_lists)
    columns = (*selection.id_lists, *selection.float_lists, *selection.byte_lists)
    level_of = dict(zip((column.name for column in selection.levels), levels, strict=True))
    lists = {
        column.name: _nest(part, column, level_of)
        for column, part in zip(columns, (*id_lists, *float_lists, *byte_lists), strict=True)
    }
    return _Plan(
        layout={**singles.layout, **lists},
        nbytes=layout.end,
        gaps=np.array(layout.gaps, np.int64),
        dense_F=singles.dense_F,
        vectors=singles.vectors,
        shared_offsets=singles.shared_offsets,
        ids=singles.ids,
        word_lists=_join(_starts(id_lists), _starts(levels, skip=1)),
        float_lists=_starts(float_lists),
        byte_lists=_starts(byte_lists),
        inner_offsets=[(part.values.start // 8, part.values.shape[0] - 1) for part in levels],
    )


def _nest(part: RaggedParts, column: Column, level_of: Mapping[str, RaggedParts]) -> RaggedParts:
    """A nested column's flat values under the offsets of its levels."""
    if column.layout != "nested_list":
        return part
    levels = [level_of[level.name] for level in levels_of(column)]
    return RaggedParts(part.values, levels[0].offsets, None, tuple(level.values for level in levels))


def _join(first: "_Starts", second: "_Starts") -> "_Starts":
    return _Starts(*(np.concatenate(pair) for pair in zip(first, second, strict=True)))


def _starts(parts: Sequence[RaggedParts], shared: Part | None = None, skip: int = 0) -> _Starts:
    """-1 for shared offsets, which are written once; ``skip`` values are left for later."""
    return _Starts(
        np.array([part.values.start // part.values.dtype.itemsize + skip for part in parts], np.int64),
        np.array([-1 if part.offsets is shared else part.offsets.start // 8 for part in parts], np.int64),
    )
