"""The transforms of values: examples to follow by hand, NumPy as rival, extremes of int64; reference and CPU alike."""

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from tests.triton_ops.transform.columns_check import check
from triton_ops import transform as ops
from triton_ops.dispatch import UnsupportedDeviceError
from triton_ops.hash_bytes.op import hash_bytes
from triton_ops.transform import cpu

any_id = st.integers(-(2**63), 2**63 - 1)
divisors = st.integers(1, 2**63 - 1) | st.integers(1, 100) | st.integers(0, 62).map(lambda bits: 2**bits)
floats = st.floats(-8, 8, width=32).map(lambda number: round(number * 2) / 2)


@pytest.fixture(params=["reference", "cpu"])
def implementation(request, monkeypatch):
    monkeypatch.setenv("TRITON_OPS", request.param)
    return request.param


def lists(tensors: list[torch.Tensor]) -> list[list[float]]:
    return [tensor.tolist() for tensor in tensors]


def ids_of(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize("sizes", [(0, 1, 63, 1000, 5000), (0,), (1,), (0, 0, 0)])
def test_the_cpu_equals_the_reference_on_every_transform(sizes, capsys):
    check("cpu", sizes)
    assert capsys.readouterr().out == "equal\n"


@pytest.mark.usefixtures("implementation")
def test_modulo_reads_ids_as_unsigned():
    found = ops.modulo([ids_of(12, -1, -(2**63), 2**63 - 1), ids_of(12)], [10, 5])
    assert lists(found) == [[2, 5, 8, 7], [2]]


@given(columns=st.lists(st.tuples(divisors, st.lists(any_id, max_size=6)), max_size=4))
def test_modulo_equals_python_on_both_implementations(columns):
    expected = [[id_ % 2**64 % divisor for id_ in values] for divisor, values in columns]
    for choice in ("reference", "cpu"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_OPS", choice)
            found = ops.modulo([ids_of(*values) for _, values in columns], [divisor for divisor, _ in columns])
        assert lists(found) == expected


@pytest.mark.usefixtures("implementation")
def test_modulo_takes_strided_ids_and_leaves_them_alone():
    ids = torch.arange(10)[::3]
    assert lists(ops.modulo([ids], [4])) == [[0, 3, 2, 1]]
    assert ids.tolist() == [0, 3, 6, 9]


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("kind", ["farm", "murmur", "xxh64"])
@given(ids=st.lists(any_id, max_size=5))
def test_the_hash_of_an_id_is_that_of_its_bytes(kind, ids):
    data = torch.tensor([*b"".join((each % 2**64).to_bytes(8, "little") for each in ids), 0], dtype=torch.uint8)
    expected = hash_bytes(data, torch.arange(0, 8 * len(ids) + 1, 8), kind)
    (found,) = ops.hash_ids([ids_of(*ids)], [kind])
    assert torch.equal(found, expected)


@pytest.mark.usefixtures("implementation")
def test_hashes_of_one_are_known():
    found = ops.hash_ids([ids_of(1)] * 2, ["murmur", "xxh64"])
    # The same bytes through MurmurHash64A's own source, and through the package xxhash.
    expected = xxhash.xxh64((1).to_bytes(8, "little")).intdigest()
    assert lists(found) == [[-8089716718896805586], [expected - (expected >> 63 << 64)]]


@pytest.mark.usefixtures("implementation")
def test_multi_hash_gives_recis_golden_values():
    # RecIS, op_test: buckets [1000] * 4, ids 1001..1003
    primes = [(1, 28979, 1000, 0), (3, 46997, 1000, 0), (5, 66977, 1000, 0), (7, 82997, 1000, 0)]
    (found,) = ops.multi_hash([ids_of(1001, 1002, 1003)], [primes])
    assert found.view(3, 4).T.tolist() == [[1, 2, 3], [3, 6, 9], [5, 10, 15], [7, 14, 21]]


@pytest.mark.usefixtures("implementation")
@given(ids=st.lists(any_id, min_size=1, max_size=5))
def test_multi_hash_equals_python_on_wrapped_products(ids):
    def wrapped(value):
        return (value + 2**63) % 2**64 - 2**63

    (found,) = ops.multi_hash([ids_of(*ids)], [[(7, 82997, 1000, 5), (3, 47, 1, 0)]])
    assert found.view(-1, 2).tolist() == [[wrapped(7 * id_) % 82997 % 1000 + 5, 0] for id_ in ids]


@pytest.mark.usefixtures("implementation")
def test_vocabulary_gives_places_and_puts_others_behind():
    found = ops.vocabulary(
        [ids_of(30, 8, 70), ids_of(30, 8)], ids_of(30, 70, 8), ids_of(1, 0, 0), splits=[0, 2, 3], unknown=[1, 0]
    )
    assert lists(found) == [[1, 2, 0], [-1, 0]]


@pytest.mark.usefixtures("implementation")
def test_unknown_ids_spread_over_the_places_behind_the_list():
    (found,) = ops.vocabulary([torch.arange(1000)], ids_of(5), ids_of(0), splits=[0, 1], unknown=[10])
    assert found[5] == 0
    others = torch.cat([found[:5], found[6:]])
    assert others.bincount(minlength=11)[1:].min() > 60
    assert int(others.max()) == 10


@pytest.mark.usefixtures("implementation")
def test_a_value_on_a_boundary_is_above_it():
    values = torch.tensor([-1.0, 0.0, 5.0, 10.0, 99.0, float("nan")])
    found = ops.bucketize([values, values[:1]], torch.tensor([0.0, 10.0, -2.0]), [0, 2, 3])
    assert lists(found) == [[0, 1, 1, 2, 2, 2], [1]]


@pytest.mark.usefixtures("implementation")
@given(
    values=st.lists(floats, max_size=9),
    boundaries=st.lists(floats, min_size=1, max_size=70, unique=True).map(sorted),
)
def test_bucketize_equals_searchsorted_of_numpy(values, boundaries):
    values_N, boundaries_M = torch.tensor(values), torch.tensor(boundaries)
    (found,) = ops.bucketize([values_N], boundaries_M, [0, len(boundaries)])
    assert np.array_equal(found.numpy(), np.searchsorted(boundaries_M.numpy(), values_N.numpy(), side="right"))


@pytest.mark.usefixtures("implementation")
def test_integers_are_bucketized_with_all_their_digits():
    values = ids_of(2**60, 2**60 + 1, -(2**63), 2**63 - 1)
    (found,) = ops.bucketize([values], ids_of(-(2**63), 2**60 + 1, 2**63 - 1), [0, 3])
    assert found.tolist() == [1, 2, 1, 3]


@pytest.mark.usefixtures("implementation")
def test_clip_keeps_nan_and_lets_a_bound_be_left_out():
    found = ops.clip([torch.tensor([-1.0, float("nan"), 5.0]), torch.tensor([20.0])], [(0, 4), (None, 9)])
    assert found[0][[0, 2]].tolist() == [0.0, 4.0]
    assert found[0][1].isnan()
    assert found[1].tolist() == [9.0]
    assert lists(ops.clip([ids_of(-(2**63), 2**63 - 1)], [(None, 7)])) == [[-(2**63), 7]]


@pytest.mark.usefixtures("implementation")
def test_standardize_subtracts_and_divides_in_float32():
    values = torch.tensor([10.0, 0.1])
    (found,) = ops.standardize([values], torch.tensor([[2.0, 3.0]]))
    assert np.array_equal(found.numpy(), (values.numpy() - np.float32(2)) / np.float32(3))


@pytest.mark.usefixtures("implementation")
def test_quantile_runs_straight_between_knots():
    values = torch.tensor([-5.0, 0.0, 5.0, 55.0, 100.0, 101.0])
    (found,) = ops.quantile([values], torch.tensor([0.0, 10.0, 100.0]), [0, 3])
    assert found.tolist() == [0.0, 0.0, 0.25, 0.75, 1.0, 1.0]


@pytest.mark.usefixtures("implementation")
def test_quantile_of_equal_knots_is_the_middle_of_their_shares():
    (found,) = ops.quantile([torch.tensor([0.0, 1.0, 2.0])], torch.tensor([0.0, 1.0, 1.0, 1.0, 2.0]), [0, 5])
    assert found.tolist() == [0.0, 0.5, 1.0]


@pytest.mark.usefixtures("implementation")
def test_find_unfit_names_column_and_place():
    inputs = [torch.tensor([1.0]), torch.tensor([2.0, float("inf"), float("nan")])]
    assert ops.find_unfit(inputs, finite=True) == (1, 1)
    assert ops.find_unfit(inputs, finite=False) == (1, 2)
    assert ops.find_unfit(inputs[:1], finite=True) is None


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("modulo", lambda ids, _: ops.modulo(ids, [7] * len(ids))),
        ("hash_ids", lambda ids, _: ops.hash_ids(ids, ["murmur"] * len(ids))),
        ("multi_hash", lambda ids, _: ops.multi_hash(ids, [[(1, 29, 1, 0)]] * len(ids))),
        ("bucketize_floats", lambda _, numbers: ops.bucketize(numbers, torch.arange(40.0), list(range(41)))),
        ("clip_floats", lambda _, numbers: ops.clip(numbers, [(0.0, 1.0)] * len(numbers))),
        ("standardize", lambda _, numbers: ops.standardize(numbers, torch.ones(40, 2))),
        ("quantile", lambda _, numbers: ops.quantile(numbers, torch.arange(80.0), list(range(0, 81, 2)))),
    ],
)
def test_forty_columns_are_one_call_of_the_kernel(name, call, monkeypatch):
    calls = []
    kernel = getattr(cpu, name)
    monkeypatch.setattr(cpu, name, lambda *arguments: (calls.append(len(arguments[0])), kernel(*arguments)))
    call([torch.arange(5)] * 40, [torch.arange(5.0)] * 40)
    assert calls == [40]


