"""One optimizer step on the rows a batch touched. U touched rows, R rows of the group, D width, W state, T tables."""

import torch
from torch import Tensor

from triton_ops.blocks import Blocks
from triton_ops.dispatch import choose
from triton_ops.library import register
from triton_ops.row_layout import GRANULE, RECORD
from triton_ops.row_update import reference
from triton_ops.row_update.hyper import HYPER_COLUMNS

NARROW = (torch.bfloat16, torch.float16)


def row_update(
    rule: str,
    weight: Tensor,
    state: Tensor,
    meta: Tensor,
    rows_U: Tensor,
    grads_UD: Tensor,
    granule_table: Tensor,
    hyper_TH: Tensor,
    keys_T: Tensor,
) -> None:
    """Step rows in place: sgd with lr 0.5, weight[64] = [1, 2], rows [64], grads [[1, 1]] -> weight[64] = [0.5, 1.5].

    ``weight`` is [R, D], ``state`` [R, W] with the columns that `state_slices` names, ``meta`` int64 [R, 4] with the
    rows' ids, ``rows_U`` int64 and each row once, all in granules of a table, ``granule_table`` int32 [R / 64],
    ``hyper_TH`` float64 with a `hyper_row` for each table, ``keys_T`` int64. Arithmetic is in the dtype of the
    gradients. That is float64 where weight and state are; else it is float32, weight float32, bfloat16 or float16,
    state float32 or bfloat16 (of adam_per_row float32, since it counts steps). What is narrower than float32 is rounded
    stochastically, by random bits that depend on a table's key, the row's id and the column alone: give keys that
    differ from step to step. Raises ValueError where they do not fit.
    """
    if rule not in HYPER_COLUMNS:
        raise ValueError(f"there is no rule '{rule}'; there are: {', '.join(HYPER_COLUMNS)}")
    _check_dtypes(rule, weight, state, grads_UD)
    if rows_U.dtype != torch.int64 or grads_UD.shape != (len(rows_U), weight.shape[1]):
        raise ValueError(
            f"grads are {list(grads_UD.shape)} for rows {rows_U.dtype} {list(rows_U.shape)}; "
            f"give one of width {weight.shape[1]} for each int64 row"
        )
    if not len(weight) == len(state) == len(meta) or len(granule_table) * GRANULE < len(weight):
        raise ValueError(
            f"weight has {len(weight)} rows, state {len(state)}, meta {len(meta)}, granule_table {len(granule_table)} "
            f"granules of {GRANULE}; they must hold the same rows"
        )
    if meta.dtype != torch.int64 or meta.shape[1] != RECORD:
        raise ValueError(f"meta is {meta.dtype} {list(meta.shape)}; give int64 [R, {RECORD}]")
    if hyper_TH.dtype != torch.float64 or hyper_TH.dim() != 2 or hyper_TH.shape[1] != HYPER_COLUMNS[rule]:
        raise ValueError(
            f"hyper is {hyper_TH.dtype} {list(hyper_TH.shape)}; {rule} takes float64 [tables, {HYPER_COLUMNS[rule]}]"
        )
    if keys_T.dtype != torch.int64 or keys_T.shape != hyper_TH.shape[:1]:
        raise ValueError(f"keys are {keys_T.dtype} {list(keys_T.shape)}; give int64 [{len(hyper_TH)}], one a table")
    arrays = weight, state, meta, rows_U.contiguous(), grads_UD.contiguous(), granule_table, hyper_TH, keys_T
    if isinstance(weight, Blocks):
        reference.row_update(rule, *arrays)
        return
    _row_update(rule, *arrays)


def _check_dtypes(rule: str, weight: Tensor, state: Tensor, grads_UD: Tensor) -> None:
    if grads_UD.dtype == torch.float64:
        fits = weight.dtype == state.dtype == torch.float64
    else:
        narrow_state = (torch.bfloat16,) if rule != "adam_per_row" else ()
        fits = grads_UD.dtype == torch.float32 and weight.dtype in (torch.float32, *NARROW)
        fits &= state.dtype in (torch.float32, *narrow_state) or state.shape[1] == 0
    if not fits:
        raise ValueError(
            f"weight is {weight.dtype}, state {state.dtype}, grads {grads_UD.dtype}; give float64 for all, or grads of "
            "float32, weight of float32, bfloat16 or float16, and state of float32 or bfloat16 (not for adam_per_row)"
        )


def _fake(
    rule: str,
    weight: Tensor,
    state: Tensor,
    meta: Tensor,
    rows_U: Tensor,
    grads_UD: Tensor,
    granule_table: Tensor,
    hyper_TH: Tensor,
    keys_T: Tensor,
) -> None:
    return None


@register(
    "row_update(str rule, Tensor(a!) weight, Tensor(b!) state, Tensor meta, Tensor rows, Tensor grads, "
    "Tensor granule_table, Tensor hyper, Tensor keys) -> ()",
    _fake,
)
def _row_update(
    rule: str,
    weight: Tensor,
    state: Tensor,
    meta: Tensor,
    rows_U: Tensor,
    grads_UD: Tensor,
    granule_table: Tensor,
    hyper_TH: Tensor,
    keys_T: Tensor,
) -> None:
    arrays = weight, state, meta, rows_U, grads_UD, granule_table, hyper_TH, keys_T
    if choose("row_update", weight.device) == "reference":
        reference.row_update(rule, *arrays)
        return
    from triton_ops.narrow import as_array
    from triton_ops.row_update import cpu

    cpu.KERNELS[rule](weight.shape[1])(*map(as_array, arrays))
