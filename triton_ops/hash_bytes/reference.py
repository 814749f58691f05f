"""FarmHash Fingerprint64, MurmurHash64A and XXH64 in plain Python integers: the definition the kernels are held to.

Sources: FarmHash (Google, `farmhash.cc`, namespace farmhashna, whose Hash64 is Fingerprint64 and frozen for ever),
MurmurHash2 (Austin Appleby, `MurmurHash64A`) and xxHash (Yann Collet, `xxhash_spec.md`), the last two with seed 0.
All arithmetic is modulo 2^64; words are little-endian.
"""

import ctypes
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MASK = (1 << 64) - 1
K0, K1, K2 = 0xC3A5C85C97CB3127, 0xB492B66FBE98F273, 0x9AE16A3B2F90404F
MURMUR_M = 0xC6A4A7935BD1E995


def _word(data: bytes, start: int, size: int = 8) -> int:
    return int.from_bytes(data[start : start + size], "little")


def _rotate(value: int, bits: int) -> int:
    """Rotate right."""
    value &= MASK
    return (value >> bits | value << (64 - bits)) & MASK


def _fold(value: int) -> int:
    value &= MASK
    return value ^ value >> 47


def _mix(u: int, v: int, multiplier: int) -> int:
    """Hash 16 bytes, given as two words, to one word."""
    first = _fold((u ^ v) * multiplier)
    return _fold((v ^ first) * multiplier) * multiplier & MASK


def _farm_up_to_16(data: bytes) -> int:
    n = len(data)
    multiplier = K2 + 2 * n
    if n >= 8:
        a, b = _word(data, 0) + K2, _word(data, n - 8)
        return _mix(_rotate(b, 37) * multiplier + a, (_rotate(a, 25) + b) * multiplier, multiplier)
    if n >= 4:
        return _mix(n + (_word(data, 0, 4) << 3), _word(data, n - 4, 4), multiplier)
    if n > 0:
        y, z = data[0] + (data[n >> 1] << 8), n + (data[n - 1] << 2)
        return _fold((y * K2 & MASK) ^ (z * K0 & MASK)) * K2 & MASK
    return K2


def _farm_17_to_32(data: bytes) -> int:
    n = len(data)
    multiplier = K2 + 2 * n
    a, b = _word(data, 0) * K1, _word(data, 8)
    c, d = _word(data, n - 8) * multiplier, _word(data, n - 16) * K2
    return _mix(_rotate(a + b, 43) + _rotate(c, 30) + d, a + _rotate(b + K2, 18) + c, multiplier)


def _farm_33_to_64(data: bytes) -> int:
    n = len(data)
    multiplier = K2 + 2 * n
    a, b = _word(data, 0) * K2, _word(data, 8)
    c, d = _word(data, n - 8) * multiplier, _word(data, n - 16) * K2
    y = _rotate(a + b, 43) + _rotate(c, 30) + d
    z = _mix(y, a + _rotate(b + K2, 18) + c, multiplier)
    e, f = _word(data, 16) * multiplier, _word(data, 24)
    g, h = (y + _word(data, n - 32)) * multiplier, (z + _word(data, n - 24)) * multiplier
    return _mix(_rotate(e + f, 43) + _rotate(g, 30) + h, e + _rotate(f + a, 18) + g, multiplier)


def _farm_weak_32(data: bytes, start: int, a: int, b: int) -> tuple[int, int]:
    """Hash 32 bytes quickly, with two seeds, to two words."""
    w, x, y, z = (_word(data, start + 8 * index) for index in range(4))
    a = a + w & MASK
    b = _rotate(b + a + z, 21)
    c = a
    a = a + x + y & MASK
    return a + z & MASK, b + _rotate(a, 44) + c & MASK


State = tuple[int, int, int, tuple[int, int], tuple[int, int]]


def _farm_block(data: bytes, start: int, state: State, multiplier: int, factor: int) -> State:
    """Take 64 bytes into the state, which comes back with x and z swapped; ``factor`` is 1, 9 for the last block."""
    x, y, z, v, w = state
    x = _rotate(x + y + v[0] + _word(data, start + 8), 37) * multiplier & MASK
    y = _rotate(y + v[1] + _word(data, start + 48), 42) * multiplier & MASK
    x ^= w[1] * factor & MASK
    y = y + v[0] * factor + _word(data, start + 40) & MASK
    z = _rotate(z + w[0], 33) * multiplier & MASK
    v = _farm_weak_32(data, start, v[1] * multiplier, x + w[0])
    w = _farm_weak_32(data, start + 32, z + w[1], y + _word(data, start + 16))
    return z, y, x, v, w


