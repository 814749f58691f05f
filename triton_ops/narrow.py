"""bfloat16, float16 and random rounding in Numba kernels, which know neither type.

A kernel gets the bits of such numbers: bfloat16 as uint16 and float16 as int16 (`as_array`), so that the type tells
them apart. It reads them with `widen`, computes in float32, and writes with `nearest` or `stochastic`. For other types
these do nothing, and cost nothing: which code there is, is decided when a kernel is compiled.

Stochastic rounding: a number between two neighbours goes to either with the probability that keeps its mean, so that
many small updates add up where rounding to the nearest would lose each. Random bits are a function of (seed, table, id,
step, column) alone: `triton_ops.row_update.rounding` defines them.
"""

from typing import Any

import numpy as np
import torch
from numba import types
from numba.extending import overload
from numpy.typing import NDArray
from torch import Tensor

from triton_ops.prefetch import prefetch
from triton_ops.row_layout import ID, RECORD
from triton_ops.shared.cpu import mix64
from triton_ops.shared.reference import GOLDEN

_BITS = {torch.bfloat16: torch.uint16, torch.float16: torch.int16}

BFLOAT16, FLOAT16 = types.uint16, types.int16


def as_array(tensor: Tensor) -> NDArray[Any]:
    """The tensor's memory as an array: bfloat16 as uint16, float16 as int16, others as they are."""
    bits = _BITS.get(tensor.dtype)
    return tensor.numpy() if bits is None else tensor.view(bits).numpy()


def widen(number: Any) -> Any:
    """The number as kernels compute with it: float32 for bfloat16, float16 and int8, others as they are."""
    raise NotImplementedError("for kernels")


def nearest(array: Any, number: Any) -> Any:
    """A number as ``array`` holds it, rounded to the nearest, of two to the even one; of float64 by way of float32."""
    raise NotImplementedError("for kernels")


def stochastic(array: Any, number: Any, noise: Any, part: Any) -> Any:
    """A float32 as ``array`` holds it, rounded by 16 bits of ``noise``: ``part`` 0, 1 or 2."""
    raise NotImplementedError("for kernels")


def noise(weight: Any, state: Any, start: Any, column: Any) -> Any:
    """64 random bits for a column of a row; 0 where nothing is rounded."""
    raise NotImplementedError("for kernels")


def noise_start(weight: Any, state: Any, meta: Any, row: Any, key: Any) -> Any:
    """What a row's random bits depend on: its id, and ``key`` for seed, table and step."""
    raise NotImplementedError("for kernels")


def prefetch_id(weight: Any, state: Any, meta: Any, row: Any) -> None:
    """Ask for a row's record, where `noise_start` will read it."""
    raise NotImplementedError("for kernels")


def _is_narrow(array: Any) -> bool:
    return array.dtype in (BFLOAT16, FLOAT16)


@overload(widen, strict=False)
def _widen(number: Any) -> Any:
    if number == BFLOAT16:
        return lambda number: np.uint32(np.uint32(number) << np.uint32(16)).view(np.float32)
    if number == FLOAT16:

        def widen_float16(number: Any) -> Any:
            bits = np.uint32(np.uint16(number))
            magnitude = np.uint32(bits & np.uint32(0x7FFF))
            sign = np.uint32((bits & np.uint32(0x8000)) << np.uint32(16))
            # The exponent's field is 5 bits there and 8 here: the product shifts it, denormal numbers included.
            wide = np.float32(np.uint32(magnitude << np.uint32(13)).view(np.float32) * np.float32(2.0**112))
            special = np.uint32(0x7F800000) if magnitude >= np.uint32(0x7C00) else np.uint32(0)
            return np.uint32(np.float32(wide).view(np.uint32) | special | sign).view(np.float32)

        return widen_float16
    if number == types.int8:
        return lambda number: np.float32(number)
    return lambda number: number


