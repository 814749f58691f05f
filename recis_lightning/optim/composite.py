"""One optimizer over dense parameters and rows, so that automatic optimisation, schedulers and callbacks see one."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from recis_lightning.optim.sparse import SparseOptimizer


class CompositeOptimizer(torch.optim.Optimizer):
    """A torch optimizer of dense parameters and a `SparseOptimizer`, stepped together.

    ``param_groups`` are the very mappings of the dense optimizer, followed by those of the sparse one: a scheduler
    drives the learning rates of both, each from where it starts. ``state`` is the dense optimizer's. ``dense`` is
    None for a model whose parameters are all rows.
    """

    dense: torch.optim.Optimizer | None
    sparse: SparseOptimizer

    def __init__(self, dense: torch.optim.Optimizer | None, sparse: SparseOptimizer) -> None:
        # Optimizer.__init__ takes parameters and groups of its own; what it sets up besides, unpickling does as well.
        defaults = {} if dense is None else dense.defaults
        self.__setstate__({"dense": dense, "sparse": sparse, "defaults": defaults})

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        # Put together at each call: a dense optimizer replaces its groups when it loads a state.
        return [*(self.dense.param_groups if self.dense is not None else ()), *self.sparse.param_groups]

    @property
    def state(self) -> Mapping[Tensor, Any]:  # type: ignore[override]
        return {} if self.dense is None else self.dense.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to the dense optimizer. Raises ValueError where there is none."""
        if self.dense is None:
            raise ValueError("there is no dense optimizer to add parameters to; give one to CompositeOptimizer")
        self.dense.add_param_group(param_group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run the closure, which leaves the gradients, then step rows and dense parameters; returns what it returned.

        Raises FloatingPointError, before anything is updated, where a row's gradient is not finite.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.sparse.step()
        if self.dense is not None:
            self.dense.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget dense gradients and what backward has left for rows."""
        if self.dense is not None:
            self.dense.zero_grad(set_to_none)
        self.sparse.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """{"dense": the dense optimizer's, "sparse_groups": the sparse one's}; the rows' own state is in the tables."""
        return {
            "dense": None if self.dense is None else self.dense.state_dict(),
            "sparse_groups": self.sparse.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave. Raises ValueError where it does not fit."""
        if (state_dict["dense"] is None) != (self.dense is None):
            there, here = ("with", "without") if self.dense is None else ("without", "with")
            raise ValueError(f"the saved optimizer is one {there} dense parameters, this one is {here}; load its like")
        self.sparse.load_state_dict(state_dict["sparse_groups"])
        if self.dense is not None:
            self.dense.load_state_dict(state_dict["dense"])

    def __getstate__(self) -> dict[str, Any]:
        return {"dense": self.dense, "sparse": self.sparse, "defaults": self.defaults}
