"""The definition of stochastic rounding in plain torch. U rows, D width."""

import torch
from torch import Tensor

from triton_ops.shared.reference import GOLDEN, mix64


def noise(ids_U: Tensor, keys_U: Tensor, dim: int) -> Tensor:
    """64 random bits for each id and column: int64 [U, dim], from ``keys_U``, one for seed, table and step.

    The SplitMix64 generator, started anew for each id: of the same key and id, the same bits, wherever its row lies.
    """
    start_U = mix64(mix64(ids_U) ^ keys_U)
    return mix64(start_U[:, None] + torch.arange(1, dim + 1, device=ids_U.device) * (GOLDEN - 2**64))


def stochastic(number: Tensor, dtype: torch.dtype, noise: Tensor, part: int) -> Tensor:
    """Round float32 to bfloat16 or float16, up or down, so that the mean stays: 1 + 2^-9 in bfloat16 -> 1, or 1 + 2^-7.

    The latter of a quarter of all ``noise``. Takes the 16 bits numbered ``part``, 0 to 3, of each word of int64
    ``noise``. Other dtypes pass as they are.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return number
    added = (noise >> (16 * part)) & 0xFFFF
    pattern = number.contiguous().view(torch.int32).long() & 0xFFFFFFFF
    if dtype == torch.bfloat16:
        rounded = torch.where(number.isnan(), 0x7FC0, (pattern + added) >> 16)
        return rounded.to(torch.int16).view(torch.bfloat16)
    above = (pattern & 0x7FFFFFFF) + (added & 0x1FFF)
    small = (number.abs().double().clamp(max=1.0) * 2.0**24 + added * 2.0**-16).long()  # below 2^-14, in units of 2^-24
    found = torch.where(number.abs() < 2.0**-14, small, (above >> 13) - (112 << 10))
    found = torch.where(above >= 0x47800000, 0x7C00, found)  # 2^16
    found = torch.where(number.isnan(), 0x7E00, found) | ((pattern >> 16) & 0x8000)
    return found.to(torch.int16).view(torch.float16)
