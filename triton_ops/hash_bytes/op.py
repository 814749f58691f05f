"""Hash strings, given as bytes and offsets, to 64-bit ids."""

from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triton_ops.dispatch import choose
from triton_ops.hash_bytes import cpu, reference

HashKind = Literal["farm", "murmur", "xxh64"]
_IMPLEMENTATIONS = {"reference": reference.hash_bytes, "cpu": cpu.hash_bytes}
_BY_ADDRESS = {"reference": reference.hash_columns, "cpu": cpu.hash_columns}


def hash_bytes(
    data: Tensor,  # uint8 [bytes]
    offsets: Tensor,  # int32 or int64 [N + 1]
    kind: HashKind,
) -> Tensor:
    """Hash strings to signed int64: data b"a", offsets [0, 1, 1], murmur ("a" and "") -> [510903276987443985, 0].

    String i is ``data[offsets[i] : offsets[i + 1]]``; ``farm`` is FarmHash Fingerprint64, ``murmur`` MurmurHash64A and
    ``xxh64`` XXH64, both with seed 0. All 64 bits count. Offsets need not start at 0: a slice of a longer array hashes
    without a copy. ValueError where types do not fit, or the offsets leave the data.
    """
    if kind not in get_args(HashKind):
        raise ValueError(f"hash kind is '{kind}', need one of {', '.join(get_args(HashKind))}")
    if data.dtype != torch.uint8 or data.dim() != 1:
        raise ValueError(f"data is {data.dtype} {list(data.shape)}, need the strings' bytes, uint8 [bytes]")
    if offsets.dtype not in (torch.int32, torch.int64) or offsets.dim() != 1 or len(offsets) == 0:
        raise ValueError(f"offsets are {offsets.dtype} {list(offsets.shape)}, need int32 or int64 [strings + 1]")
    bounds = offsets.numpy()
    first, last = int(bounds[0]), int(bounds[-1])
    # A wrong offset would read outside the data: worth one pass, in NumPy since torch's compare and any is 50x slower.
    if first < 0 or last > len(data) or bool((bounds[1:] < bounds[:-1]).any()):
        raise ValueError(
            f"offsets run from {first} to {last} over {len(data)} bytes; they must rise and stay inside the data"
        )
    return _IMPLEMENTATIONS[choose("hash_bytes", data.device)](data, offsets, kind)


def hash_columns(columns_K4: NDArray[np.int64], kind: HashKind) -> None:
    """Hash columns of strings that are named by address, as `hash_bytes`: b"a" and offsets 0, 1, 1 -> two int64.

    A line is (address of the bytes, address of int32 offsets, how many strings, address for their hashes). It trusts
    its caller: offsets must rise and stay inside the bytes, and all of it must be kept alive meanwhile.
    """
    _BY_ADDRESS[choose("hash_bytes", torch.device("cpu"))](columns_K4, kind)
