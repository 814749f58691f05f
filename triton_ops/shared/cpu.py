"""What Numba kernels of several ops share."""

from typing import Any

import numpy as np

from triton_ops.jit import kernel


@kernel
def mix64(id_: Any) -> Any:
    """`triton_ops.shared.reference.mix64` of uint64."""
    mixed = np.uint64(id_)
    mixed = (mixed ^ (mixed >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    mixed = (mixed ^ (mixed >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return mixed ^ (mixed >> np.uint64(33))
