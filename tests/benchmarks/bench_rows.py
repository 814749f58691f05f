"""Steps on touched rows, of every optimizer and dtype, against the same formulas as torch index operations.

The rival gathers weights and state of the touched rows, computes, and writes them back with index_copy_: in float32, or
for narrow rows widened and rounded to the nearest, which is less than the stochastic rounding that ours does. Adam is
held against torch.optim.SparseAdam too. In one process on one thread, by turns, over tables past all caches; times are
those of one step, the median over runs of a ratio is that of single runs.

U touched rows, D width.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from recis_lightning.tables.memory import reserve
from tests.benchmarks.report import Result
from triton_ops.row_layout import GRANULE, ID, RECORD
from triton_ops.row_update import hyper_row, row_update, state_slices
from triton_ops.row_update.reference import RULES

ROWS, TOUCHED, RUNS, WIDTHS = 1 << 21, 1 << 17, 5, (16, 64)
SETTINGS = {"lr": 1e-3, "eps": 1e-8, "betas": (0.9, 0.999), "weight_decay": 1e-2, "momentum": 0.9, "beta": 1.0}
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
DTYPES = {
    "float32": (FP32, FP32),
    "bfloat16, state float32": (BF16, FP32),
    "bfloat16, state bfloat16": (BF16, BF16),
    "float16, state bfloat16": (FP16, BF16),
}
WITHOUT_NARROW_STATE = ("sgd", "adam_per_row")  # one has none, one counts in it
SPARSE_ADAM = "torch SparseAdam"
INDEX_OPS = "torch index operations"


class Rows:
    """Weights and state of ROWS rows, and a step on some of them by ours and by torch index operations."""

    def __init__(self, rule: str, dim: int, weight_dtype: torch.dtype, state_dtype: torch.dtype) -> None:
        width = max((columns.stop for columns in state_slices(rule, dim).values()), default=0)
        self.rule, self.dim = rule, dim
        self.weight, self.state = reserve((ROWS, dim), weight_dtype), reserve((ROWS, width), state_dtype)
        self.meta = reserve((ROWS, RECORD), torch.int64)
        self.weight.fill_(0.1)
        self.state.fill_(0.5)
        self.meta[:, ID] = torch.arange(ROWS)
        self.granule_table = torch.zeros(ROWS // GRANULE, dtype=torch.int32)
        self.hyper = torch.tensor([hyper_row(rule, 3, SETTINGS)], dtype=torch.float64)
        self.key = torch.tensor([1])

    def ours(self, rows_U: Tensor, grads_UD: Tensor) -> None:
        arrays = self.weight, self.state, self.meta, rows_U, grads_UD, self.granule_table, self.hyper, self.key
        row_update(self.rule, *arrays)

    def theirs(self, rows_U: Tensor, grads_UD: Tensor) -> None:
        dtype = torch.float64 if self.rule == "adam_per_row" else FP32
        hyper = self.hyper.to(dtype).split(1, dim=1)
        state_UW = self.state.index_select(0, rows_U).float()
        by_name = {name: state_UW[:, columns] for name, columns in state_slices(self.rule, self.dim).items()}
        weight_UD = RULES[self.rule](self.weight.index_select(0, rows_U).float(), by_name, grads_UD, hyper)
        self.weight.index_copy_(0, rows_U, weight_UD.to(self.weight.dtype))
        if by_name:
            state_UW = torch.cat(list(by_name.values()), dim=1)
            self.state.index_copy_(0, rows_U, state_UW.to(self.state.dtype))


class SparseAdam:
    """torch's own, on a parameter of as many rows."""

    def __init__(self, dim: int) -> None:
        self.parameter = nn.Parameter(torch.full((ROWS, dim), 0.1))
        self.optimizer = torch.optim.SparseAdam([self.parameter], lr=1e-3)

    def step(self, rows_U: Tensor, grads_UD: Tensor) -> None:
        grad = torch.sparse_coo_tensor(rows_U[None], grads_UD, self.parameter.shape, check_invariants=False)
        self.parameter.grad = grad
        self.optimizer.step()


def milliseconds(step: Callable[[Tensor, Tensor], None], rows_U: Tensor, grads_UD: Tensor) -> float:
    begin = time.perf_counter()
    step(rows_U, grads_UD)
    return 1000 * (time.perf_counter() - begin)


def compare(rule: str, dim: int, dtypes: str) -> list[Result]:
    rows = Rows(rule, dim, *DTYPES[dtypes])
    steps: dict[str, Callable[[Tensor, Tensor], None]] = {"ours": rows.ours, INDEX_OPS: rows.theirs}
    if (rule, dtypes) == ("adam", "float32"):
        steps[SPARSE_ADAM] = SparseAdam(dim).step
    times: dict[str, list[float]] = {name: [] for name in steps}
    for run in range(RUNS + 1):
        rows_U = torch.randperm(ROWS)[:TOUCHED]
        grads_UD = torch.randn(TOUCHED, dim) * 0.01
        for name, step in steps.items():
            spent = milliseconds(step, rows_U, grads_UD)
            if run:  # the first compiles, and commits memory
                times[name].append(spent)
    return [result(rule, dim, dtypes, rival, times) for rival in steps if rival != "ours"]


def result(rule: str, dim: int, dtypes: str, rival: str, times: dict[str, list[float]]) -> Result:
    ratios = [theirs / ours for ours, theirs in zip(times["ours"], times[rival], strict=True)]
    return Result(
        name=f"{rule}, width {dim}, {dtypes}",
        rival=rival,
        ratio=statistics.median(ratios),
        worst_ratio=min(ratios),
        ours=statistics.median(times["ours"]),
        theirs=statistics.median(times[rival]),
        unit="ms",
        shapes=f"{TOUCHED} of {ROWS} rows, {RUNS} runs",
        threads=1,
    )


def run() -> list[Result]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results = []
    for dim in WIDTHS:
        for rule in RULES:
            for dtypes, (_, state) in DTYPES.items():
                if state != BF16 or rule not in WITHOUT_NARROW_STATE:
                    results += compare(rule, dim, dtypes)
    return results
