"""Transforms of feature values, several features in one call: see op.py."""

from triton_ops.transform.op import bucketize, clip, modulo

__all__ = ["bucketize", "clip", "modulo"]
