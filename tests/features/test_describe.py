"""The plan as text, and that it is what runs."""

import re

import torch

from recis_lightning.features import FeatureEngine
from recis_lightning.features.describe import describe_plan
from recis_lightning.ragged import Ragged
from recis_lightning.schema import Schema
from triton_ops.row_transform import cpu as row_cpu
from triton_ops.transform import cpu


def forty_columns() -> Schema:
    modulo = {"kind": "modulo", "divisor": 1000}
    return Schema.from_dict(
        {
            "columns": [{"name": "c{1..26}", "dtype": "int64"}, {"name": "i{1..13}", "dtype": "float32"}],
            "tables": [{"name": "t", "dim": 2}],
            "features": [
                {"name": "c{1..26}", "table": "t", "transforms": ["hash", modulo]},
                {"name": "i{1..13}", "table": "t", "transforms": [{"kind": "bucketize", "boundaries": [0, 1]}]},
                {"name": "x", "inputs": ["c1", "i1"], "table": "t", "transforms": ["cross", modulo]},
            ],
        }
    )


def test_the_plan_lists_order_groups_inputs_outputs_and_calls():
    lines = [re.split(r"  +", line) for line in describe_plan(forty_columns()).splitlines()]
    assert lines == [
        ["order", "depth", "transform", "calls", "features", "takes", "gives"],
        ["1", "0", "hash", "1", "26: c1, c2, c3, c4, ..., c26", "int64 rows", "int64 rows"],
        ["2", "0", "bucketize", "1", "13: i1, i2, i3, i4, ..., i13", "float32 [B]", "int64 [B]"],
        ["3", "1", "modulo", "1", "26: c1, c2, c3, c4, ..., c26", "int64 rows", "int64 rows"],
        ["4", "2", "cross", "2", "1: x", "c1 x i1", "int64 rows"],
        ["5", "3", "modulo", "1", "1: x", "int64 rows", "int64 rows"],
        ["67 transforms of 40 features in 6 calls"],
    ]


def test_a_kind_at_a_depth_is_one_call_of_its_kernel(monkeypatch):
    calls: list[tuple[str, int]] = []
    kernels = [(cpu, name) for name in ("hash_ids", "modulo", "bucketize_floats")]
    for module, name in [*kernels, (row_cpu, "unique"), (row_cpu, "cross")]:
        kernel = getattr(module, name)

        def counted(columns, *arguments, name=name, kernel=kernel):
            calls.append((name, len(columns)))
            return kernel(columns, *arguments)

        monkeypatch.setattr(module, name, counted)
    batch = {f"c{i}": Ragged.from_lists([[i], []]) for i in range(1, 27)}
    batch |= {f"i{i}": torch.tensor([0.5, 2.0]) for i in range(1, 14)}
    FeatureEngine(forty_columns())(batch)
    # A cross has two kernels: repeats are dropped from its 2 sides, then they are combined.
    assert calls == [
        ("hash_ids", 26),
        ("bucketize_floats", 13),
        ("modulo", 26),
        ("unique", 2),
        ("cross", 2),
        ("modulo", 1),
    ]


def test_what_is_not_fitted_is_listed_below():
    schema = Schema.from_dict(
        {"columns": [{"name": "price", "dtype": "float32"}], "features": [{"name": "price", "transforms": ["z_score"]}]}
    )
    assert describe_plan(schema).splitlines()[-1] == "feature 'price', transforms[0] (z_score) is not fitted"
