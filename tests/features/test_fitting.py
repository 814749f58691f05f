"""Fitted transforms: what is found in data, how it gets into a schema, and how a change is named."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from recis_lightning.features import FeatureEngine
from recis_lightning.features.fitting import Fitting
from recis_lightning.ragged import Ragged
from recis_lightning.schema import FIT_FORMAT, Schema, SchemaError, find_changed_transforms, version_of


def make_schema(*features: dict[str, Any], **sections: Any) -> Schema:
    columns = [
        {"name": "{price,age}", "dtype": "float32"},
        {"name": "user", "dtype": "int64"},
        {"name": "prices", "dtype": "float32", "layout": "list"},
    ]
    mapping = {"columns": columns, "tables": [{"name": "t", "dim": 2}], "features": [{"name": "u", **USER}, *features]}
    return Schema.from_dict(mapping | sections)


USER = {"column": "user", "table": "t"}


def batches(count: int = 5, rows: int = 40) -> list[dict[str, Any]]:
    random = torch.Generator().manual_seed(0)
    return [
        {
            "price": torch.rand(rows, generator=random) * 100,
            "age": torch.randn(rows, generator=random) * 3 + 40,
            "user": Ragged.from_lists([[int(i) % (7 + number)] for i in range(rows)]),
            "prices": Ragged.from_lists([[float(i), float(i + 1)] for i in range(rows)], torch.float32),
        }
        for number in range(count)
    ]


def fit(schema: Schema) -> dict[str, Any]:
    fitting = Fitting(schema)
    for batch in batches():
        fitting.add(batch)
    return fitting.finish()


def together(name: str) -> np.ndarray:
    return np.concatenate([batch[name].numpy() for batch in batches()])


def test_mean_range_and_quantiles_are_those_of_all_batches():
    schema = make_schema(
        {"name": "z", "column": "age", "transforms": ["z_score"]},
        {"name": "m", "column": "age", "transforms": ["min_max"]},
        {"name": "q", "column": "price", "transforms": [{"kind": "quantile", "count": 4}]},
        {"name": "b", "column": "price", "table": "t", "transforms": [{"kind": "bucketize", "quantiles": 4}]},
    )
    found, age, price = fit(schema), together("age").astype(np.float64), np.sort(together("price"))
    assert found["z"]["0"]["mean"] == pytest.approx(age.mean(), rel=1e-12)
    assert found["z"]["0"]["std"] == pytest.approx(age.std(), rel=1e-9)
    assert (found["m"]["0"]["low"], found["m"]["0"]["high"]) == (age.min(), age.max())
    assert found["q"]["0"]["knots"] == price[[0, 49, 99, 149, 199]].tolist()
    assert found["b"]["0"]["boundaries"] == price[[49, 99, 149]].tolist()
    assert found["q"]["0"]["rank_error"] == 0


def test_a_transform_is_fitted_to_what_lies_before_it():
    found = fit(make_schema({"name": "price", "transforms": ["log1p", "min_max"]}))
    logs = np.log1p(together("price"))
    assert found["price"]["1"]["high"] == pytest.approx(logs.max(), rel=1e-6)


def test_lists_and_other_features_can_be_fitted_to():
    found = fit(
        make_schema(
            {"name": "sums", "column": "prices", "internal": True, "transforms": [{"kind": "reduce"}]},
            {"name": "z", "inputs": ["sums"], "transforms": ["z_score"]},
        )
    )
    assert found["z"]["0"]["mean"] == pytest.approx(40.0)


def test_a_vocabulary_holds_the_commonest_ids_first():
    words = {"kind": "vocabulary", "max_size": 3, "min_count": 2}
    found = fit(make_schema({"name": "v", "column": "user", "table": "t", "transforms": [words]}))
    counts = np.bincount([id_ for batch in batches() for row in batch["user"].to_lists() for id_ in row])
    expected = sorted(range(len(counts)), key=lambda id_: (-counts[id_], id_))[:3]
    assert found["v"]["0"] == {"kind": "vocabulary", "values": expected}


def test_what_comes_behind_a_fitted_transform_waits_for_it():
    schema = make_schema({"name": "price", "transforms": ["min_max", {"kind": "quantile", "count": 2}]})
    first = Fitting(schema)
    assert (first.targets, first.waiting) == ({"price": 0}, True)
    numbers = fit(schema)
    second = Fitting(schema.with_numbers(numbers))
    assert (second.targets, second.waiting) == ({"price": 1}, False)


def test_a_column_that_does_not_vary_is_named():
    fitting = Fitting(make_schema({"name": "z", "column": "age", "transforms": ["z_score"]}))
    fitting.add(batches()[0] | {"age": torch.full((40,), 7.0)})
    with pytest.raises(ValueError, match=r"feature 'z', transforms\[0\] \(z_score\): has 40 values around 7 that"):
        fitting.finish()


def file_of(numbers: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"format": FIT_FORMAT, "version": version_of(numbers), "features": numbers} | changes


PRICE = {"name": "price", "transforms": [{"kind": "quantile", "count": 2}]}


def test_a_schema_reads_the_file_of_a_fit_and_keeps_its_numbers(tmp_path):
    path = tmp_path / "fits.json"
    path.write_text(json.dumps(file_of(fit(make_schema(PRICE)))))
    schema = make_schema(PRICE, fits=str(path))
    assert len(schema.feature("price").transforms[0].knots) == 3
    assert FeatureEngine(schema)(batches()[0])["price"].min() >= 0
    # A checkpoint holds the schema as it is, numbers and all.
    assert Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema


@pytest.mark.parametrize(
    ("fits", "problem"),
    [
        ("nowhere.json", "fits 'nowhere.json' can't be read (No such file or directory); write it by `recis features"),
        ({"format": 0}, "fits is not of format 1; write it again"),
        (file_of({}, version="0"), "fits was changed by hand: its version is not that of its numbers"),
        (file_of({"prise": {}}), "fits hold numbers for feature 'prise', which is not declared; did you mean 'price'?"),
        (
            file_of({"price": {"0": {"kind": "z_score", "mean": 0, "std": 1}}}),
            "fits for feature 'price', transforms[0] are of a z_score, but there is quantile; run `recis features fit`",
        ),
        (file_of({}), "feature 'price', transforms[0] (quantile) is not fitted; run `recis features fit` again"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(fits, problem):
    with pytest.raises(SchemaError) as caught:
        make_schema(PRICE, fits=fits)
    assert caught.value.problems[0].startswith(problem)


def test_a_changed_fit_is_named():
    def with_knots(*knots: float) -> Schema:
        return make_schema({"name": "price", "transforms": [{"kind": "quantile", "knots": list(knots)}]})

    saved = with_knots(0.0, 1.5, 9.0)
    assert find_changed_transforms(saved.features, saved.features) == []
    assert find_changed_transforms(saved.features, with_knots(0.0, 1.7, 8.0).features) == [
        "feature 'price', transforms[0] (quantile): knots[1] was 1.5, is 1.7, and 1 more"
    ]
    assert find_changed_transforms(saved.features, with_knots(0.0, 1.5).features) == [
        "feature 'price', transforms[0] (quantile): knots were 3, are 2"
    ]
    other = make_schema({"name": "price", "column": "age", "transforms": ["log1p"]})
    assert find_changed_transforms(saved.features, other.features) == [
        "feature 'price' read price, reads age",
        "feature 'price' had transforms quantile, has log1p",
    ]
