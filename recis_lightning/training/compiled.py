"""Modules over named inputs of changing sizes, compiled once: what `RecModule(compile=True)` runs."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from recis_lightning.features import FeatureEngine
from recis_lightning.ragged import Ragged
from recis_lightning.tables.watch import Watch

Inputs = Mapping[str, Tensor | Ragged]


class Compiled:
    """``function`` under torch.compile as one graph, for inputs of any number of rows and values.

    ``backend`` is that of torch.compile. A graph break is an error of torch that names the line. Inputs with less than
    two of anything go to the function as it is: torch would compile anew for each combination of them.
    """

    def __init__(self, function: Callable[[Inputs], Any], backend: str = "inductor") -> None:
        self.function = function
        self._graph: Any = torch.compile(function, fullgraph=True, dynamic=True, backend=backend)

    def __call__(self, inputs: Inputs) -> Any:
        entries = _apart(dict(inputs))  # a batch's views are made here, outside of the graph
        tensors = pytree.tree_leaves(entries)
        if any(tensor.shape[0] < 2 for tensor in tensors):
            return self.function(entries)
        for tensor in tensors:
            # Else two sizes that are equal in the first batch are taken for one.
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        with _sizes_in_graphs():
            return self._graph(entries)


def _apart(entries: dict[str, Tensor | Ragged]) -> dict[str, Tensor | Ragged]:
    """The entries with a tensor object for each: of which columns share offsets, a graph would keep that they do."""
    seen: set[int] = set()

    def once(tensor: Tensor) -> Tensor:
        if id(tensor) in seen:
            return tensor.view_as(tensor)
        seen.add(id(tensor))
        return tensor

    return pytree.tree_map(once, entries)


def _sizes_in_graphs() -> AbstractContextManager[None]:
    """Lets sizes that data decides into a graph: those of a cross, of rows that are cut, of ids that are dropped."""
    return torch._dynamo.config.patch(capture_scalar_outputs=True, capture_dynamic_output_shape_ops=True)


class CompiledFeatures(Compiled):
    """A feature engine compiled; values that its transforms have no result for are refused as ever.

    A graph can't stop at a value: it gives the first row that each look refuses, and where there is one the engine
    itself looks again, and raises its error. On a GPU nobody waits for that: a later batch raises it, and names the
    number of this one.
    """

    def __init__(self, engine: FeatureEngine, backend: str = "inductor") -> None:
        super().__init__(engine.graph, backend)
        self.engine = engine
        self._watch: Watch | None = None
        self._batches = 0

    def __call__(self, inputs: Inputs) -> Any:
        entries = dict(inputs)
        features, misfits = super().__call__(entries)
        rows = len(next(iter(entries.values())))
        if misfits.device.type != "cpu":
            self.look_later(misfits, rows)
            return features
        return self.engine(entries) if bool((misfits < rows).any()) else features

    def look_later(self, misfits_C: Tensor, rows: int) -> None:
        """Note which look refuses a row (below ``rows``), and raise what was noted before and has arrived."""
        if self._watch is None or self._watch.device != misfits_C.device:
            self._watch = Watch(misfits_C.device)
        self._watch.raise_found()
        self._batches += 1
        self._watch.begin_step(self._batches)
        if len(misfits_C):
            self._watch.note("features", misfits_C < rows, self._explain, misfits_C)

    def _explain(self, look: int, batch: int, row: int) -> ValueError:
        where, need = self.engine.looks[look]
        return ValueError(f"{where}, row {row} of batch {batch}: need {need}")
