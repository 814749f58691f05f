"""Weighted sums of rows over bags, and their gradients by row: see op.py."""

from triton_ops.gather_pool.op import (
    JoinedOffsets,
    PooledGrad,
    gather_pool,
    join_offsets,
    pool_coefficients,
    pool_grads,
)
from triton_ops.gather_pool.reference import read_dtype

__all__ = [
    "JoinedOffsets",
    "PooledGrad",
    "gather_pool",
    "join_offsets",
    "pool_coefficients",
    "pool_grads",
    "read_dtype",
]
