"""Imported before anything else imports Triton: where there is no GPU, Python is to run its kernels."""

import contextlib

import torch

from tests.interpreter import interpreting

if torch.cuda.device_count() == 0:  # which, unlike is_available, leaves CUDA alone: processes are forked from this one
    with interpreting(), contextlib.suppress(ImportError):
        import triton.language  # noqa: F401
