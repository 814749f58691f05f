"""The plan groups transforms of one kind, depth and dtype into one step."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from recis_lightning.features.plan import integer_boundaries, integer_bounds, plan_entries, plan_transforms
from recis_lightning.schema import Bucketize, Clip, Log1p, Modulo, Schema

MODULO = {"kind": "modulo", "divisor": 10}
BUCKETIZE = {"kind": "bucketize", "boundaries": [1, 2]}


def make_schema(features: list[dict]) -> Schema:
    tables = [{"name": feature["table"], "dim": 2} for feature in features if "table" in feature]
    columns = [{"name": "c{1..26}", "dtype": "int64"}, {"name": "i{1..13}", "dtype": "float32"}]
    columns += [{"name": "words", "dtype": "int64", "layout": "list"}]
    columns += [{"name": "{weights,prices}", "dtype": "float32", "layout": "list"}]
    return Schema.from_dict({"columns": columns, "tables": tables, "features": features})


def test_many_features_with_one_kind_are_one_step():
    schema = make_schema(
        [
            {"name": "c{1..26}", "table": "c{1..26}", "transforms": [MODULO]},
            {"name": "i{1..13}", "transforms": [{"kind": "clip", "low": 0}, "log1p"]},
        ]
    )
    plan = plan_transforms(schema)
    assert [(step.kind, step.depth, step.dtype, len(step.features)) for step in plan] == [
        (Modulo, 0, torch.int64, 26),
        (Clip, 0, torch.float32, 13),
        (Log1p, 1, torch.float32, 13),
    ]
    assert all(len(step.transforms) == len(step.features) for step in plan)


def test_dtypes_apart_are_steps_apart():
    schema = make_schema(
        [
            {"name": "raw", "column": "c1", "table": "raw"},
            {"name": "binned", "column": "c1", "table": "binned", "transforms": [BUCKETIZE, MODULO]},
            {"name": "price", "column": "i1", "table": "price", "transforms": [BUCKETIZE, MODULO]},
        ]
    )
    assert [(step.kind, step.dtype, [f.name for f in step.features]) for step in plan_transforms(schema)] == [
        (Bucketize, torch.int64, ["binned"]),
        (Bucketize, torch.float32, ["price"]),
        (Modulo, torch.int64, ["binned", "price"]),
    ]


def test_log1p_makes_floats_of_ids():
    transforms = [MODULO, "log1p", {"kind": "clip", "high": 2}, BUCKETIZE]
    schema = make_schema([{"name": "c1", "table": "c1", "transforms": transforms}])
    assert [step.dtype for step in plan_transforms(schema)] == [
        torch.int64,
        torch.int64,
        torch.float32,
        torch.float32,
    ]


def test_no_transforms_need_no_steps():
    assert plan_transforms(make_schema([{"name": "i1"}])) == ()


def test_entries_say_what_a_batch_must_hold():
    schema = make_schema(
        [
            {"name": "i1"},
            {"name": "words", "table": "words", "weights": "weights"},
            {"name": "prices", "table": "prices", "transforms": [BUCKETIZE]},
            {"name": "again", "column": "i1"},
        ]
    )
    assert [(entry.column, entry.reader, entry.dtype, entry.is_ragged) for entry in plan_entries(schema)] == [
        ("i1", "i1", torch.float32, False),
        ("words", "words", torch.int64, True),
        ("weights", "words", torch.float32, True),
        ("prices", "prices", torch.float32, True),
    ]


@given(value=st.integers(-20, 20), low=st.floats(-9, 9), width=st.floats(1, 9))
def test_integer_bounds_clip_integers_to_the_integers_inside(value, low, width):
    clip = Clip(low=low, high=low + width)
    first, last = integer_bounds(clip)
    assert low <= first <= last <= low + width
    clipped = min(max(value, first), last)
    assert clipped == value if low <= value <= low + width else clipped in (first, last)
    assert integer_bounds(Clip(low=0.5)) == (1, None)


@given(value=st.integers(-20, 20), boundary=st.floats(-9, 9))
def test_an_integer_reaches_a_boundary_and_its_integer_alike(value, boundary):
    assert (value >= boundary) == (value >= integer_boundaries([boundary])[0])
