"""Transforms of values, several columns in one call, each column read where it lies.

N values of a column, K columns, M boundaries, knots or listed ids of all columns, of which column k owns
splits[k] : splits[k + 1].
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triton_ops.columns import allocate, describe
from triton_ops.dispatch import choose
from triton_ops.transform import reference

HASH_KINDS = ("farm", "murmur", "xxh64")


def modulo(
    inputs: Sequence[Tensor],  # K times int64 [N], any value
    divisors: Sequence[int],  # at least 1, below 2^63
) -> list[Tensor]:
    """Values read as unsigned 64-bit, modulo a divisor: [[12, -1]] with divisors [10] -> [[2, 5]].

    -1 is 2^64 - 1 = 18446744073709551615, which ends in 5. Raises ValueError where dtypes or counts do not fit.
    """
    _check(inputs, torch.int64, len(divisors))
    how = _choose(inputs)
    if how == "reference":
        return [reference.modulo(values, divisor) for values, divisor in zip(inputs, divisors, strict=True)]
    return _run(how, "modulo", inputs, torch.int64, np.array(divisors, np.int64))


def modulo_(inputs: Sequence[Tensor], divisors: Sequence[int]) -> None:
    """As `modulo`, with the results in the place of contiguous inputs: fresh memory is slow at first touch."""
    _check(inputs, torch.int64, len(divisors))
    how = _choose(inputs)
    if how == "reference":
        for values, divisor in zip(inputs, divisors, strict=True):
            values.copy_(reference.modulo(values, divisor))
        return
    if not all(values.is_contiguous() for values in inputs):
        raise ValueError("inputs that are written over must be contiguous; call modulo, or pass copies")
    _launch(how, "modulo", inputs, inputs, np.array(divisors, np.int64))


def hash_ids(
    inputs: Sequence[Tensor],  # K times int64 [N], any value
    kinds: Sequence[str],  # farm, murmur or xxh64
) -> list[Tensor]:
    """The hash of each id's 8 bytes, little-endian: [[1]] with kinds ["murmur"] -> [[-8089716718896805586]].

    What `hash_bytes` gives for the same bytes. Raises ValueError where dtypes, counts or kinds do not fit.
    """
    _check(inputs, torch.int64, len(kinds))
    if not set(kinds) <= set(HASH_KINDS):
        unknown = next(kind for kind in kinds if kind not in HASH_KINDS)
        raise ValueError(f"hash kind is '{unknown}', need one of {', '.join(HASH_KINDS)}")
    how = _choose(inputs)
    if how == "reference":
        return [reference.hash_ids(ids, kind) for ids, kind in zip(inputs, kinds, strict=True)]
    return _run(how, "hash_ids", inputs, torch.int64, _number_kinds(tuple(kinds)))


@functools.lru_cache(256)
def _number_kinds(kinds: tuple[str, ...]) -> NDArray[np.int64]:
    return np.array([HASH_KINDS.index(kind) for kind in kinds], np.int64)


def multi_hash(
    inputs: Sequence[Tensor],  # K times int64 [N], any value
    hashes: Sequence[Sequence[tuple[int, int, int, int]]],  # of each column: (multiplier, prime, buckets, shift)
) -> list[Tensor]:
    """Hashes of each id, one behind the other: [[7]] with [[(1, 5, 10, 0), (3, 5, 10, 100)]] -> [[2, 101]].

    id * multiplier, wrapped to signed 64 bits, mod prime, mod buckets, + shift; remainders are never negative. Column k
    gives N * J values. Raises ValueError where dtypes or counts do not fit.
    """
    _check(inputs, torch.int64, len(hashes))
    how = _choose(inputs)
    if how == "reference":
        return [reference.multi_hash(ids, each) for ids, each in zip(inputs, hashes, strict=True)]
    table_H4 = np.array([entry for each in hashes for entry in each], np.int64).reshape(-1, 4)
    lengths = [len(ids) * len(each) for ids, each in zip(inputs, hashes, strict=True)]
    return _run(how, "multi_hash", inputs, torch.int64, table_H4, _starts(hashes), lengths=lengths)


def vocabulary(
    inputs: Sequence[Tensor],  # K times int64 [N], any value
    sorted_M: Tensor,  # int64 [M], rising within a column
    places_M: Tensor,  # int64 [M], what each becomes
    splits: Sequence[int],  # K + 1 numbers from 0 to M
    unknown: Sequence[int],  # over how many ids others are spread, 0 for -1
) -> list[Tensor]:
    """The places of ids in a list: [[30, 8]] with sorted [30, 70], places [1, 0], unknown [1] -> [[1, 2]].

    An id that is not listed becomes M + murmur(id) mod unknown, unsigned. Raises ValueError where dtypes or counts do
    not fit.
    """
    _check(inputs, torch.int64, len(unknown))
    how = _choose(inputs)
    if how == "reference":
        pairs = zip(splits, splits[1:], strict=False)
        return [
            reference.vocabulary(ids, sorted_M[first:last], places_M[first:last], others)
            for ids, (first, last), others in zip(inputs, pairs, unknown, strict=True)
        ]
    others_K = np.array(unknown, np.int64)
    return _run(how, "vocabulary", inputs, torch.int64, sorted_M, places_M, np.array(splits, np.int64), others_K)


def bucketize(
    inputs: Sequence[Tensor],  # K times float32 or int64 [N]
    boundaries_M: Tensor,  # the same dtype [M], rising within a column
    splits: Sequence[int],  # K + 1 numbers from 0 to M
) -> list[Tensor]:
    """How many boundaries a value reaches: [[5, 10, 99]] with boundaries [0, 10] -> [[1, 2, 2]], int64.

    A value equal to a boundary is above it; NaN is above all. Raises ValueError where dtypes or counts do not fit.
    """
    _check(inputs, boundaries_M.dtype, len(splits) - 1)
    how = _choose(inputs)
    if how == "reference":
        pairs = zip(splits, splits[1:], strict=False)
        return [
            reference.bucketize(values, boundaries_M[first:last])
            for values, (first, last) in zip(inputs, pairs, strict=True)
        ]
    name = "bucketize_floats" if boundaries_M.dtype == torch.float32 else "bucketize_integers"
    return _run(how, name, inputs, torch.int64, boundaries_M, np.array(splits, np.int64))


def clip(
    inputs: Sequence[Tensor],  # K times float32 or int64 [N]
    bounds: Sequence[tuple[float | None, float | None]],  # K pairs (low, high); None is no bound
) -> list[Tensor]:
    """Values no lower and no higher than bounds: [[-1, 5], [20]] with [(0, 4), (None, 9)] -> [[0, 4], [9]].

    NaN stays NaN. Integers want integer bounds: torch would make floats of them. Raises ValueError where dtypes or
    counts do not fit.
    """
    dtype = inputs[0].dtype if inputs else torch.float32
    _check(inputs, dtype, len(bounds))
    how = _choose(inputs)
    if how == "reference":
        return [reference.clip(values, low, high) for values, (low, high) in zip(inputs, bounds, strict=True)]
    floats = dtype == torch.float32
    least, most = (-np.inf, np.inf) if floats else (-(2**63), 2**63 - 1)
    pairs = [(least if low is None else low, most if high is None else high) for low, high in bounds]
    bounds_K2 = np.array(pairs, np.float32 if floats else np.int64).reshape(-1, 2)
    return _run(how, "clip_floats" if floats else "clip_integers", inputs, dtype, bounds_K2)


def standardize(
    inputs: Sequence[Tensor],  # K times float32 [N]
    shift_scale_K2: Tensor,  # float32 [K, 2]
) -> list[Tensor]:
    """(value - shift) / scale: [[10.0]] with [[2, 4]] -> [[2.0]], float32; ValueError where arguments do not fit."""
    _check(inputs, torch.float32, len(shift_scale_K2))
    how = _choose(inputs)
    if how == "reference":
        return [reference.standardize(values, *pair) for values, pair in zip(inputs, shift_scale_K2, strict=True)]
    return _run(how, "standardize", inputs, torch.float32, shift_scale_K2)


def quantile(
    inputs: Sequence[Tensor],  # K times float32 [N]
    knots_M: Tensor,  # float32 [M], never falling within a column, at least two a column
    splits: Sequence[int],  # K + 1 numbers from 0 to M
) -> list[Tensor]:
    """The share of values below, by straight lines between knots: [[55]] with knots [0, 10, 100] -> [[0.75]], float32.

    A value on several equal knots gets the middle of their shares; NaN stays NaN. Raises ValueError where dtypes or
    counts do not fit.
    """
    _check(inputs, torch.float32, len(splits) - 1)
    how = _choose(inputs)
    if how == "reference":
        pairs = zip(splits, splits[1:], strict=False)
        return [
            reference.quantile(values, knots_M[first:last]) for values, (first, last) in zip(inputs, pairs, strict=True)
        ]
    return _run(how, "quantile", inputs, torch.float32, knots_M, np.array(splits, np.int64))


def log1p(inputs: Sequence[Tensor]) -> list[Tensor]:
    """log(1 + x): [[0.0], [1.0]] -> [[0.0], [0.6931]], float32; one call of torch's own, on every device."""
    numbers = [values.to(torch.float32) for values in inputs]
    if torch.compiler.is_compiling():
        return [values.log1p() for values in numbers]
    return list(torch._foreach_log1p(numbers)) if numbers else []


