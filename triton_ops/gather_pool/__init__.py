"""Weighted sums of rows over bags, and their gradients by row: see op.py."""

from triton_ops.gather_pool.op import (
    JoinedOffsets,
    gather_pool,
    gather_rows,
    join_coefficients,
    join_offsets,
    pool_coefficients,
    pool_grads,
)
from triton_ops.gather_pool.pooled_grad import GradSums, PooledGrad
from triton_ops.gather_pool.reference import read_dtype

__all__ = [
    "GradSums",
    "JoinedOffsets",
    "PooledGrad",
    "gather_pool",
    "gather_rows",
    "join_coefficients",
    "join_offsets",
    "pool_coefficients",
    "pool_grads",
    "read_dtype",
]
