"""Modules over named inputs of changing sizes, compiled once: what `RecModule(compile=True)` runs."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from recis_lightning.ragged import Ragged

Inputs = Mapping[str, Tensor | Ragged]


class Compiled:
    """``module`` under torch.compile as one graph, for inputs of any number of rows and values.

    ``backend`` is that of torch.compile. A graph break is an error of torch that names the line. Inputs with less than
    two of anything go to the module as it is: torch would compile anew for each combination of them.
    """

    def __init__(self, module: nn.Module, backend: str = "inductor") -> None:
        self.module = module
        self._graph: Any = torch.compile(module, fullgraph=True, dynamic=True, backend=backend)

    def __call__(self, inputs: Inputs) -> Any:
        entries = dict(inputs)  # a batch's views are made here, outside of the graph
        tensors = pytree.tree_leaves(entries)
        if any(tensor.shape[0] < 2 for tensor in tensors):
            return self.module(entries)
        for tensor in tensors:
            # Else two sizes that are equal in the first batch are taken for one.
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return self._graph(entries)


class CompiledFeatures(Compiled):
    """A feature engine compiled; values that its transforms have no result for are refused as ever.

    A graph can't stop at a value: where numbers that are not finite go in or come out, the engine itself looks again.
    """

    def __call__(self, inputs: Inputs) -> Any:
        entries = dict(inputs)
        outputs = super().__call__(entries)
        floats = [leaf for leaf in pytree.tree_leaves((entries, outputs)) if leaf.is_floating_point()]
        if all(bool(leaf.sum().isfinite()) for leaf in floats):
            return outputs
        return self.module(entries)
