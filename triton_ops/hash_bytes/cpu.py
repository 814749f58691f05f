"""Numba kernels of the string hashes: 60 to 200 M short strings a second on one core, without the interpreter lock.

A word is put together from bytes, which the compiler turns into one unaligned load. Every index and constant is uint64:
int64 and uint64 together become float64 in Numba, and a signed index is checked for wrap-around on every load.
"""

import numba
import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from triton_ops.columns import int64_at, uint8_at, values_at
from triton_ops.hash_bytes import reference
from triton_ops.jit import kernel

U = np.uint64
K0, K1, K2, MURMUR_M = U(reference.K0), U(reference.K1), U(reference.K2), U(reference.MURMUR_M)


@njit(inline="always")
def _word(data, start):  # type: ignore[no-untyped-def]
    value = U(data[start])
    for index in range(1, 8):
        value |= U(data[start + U(index)]) << U(8 * index)
    return value


@njit(inline="always")
def _half_word(data, start):  # type: ignore[no-untyped-def]
    value = U(data[start])
    for index in range(1, 4):
        value |= U(data[start + U(index)]) << U(8 * index)
    return value


@njit(inline="always")
def _rotate(value, bits):  # type: ignore[no-untyped-def]
    return value >> U(bits) | value << U(64 - bits)


@njit(inline="always")
def _fold(value):  # type: ignore[no-untyped-def]
    return value ^ value >> U(47)


@njit(inline="always")
def _mix(u, v, multiplier):  # type: ignore[no-untyped-def]
    first = _fold((u ^ v) * multiplier)
    return _fold((v ^ first) * multiplier) * multiplier


@njit(inline="always")
def _farm_up_to_16(data, start, n):  # type: ignore[no-untyped-def]
    multiplier = K2 + U(2) * n
    if n >= U(8):
        a, b = _word(data, start) + K2, _word(data, start + n - U(8))
        c = _rotate(b, 37) * multiplier + a
        d = (_rotate(a, 25) + b) * multiplier
        return _mix(c, d, multiplier)
    if n >= U(4):
        return _mix(n + (_half_word(data, start) << U(3)), _half_word(data, start + n - U(4)), multiplier)
    if n > U(0):
        y = U(data[start]) + (U(data[start + (n >> U(1))]) << U(8))
        z = n + (U(data[start + n - U(1)]) << U(2))
        return _fold(y * K2 ^ z * K0) * K2
    return K2


@njit
def _farm_17_to_32(data, start, n):  # type: ignore[no-untyped-def]
    multiplier = K2 + U(2) * n
    a, b = _word(data, start) * K1, _word(data, start + U(8))
    c, d = _word(data, start + n - U(8)) * multiplier, _word(data, start + n - U(16)) * K2
    return _mix(_rotate(a + b, 43) + _rotate(c, 30) + d, a + _rotate(b + K2, 18) + c, multiplier)


@njit
def _farm_33_to_64(data, start, n):  # type: ignore[no-untyped-def]
    multiplier = K2 + U(2) * n
    a, b = _word(data, start) * K2, _word(data, start + U(8))
    c, d = _word(data, start + n - U(8)) * multiplier, _word(data, start + n - U(16)) * K2
    y = _rotate(a + b, 43) + _rotate(c, 30) + d
    z = _mix(y, a + _rotate(b + K2, 18) + c, multiplier)
    e, f = _word(data, start + U(16)) * multiplier, _word(data, start + U(24))
    g = (y + _word(data, start + n - U(32))) * multiplier
    h = (z + _word(data, start + n - U(24))) * multiplier
    return _mix(_rotate(e + f, 43) + _rotate(g, 30) + h, e + _rotate(f + a, 18) + g, multiplier)


@njit
def _farm_weak_32(data, start, a, b):  # type: ignore[no-untyped-def]
    a += _word(data, start)
    x, y, z = _word(data, start + U(8)), _word(data, start + U(16)), _word(data, start + U(24))
    b = _rotate(b + a + z, 21)
    c = a
    a += x + y
    return a + z, b + _rotate(a, 44) + c


@njit
def _farm_block(data, start, x, y, z, v0, v1, w0, w1, multiplier, factor):  # type: ignore[no-untyped-def]
    x = _rotate(x + y + v0 + _word(data, start + U(8)), 37) * multiplier
    y = _rotate(y + v1 + _word(data, start + U(48)), 42) * multiplier
    x ^= w1 * factor
    y += v0 * factor + _word(data, start + U(40))
    z = _rotate(z + w0, 33) * multiplier
    v0, v1 = _farm_weak_32(data, start, v1 * multiplier, x + w0)
    w0, w1 = _farm_weak_32(data, start + U(32), z + w1, y + _word(data, start + U(16)))
    return z, y, x, v0, v1, w0, w1