def farm_fingerprint64(data: bytes) -> int:
    """FarmHash Fingerprint64, unsigned: b"a" -> 12917804110809363939."""
    n = len(data)
    if n <= 16:
        return _farm_up_to_16(data)
    if n <= 32:
        return _farm_17_to_32(data)
    if n <= 64:
        return _farm_33_to_64(data)
    y = 81 * K1 + 113 & MASK
    z = _fold(y * K2 + 113) * K2 & MASK
    state: State = (81 * K2 + _word(data, 0) & MASK, y, z, (0, 0), (0, 0))
    for start in range(0, (n - 1) // 64 * 64, 64):
        state = _farm_block(data, start, state, K1, 1)
    x, y, z, v, w = state
    multiplier = K1 + ((z & 0xFF) << 1)
    w = (w[0] + ((n - 1) & 63) & MASK, w[1])
    v = (v[0] + w[0] & MASK, v[1])
    w = (w[0] + v[0] & MASK, w[1])
    x, y, z, v, w = _farm_block(data, n - 64, (x, y, z, v, w), multiplier, 9)
    first, second = _mix(v[0], w[0], multiplier), _mix(v[1], w[1], multiplier)
    return _mix(first + _fold(y) * K0 + z, second + x, multiplier)


def murmur_hash64a(data: bytes) -> int:
    """MurmurHash64A with seed 0, unsigned: b"a" -> 510903276987443985."""
    n = len(data)
    value = n * MURMUR_M & MASK
    for start in range(0, n // 8 * 8, 8):
        word = _fold(_word(data, start) * MURMUR_M) * MURMUR_M & MASK
        value = (value ^ word) * MURMUR_M & MASK
    if n % 8:
        value = (value ^ _word(data, n // 8 * 8)) * MURMUR_M & MASK
    return _fold(_fold(value) * MURMUR_M)


XXH = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)


def _xxh64_round(lane: int, word: int) -> int:
    return _rotate(lane + word * XXH[1], 64 - 31) * XXH[0] & MASK


def xxh64(data: bytes) -> int:
    """XXH64 with seed 0, unsigned: b"a" -> 15154266338359012955."""
    n, start = len(data), 0
    value = XXH[4]
    if n >= 32:
        lanes = [XXH[0] + XXH[1], XXH[1], 0, -XXH[0]]
        for start in range(0, n - 31, 32):
            lanes = [_xxh64_round(lane, _word(data, start + 8 * index)) for index, lane in enumerate(lanes)]
        start += 32
        value = sum(_rotate(lane, 64 - bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True))
        for lane in lanes:
            value = (value ^ _xxh64_round(0, lane)) * XXH[0] + XXH[3]
    value = value + n & MASK
    while start + 8 <= n:
        value = _rotate(value ^ _xxh64_round(0, _word(data, start)), 64 - 27) * XXH[0] + XXH[3] & MASK
        start += 8
    if start + 4 <= n:
        value = _rotate(value ^ _word(data, start, 4) * XXH[0] & MASK, 64 - 23) * XXH[1] + XXH[2] & MASK
        start += 4
    for byte in data[start:]:
        value = _rotate(value ^ byte * XXH[4] & MASK, 64 - 11) * XXH[0] & MASK
    value = (value ^ value >> 33) * XXH[1] & MASK
    value = (value ^ value >> 29) * XXH[2] & MASK
    return value ^ value >> 32


HASHES: dict[str, Callable[[bytes], int]] = {"farm": farm_fingerprint64, "murmur": murmur_hash64a, "xxh64": xxh64}


def hash_bytes(data: Tensor, offsets: Tensor, kind: str) -> Tensor:
    """Hash string i = data[offsets[i] : offsets[i + 1]], read as signed int64; for checked arguments."""
    text, bounds = data.numpy().tobytes(), offsets.tolist()
    hashes = [HASHES[kind](text[start:stop]) for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]
    return torch.tensor([value - (value >> 63 << 64) for value in hashes], dtype=torch.int64)


def hash_columns(columns_K4: NDArray[np.int64], kind: str) -> None:
    """The same of columns named by address."""
    for data, offsets, count, target in columns_K4.tolist():
        bounds = torch.frombuffer(bytearray(ctypes.string_at(offsets, 4 * count + 4)), dtype=torch.int32)
        text = torch.frombuffer(bytearray(ctypes.string_at(data, int(bounds[-1])) or b" "), dtype=torch.uint8)
        ctypes.memmove(target, hash_bytes(text, bounds, kind).numpy().tobytes(), 8 * count)
