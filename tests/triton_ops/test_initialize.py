"""First values: the reference by its distribution, the CPU's kernel by the reference."""

import math
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from triton_ops.index import mix64
from triton_ops.initialize import FirstValue, FirstValues, cpu, initialize
from triton_ops.initialize.reference import normal_quantile
from triton_ops.row_layout import GRANULE, ID, RECORD

INT64 = torch.iinfo(torch.int64)
KINDS: list[tuple[str, dict[str, float]]] = [
    ("constant", {"value": 0.3}),
    ("uniform", {"low": -0.05, "high": 0.05}),
    ("uniform", {"low": 3.0, "high": 3.0001}),
    ("normal", {"mean": 0.0, "std": 0.05}),
    ("truncated_normal", {"mean": 0.0, "std": 0.05, "low": -2.0, "high": 2.0}),
    ("truncated_normal", {"mean": 0.0, "std": 1.0, "low": 9.0, "high": 9.5}),
    ("truncated_normal", {"mean": 0.0, "std": 1.0, "low": -40.0, "high": -30.0}),
]


def first_value(kind: str, arguments: Mapping[str, float], **others: Any) -> FirstValue:
    return FirstValue(
        kind=kind, arguments=arguments, **({"seed": 1, "table_hash": 2, "state": (0.0, 0.0, 0.0)} | others)
    )


def run(implementation: str, ids: Tensor, tables: list[FirstValue], dtype: torch.dtype = torch.float32, dim: int = 8,
        owner: int = 0) -> Tensor:  # fmt: skip
    """First weights of ids in rows 64, 65, ... of a group whose memory holds NaN and garbage."""
    rows = torch.arange(GRANULE, GRANULE + len(ids))
    capacity = GRANULE * (2 + len(ids) // GRANULE)
    weight = torch.full((capacity, dim), math.nan, dtype=dtype)
    state = torch.full((capacity, 3), math.nan, dtype=dtype if dtype.itemsize > 2 else torch.bfloat16)
    meta = torch.full((capacity, RECORD), 77)
    meta[rows, ID] = ids
    granule_table = torch.full((capacity // GRANULE,), owner, dtype=torch.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_OPS", implementation)
        initialize(weight, state, meta, rows, granule_table, FirstValues.of(tables))
    assert torch.isnan(weight[:GRANULE]).all(), "rows that were not named must stay as they are"
    assert (state[rows] == torch.tensor(tables[owner].state)).all()
    assert torch.equal(meta[rows], torch.nn.functional.pad(ids[:, None], (ID, 0)))
    return weight[rows]


@pytest.mark.parametrize("size", [0, 1, 63, 1000])
@pytest.mark.parametrize(("kind", "arguments"), KINDS)
@pytest.mark.parametrize(("dtype", "units"), [(torch.float32, 1), (torch.float64, 8)])
def test_cpu_equals_reference(
    size: int, kind: str, arguments: dict[str, float], dtype: torch.dtype, units: int
) -> None:
    generator = torch.Generator().manual_seed(size)
    ids = torch.randint(INT64.min, INT64.max, (size,), generator=generator)
    tables = [first_value(kind, arguments)]
    found, expected = run("cpu", ids, tables, dtype), run("reference", ids, tables, dtype)
    if kind in ("constant", "uniform"):
        assert torch.equal(found, expected)
    else:
        spacing = torch.from_numpy(np.spacing(expected.abs().numpy()))
        assert ((found - expected).abs() <= units * spacing).all()


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
def test_uniform_is_the_top_24_bits_of_a_splitmix_stream_that_the_id_starts(implementation: str) -> None:
    value = first_value("uniform", {"low": 0.0, "high": 1.0})
    key = mix64(mix64(torch.tensor(value.seed)) + value.table_hash)
    start = int(mix64(mix64(torch.tensor(-5)) ^ key))
    expected = []
    for column in range(1, 4):
        word = (start + column * 0x9E3779B97F4A7C15) % 2**64
        word = int(mix64(torch.tensor(word - 2**64 if word >= 2**63 else word))) % 2**64
        expected.append((word >> 40) / 2**24)
    assert run(implementation, torch.tensor([-5]), [value], dim=3).tolist() == [expected]


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
@pytest.mark.parametrize(("kind", "arguments"), KINDS[1:6])
def test_values_have_the_distribution_they_are_named_for(
    implementation: str, kind: str, arguments: dict[str, float]
) -> None:
    values = (
        run(implementation, torch.arange(6000), [first_value(kind, arguments)], torch.float64).flatten().sort().values
    )
    probabilities = (torch.arange(len(values)) + 0.5) / len(values)
    if kind == "uniform":
        cumulative = (values - arguments["low"]) / (arguments["high"] - arguments["low"])
        assert values[0] >= arguments["low"]
        assert values[-1] < arguments["high"]
    else:
        low, high = arguments.get("low", -math.inf), arguments.get("high", math.inf)
        mean, std = arguments["mean"], arguments["std"]
        assert values[0] >= mean + low * std
        assert values[-1] <= mean + high * std
        tail = [math.erfc(bound / math.sqrt(2)) / 2 for bound in (low, high)]
        upper = torch.special.erfc((values - mean) / std / math.sqrt(2)) / 2
        cumulative = (tail[0] - upper) / (tail[0] - tail[1])
    # Kolmogorov and Smirnov: 1.95 / sqrt(n) is passed by one honest sample in a thousand.
    assert float((cumulative - probabilities).abs().max()) < 1.95 / math.sqrt(len(values))


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
def test_values_depend_on_seed_table_id_and_column_and_on_nothing_else(implementation: str) -> None:
    uniform = {"low": 0.0, "high": 1.0}
    ids = torch.tensor([0, 1, -1, INT64.min, INT64.max, 2**32])
    values = run(implementation, ids, [first_value("uniform", uniform)])
    assert len(values.unique()) == values.numel()
    permuted = run(
        implementation, ids.flip(0), [first_value("constant", {"value": 1.0}), first_value("uniform", uniform)], owner=1
    )
    assert torch.equal(permuted.flip(0), values)
    for change in ({"seed": 2}, {"table_hash": 3}, {"seed": -1}, {"table_hash": 2**64 - 1}):
        assert not torch.isin(run(implementation, ids, [first_value("uniform", uniform, **change)]), values).any()
    assert torch.equal(run(implementation, ids, [first_value("uniform", uniform)], dim=3), values[:, :3])


def test_state_starts_with_the_value_of_its_table() -> None:
    tables = [
        first_value("constant", {"value": 0.0}, state=(0.5, 0.5, 0.0)),
        first_value("constant", {"value": 1.0}, state=(0.125, 0.0, 0.25)),
    ]
    for implementation in ("reference", "cpu"):
        assert (run(implementation, torch.arange(70), tables, owner=1) == 1.0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "arguments"), [*KINDS[:2], ("uniform", {"low": 0.0, "high": 2e-7}), KINDS[3]])
def test_narrow_rows_begin_with_the_float32_rounded_to_the_nearest(
    kind: str, arguments: dict[str, float], dtype: torch.dtype
) -> None:
    ids, tables = torch.arange(500), [first_value(kind, arguments)]
    found = {implementation: run(implementation, ids, tables, dtype) for implementation in ("reference", "cpu")}
    assert torch.equal(found["cpu"], found["reference"])
    torch.testing.assert_close(found["cpu"].double(), run("cpu", ids, tables).double(), rtol=2**-8, atol=2**-25)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64])