@pytest.mark.usefixtures("implementation")
def test_modulo_in_place_writes_over_its_inputs():
    ids = [ids_of(12, -1), ids_of(7)[:0], torch.arange(9)]
    expected = lists(ops.modulo(ids, [10, 3, 4]))
    assert ops.modulo_(ids, [10, 3, 4]) is None
    assert lists(ids) == expected


def test_modulo_in_place_wants_inputs_without_gaps():
    with pytest.raises(ValueError, match="must be contiguous; call modulo, or pass copies"):
        ops.modulo_([torch.arange(9)[::2]], [4])


def test_results_lie_in_one_piece_of_memory():
    first, second = ops.modulo([torch.arange(5), torch.arange(3)], [2, 2])
    assert second.data_ptr() == first.data_ptr() + 8 * 5


@pytest.mark.usefixtures("implementation")
def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="2 columns, but arguments for 1; give one for each"):
        ops.modulo([ids_of(1), ids_of(2)], [3])
    with pytest.raises(ValueError, match=r"column 1 is torch.float32 \[1\], need torch.int64 \[N\]"):
        ops.modulo([ids_of(1), torch.zeros(1)], [3, 3])
    with pytest.raises(ValueError, match=r"column 0 is torch.int64 \[1, 1\], need torch.int64 \[N\]"):
        ops.hash_ids([ids_of(1)[None]], ["farm"])
    with pytest.raises(ValueError, match="hash kind is 'md5', need one of farm, murmur, xxh64"):
        ops.hash_ids([ids_of(1)], ["md5"])


def test_no_columns_are_no_call():
    assert ops.modulo([], []) == ops.hash_ids([], []) == ops.log1p([]) == []


def test_triton_on_the_cpu_needs_its_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_OPS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UnsupportedDeviceError, match="needs Triton's interpreter"):
        ops.modulo([ids_of(1)], [3])
