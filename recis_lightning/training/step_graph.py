"""A whole training step as one CUDA graph: lookup, model, backward and updates without the cost of their launches.

    step = StepGraph(run, embedding, optimizer)     # run(): what one step does with tensors that stay where they are
    batch.buffer.copy_(next_batch.buffer)           # the next step's numbers, of the same shapes
    loss = step()

Tables may grow, forget ids and be saved between two calls.
"""

from collections.abc import Callable
from typing import Any

import torch

from recis_lightning.embedding import EmbeddingCollection
from recis_lightning.optim import CompositeOptimizer


class StepGraph:
    """Captures ``run`` once, and replays it at each call; what it returns is overwritten by the next.

    ``run`` looks up, computes, goes backward and steps ``optimizer``, without a look at any number, on tensors whose
    shapes and places do not change; the dense optimizer is one of torch's with capturable=True. It is called
    ``warm_up`` times first: these are steps like others, by which everything comes to be that a graph can't make.
    """

    def __init__(
        self,
        run: Callable[[], Any],
        embedding: EmbeddingCollection,
        optimizer: CompositeOptimizer,
        warm_up: int = 3,
    ) -> None:
        self._groups, self._optimizer = embedding.groups, optimizer
        stream = torch.cuda.Stream(embedding.device)
        stream.wait_stream(torch.cuda.current_stream(embedding.device))
        with torch.cuda.stream(stream):
            for _ in range(warm_up):
                run()
        torch.cuda.current_stream(embedding.device).wait_stream(stream)
        for group in self._groups:
            group.captured = type(group.captured)()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = run()

    def __call__(self) -> Any:
        """One step more; errors of earlier steps that the device has told of by now are raised before it."""
        for group in self._groups:
            group.begin_replay()
        self._optimizer.sparse.advance()
        self._graph.replay()
        for group in self._groups:
            group.end_replay()
        return self._output
