"""Weighted sums of rows over bags, and their gradients by row: see op.py."""

from triton_ops.gather_pool.op import PooledGrad, gather_pool, pool_coefficients, pool_grads

__all__ = ["PooledGrad", "gather_pool", "pool_coefficients", "pool_grads"]