def test_integers_begin_with_their_constant(dtype: torch.dtype) -> None:
    for implementation in ("reference", "cpu"):
        granule_table = torch.tensor([0], dtype=torch.int32)
        weight, state = torch.zeros(GRANULE, 2, dtype=dtype), torch.zeros(GRANULE, 0)
        meta, rows = torch.zeros(GRANULE, RECORD, dtype=torch.int64), torch.tensor([3, 5])
        tables = FirstValues.of([first_value("constant", {"value": -7.0}, state=())])
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_OPS", implementation)
            initialize(weight, state, meta, rows, granule_table, tables)
        assert weight[rows].tolist() == [[-7, -7], [-7, -7]]


def test_normal_quantile_is_that_of_the_standard_library() -> None:
    middle = (torch.arange(500, dtype=torch.float64) + 0.5) / 500
    probabilities = torch.cat([middle, 10.0 ** -torch.arange(1.0, 300.0, 7.0, dtype=torch.float64)])
    expected = torch.tensor([statistics.NormalDist().inv_cdf(p) for p in probabilities.tolist()], dtype=torch.float64)
    torch.testing.assert_close(normal_quantile(probabilities), expected, rtol=2e-15, atol=0)
    compiled = torch.empty_like(probabilities)
    cpu.normal_quantiles(probabilities.numpy(), compiled.numpy(), np.empty(len(compiled) + 1, np.int64))
    torch.testing.assert_close(compiled, expected, rtol=2e-15, atol=0)


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="no initialiser kind 'xavier'; there are: constant, uniform"):
        FirstValues.of([first_value("xavier", {})])
    with pytest.raises(ValueError, match="uniform takes low, high; given are value"):
        FirstValues.of([first_value("uniform", {"value": 1.0})])
    tables = FirstValues.of([first_value("constant", {"value": 0.0}, state=())])
    weight, state, meta = torch.zeros(64, 2), torch.zeros(64, 0), torch.zeros(64, RECORD, dtype=torch.int64)
    rows, granules = torch.arange(2), torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"give \[R, D\], \[R, W\] and \[R, 4\]"):
        initialize(weight[:3], state, meta, rows, granules, tables)
    with pytest.raises(ValueError, match="weight is torch.uint8, .* give one of float32, float64, bfloat16"):
        initialize(weight.byte(), state, meta, rows, granules, tables)
    with pytest.raises(ValueError, match="state has 3 columns, tables say 0 first values"):
        initialize(weight, torch.zeros(64, 3), meta, rows, granules, tables)
    with pytest.raises(ValueError, match="granule_table torch.int64"):
        initialize(weight, state, meta, rows, granules.long(), tables)
