"""One optimizer step on the rows a batch touched. U touched rows, R rows of the group, D width, W state, T tables."""

import torch
from torch import Tensor

from triton_ops.dispatch import choose
from triton_ops.library import register
from triton_ops.row_layout import GRANULE
from triton_ops.row_update import reference
from triton_ops.row_update.hyper import HYPER_COLUMNS


def row_update(
    kind: str,
    weight: Tensor,
    state: Tensor,
    rows_U: Tensor,
    grads_UD: Tensor,
    granule_table: Tensor,
    hyper_TH: Tensor,
) -> None:
    """Step rows in place: sgd with lr 0.5, weight[64] = [1, 2], rows [64], grads [[1, 1]] -> weight[64] = [0.5, 1.5].

    ``weight`` is [R, D] float32 or float64, ``state`` [R, W] of that dtype with the columns that `state_slices`
    names, ``rows_U`` int64 and each row once, all in granules of a table, ``grads_UD`` of the weight's dtype,
    ``granule_table`` int32 [R / 64], ``hyper_TH`` float64 with a `hyper_row` for each table. Arithmetic is in the
    weight's dtype, as in torch.optim. Raises ValueError where they do not fit.
    """
    if kind not in HYPER_COLUMNS:
        raise ValueError(f"there is no optimizer kind '{kind}'; there are: {', '.join(HYPER_COLUMNS)}")
    if weight.dtype not in (torch.float32, torch.float64) or not weight.dtype == state.dtype == grads_UD.dtype:
        raise ValueError(
            f"weight is {weight.dtype}, state {state.dtype}, grads {grads_UD.dtype}; give float32 or float64 for all"
        )
    if rows_U.dtype != torch.int64 or grads_UD.shape != (len(rows_U), weight.shape[1]):
        raise ValueError(
            f"grads are {list(grads_UD.shape)} for rows {rows_U.dtype} {list(rows_U.shape)}; "
            f"give one of width {weight.shape[1]} for each int64 row"
        )
    if len(state) != len(weight) or len(granule_table) * GRANULE < len(weight):
        raise ValueError(
            f"weight has {len(weight)} rows, state {len(state)}, granule_table {len(granule_table)} granules of "
            f"{GRANULE}; they must hold the same rows"
        )
    if hyper_TH.dtype != torch.float64 or hyper_TH.dim() != 2 or hyper_TH.shape[1] != HYPER_COLUMNS[kind]:
        raise ValueError(
            f"hyper is {hyper_TH.dtype} {list(hyper_TH.shape)}; {kind} takes float64 [tables, {HYPER_COLUMNS[kind]}]"
        )
    _row_update(kind, weight, state, rows_U.contiguous(), grads_UD.contiguous(), granule_table, hyper_TH)


def _fake(
    kind: str, weight: Tensor, state: Tensor, rows_U: Tensor, grads_UD: Tensor, granule_table: Tensor, hyper_TH: Tensor
) -> None:
    return None


@register(
    "row_update(str kind, Tensor(a!) weight, Tensor(b!) state, Tensor rows, Tensor grads, Tensor granule_table, "
    "Tensor hyper) -> ()",
    _fake,
)
def _row_update(
    kind: str, weight: Tensor, state: Tensor, rows_U: Tensor, grads_UD: Tensor, granule_table: Tensor, hyper_TH: Tensor
) -> None:
    if choose("row_update", weight.device) == "reference":
        reference.row_update(kind, weight, state, rows_U, grads_UD, granule_table, hyper_TH)
        return
    from triton_ops.row_update import cpu

    update = cpu.KERNELS[kind](weight.shape[1])
    hyper = hyper_TH.to(weight.dtype)
    update(weight.numpy(), state.numpy(), rows_U.numpy(), grads_UD.numpy(), granule_table.numpy(), hyper.numpy())
