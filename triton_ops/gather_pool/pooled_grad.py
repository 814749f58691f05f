"""What pool_grads takes for each run of bags. B bags, D row width, M values of these bags."""

from typing import NamedTuple

from torch import Tensor


class PooledGrad(NamedTuple):
    """The gradient of some bags that follow each other, such as one feature's."""

    grads_BD: Tensor
    """Of any strides."""
    offsets_B1: Tensor
    """int64: where each bag's values begin among all values of the call, and where the last one ends."""
    coefficients_M: Tensor | None
    """What each value of these bags counted in its sum; None for 1."""