@overload(nearest, strict=False)
def _nearest(array: Any, number: Any) -> Any:
    if array.dtype == BFLOAT16:

        def to_bfloat16(array: Any, number: Any) -> Any:
            bits = np.float32(number).view(np.uint32)
            rounded = np.uint32((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))
            return np.uint16(rounded if number == number else np.uint32(0x7FC0))

        return to_bfloat16
    if array.dtype == FLOAT16:

        def to_float16(array: Any, number: Any) -> Any:
            wide = np.float32(number)
            bits = np.uint32(np.float32(wide).view(np.uint32) & np.uint32(0x7FFFFFFF))
            above = np.uint32(bits + np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1)))
            small = np.uint32(np.rint(np.float64(abs(wide)) * 2.0**24)) if abs(wide) < 1.0 else np.uint32(0)
            return _join_float16(wide, above, small)

        return to_float16
    return lambda array, number: array.dtype.type(number)


def _join_float16(wide: Any, above: Any, small: Any) -> Any:
    """The bits of a float16: from ``above``, rounded bits of a float32, or below 2^-14 from ``small``, in 2^-24."""
    raise NotImplementedError("for kernels")


@overload(_join_float16, strict=False)
def _join_float16_bits(wide: Any, above: Any, small: Any) -> Any:
    def join(wide: Any, above: Any, small: Any) -> Any:
        sign = np.uint32((np.float32(wide).view(np.uint32) >> np.uint32(16)) & np.uint32(0x8000))
        found = np.uint32((above >> np.uint32(13)) - np.uint32(112 << 10))
        found = small if abs(wide) < np.float32(2.0**-14) else found
        found = np.uint32(0x7C00) if above >= np.uint32(0x47800000) else found
        found = found if wide == wide else np.uint32(0x7E00)
        return np.int16(np.uint16(sign | found))

    return join


@overload(stochastic, strict=False)
def _stochastic(array: Any, number: Any, noise: Any, part: Any) -> Any:
    if array.dtype == BFLOAT16:

        def to_bfloat16(array: Any, number: Any, noise: Any, part: Any) -> Any:
            added = np.uint32((noise >> np.uint64(16 * part)) & np.uint64(0xFFFF))
            rounded = np.uint32((np.float32(number).view(np.uint32) + added) >> np.uint32(16))
            return np.uint16(rounded if number == number else np.uint32(0x7FC0))

        return to_bfloat16
    if array.dtype == FLOAT16:

        def to_float16(array: Any, number: Any, noise: Any, part: Any) -> Any:
            added = np.uint32((noise >> np.uint64(16 * part)) & np.uint64(0xFFFF))
            bits = np.uint32(np.float32(number).view(np.uint32) & np.uint32(0x7FFFFFFF))
            above = np.uint32(bits + (added & np.uint32(0x1FFF)))
            magnitude = np.float64(abs(number))
            scaled = magnitude * 2.0**24 + np.float64(added) * 2.0**-16
            return _join_float16(number, above, np.uint32(scaled) if magnitude < 1.0 else np.uint32(0))

        return to_float16
    return lambda array, number, noise, part: number


@overload(noise, strict=False)
def _noise(weight: Any, state: Any, start: Any, column: Any) -> Any:
    if _is_narrow(weight) or _is_narrow(state):
        return lambda weight, state, start, column: mix64(start + np.uint64(column + 1) * np.uint64(GOLDEN))
    return lambda weight, state, start, column: np.uint64(0)


@overload(noise_start, strict=False)
def _noise_start(weight: Any, state: Any, meta: Any, row: Any, key: Any) -> Any:
    if _is_narrow(weight) or _is_narrow(state):
        return lambda weight, state, meta, row, key: mix64(mix64(meta[row, ID]) ^ np.uint64(key))
    return lambda weight, state, meta, row, key: np.uint64(0)


@overload(prefetch_id, strict=False)
def _prefetch_id(weight: Any, state: Any, meta: Any, row: Any) -> Any:
    if _is_narrow(weight) or _is_narrow(state):
        return lambda weight, state, meta, row: prefetch(meta, row * 8 * RECORD)
    return lambda weight, state, meta, row: None
