"""Transforms of feature values, several columns in one call: see op.py."""

from triton_ops.transform.op import (
    bucketize,
    clip,
    find_unfit,
    hash_ids,
    log1p,
    modulo,
    modulo_,
    multi_hash,
    quantile,
    standardize,
    vocabulary,
)

__all__ = [
    "bucketize",
    "clip",
    "find_unfit",
    "hash_ids",
    "log1p",
    "modulo",
    "modulo_",
    "multi_hash",
    "quantile",
    "standardize",
    "vocabulary",
]
