"""How CPU kernels are compiled: once for the types they meet, kept on disk beside the source, without the GIL."""

import functools
from typing import Any

from numba import njit

# error_model numpy: a division by zero gives inf instead of a branch and an exception at each division.
kernel: Any = functools.partial(njit, cache=True, nogil=True, error_model="numpy")
