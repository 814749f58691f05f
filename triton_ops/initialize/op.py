"""First values of new rows.

R rows of a group, U new rows, D row width, W width of the optimizer's state.
"""

import torch
from torch import Tensor

from triton_ops.dispatch import choose
from triton_ops.initialize import reference
from triton_ops.initialize.layout import FirstValues
from triton_ops.places import Rows
from triton_ops.row_layout import RECORD

STATE_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
WEIGHT_DTYPES = (*STATE_DTYPES, torch.float16, torch.int8, torch.int32, torch.int64)


def initialize(
    weight_RD: Rows, state_RW: Rows, meta_R4: Rows, rows_U: Tensor, granule_table: Tensor, tables: FirstValues
) -> None:
    """Write the first weights, optimizer state and record of rows, in place.

    A row's id is read from its record (column ID), its table from ``granule_table``; the rest of the record becomes 0.
    Weights depend on (seed, table, id, column) alone: not on the row's number, its neighbours or the device. They are
    computed in float64 and rounded once to the dtype of ``weight_RD``: constant and uniform values are the same bits
    everywhere, normal ones within 4 units in the last place of the drawn value. Uniform values are multiples of
    2^-24 of their range.

    weight_RD is of one of WEIGHT_DTYPES, integers for constants that they hold; state_RW of one of STATE_DTYPES.
    meta_R4 is int64, rows_U int64 (each row once, in a granule of a table), granule_table int32 [R / 64]. On a GPU rows
    may be in blocks, and rows_U may end in -1 behind the last row. Raises ValueError where shapes or dtypes do not fit.
    """
    _check(weight_RD, state_RW, meta_R4, rows_U, granule_table, tables)
    implementation = choose("initialize", rows_U.device)
    if implementation == "triton":
        from triton_ops.initialize import kernels

        kernels.initialize(weight_RD, state_RW, meta_R4, rows_U.contiguous(), granule_table, tables)
        return
    if implementation == "reference" or not isinstance(weight_RD, Tensor):
        reference.initialize(weight_RD, state_RW, meta_R4, rows_U, granule_table, tables)
        return
    from triton_ops.initialize import cpu
    from triton_ops.narrow import as_array

    assert isinstance(state_RW, Tensor)
    assert isinstance(meta_R4, Tensor)
    arrays = map(as_array, (weight_RD, state_RW, meta_R4, rows_U, granule_table))
    cpu.initialize(*arrays, tables.kinds, tables.keys, tables.parameters, tables.states)


def _listed(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _check(
    weight_RD: Rows, state_RW: Rows, meta_R4: Rows, rows_U: Tensor, granule_table: Tensor, tables: FirstValues
) -> None:
    if not weight_RD.shape[0] == state_RW.shape[0] == meta_R4.shape[0] or meta_R4.shape[1] != RECORD:
        raise ValueError(
            f"weight {list(weight_RD.shape)}, state {list(state_RW.shape)} and meta {list(meta_R4.shape)} "
            f"do not describe the same rows; give [R, D], [R, W] and [R, {RECORD}]"
        )
    if weight_RD.dtype not in WEIGHT_DTYPES or state_RW.dtype not in STATE_DTYPES:
        raise ValueError(
            f"weight is {weight_RD.dtype}, state {state_RW.dtype}; give one of {_listed(WEIGHT_DTYPES)} for weight, "
            f"one of {_listed(STATE_DTYPES)} for state"
        )
    if tables.states.shape[1] != state_RW.shape[1]:
        raise ValueError(f"state has {state_RW.shape[1]} columns, tables say {tables.states.shape[1]} first values")
    if meta_R4.dtype != torch.int64 or rows_U.dtype != torch.int64 or granule_table.dtype != torch.int32:
        raise ValueError(
            f"meta is {meta_R4.dtype}, rows {rows_U.dtype}, granule_table {granule_table.dtype}; "
            "they must be int64, int64 and int32"
        )
