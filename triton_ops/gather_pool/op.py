"""Bags of rows summed up, and the gradients of the sums brought back to the rows.

N values, M values of some bags, B bags, K features, R rows of the group, D row width, U unique rows of the
batch.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from triton_ops.dispatch import choose
from triton_ops.gather_pool import reference
from triton_ops.gather_pool.pooled_grad import PooledGrad
from triton_ops.gather_pool.reference import read_dtype
from triton_ops.places import Rows
from triton_ops.transfer import to_device

POOLINGS = ("sum", "mean", "sqrtn")


def gather_pool(
    weight: Rows,
    rows_N: Tensor,
    offsets_KB1: Tensor,
    coefficients_M: Tensor | None = None,
    out_BKD: Tensor | None = None,
) -> Tensor:
    """Sum each bag's rows: weight [[1], [2], [3]], rows [2, 1, 2], offsets [[0, 2, 2, 3]] -> [[[5]], [[0]], [[3]]].

    K features have B bags each, and their sums come side by side. ``weight`` is [R, D], on a GPU also in blocks;
    ``rows_N`` int64 in [0, R). ``offsets_KB1`` is int64 and counts ``rows_N``; features follow each other in it, so
    that each begins where the last one ends. ``coefficients_M`` says what each row from the first bag on counts, as
    `pool_coefficients` works it out. Returns [B, K, D], zeros for an empty bag, in ``out_BKD`` if one is given:
    contiguous, and like coefficients of the `read_dtype` of the weight, in which it is summed up. Gradients go back to
    the rows by `group_by_row` and `pool_grads`; there is no autograd. Raises ValueError where dtypes or shapes do not
    fit; values are not looked at.
    """
    if rows_N.dtype != torch.int64 or offsets_KB1.dtype != torch.int64 or rows_N.dim() != 1 or offsets_KB1.dim() != 2:
        raise ValueError(
            f"rows are {rows_N.dtype} {list(rows_N.shape)}, offsets {offsets_KB1.dtype} {list(offsets_KB1.shape)}; "
            "give int64 [N] and int64 [K, B + 1]"
        )
    dtype = read_dtype(weight.dtype)
    if coefficients_M is not None and (coefficients_M.dtype != dtype or coefficients_M.dim() != 1):
        raise ValueError(
            f"coefficients are {coefficients_M.dtype} {list(coefficients_M.shape)}; give {dtype} for each row"
        )
    shape = offsets_KB1.shape[1] - 1, offsets_KB1.shape[0], weight.shape[1]
    out = rows_N.new_empty(shape, dtype=dtype) if out_BKD is None else out_BKD
    if out.shape != shape or out.dtype != dtype or not out.is_contiguous():
        raise ValueError(f"out is {out.dtype} {list(out.shape)}; give contiguous {dtype} {list(shape)}")
    implementation = choose("gather_pool", rows_N.device)
    if implementation == "triton":
        from triton_ops.gather_pool import kernels

        coefficients_M = None if coefficients_M is None else coefficients_M.contiguous()
        kernels.gather_pool(weight, rows_N.contiguous(), offsets_KB1.contiguous(), coefficients_M, out)
        return out
    if implementation == "reference" or not isinstance(weight, Tensor):
        return out.copy_(reference.gather_pool(weight, rows_N, offsets_KB1, coefficients_M))
    from triton_ops.gather_pool import cpu

    cpu.gather_pool(weight, rows_N.contiguous(), offsets_KB1.contiguous(), coefficients_M, out)
    return out


def gather_rows(weight: Rows, rows_N: Tensor, out_ND: Tensor | None = None) -> Tensor:
    """Copy rows: weight [[1], [2], [3]], rows [2, 1, 2] -> [[3], [2], [3]].

    ``weight`` is [R, D], on a GPU also in blocks, ``rows_N`` int64 in [0, R). Returns [N, D] of the `read_dtype` of the
    weight, in ``out_ND`` if one is given, contiguous. Raises ValueError where dtypes or shapes do not fit.
    """
    dtype = read_dtype(weight.dtype)
    out = rows_N.new_empty(len(rows_N), weight.shape[1], dtype=dtype) if out_ND is None else out_ND
    is_whole = out.shape == (*rows_N.shape, weight.shape[1]) and out.is_contiguous()
    if rows_N.dtype != torch.int64 or not is_whole or out.dtype != dtype:
        raise ValueError(
            f"rows are {rows_N.dtype} {list(rows_N.shape)}, out {out.dtype} {list(out.shape)}; give int64 [N] and "
            f"{dtype} [N, {weight.shape[1]}], contiguous"
        )
    if choose("gather_pool", rows_N.device) == "triton":
        from triton_ops.gather_pool import kernels

        kernels.gather_pool(weight, rows_N.contiguous(), None, None, out[:, None])
        return out
    if out.dtype == weight.dtype and isinstance(weight, Tensor):
        return torch.index_select(weight, 0, rows_N, out=out)
    return out.copy_(weight.index_select(0, rows_N))


class JoinedOffsets(NamedTuple):
    """The offsets of several features, counted from the first value of all."""

    offsets: Tensor
    """int64: B + 1 of each feature, one behind the other."""
    offset_splits: list[int]
    """Where each feature's begin, and where the last one's end: K + 1."""
    splits: list[int]
    """Where each feature's values begin, and where the last one's end: K + 1."""
    misfit: int | None
    """The first feature whose offsets do not rise from 0 to its number of values; then ``offsets`` is of no use."""
    misfits: Tensor | None = None
    """Off the CPU, where a look would wait for the device: bool [K], which features' do not, and ``misfit`` is None."""


