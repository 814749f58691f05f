"""Area under the ROC curve: exact while the distinct logits are few, then on a grid, with a bound on its error.

C cells, sorted by logit: [C, 3] float64 of (logit, weight of its positives, weight of its negatives).

Cells are merged by rounding logits down to multiples of 2^e, with the least e that leaves no more cells than allowed.
Since grids of powers of two nest, the cells depend on the rows alone: not on how they were cut into batches, on which
rank they lay or in which order the parts were merged, nor on whether a part was still exact.

A cell that mixes logits counts its pairs of a positive and a negative as ties, so it errs by at most half of them.
For normal logits of any width and mean, 2^18 cells keep the sum of that below 1e-5 up to 10^9 rows; 2^16 would reach
4e-5, and the field's habit of 200 uniform thresholds errs by 1e-2 where one row in a hundred is positive.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from recis_lightning.metrics.inputs import keep_dtype, read_inputs

EXACT = -401  # the exponent where no logit has been rounded yet
_EXPONENTS = range(EXACT + 1, 401)  # of grids; logits of 32 bits lie between 2^-149 and 2^128
_MOST_PARTS = 256  # of the list of cells, so that single rows don't make it long


class AUC(Metric):
    """Share of (positive, negative) pairs whose positive has the higher logit, ties counting half.

    Logits [1, 3, 2, 2] for targets [0, 1, 1, 0] -> 0.875: of 4 pairs 3 are right, 1 is a tie. With weights, a pair
    counts the product of its two. Targets are 0 or 1. nan, without a warning, where only one of the two has weight.

    Exact, to rounding in float64, up to ``max_cells`` distinct logits; beyond that in bounded memory (72 bytes a
    cell), within `error_bound` of the exact value.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = True  # forward then adds rows by update, which bounds the memory, and not by joining lists
    cells: list[Tensor]
    exponent: Tensor

    def __init__(self, max_cells: int = 2**18, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if max_cells < 4:
            raise ValueError(f"max_cells is {max_cells}, need at least 4; the default is 2^18")
        self.max_cells = max_cells
        self.add_state("cells", [], dist_reduce_fx="cat")
        self.add_state("exponent", torch.tensor(EXACT), dist_reduce_fx="max")

    def update(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
        """Add rows: logits, targets and weights of one shape."""
        logits_N, target_N, weight_N = read_inputs(logits, target, weight, hard_labels=True)
        positive_N = weight_N * target_N
        self.cells.append(torch.stack((logits_N, positive_N, weight_N - positive_N), dim=1))
        self._bound_memory()

    def compute(self) -> Tensor:
        """The area over all rows, float64 []."""
        self._merge_cells()
        return area(self.cells[0])

    def error_bound(self) -> Tensor:
        """How far `compute` can be from the exact area, float64 []; 0 where it is exact.

        Over several ranks this gathers their states, as `compute` does: all ranks call it.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute):
            self._merge_cells()
            return tied(self.cells[0]) / 2 if int(self.exponent) != EXACT else self.exponent.new_zeros(()).double()

    def merge_state(self, incoming_state: "dict[str, Any] | Metric") -> None:
        """Add the rows of another AUC, or of its `metric_state`."""
        if not isinstance(incoming_state, AUC | dict):
            raise ValueError(f"cannot merge a {type(incoming_state).__name__} into an AUC; give an AUC or its state")
        state: dict[str, Any] = incoming_state if isinstance(incoming_state, dict) else incoming_state.metric_state
        self.cells = [*self.cells, *state["cells"]]
        self.exponent = torch.maximum(self.exponent, state["exponent"])
        self._computed = None
        self._bound_memory()

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all ranks, merged first: less to send, and one tensor also from a rank without rows."""
        self._merge_cells()
        super().sync(*args, **kwargs)

    def _bound_memory(self) -> None:
        if len(self.cells) > _MOST_PARTS or sum(map(len, self.cells)) > 2 * self.max_cells:
            self._merge_cells()

    def _merge_cells(self) -> None:
        parts = [self.cells] if isinstance(self.cells, Tensor) else self.cells  # a tensor once gathered
        empty = torch.zeros((0, 3), dtype=torch.float64, device=self.exponent.device)
        cells, exponent = coarsen(torch.cat([empty, *parts]), int(self.exponent), self.max_cells)
        self.cells, self.exponent = [cells], torch.full_like(self.exponent, exponent)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> torch.nn.Module:
        return super()._apply(keep_dtype(fn), exclude_state)


def area(cells_C3: Tensor) -> Tensor:
    """The area of sorted cells: [[1, 0, 1], [2, 1, 1], [3, 1, 0]] -> (1.5 + 2) / 4 = 0.875."""
    positive_C, negative_C = cells_C3[:, 1], cells_C3[:, 2]
    below_C = negative_C.cumsum(0) - negative_C
    return (positive_C * (below_C + negative_C / 2)).sum() / (positive_C.sum() * negative_C.sum())


def tied(cells_C3: Tensor) -> Tensor:
    """The share of pairs that lie in one cell: [[1, 0, 1], [2, 1, 1], [3, 1, 0]] -> 1 / 4."""
    positive_C, negative_C = cells_C3[:, 1], cells_C3[:, 2]
    return (positive_C * negative_C).sum() / (positive_C.sum() * negative_C.sum())


def coarsen(cells_N3: Tensor, exponent: int, max_cells: int) -> tuple[Tensor, int]:
    """Sorted cells on the finest grid, from 2^exponent on, that leaves at most ``max_cells`` of them; and its exponent.

    Logits 0, 0.3, 0.6, 1.1 with at most 3 cells -> cells 0, 0.5, 1 and exponent -1.
    """
    cells_C3 = merge_equal(round_down(cells_N3, exponent))
    if len(cells_C3) > max_cells:
        candidates = _EXPONENTS[max(exponent + 1 - _EXPONENTS[0], 0) :]
        fits = bisect_left(candidates, True, key=lambda e: count_distinct(round_down(cells_C3, e)) <= max_cells)
        exponent = candidates[fits]
        cells_C3 = merge_equal(round_down(cells_C3, exponent))
    return cells_C3, exponent


def round_down(cells_C3: Tensor, exponent: int) -> Tensor:
    """Cells with logits rounded down to multiples of 2^exponent: 0.3 with exponent -2 -> 0.25."""
    if exponent == EXACT:
        return cells_C3
    logits_C, width = cells_C3[:, 0], 2.0**exponent
    scaled_C = logits_C / width
    # From 2^53 on, a float64 is a whole number already, and the product might overflow.
    rounded_C = torch.where(scaled_C.abs() < 2**53, scaled_C.floor() * width, logits_C)
    return torch.cat([rounded_C[:, None], cells_C3[:, 1:]], dim=1)


def count_distinct(cells_C3: Tensor) -> int:
    """How many distinct logits sorted cells have."""
    return int((cells_C3[:, 0].diff() != 0).sum()) + min(len(cells_C3), 1)


def merge_equal(cells_N3: Tensor) -> Tensor:
    """Sort cells by logit, add up those of one logit, and drop those without weight."""
    weighed_N3 = cells_N3[cells_N3[:, 1:].sum(1) > 0]
    sorted_N3 = weighed_N3[weighed_N3[:, 0].argsort()]
    starts_N = torch.ones(len(sorted_N3), dtype=torch.bool, device=cells_N3.device)
    starts_N[1:] = sorted_N3[:, 0].diff() != 0
    cells_C3 = sorted_N3[starts_N]
    cells_C3[:, 1:] = 0
    return cells_C3.index_add_(0, starts_N.cumsum(0) - 1, sorted_N3 * sorted_N3.new_tensor([0.0, 1.0, 1.0]))
