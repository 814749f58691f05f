"""Modulo, bucketize and clip over several features at once: reference and CPU alike."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triton_ops.dispatch import UnsupportedDeviceError
from triton_ops.transform import bucketize, clip, modulo

any_id = st.integers(-(2**63), 2**63 - 1)
divisors = st.integers(1, 2**63 - 1) | st.integers(1, 100)


@pytest.fixture(params=["reference", "cpu"])
def implementation(request, monkeypatch):
    monkeypatch.setenv("TRITON_OPS", request.param)
    return request.param


def as_splits(lengths: list[int]) -> list[int]:
    return [0, *np.cumsum(lengths).tolist()]


@pytest.mark.usefixtures("implementation")
def test_modulo_reads_ids_as_unsigned():
    ids = torch.tensor([12, -1, -(2**63), 2**63 - 1, 12])
    remainders = modulo(ids, [0, 4, 5], torch.tensor([10, 5]))
    assert remainders.tolist() == [2, 5, 8, 7, 2]
    assert remainders.dtype == torch.int64


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("count", [0, 1, 63, 1000])
def test_modulo_equals_unsigned_arithmetic_of_numpy(count):
    generator = np.random.default_rng(count)
    values = [generator.integers(-(2**63), 2**63 - 1, count) for _ in range(3)]
    numbers = [7, 2**62 + 1, 2**63 - 1]
    found = modulo(
        torch.from_numpy(np.concatenate(values)), as_splits([count] * 3), torch.tensor(numbers, dtype=torch.int64)
    )
    expected = [ids.view(np.uint64) % np.uint64(divisor) for ids, divisor in zip(values, numbers, strict=True)]
    assert np.array_equal(found.numpy(), np.concatenate(expected).astype(np.int64))


@given(features=st.lists(st.tuples(divisors, st.lists(any_id, max_size=6)), max_size=4))
def test_modulo_equals_python_on_both_implementations(features):
    ids = torch.tensor([id_ for _, values in features for id_ in values], dtype=torch.int64)
    splits = as_splits([len(values) for _, values in features])
    expected = [id_ % 2**64 % divisor for divisor, values in features for id_ in values]
    for choice in ("reference", "cpu"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_OPS", choice)
            found = modulo(ids, splits, torch.tensor([divisor for divisor, _ in features], dtype=torch.int64))
        assert found.tolist() == expected


@pytest.mark.usefixtures("implementation")
def test_modulo_takes_strided_ids_and_leaves_them_alone():
    ids = torch.arange(20)[::2]
    assert modulo(ids, [0, 10], torch.tensor([3])).tolist() == [0, 2, 1, 0, 2, 1, 0, 2, 1, 0]
    assert ids.tolist() == list(range(0, 20, 2))


def test_modulo_on_a_device_without_a_kernel_is_a_named_error():
    with pytest.raises(UnsupportedDeviceError, match="op 'transform' on meta: it has no Triton kernel"):
        modulo(torch.empty(3, dtype=torch.int64, device="meta"), [0, 3], torch.tensor([3]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_bucketize_counts_the_boundaries_reached(dtype):
    values = torch.tensor([-1, 0, 5, 10, 99, 3, 4], dtype=dtype)
    boundaries = torch.tensor([0, 10, 4], dtype=dtype)
    found = bucketize(values, [0, 5, 7], boundaries, [0, 2, 3])
    assert found.tolist() == [0, 1, 1, 2, 2, 0, 1]
    assert found.dtype == torch.int64


@given(
    values=st.lists(st.floats(allow_nan=False, width=32), max_size=20),
    boundaries=st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), max_size=8, unique=True),
)
def test_bucketize_equals_counting(values, boundaries):
    boundaries = sorted(boundaries)
    found = bucketize(torch.tensor(values), [0, len(values)], torch.tensor(boundaries), [0, len(boundaries)])
    assert found.tolist() == [sum(boundary <= value for boundary in boundaries) for value in values]


def test_clip_keeps_values_within_their_features_bounds():
    found = clip(torch.tensor([-1.0, 5.0, 20.0, -3.0]), [0, 2, 3, 4], [(0, 4), (None, 9.5), (-2, None)])
    assert found.tolist() == [0, 4, 9.5, -2]
    integers = clip(torch.tensor([-1, 2**60 + 1]), [0, 2], [(0, None)])
    assert integers.tolist() == [0, 2**60 + 1]
    assert integers.dtype == torch.int64


def test_clip_lets_nan_through():
    assert clip(torch.tensor([float("nan")]), [0, 1], [(0, 1)]).isnan().all()


def test_no_features_give_no_values():
    nothing = torch.zeros(0, dtype=torch.int64)
    assert modulo(nothing, [0], nothing).shape == (0,)
    assert clip(nothing, [0], []).shape == (0,)
    assert bucketize(torch.zeros(0), [0], torch.zeros(0), [0]).dtype == torch.int64


@pytest.mark.parametrize("splits", [[0, 3], [1, 4], [0, 2, 4], [0, 5, 4], []])
def test_splits_that_do_not_fit_are_refused(splits):
    values = torch.arange(4)
    with pytest.raises(ValueError, match=r"do not cut \[4\] values into 1 features; give one more than features"):
        modulo(values, splits, torch.tensor([2]))
    with pytest.raises(ValueError, match=r"do not cut \[4\] values into 1 features"):
        clip(values, splits, [(0, 1)])
    with pytest.raises(ValueError, match=r"do not cut \[4\] values into 1 features"):
        bucketize(values, splits, torch.tensor([2]), [0, 1])


def test_dtypes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"values are torch.float32, divisors torch.int64; both must be int64"):
        modulo(torch.zeros(1), [0, 1], torch.tensor([2]))
    with pytest.raises(ValueError, match=r"values are torch.float32, boundaries torch.float64; give both in one dtype"):
        bucketize(torch.zeros(1), [0, 1], torch.zeros(1, dtype=torch.float64), [0, 1])
