"""What several ops share: mixing of ids in plain torch, in Numba and in Triton, and parts of Triton kernels."""
