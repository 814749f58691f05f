"""FeatureEngine: columns in, features out, and errors that name feature, transform, column and row."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recis_lightning.features import FeatureEngine
from recis_lightning.ragged import Batch, Ragged
from recis_lightning.schema import Schema


def make_engine(*features: dict[str, Any], towers: list[dict[str, Any]] | None = None) -> FeatureEngine:
    tables = {feature["table"]: {"name": feature["table"], "dim": 2} for feature in features if "table" in feature}
    columns = [
        {"name": "id{1..3}", "dtype": "int64"},
        {"name": "price{1..2}", "dtype": "float32"},
        {"name": "words", "dtype": "int64", "layout": "list"},
        {"name": "{weights,prices}", "dtype": "float32", "layout": "list"},
    ]
    declared = {"columns": columns, "tables": list(tables.values()), "towers": towers or [], "features": list(features)}
    return FeatureEngine(Schema.from_dict(declared))


def batch() -> Batch:
    return Batch.pack(
        {
            "id1": Ragged.from_lists([[12], [], [-1]]),
            "id2": Ragged.from_lists([[7], [8], [9]]),
            "id3": Ragged.from_lists([[], [], []]),
            "price1": torch.tensor([0.0, 1.0, math.e - 1]),
            "price2": torch.tensor([-5.0, 0.5, 5.0]),
            "words": Ragged.from_lists([[1, 22], [], [333]]),
            "weights": Ragged.from_lists([[0.5, 1.5], [], [2.5]], torch.float32),
            "prices": Ragged.from_lists([[], [1.0, 2.5], [9.0]], torch.float32),
        },
        size=3,
    )


def changed(**entries: Any) -> dict[str, Any]:
    return dict(batch()) | entries


def test_columns_without_transforms_pass_through_without_a_copy():
    packed = batch()
    features = make_engine({"name": "id1", "table": "t"}, {"name": "price1"})(packed)
    assert features["id1"].to_lists() == [[12], [], [-1]]
    assert features["id1"].values.data_ptr() == packed["id1"].values.data_ptr()
    assert features["price1"].shape == (3, 1)
    assert features["price1"].data_ptr() == packed["price1"].data_ptr()


def test_features_are_named_apart_from_their_columns():
    features = make_engine({"name": "a", "column": "id1", "table": "t"}, {"name": "b", "column": "id1", "table": "u"})(
        batch()
    )
    assert list(features) == ["a", "b"]
    assert features["b"].to_lists() == [[12], [], [-1]]


def test_token_ids_of_a_tower_are_passed_on_as_they_are():
    text = {"name": "text", "dim": 2, "model": {"model_type": "bert"}}
    features = make_engine({"name": "words", "tower": "text"}, towers=[text])(batch())
    assert features["words"].to_lists() == [[1, 22], [], [333]]


def test_modulo_reads_ids_as_unsigned_and_keeps_rows():
    features = make_engine(
        {"name": "id{1..3}", "table": "t", "transforms": [{"kind": "modulo", "divisor": 10}]},
        {"name": "words", "table": "t", "transforms": [{"kind": "modulo", "divisor": 100}]},
    )(batch())
    assert features["id1"].to_lists() == [[2], [], [5]]
    assert features["id2"].to_lists() == [[7], [8], [9]]
    assert features["id3"].to_lists() == [[], [], []]
    assert features["words"].to_lists() == [[1, 22], [], [33]]


def test_transforms_run_in_the_order_declared():
    clip = {"kind": "clip", "low": 0.0, "high": 1.0}
    features = make_engine(
        {"name": "clipped_log", "column": "price1", "transforms": ["log1p", clip]},
        {"name": "log_of_clipped", "column": "price2", "transforms": [clip, "log1p"]},
    )(batch())
    expected = torch.tensor([0.0, 1.0, math.e - 1]).log1p().clamp(0, 1)
    assert torch.equal(features["clipped_log"][:, 0], expected)
    assert torch.equal(features["log_of_clipped"][:, 0], torch.tensor([0.0, 0.5, 1.0]).log1p())
    assert features["log_of_clipped"].dtype == torch.float32


def test_bucketize_gives_one_id_to_each_row_of_numbers():
    buckets = {"kind": "bucketize", "boundaries": [0, 0.5, 5]}
    features = make_engine(
        {"name": "price{1..2}", "table": "t", "transforms": [buckets]},
        {"name": "prices", "table": "u", "transforms": [{"kind": "bucketize", "boundaries": [2.5]}]},
    )(batch())
    assert features["price1"].check().to_lists() == [[1], [2], [2]]
    assert features["price2"].to_lists() == [[0], [2], [3]]
    assert features["price2"].values.dtype == torch.int64
    assert features["prices"].to_lists() == [[], [0, 1], [1]]


def test_boundaries_are_compared_in_float32_as_the_values_are():
    engine = make_engine(
        {"name": "price1", "table": "t", "transforms": [{"kind": "bucketize", "boundaries": [0.1, 0.7]}]}
    )
    values = torch.tensor([0.1, 0.7, 0.69])  # 0.7 in float32 is below 0.7 in float64
    assert engine(changed(price1=values))["price1"].values.tolist() == [1, 2, 1]


def test_ids_are_bucketized_and_clipped_as_integers():
    engine = make_engine(
        {"name": "raw", "column": "words", "table": "t"},
        {
            "name": "binned",
            "column": "words",
            "table": "u",
            "transforms": [{"kind": "bucketize", "boundaries": [2**60 + 1, 2**61]}],
        },
        {"name": "clipped", "column": "words", "table": "v", "transforms": [{"kind": "clip", "low": 0.5, "high": 9.5}]},
    )
    features = engine(changed(words=Ragged.from_lists([[2**60, 2**60 + 1], [-4], [2**62]])))
    assert features["binned"].to_lists() == [[0, 1], [0], [2]]
    assert features["clipped"].to_lists() == [[9, 9], [1], [9]]


def test_seconds_keep_all_their_digits_through_modulo_and_bucketize():
    hours = [{"kind": "modulo", "divisor": 86_400}, {"kind": "bucketize", "boundaries": [21_600, 64_800]}]
    engine = make_engine({"name": "id2", "table": "t", "transforms": hours})
    seconds = [[1_700_006_399], [1_700_006_400 + 21_599], [1_700_006_400 + 21_600]]  # the second is a day's start
    assert engine(changed(id2=Ragged.from_lists(seconds)))["id2"].to_lists() == [[2], [0], [1]]


def test_weights_ride_on_their_ids():
    features = make_engine(
        {
            "name": "words",
            "table": "t",
            "weights": "weights",
            "transforms": [{"kind": "modulo", "divisor": 10}],
        }
    )(batch())
    assert features["words"].to_lists() == [[1, 2], [], [3]]
    assert features["words"].weights.tolist() == [0.5, 1.5, 2.5]


@pytest.mark.parametrize("weights", [[[0.5], [1.5], [2.5]], [[0.5], [], [2.5]]])
def test_weights_that_do_not_match_their_ids_are_refused(weights):
    engine = make_engine({"name": "words", "table": "t", "weights": "weights"})
    with pytest.raises(
        ValueError,
        match="feature 'words': row 0 of the batch has 2 ids in column 'words', but 1 weights in 'weights'; give one",
    ):
        engine(changed(weights=Ragged.from_lists(weights, torch.float32)))


@pytest.mark.parametrize("value", [-1.0, -2.5, math.nan, math.inf])
def test_log1p_refuses_what_has_no_logarithm(value):
    engine = make_engine({"name": "i{1..2}", "column": "price{1..2}", "transforms": ["log1p"]})
    with pytest.raises(
        ValueError,
        match=rf"feature 'i2', transforms\[0\] \(log1p\): column 'price2', row 1 of the batch gives {value}, "
        "need numbers above -1; clip before it, or correct the data",
    ):
        engine(changed(price2=torch.tensor([0.0, value, 1.0])))


@pytest.mark.parametrize("transform", [{"kind": "clip", "low": 0}, {"kind": "bucketize", "boundaries": [0]}])
def test_nan_is_refused_by_clip_and_bucketize(transform):
    kind = transform["kind"]
    table = {"table": "t"} if kind == "bucketize" else {}
    engine = make_engine({"name": "price1", "transforms": [transform]} | table)
    with pytest.raises(
        ValueError,
        match=rf"feature 'price1', transforms\[0\] \({kind}\): column 'price1', row 2 of the batch gives nan, need",
    ):
        engine(changed(price1=torch.tensor([0.0, 1.0, math.nan])))


def test_infinity_has_a_bucket_and_clips():
    engine = make_engine(
        {"name": "binned", "column": "price1", "table": "t", "transforms": [{"kind": "bucketize", "boundaries": [0]}]},
        {"name": "clipped", "column": "price2", "transforms": [{"kind": "clip", "low": -9}]},
    )
    infinite = torch.tensor([-math.inf, 0.0, math.inf])
    features = engine(changed(price1=infinite, price2=infinite))
    assert features["binned"].values.tolist() == [0, 1, 1]
    assert features["clipped"][:, 0].tolist() == [-9, 0, math.inf]


def test_large_numbers_that_overflow_a_sum_are_no_error():
    engine = make_engine({"name": "price1", "transforms": [{"kind": "clip", "low": 0}]})
    assert engine(changed(price1=torch.full((3,), 3e38)))["price1"].tolist() == [[torch.tensor(3e38).item()]] * 3


def test_an_error_in_a_list_names_the_row():
    engine = make_engine(
        {"name": "prices", "table": "t", "transforms": ["log1p", {"kind": "bucketize", "boundaries": [0]}]}
    )
    prices = Ragged.from_lists([[], [1.0, 2.0], [], [3.0, -7.0]], torch.float32)
    with pytest.raises(ValueError, match=r"transforms\[0\] \(log1p\): column 'prices', row 3 of the batch gives -7.0"):
        engine({"prices": prices})


def test_an_error_in_a_nested_list_names_the_outermost_row():
    engine = make_engine(
        {"name": "prices", "table": "t", "transforms": ["log1p", {"kind": "bucketize", "boundaries": [0]}]}
    )
    with pytest.raises(ValueError, match="row 2 of the batch gives -7.0"):
        engine({"prices": Ragged.from_lists([[[1.0]], [[2.0], [3.0]], [[], [-7.0]]], torch.float32)})


def test_nested_lists_keep_their_levels():
    engine = make_engine({"name": "words", "table": "t", "transforms": [{"kind": "modulo", "divisor": 10}]})
    features = engine({"words": Ragged.from_lists([[[11], [12, 13]], [[14]]])})
    assert features["words"].to_lists() == [[[1], [2, 3]], [[4]]]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"prise1": torch.zeros(3)},
            "the batch has no column 'price1', which feature 'price' reads; did you mean 'prise1'",
        ),
        (
            {"price1": Ragged.from_lists([[1.0]], torch.float32)},
            "column 'price1' arrives as Ragged of torch.float32, need Tensor of torch.float32; was it read with",
        ),
        (
            {"price1": torch.zeros(3, dtype=torch.int64)},
            "column 'price1' arrives as Tensor of torch.int64, need Tensor of torch.float32",
        ),
    ],
)
def test_a_batch_of_another_schema_is_refused(entries, message):
    with pytest.raises(ValueError, match=message):
        make_engine({"name": "price", "column": "price1"})(entries)


def test_ids_must_arrive_as_ragged_int64():
    engine = make_engine({"name": "id1", "table": "t"})
    with pytest.raises(ValueError, match=r"column 'id1' arrives as Tensor of torch.int64, need Ragged of torch.int64"):
        engine({"id1": torch.arange(3)})


def test_a_batch_may_have_no_rows():
    engine = make_engine(
        {"name": "id1", "table": "t", "transforms": [{"kind": "modulo", "divisor": 3}]},
        {"name": "price1", "transforms": ["log1p"]},
        {"name": "price2", "table": "u", "transforms": [{"kind": "bucketize", "boundaries": [1]}]},
    )
    features = engine({"id1": Ragged.from_lists([]), "price1": torch.zeros(0), "price2": torch.zeros(0)})
    assert len(features["id1"]) == len(features["price2"]) == 0
    assert features["price1"].shape == (0, 1)


def test_boundaries_survive_a_change_of_precision():
    engine = make_engine(
        {"name": "price1", "table": "t", "transforms": [{"kind": "bucketize", "boundaries": [1.001, 1.002]}]}
    )
    values = {"price1": torch.tensor([1.0, 1.0015, 1.0025])}
    for convert in (lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.double()):
        assert convert(engine)(values)["price1"].values.tolist() == [0, 1, 2]


def test_the_engine_has_no_state_to_save():
    engine = make_engine(
        {"name": "id1", "table": "t", "transforms": [{"kind": "modulo", "divisor": 3}]},
        {"name": "price1", "table": "u", "transforms": [{"kind": "bucketize", "boundaries": [1]}]},
    )
    assert engine.state_dict() == {}
    assert list(engine.parameters()) == []


@given(
    rows=st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3), min_size=1, max_size=6),
    divisor=st.integers(1, 2**63 - 1),
)
def test_grouped_features_equal_features_alone(rows, divisor):
    feature = {"table": "t", "transforms": [{"kind": "modulo", "divisor": divisor}]}
    other = {"table": "t", "transforms": [{"kind": "modulo", "divisor": 7}]}
    ids = {"words": Ragged.from_lists(rows), "id1": Ragged.from_lists(rows[::-1])}
    together = make_engine({"name": "words"} | feature, {"name": "id1"} | other)(ids)
    alone = make_engine({"name": "words"} | feature)(ids)
    assert together["words"].to_lists() == alone["words"].to_lists()
    assert alone["words"].to_lists() == [[id_ % 2**64 % divisor for id_ in row] for row in rows]


def test_the_engine_traces_as_one_graph():
    engine = make_engine(
        {"name": "id{1..2}", "table": "t", "transforms": [{"kind": "modulo", "divisor": 10}]},
        {"name": "price1", "transforms": [{"kind": "clip", "low": 0}, "log1p"]},
        {"name": "price2", "table": "u", "transforms": [{"kind": "bucketize", "boundaries": [0.0, 1.0]}]},
    )
    entries = {name: entry for name, entry in batch().items() if name in ("id1", "id2", "price1", "price2")}
    traced = torch.compile(engine, backend="eager", fullgraph=True)(entries)
    for name, expected in engine(entries).items():
        if isinstance(expected, Ragged):
            assert traced[name].to_lists() == expected.to_lists()
        else:
            assert torch.equal(traced[name], expected)
