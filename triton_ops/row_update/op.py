"""One optimizer step on the rows a batch touched. U touched rows, R rows of the group, D width, W state, T tables."""

import torch
from torch import Tensor

from triton_ops.dispatch import choose
from triton_ops.gather_pool import GradSums, pool_grads
from triton_ops.library import register
from triton_ops.places import Rows
from triton_ops.row_layout import GRANULE, RECORD
from triton_ops.row_update import reference
from triton_ops.row_update.hyper import HYPER_COLUMNS

NARROW = (torch.bfloat16, torch.float16)


def row_update(
    rule: str,
    weight: Rows,
    state: Rows,
    meta: Rows,
    rows_U: Tensor,
    grads_UD: Tensor | GradSums,
    granule_table: Tensor,
    hyper_TH: Tensor,
    keys_T: Tensor,
    skip: Tensor | None = None,
) -> None:
    """Step rows in place: sgd with lr 0.5, weight[64] = [1, 2], rows [64], grads [[1, 1]] -> weight[64] = [0.5, 1.5].

    ``weight`` is [R, D], ``state`` [R, W] with the columns that `state_slices` names, ``meta`` int64 [R, 4] with the
    rows' ids, ``rows_U`` int64 and each row once, all in granules of a table, ``granule_table`` int32 [R / 64],
    ``hyper_TH`` float64 with a `hyper_row` for each table, ``keys_T`` int64. Arithmetic is in the dtype of the
    gradients. That is float64 where weight and state are; else it is float32, weight float32, bfloat16 or float16,
    state float32 or bfloat16 (of adam_per_row float32, since it counts steps). What is narrower than float32 is rounded
    stochastically, by random bits that depend on a table's key, the row's id and the column alone: give keys that
    differ from step to step. Raises ValueError where they do not fit.

    Gradients may come as `GradSums`, which are summed up on the way. Nothing changes where ``skip``, one number, is not
    0: it may lie on a GPU that has found an infinite gradient, and nobody waits for it. On a GPU rows may be in blocks,
    and ``rows_U`` may end in -1, as `group_by_row` leaves it there.
    """
    if rule not in HYPER_COLUMNS:
        raise ValueError(f"there is no rule '{rule}'; there are: {', '.join(HYPER_COLUMNS)}")
    _check_dtypes(rule, weight, state, grads_UD.dtype)
    if isinstance(grads_UD, GradSums) and len({part.grads_BKD.dtype for part in grads_UD.parts}) > 1:
        raise ValueError(
            f"gradients are {', '.join(str(part.grads_BKD.dtype) for part in grads_UD.parts)}; give one dtype"
        )
    shape = grads_UD.shape if isinstance(grads_UD, Tensor) else (len(rows_U), grads_UD.width)
    if rows_U.dtype != torch.int64 or shape != (len(rows_U), weight.shape[1]):
        raise ValueError(
            f"grads are {list(shape)} for rows {rows_U.dtype} {list(rows_U.shape)}; "
            f"give one of width {weight.shape[1]} for each int64 row"
        )
    if not len(weight) == len(state) == len(meta) or len(granule_table) * GRANULE < len(weight):
        raise ValueError(
            f"weight has {len(weight)} rows, state {len(state)}, meta {len(meta)}, granule_table {len(granule_table)} "
            f"granules of {GRANULE}; they must hold the same rows"
        )
    if meta.dtype != torch.int64 or meta.shape[1] != RECORD:
        raise ValueError(f"meta is {meta.dtype} of {meta.shape[1]} columns; give int64 [R, {RECORD}]")
    if hyper_TH.dtype != torch.float64 or hyper_TH.dim() != 2 or hyper_TH.shape[1] != HYPER_COLUMNS[rule]:
        raise ValueError(
            f"hyper is {hyper_TH.dtype} {list(hyper_TH.shape)}; {rule} takes float64 [tables, {HYPER_COLUMNS[rule]}]"
        )
    if keys_T.dtype != torch.int64 or keys_T.shape != hyper_TH.shape[:1]:
        raise ValueError(f"keys are {keys_T.dtype} {list(keys_T.shape)}; give int64 [{len(hyper_TH)}], one a table")
    implementation = choose("row_update", rows_U.device)
    if implementation != "triton":
        if skip is not None and bool(skip != 0):
            return
        skip = None
        if isinstance(grads_UD, GradSums):
            sums = hyper_TH.new_empty(len(rows_U), weight.shape[1], dtype=grads_UD.dtype)
            grads_UD = pool_grads(grads_UD.parts, grads_UD.inverse_N, sums)
    rows_U, tables = rows_U.contiguous(), (granule_table, hyper_TH, keys_T)
    if isinstance(grads_UD, Tensor):
        grads_UD = grads_UD.contiguous()
    if skip is None and all(isinstance(each, Tensor) for each in (weight, state, meta, grads_UD)):
        _row_update(rule, weight, state, meta, rows_U, grads_UD, *tables)
    elif implementation == "triton":
        from triton_ops.row_update import kernels

        kernels.row_update(rule, weight, state, meta, rows_U, grads_UD, *tables, skip)
    else:
        assert isinstance(grads_UD, Tensor)
        reference.row_update(rule, weight, state, meta, rows_U, grads_UD, *tables)


def first_infinite(rows_U: Tensor, grads_UD: Tensor | GradSums) -> Tensor:
    """The place of the first row whose gradient is infinite or not a number: grads [[1], [nan], [inf]] -> [1].

    int64 [1] on the device of the rows, their number where all are finite. Rows of -1 are passed over.
    """
    if choose("row_update", rows_U.device) == "triton":
        from triton_ops.row_update import kernels

        if isinstance(grads_UD, Tensor):
            return kernels.first_infinite(rows_U, grads_UD.contiguous(), grads_UD.shape[1])
        return kernels.first_infinite(rows_U, grads_UD, grads_UD.width)
    if isinstance(grads_UD, GradSums):
        sums = rows_U.new_empty(len(rows_U), grads_UD.width, dtype=grads_UD.dtype)
        grads_UD = pool_grads(grads_UD.parts, grads_UD.inverse_N, sums)
    broken_U = ~grads_UD.isfinite().all(1) & (rows_U >= 0)
    places_U = torch.arange(len(rows_U), device=rows_U.device)
    return torch.where(broken_U, places_U, len(rows_U)).amin(0, keepdim=True) if len(rows_U) else rows_U.new_zeros(1)


def _check_dtypes(rule: str, weight: Rows, state: Rows, grads: torch.dtype) -> None:
    if grads == torch.float64:
        fits = weight.dtype == state.dtype == torch.float64
    else:
        narrow_state = (torch.bfloat16,) if rule != "adam_per_row" else ()
        fits = grads == torch.float32 and weight.dtype in (torch.float32, *NARROW)
        fits &= state.dtype in (torch.float32, *narrow_state) or state.shape[1] == 0
    if not fits:
        raise ValueError(
            f"weight is {weight.dtype}, state {state.dtype}, grads {grads}; give float64 for all, or grads of "
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
    implementation = choose("row_update", weight.device)
    if implementation == "reference":
        reference.row_update(rule, *arrays)
        return
    if implementation == "triton":
        from triton_ops.row_update import kernels

        kernels.row_update(rule, *arrays, skip=None)
        return
    from triton_ops.narrow import as_array
    from triton_ops.row_update import cpu

    cpu.KERNELS[rule](weight.shape[1])(*map(as_array, arrays))