def join_offsets(offsets: Sequence[Tensor], values: Sequence[int]) -> JoinedOffsets:
    """Offsets [0, 2, 2] and [0, 1] of features with 2 and 1 values -> [0, 2, 2, 2, 3], offset_splits [0, 3, 5].

    Between two features they make a bag without values, whose sum nobody reads. Each is int64, all on one device.
    """
    offset_splits, splits = [0, *accumulate(map(len, offsets))], [0, *accumulate(values)]
    joined = torch.cat([*offsets])
    implementation = choose("gather_pool", joined.device)
    if (joined.device.type != "cpu" or implementation == "triton") and 0 not in map(len, offsets):
        return JoinedOffsets(*_shift_on_device(joined, offset_splits, splits))
    arguments = joined, torch.tensor(offset_splits), torch.tensor(splits)
    if implementation == "reference":
        misfit = reference.shift_offsets(*arguments)
    else:
        from triton_ops.gather_pool import cpu

        misfit = cpu.shift_offsets(*arguments)
    return JoinedOffsets(joined, offset_splits, splits, None if misfit < 0 else misfit)


def _shift_on_device(
    joined: Tensor, offset_splits: list[int], splits: list[int]
) -> tuple[Tensor, list[int], list[int], None, Tensor]:
    """`join_offsets` that waits for nothing: which offsets do not fit stays on the device."""
    bounds = torch.tensor([offset_splits[:-1], [end - 1 for end in offset_splits[1:]], splits[:-1], splits[1:]])
    first_K, last_K, begin_K, end_K = to_device(bounds, joined.device).unbind()
    feature_E = torch.repeat_interleave(
        torch.arange(len(first_K), device=joined.device), last_K - first_K + 1, output_size=len(joined)
    )
    shifted = joined + begin_K[feature_E]
    # Offsets that fit never fall from one feature to the next: it begins where the last one ends.
    falls_K = torch.zeros_like(first_K).index_add_(0, feature_E[1:], (shifted[1:] < shifted[:-1]).long())
    misfits_K = (shifted[first_K] != begin_K) | (shifted[last_K] != end_K) | (falls_K > 0)
    # Where they do not fit, all values are the last row's: nobody may read beyond those of the feature.
    joined = torch.where(misfits_K[feature_E], begin_K[feature_E], shifted).index_copy_(0, last_K, end_K)
    return joined, offset_splits, splits, None, misfits_K