def find_unfit(inputs: Sequence[Tensor], finite: bool) -> tuple[int, int] | None:
    """The first column and place with NaN or, with ``finite``, infinity: [[1.0], [2.0, nan]] -> (1, 1).

    ``inputs`` are float32 [N]. On a GPU this waits for the device.
    """
    if _choose(inputs) == "cpu":
        from triton_ops.transform import cpu

        column, place = cpu.find_unfit(describe(inputs, inputs), finite)
        return None if column < 0 else (int(column), int(place))
    for column, values in enumerate(inputs):
        unfit = ~values.isfinite() if finite else values.isnan()
        if bool(unfit.any()):
            return column, int(unfit.nonzero()[0])
    return None


# ------------------------------------------------------------------------------------------------------------ inside


def _check(inputs: Sequence[Tensor], dtype: torch.dtype, columns: int) -> None:
    if len(inputs) != columns:
        raise ValueError(f"{len(inputs)} columns, but arguments for {columns}; give one for each")
    for k, values in enumerate(inputs):
        if values.dtype != dtype or values.dim() != 1:
            raise ValueError(f"column {k} is {values.dtype} {list(values.shape)}, need {dtype} [N]")


def _choose(inputs: Sequence[Tensor]) -> str:
    if torch.compiler.is_compiling() or not inputs:
        return "reference"
    return choose("transform", inputs[0].device)


def _run(
    how: str,
    name: str,
    inputs: Sequence[Tensor],
    dtype: torch.dtype,
    *parameters: Any,  # tensors and NumPy arrays, in the kernel's order
    lengths: Sequence[int] | None = None,
) -> list[Tensor]:
    """The results of one call of a kernel for all columns."""
    inputs = [values if values.is_contiguous() else values.contiguous() for values in inputs]
    outputs = allocate(lengths or [values.numel() for values in inputs], dtype, inputs[0].device)
    _launch(how, name, inputs, outputs, *parameters)
    return outputs


def _launch(how: str, name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], *parameters: Any) -> None:
    if how == "triton":
        from triton_ops.transform.kernels import launch

        launch(name, inputs, outputs, parameters)
        return
    from triton_ops.transform import cpu

    kernel: Callable[..., None] = getattr(cpu, name)
    kernel(describe(inputs, outputs), *(each.numpy() if isinstance(each, Tensor) else each for each in parameters))


def _starts(parts: Sequence[Sequence[Any]]) -> Any:
    return np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
