"""Cut a batch out of blocks: every column of every span copied once, into one buffer.

B batch rows, I id columns, F dense columns, L list columns of one dtype
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from recis_lightning.data.columns import Selection
from recis_lightning.data.memory import BufferPool
from recis_lightning.data.window import Block
from recis_lightning.ragged import ALIGNMENT, Batch, Part, RaggedParts
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
    shared_offsets: int
    ids: "_Starts"
    id_lists: "_Starts"
    float_lists: "_Starts"


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
        list_counts = np.zeros(len(self.selection.id_lists) + len(self.selection.float_lists), np.int64)
        for block, first, last in spans:
            pack.count_present(block.present_IR, block.complete_I, first, last, counts_I)
            if len(list_counts):
                list_counts += np.concatenate(
                    [lists.count(first, last) for lists in (block.id_lists, block.float_lists)]
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
        filled_ids = np.zeros(len(plan.id_lists.values), np.int64)
        filled_floats = np.zeros(len(plan.float_lists.values), np.int64)
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
                (block.id_lists, plan.id_lists, words, filled_ids),
                (block.float_lists, plan.float_lists, floats, filled_floats),
            ):
                if len(filled):
                    pack.append_lists(
                        lists.offsets_LR, lists.values, lists.starts_L, first, last, words, typed, *starts, row, filled
                    )
            row += last - first


def _plan_parts(selection: Selection, rows: int, counts: Sequence[int]) -> _Plan:
    """Lay the parts out one behind the other; id columns that miss nothing share their offsets 0, 1, 2, ..."""
    gaps: list[tuple[int, int]] = []
    end = 0

    def place(dtype: torch.dtype, count: int) -> Part:
        nonlocal end
        part = Part(dtype, (count,), end)
        stop = end + count * dtype.itemsize
        end = -(-stop // ALIGNMENT) * ALIGNMENT
        if stop != end:
            gaps.append((stop, end))
        return part

    def place_lists(dtype: torch.dtype, list_counts: Sequence[int]) -> list[RaggedParts]:
        return [RaggedParts(place(dtype, count), place(torch.int64, rows + 1)) for count in list_counts]

    dense = [place(torch.float32, rows) for _ in selection.dense]
    first, second = len(selection.ids), len(selection.ids) + len(selection.id_lists)
    shared = place(torch.int64, rows + 1) if rows in counts[:first] else None
    ids = [
        RaggedParts(place(torch.int64, count), shared if count == rows and shared else place(torch.int64, rows + 1))
        for count in counts[:first]
    ]
    id_lists = place_lists(torch.int64, counts[first:second])
    float_lists = place_lists(torch.float32, counts[second:])
    names = [column.name for column in selection.dense + selection.ids + selection.id_lists + selection.float_lists]
    return _Plan(
        layout=dict(zip(names, [*dense, *ids, *id_lists, *float_lists], strict=True)),
        nbytes=end,
        gaps=gaps,
        dense_F=np.array([part.start // 4 for part in dense], np.int64),
        shared_offsets=shared.start // 8 if shared else -1,
        ids=_starts(ids, shared),
        id_lists=_starts(id_lists),
        float_lists=_starts(float_lists),
    )


def _starts(parts: Sequence[RaggedParts], shared: Part | None = None) -> _Starts:
    """-1 for shared offsets, which are written once."""
    return _Starts(
        np.array([part.values.start // part.values.dtype.itemsize for part in parts], np.int64),
        np.array([-1 if part.offsets is shared else part.offsets.start // 8 for part in parts], np.int64),
    )