def join_coefficients(
    joined: JoinedOffsets, poolings: Sequence[str], weights: Sequence[Tensor | None], dtype: torch.dtype
) -> Tensor | None:
    """`pool_coefficients` of the first features of several, one behind the other, by calls that serve all of them.

    Sums may differ by their order. None where all values count 1.
    """
    kinds = [POOLINGS.index(pooling) for pooling in poolings]
    if not any(kinds) and all(each is None for each in weights):
        return None
    values, end = joined.splits[len(kinds)], joined.offset_splits[len(kinds)]
    device = joined.offsets.device
    ones_M = torch.ones(values, dtype=dtype, device=device)
    weight_M = ones_M
    if any(each is not None for each in weights):
        ones = ones_M.split([stop - start for start, stop in _spans(joined.splits[: len(kinds) + 1])])
        weight_M = torch.cat([one if given is None else given for one, given in zip(ones, weights, strict=True)])
        weight_M = weight_M.to(dtype)
    # Between two features lies a bag without values.
    sizes_E = joined.offsets[:end].diff()
    lengths = torch.tensor([[stop - start for start, stop in _spans(joined.offset_splits[: len(kinds) + 1])], kinds])
    lengths_K, kind_K = to_device(lengths, device).unbind()
    kind_E = torch.repeat_interleave(kind_K, lengths_K, output_size=end)[:-1]
    bag_M = torch.repeat_interleave(torch.arange(end - 1, device=device), sizes_E, output_size=values)
    kind_M = kind_E[bag_M]
    terms_M = torch.where(kind_M == POOLINGS.index("sqrtn"), weight_M * weight_M, weight_M)
    total_E = torch.segment_reduce(terms_M, "sum", lengths=sizes_E, unsafe=True, initial=0)
    total_E = torch.where(kind_E == POOLINGS.index("sqrtn"), total_E.sqrt(), total_E)
    divisor_M = torch.where(kind_M == POOLINGS.index("sum"), 1, total_E[bag_M])
    return torch.where(divisor_M == 0, 0, weight_M / divisor_M)


def _spans(splits: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(splits, splits[1:], strict=False))


def pool_coefficients(
    offsets_B1: Tensor, pooling: str, weights_N: Tensor | None, dtype: torch.dtype, values: int | None = None
) -> Tensor | None:
    """What each value counts in its bag: mean of bags with offsets [0, 2, 2, 3] -> [0.5, 0.5, 1]; None for all 1.

    With weights w, sum counts w, mean w / sum(w), sqrtn w / sqrt(sum(w^2)); without, all w are 1. A bag whose weights
    sum up to 0 counts nothing. ``offsets_B1`` is int64, ``weights_N`` floating or None. ``values`` is N, where it is
    known: to look it up waits for the device. Returns [N] of ``dtype``.
    Raises ValueError for another pooling.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"there is no pooling '{pooling}'; there are: {', '.join(POOLINGS)}")
    if pooling == "sum":
        return None if weights_N is None else weights_N.to(dtype)
    bag_N = reference.bag_of_value(offsets_B1, values if weights_N is None else weights_N.shape[0])
    if weights_N is None:
        total_B = offsets_B1.diff().to(dtype)
        weights = torch.ones((), dtype=dtype, device=offsets_B1.device)
    else:
        weights = weights_N.to(dtype)
        terms = weights if pooling == "mean" else weights * weights
        total_B = terms.new_zeros(len(offsets_B1) - 1).index_add_(0, bag_N, terms)
    divisor_N = (total_B if pooling == "mean" else total_B.sqrt())[bag_N]
    return torch.where(divisor_N == 0, 0, weights / divisor_N)


def pool_grads(parts: Sequence[PooledGrad], inverse_N: Tensor, grads_UD: Tensor) -> Tensor:
    """Write each unique row's gradient: grads 1, 2 of bags [0, 2, 3] with inverse [0, 1, 0] -> [[3], [1]].

    ``inverse_N``, from `group_by_row`, says which unique row each value is; -1 is left out. ``parts`` follow the
    order of the values and cover all that are not left out. Writes all of ``grads_UD``, contiguous and of the
    gradients' dtype, and returns it. Sums run in the order of the values, so that they are the same each time. Raises
    ValueError for another dtype.
    """
    for part in parts:
        if part.grads_BKD.dtype != grads_UD.dtype:
            raise ValueError(f"gradients are {part.grads_BKD.dtype}, the rows' are {grads_UD.dtype}; give one dtype")
    implementation = choose("gather_pool", grads_UD.device)
    if implementation == "reference":
        reference.pool_grads(parts, inverse_N, grads_UD)
    elif implementation == "triton":
        from triton_ops.gather_pool import kernels

        kernels.pool_grads(parts, inverse_N.contiguous(), grads_UD)
    else:
        from triton_ops.gather_pool import cpu

        cpu.pool_grads(parts, inverse_N, grads_UD)
    return grads_UD