@njit
def _farm_long(data, start, n):  # type: ignore[no-untyped-def]
    y = U(81) * K1 + U(113)
    z = _fold(y * K2 + U(113)) * K2
    x = U(81) * K2 + _word(data, start)
    v0, v1, w0, w1 = U(0), U(0), U(0), U(0)
    block = start
    for _ in range((n - U(1)) // U(64)):
        x, y, z, v0, v1, w0, w1 = _farm_block(data, block, x, y, z, v0, v1, w0, w1, K1, U(1))
        block += U(64)
    multiplier = K1 + ((z & U(0xFF)) << U(1))
    w0 += (n - U(1)) & U(63)
    v0 += w0
    w0 += v0
    last = start + n - U(64)
    x, y, z, v0, v1, w0, w1 = _farm_block(data, last, x, y, z, v0, v1, w0, w1, multiplier, U(9))
    first, second = _mix(v0, w0, multiplier), _mix(v1, w1, multiplier)
    return _mix(first + _fold(y) * K0 + z, second + x, multiplier)


@njit(inline="always")
def _farm(data, start, n):  # type: ignore[no-untyped-def]
    if n <= U(16):
        value = _farm_up_to_16(data, start, n)
    elif n <= U(32):
        value = _farm_17_to_32(data, start, n)
    elif n <= U(64):
        value = _farm_33_to_64(data, start, n)
    else:
        value = _farm_long(data, start, n)
    return value


@njit(inline="always")
def _murmur(data, start, n):  # type: ignore[no-untyped-def]
    value = n * MURMUR_M
    for _ in range(n >> U(3)):
        value = (value ^ _fold(_word(data, start) * MURMUR_M) * MURMUR_M) * MURMUR_M
        start += U(8)
    tail = n & U(7)
    if tail > U(0):
        word = U(0)
        for index in range(tail):
            word |= U(data[start + U(index)]) << (U(8) * U(index))
        value = (value ^ word) * MURMUR_M
    return _fold(_fold(value) * MURMUR_M)


X1, X2, X3, X4, X5 = (U(constant) for constant in reference.XXH)


@njit(inline="always")
def _xxh64_round(lane, word):  # type: ignore[no-untyped-def]
    return _rotate(lane + word * X2, 64 - 31) * X1


@njit
def _xxh64_blocks(data, start, n):  # type: ignore[no-untyped-def]
    a, b, c, d = X1 + X2, X2, U(0), U(0) - X1
    for _ in range(n >> U(5)):
        a = _xxh64_round(a, _word(data, start))
        b = _xxh64_round(b, _word(data, start + U(8)))
        c = _xxh64_round(c, _word(data, start + U(16)))
        d = _xxh64_round(d, _word(data, start + U(24)))
        start += U(32)
    value = _rotate(a, 64 - 1) + _rotate(b, 64 - 7) + _rotate(c, 64 - 12) + _rotate(d, 64 - 18)
    value = (value ^ _xxh64_round(U(0), a)) * X1 + X4
    value = (value ^ _xxh64_round(U(0), b)) * X1 + X4
    value = (value ^ _xxh64_round(U(0), c)) * X1 + X4
    return (value ^ _xxh64_round(U(0), d)) * X1 + X4


@njit(inline="always")
def _xxh64(data, start, n):  # type: ignore[no-untyped-def]
    value = X5
    if n >= U(32):
        value = _xxh64_blocks(data, start, n)
        start += n >> U(5) << U(5)
    value += n
    for _ in range((n & U(31)) >> U(3)):
        value = _rotate(value ^ _xxh64_round(U(0), _word(data, start)), 64 - 27) * X1 + X4
        start += U(8)
    if n & U(4):
        value = _rotate(value ^ _half_word(data, start) * X1, 64 - 23) * X2 + X3
        start += U(4)
    for _ in range(n & U(3)):
        value = _rotate(value ^ U(data[start]) * X5, 64 - 11) * X1
        start += U(1)
    value = (value ^ value >> U(33)) * X2
    value = (value ^ value >> U(29)) * X3
    return value ^ value >> U(32)


@njit(inline="always")
def _open(columns_K4, column, offset_type):  # type: ignore[no-untyped-def]
    data, bounds, count, target = columns_K4[column]
    offsets = numba.carray(values_at(bounds, offset_type), count + 1)
    return numba.carray(uint8_at(data), offsets[-1]), offsets, numba.carray(int64_at(target), count)


@kernel
def _hash_farm(columns_K4, offset_type):  # type: ignore[no-untyped-def]
    for column in range(len(columns_K4)):
        data, offsets, target = _open(columns_K4, column, offset_type)
        for row in range(len(target)):
            start = U(offsets[row])
            target[row] = np.int64(_farm(data, start, U(offsets[row + 1]) - start))


@kernel
def _hash_murmur(columns_K4, offset_type):  # type: ignore[no-untyped-def]
    for column in range(len(columns_K4)):
        data, offsets, target = _open(columns_K4, column, offset_type)
        for row in range(len(target)):
            start = U(offsets[row])
            target[row] = np.int64(_murmur(data, start, U(offsets[row + 1]) - start))


@kernel
def _hash_xxh64(columns_K4, offset_type):  # type: ignore[no-untyped-def]
    for column in range(len(columns_K4)):
        data, offsets, target = _open(columns_K4, column, offset_type)
        for row in range(len(target)):
            start = U(offsets[row])
            target[row] = np.int64(_xxh64(data, start, U(offsets[row + 1]) - start))


_KERNELS = {"farm": _hash_farm, "murmur": _hash_murmur, "xxh64": _hash_xxh64}


def hash_bytes(data: Tensor, offsets: Tensor, kind: str) -> Tensor:
    """As the reference; for checked arguments."""
    data, offsets, hashes = data.contiguous(), offsets.contiguous(), torch.empty(len(offsets) - 1, dtype=torch.int64)
    column = data.data_ptr(), offsets.data_ptr(), len(hashes), hashes.data_ptr()
    _KERNELS[kind](np.array([column], np.int64), np.empty(0, np.int32 if offsets.dtype == torch.int32 else np.int64))
    return hashes


def hash_columns(columns_K4: NDArray[np.int64], kind: str) -> None:
    _KERNELS[kind](columns_K4, np.empty(0, np.int32))
