"""What pool_grads takes for features that follow each other. K features of B bags, D row width, M their values."""

from typing import NamedTuple

from torch import Tensor


class PooledGrad(NamedTuple):
    """The gradient of what gather_pool gave for some features, or for one."""

    grads_BKD: Tensor
    """Of any strides."""
    offsets_KB1: Tensor
    """int64: where each bag's values begin among all values of the call, and where the last one's of a feature end."""
    coefficients_M: Tensor | None
    """What each value of these bags counted in its sum; None for 1."""
