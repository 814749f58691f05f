"""bfloat16 and float16 in kernels: every bit pattern widened, numbers rounded as torch does, or by given bits."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from triton_ops import narrow
from triton_ops.jit import kernel
from triton_ops.row_update.rounding import stochastic

DTYPES = [torch.bfloat16, torch.float16]


@kernel
def widen(bits: Any, out: Any) -> None:
    for i in range(len(bits)):
        out[i] = narrow.widen(bits[i])


@kernel
def round_nearest(numbers: Any, out: Any) -> None:
    for i in range(len(numbers)):
        out[i] = narrow.nearest(out, numbers[i])


@kernel
def round_stochastic(numbers: Any, noise: Any, part: Any, out: Any) -> None:
    for i in range(len(numbers)):
        out[i] = narrow.stochastic(out, numbers[i], noise[i], part)


def every_number(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)


def same_bits(found: Tensor, expected: Tensor) -> bool:
    """All NaN are alike."""
    bits = torch.int16 if found.itemsize == 2 else torch.int32
    return bool(((found.view(bits) == expected.view(bits)) | (found.isnan() & expected.isnan())).all())


def with_neighbours(dtype: torch.dtype) -> Tensor:
    """Every number that the dtype holds, what lies between two of them, and what lies right beside those, float32."""
    numbers = every_number(dtype).float()
    finite = numbers[numbers.isfinite()].sort().values
    halves = finite[:-1] + finite.diff() / 2
    around = [halves, *(torch.nextafter(halves, torch.tensor(end)) for end in (-torch.inf, torch.inf))]
    return torch.cat([numbers, *around])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_is_widened_as_torch_does(dtype: torch.dtype) -> None:
    numbers = every_number(dtype)
    out = torch.empty(len(numbers))
    widen(narrow.as_array(numbers), out.numpy())
    assert same_bits(out, numbers.float())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_the_nearest_is_that_of_torch(dtype: torch.dtype, wide: torch.dtype) -> None:
    numbers = with_neighbours(dtype).to(wide)
    out = torch.empty(len(numbers), dtype=dtype)
    round_nearest(numbers.numpy(), narrow.as_array(out))
    assert same_bits(out, numbers.to(dtype))


def rounded(numbers: Tensor, noise: Tensor, part: int, dtype: torch.dtype) -> Tensor:
    """By the CPU's kernel, which equals the reference."""
    out = torch.empty(len(numbers), dtype=dtype)
    round_stochastic(numbers.numpy(), noise.numpy().view(np.uint64), part, narrow.as_array(out))
    assert same_bits(out, stochastic(numbers, dtype, noise, part))
    return out


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_least_bits_round_towards_zero_and_none_moves_what_fits(dtype: torch.dtype) -> None:
    numbers = with_neighbours(dtype)
    numbers = numbers[numbers.isfinite() & (numbers.abs() <= torch.finfo(dtype).max)]
    down = rounded(numbers, torch.zeros(len(numbers), dtype=torch.int64), 0, dtype).float()
    assert (down.abs() <= numbers.abs()).all()
    assert (down.sign() * numbers.sign() >= 0).all()
    fits = numbers.to(dtype).float() == numbers
    up = rounded(numbers, torch.full((len(numbers),), -1), 2, dtype).float()
    assert torch.equal(down[fits], numbers[fits])
    assert torch.equal(up[fits], numbers[fits])
    # With the most bits what lies halfway goes to the other neighbour.
    halves = ~fits & (down.isfinite() & up.isfinite())
    assert (up[halves].abs() > down[halves].abs()).float().mean() > 0.99


@given(st.lists(st.tuples(st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=50))
def test_kernels_round_any_number_by_any_bits_as_the_reference(drawn: list[tuple[int, int]]) -> None:
    patterns, words = zip(*drawn, strict=True)
    numbers, noise = torch.tensor(patterns, dtype=torch.int32).view(torch.float32), torch.tensor(words)
    for dtype in DTYPES:
        for part in range(3):
            found = rounded(numbers, noise, part, dtype)
            assert torch.equal(found.isnan(), numbers.isnan())


@pytest.mark.parametrize(
    "function", [narrow.widen, narrow.nearest, narrow.stochastic, narrow.noise, narrow.noise_start, narrow.prefetch_id]
)
def test_what_kernels_call_says_so_elsewhere(function: Callable[..., Any]) -> None:
    with pytest.raises(NotImplementedError, match="for kernels"):
        function(*[0] * function.__code__.co_argcount)
