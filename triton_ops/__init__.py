"""Kernels for hash-table embeddings and feature transforms: a torch reference, Numba on CPUs, Triton on GPUs."""
