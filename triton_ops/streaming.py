"""Writing rows that nobody reads soon: past the caches, which would read every line before it is written.

A processor writes two to three times as much a second that way, and what its caches hold stays there.

N rows, C columns, W words of all columns.
"""

from collections.abc import Sequence
from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from triton_ops.jit import kernel

FEWEST = 1 << 15  # bytes; less stays in the caches, where whoever asked for it may want it
WORDS = {8: torch.int64, 4: torch.int32}  # that processors write past their caches, by their bytes


@intrinsic
def _write_word(typingctx: Any, target: Any, at: Any, word: Any) -> Any:
    """Let an array's word of this number be ``word``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        store = builder.store(arguments[2], builder.gep(data, [arguments[1]]))
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(target, at, target.dtype), generate


@intrinsic
def _let_others_see(typingctx: Any) -> Any:
    """Have what was written past the caches come before all that is written later, for other threads too."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


write_word: Any = _write_word  # called without the typing context, which type checkers do not know
let_others_see: Any = _let_others_see


@kernel
def _lay(columns: Any, target: Any) -> None:
    """Write the rows of columns [N, w] to ``target`` [N * W]."""
    at = 0
    for row in range(len(columns[0])):
        for column in columns:
            for word in range(column.shape[1]):
                write_word(target, at, column[row, word])
                at += 1
    let_others_see()


def lay(columns: Sequence[Tensor], target_NW: Tensor) -> None:
    """Write columns side by side: [[1], [2]] and [[3, 4], [5, 6]] make [[1, 3, 4], [2, 5, 6]] of the target.

    Columns are [N, w] of the target's dtype, on the CPU as it is, all contiguous, and as wide as it together.
    """
    tensors = [*columns, target_NW]
    fitting = (
        dtype
        for size, dtype in WORDS.items()
        if all(each.shape[1] * each.itemsize % size == 0 and each.data_ptr() % size == 0 for each in tensors)
    )
    dtype = next(fitting, None)
    if dtype is None or target_NW.nbytes < FEWEST:
        torch.cat(list(columns), dim=1, out=target_NW)
        return
    arrays = tuple(column.view(dtype).numpy() for column in columns)
    _lay(arrays, target_NW.view(-1).view(dtype).numpy())
