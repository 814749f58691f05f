"""Every transform on columns of several sizes, held against its reference: for the CPU, the interpreter and a GPU."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from triton_ops import transform as ops
from triton_ops.transform import reference
from triton_ops.transform.op import HASH_KINDS

EXTREMES = [-(2**63), -(2**63) + 1, -1, 0, 1, 2**63 - 1]


def make_ids(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-(2**63), 2**63 - 1, (size,), generator=generator)
    ids[: len(EXTREMES)] = torch.tensor(EXTREMES)[: len(ids)]
    return ids


def make_floats(size: int, seed: int) -> Tensor:
    """Halves between -4 and 4, so that many are equal, behind infinities and NaN."""
    generator = torch.Generator().manual_seed(seed)
    floats = torch.randint(-8, 9, (size,), generator=generator) / 2
    floats[:3] = torch.tensor([float("inf"), -float("inf"), float("nan")])[: len(floats)]
    return floats


def split(parts: Sequence[Tensor]) -> list[int]:
    return list(itertools.accumulate(map(len, parts), initial=0))


def same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Equal bit for bit, NaN included."""
    assert len(found) == len(expected)
    for left, right in zip(found, expected, strict=True):
        assert left.dtype == right.dtype
        bits = torch.int32 if left.dtype == torch.float32 else torch.int64
        nan = left.isnan() & right.isnan().to(left.device)
        assert torch.equal(left.cpu().view(bits)[~nan.cpu()], right.view(bits)[~nan.cpu()])


def check(device: str, sizes: Sequence[int]) -> None:
    """AssertionError where a transform on a device differs from the reference on the CPU."""
    ids = [make_ids(size, seed) for seed, size in enumerate(sizes)]
    floats = [make_floats(size, seed) for seed, size in enumerate(sizes)]
    there, floats_there = [each.to(device) for each in ids], [each.to(device) for each in floats]
    count = len(sizes)
    for kind in HASH_KINDS:
        same(ops.hash_ids(there, [kind] * count), [reference.hash_ids(each, kind) for each in ids])
    divisors = [1, 10, 2**62 + 1, 2**63 - 1, 3][:count]
    same(ops.modulo(there, divisors), [reference.modulo(*pair) for pair in zip(ids, divisors, strict=True)])
    hashes = [[(1, 29, 1, 0), (3, 46997, 1000, 1)], [(7, 82997, 1000, 0)]] * count
    same(ops.multi_hash(there, hashes[:count]), [reference.multi_hash(*p) for p in zip(ids, hashes, strict=False)])

    lists = [make_ids(size, 9) for size in (6, 1, 40, 300, 7)[:count]]
    orders = [each.argsort() for each in lists]
    sorted_lists = [each[order] for each, order in zip(lists, orders, strict=True)]
    unknown = [1, 0, 7, 1000, 3][:count]
    found = ops.vocabulary(
        there, torch.cat(sorted_lists).to(device), torch.cat(orders).to(device), split(lists), unknown
    )
    same(found, [reference.vocabulary(*each) for each in zip(ids, sorted_lists, orders, unknown, strict=True)])

    boundaries = [make_floats(size, 5)[3:].unique() for size in (8, 40, 4, 9, 100)[:count]]
    boundaries[-1] = torch.linspace(-4, 4, 300)  # more than are compared with all
    found = ops.bucketize(floats_there, torch.cat(boundaries).to(device), split(boundaries))
    same(found, [reference.bucketize(*pair) for pair in zip(floats, boundaries, strict=True)])
    found = ops.bucketize(there, torch.cat(sorted_lists).to(device), split(sorted_lists))
    same(found, [reference.bucketize(*pair) for pair in zip(ids, sorted_lists, strict=True)])

    bounds: list[tuple[float | None, float | None]] = [(None, 1.5), (-1.0, None), (0.0, 0.0), (-2.5, 3.0), (1.0, 2.0)]
    same(ops.clip(floats_there, bounds[:count]), [reference.clip(x, *b) for x, b in zip(floats, bounds, strict=False)])
    limits: list[tuple[float | None, float | None]] = [(None, 5), (-3, None), (0, 0), (-(2**62), 2**62), (1, 2)]
    same(ops.clip(there, limits[:count]), [reference.clip(x, *b) for x, b in zip(ids, limits, strict=False)])
    pairs = torch.tensor([[0.1, 3.0], [2.0, 0.7], [-1.5, 7.0], [1e-3, 1e-3], [0.0, 1.0]])[:count]
    same(
        ops.standardize(floats_there, pairs.to(device)),
        [reference.standardize(x, *pair) for x, pair in zip(floats, pairs, strict=True)],
    )
    knots = [torch.tensor(each) for each in ([0.0, 1.0], [-3.0, 0.0, 0.0, 0.7, 3.0], [1.0, 1.0], [-4.0, -0.1, 3.3])]
    knots = [*knots, torch.linspace(-3, 3, 101)][:count]
    found = ops.quantile(floats_there, torch.cat(knots).to(device), split(knots))
    same(found, [reference.quantile(*pair) for pair in zip(floats, knots, strict=True)])
    print("equal")
