"""Cut a batch out of blocks: every column of every span copied once, into one buffer.

B batch rows, I id columns, F dense columns, L list columns of one dtype
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from recis_lightning.data.columns import Selection, levels_of
from recis_lightning.data.memory import BufferPool
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
    gaps: Sequence[tuple[int, int]]
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


class BatchPacker:
    """Packs spans of blocks of one selection of columns into batches."""

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self._pool = BufferPool()
        self._key = b""
        self._last_plan: _Plan | None = None

    def pack(self, spans: Sequence[Span], token: Mapping[str, Any]) -> Batch:
        """One batch of the spans' rows, one behind the other; raises the error of a row that has a problem."""
        for span in spans:
            # Rows before the span count too: a resumed run must not step over what the first run would have stopped at.
            if span.block.problem is not None and span.block.problem.place < span.last:
                raise span.block.problem.error
        rows = sum(span.last - span.first for span in spans)
        pack = kernels()
        plan = self._plan(rows, self._count_values(pack, spans))
        buffer = self._pool.take(plan.nbytes)
        self._fill(pack, buffer.numpy(), plan, spans, rows)
        return Batch(buffer, plan.layout, rows, token)

    def _count_values(self, pack: Kernels, spans: Sequence[Span]) -> NDArray[np.int64]:
        counts_I = np.zeros(len(self.selection.ids), np.int64)
        kinds = (self.selection.word_lists, self.selection.float_lists, self.selection.byte_lists)
        list_counts = np.zeros(sum(map(len, kinds)), np.int64)
        for block, first, last in spans:
            pack.count_present(block.present_IR, block.complete_I, first, last, counts_I)
            if len(list_counts):
                list_counts += np.concatenate(
                    [lists.count(first, last) for lists in (block.word_lists, block.float_lists, block.byte_lists)]
                )
        return np.concatenate([counts_I, list_counts])

    def _plan(self, rows: int, counts: NDArray[np.int64]) -> _Plan:
        key = rows.to_bytes(8, "little") + counts.tobytes()
        if self._last_plan is None or key != self._key:
            self._key, self._last_plan = key, _plan_parts(self.selection, rows, counts.tolist())
        return self._last_plan

    def _fill(self, pack: Kernels, buffer: NDArray[np.uint8], plan: _Plan, spans: Sequence[Span], rows: int) -> None:
        words, floats = buffer.view(np.int64), buffer.view(np.float32)
        if not rows:
            buffer[:] = 0  # all there is are offsets of one 0
        for start, stop in plan.gaps:
            buffer[start:stop] = 0
        if plan.shared_offsets >= 0:
            words[plan.shared_offsets : plan.shared_offsets + rows + 1] = np.arange(rows + 1)
        filled_I = np.zeros(len(plan.ids.values), np.int64)
        filled_words, filled_floats, filled_bytes = (
            np.zeros(len(starts.values), np.int64) for starts in (plan.word_lists, plan.float_lists, plan.byte_lists)
        )
        row = 0
        for block, first, last in spans:
            pack.append_rows(
                block.ids_IR,
                block.present_IR,
                block.complete_I,
                block.dense_FR,
                first,
                last,
                words,
                floats,
                *plan.ids,
                plan.dense_F,
                row,
                filled_I,
            )
            for lists, starts, typed, filled in (
                (block.word_lists, plan.word_lists, words, filled_words),
                (block.float_lists, plan.float_lists, floats, filled_floats),
                (block.byte_lists, plan.byte_lists, buffer, filled_bytes),
            ):
                if len(filled):
                    pack.append_lists(
                        lists.offsets_LR, lists.values, lists.starts_L, first, last, words, typed, *starts, row, filled
                    )
            for vector_RD, start in zip(block.vectors, plan.vectors, strict=True):
                dim = vector_RD.shape[1]
                at = start + row * dim
                floats[at : at + (last - first) * dim] = vector_RD[first:last].reshape(-1)
            row += last - first
        for start, count in plan.inner_offsets:
            words[start] = 0
            np.cumsum(words[start + 1 : start + 1 + count], out=words[start + 1 : start + 1 + count])


def _plan_parts(selection: Selection, rows: int, counts: Sequence[int]) -> _Plan:
    """Lay the parts out one behind the other; id columns that miss nothing share their offsets 0, 1, 2, ..."""
    gaps: list[tuple[int, int]] = []
    end = 0

    def place(dtype: torch.dtype, *shape: int) -> Part:
        nonlocal end
        part = Part(dtype, shape, end)
        stop = end + part.nbytes
        end = -(-stop // ALIGNMENT) * ALIGNMENT
        if stop != end:
            gaps.append((stop, end))
        return part

    def place_lists(dtype: torch.dtype, columns: Sequence[Column]) -> list[RaggedParts]:
        return [RaggedParts(place(dtype, next(list_counts)), place(torch.int64, rows + 1)) for _ in columns]

    dense = [place(torch.float32, rows) for _ in selection.dense]
    vectors = [place(torch.float32, rows, column.dim or 1) for column in selection.vectors]
    ids_end = len(selection.ids)
    list_counts = iter(counts[ids_end:])
    shared = place(torch.int64, rows + 1) if rows in counts[:ids_end] else None
    ids = [
        RaggedParts(place(torch.int64, count), shared if count == rows and shared else place(torch.int64, rows + 1))
        for count in counts[:ids_end]
    ]
    # A level holds lengths, of which offsets are made in place: one more than there are.
    id_lists = place_lists(torch.int64, selection.id_lists)
    levels = [
        RaggedParts(place(torch.int64, next(list_counts) + 1), place(torch.int64, rows + 1)) for _ in selection.levels
    ]
    float_lists = place_lists(torch.float32, selection.float_lists)
    byte_lists = place_lists(torch.uint8, selection.byte_lists)
    columns = (
        *selection.dense,
        *selection.vectors,
        *selection.ids,
        *selection.id_lists,
        *selection.float_lists,
        *selection.byte_lists,
    )
    parts: list[Part | RaggedParts] = [*dense, *vectors, *ids, *id_lists, *float_lists, *byte_lists]
    layout = dict(zip((column.name for column in columns), parts, strict=True))
    level_of = dict(zip((column.name for column in selection.levels), levels, strict=True))
    return _Plan(
        layout={column.name: _nest(layout[column.name], column, level_of) for column in columns},
        nbytes=end,
        gaps=gaps,
        dense_F=np.array([part.start // 4 for part in dense], np.int64),
        vectors=[part.start // 4 for part in vectors],
        shared_offsets=shared.start // 8 if shared else -1,
        ids=_starts(ids, shared),
        word_lists=_join(_starts(id_lists), _starts(levels, skip=1)),
        float_lists=_starts(float_lists),
        byte_lists=_starts(byte_lists),
        inner_offsets=[(part.values.start // 8, part.values.shape[0] - 1) for part in levels],
    )


def _nest(part: Part | RaggedParts, column: Column, level_of: Mapping[str, RaggedParts]) -> Part | RaggedParts:
    """A nested column's flat values under the offsets of its levels."""
    if column.layout != "nested_list" or isinstance(part, Part):
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
