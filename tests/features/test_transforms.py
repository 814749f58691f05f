"""What each declared transform makes of a batch, and what it refuses, by feature, transform, column and row."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recis_lightning.features import FeatureEngine
from recis_lightning.ragged import Ragged
from recis_lightning.schema import Schema, SchemaError
from triton_ops.hash_bytes.reference import farm_fingerprint64

COLUMNS = [
    {"name": "{user,item,now}", "dtype": "int64"},
    {"name": "device", "dtype": "string", "hash": "farm"},
    {"name": "price", "dtype": "float32"},
    {"name": "{items,cates,times,keys,ids}", "dtype": "int64", "layout": "list"},
    {"name": "{weights,values,image}", "dtype": "float32", "layout": "list"},
]


def make_schema(*features: dict[str, Any], **sections: Any) -> Schema:
    tables = dict.fromkeys(feature["table"] for feature in features if "table" in feature)
    mapping = {"columns": COLUMNS, "features": list(features), "tables": [{"name": t, "dim": 2} for t in tables]}
    return Schema.from_dict(mapping | sections)


def run(batch: dict[str, Any], *features: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """Features by name, from columns given as lists: lists of floats and of ints are rows, a tensor is one a row."""
    entries = {name: value if isinstance(value, Tensor) else make_rows(value) for name, value in batch.items()}
    return FeatureEngine(make_schema(*features, **sections))(entries)


def make_rows(lists: list[list[float]]) -> Ragged:
    is_float = any(isinstance(value, float) for row in lists for value in row)
    return Ragged.from_lists(lists, torch.float32 if is_float else torch.int64)


def signed(value: int) -> int:
    return value - (value >> 63 << 64)


def ids_of(feature: Ragged) -> list[list[int]]:
    return feature.check().to_lists()


CROSS = {"name": "x", "inputs": ["user", "item"], "table": "t", "transforms": ["cross"]}


def test_a_cross_reads_columns_and_gives_recis_golden_values():
    found = run({"user": [[1001], [1002], [1003]], "item": [[1], [2], [3]]}, CROSS)
    assert ids_of(found["x"]) == [[-7808879811642834040], [-4967483181219983279], [1752425377096056168]]
    assert found["x"].weights is None


def test_a_cross_multiplies_weights_where_they_are_asked_for():
    items = {"name": "items", "internal": True, "weights": "weights"}
    batch = {"items": [[1, 2], []], "weights": [[0.5, 3.0], []], "user": [[7], [8]]}
    features = [items | {"table": "u", "internal": False}, CROSS | {"inputs": ["items", "user"], "weights": "inputs"}]
    found = run(batch, *features)
    assert found["x"].weights.tolist() == [0.5, 3.0]
    del features[1]["weights"]
    assert run(batch, *features)["x"].weights is None


def test_features_read_features_in_any_order_of_declaration():
    found = run(
        {"user": [[12], [34]], "price": torch.tensor([5.0, 15.0]), "item": [[1], [2]]},
        {"name": "crossed", "inputs": ["small", "bucket", "item"], "table": "t", "transforms": ["cross"]},
        {"name": "small", "column": "user", "internal": True, "transforms": [{"kind": "modulo", "divisor": 10}]},
        {"name": "bucket", "column": "price", "table": "b", "transforms": [{"kind": "bucketize", "boundaries": [10]}]},
    )
    assert list(found) == ["crossed", "bucket"]
    parts = {"user": [[2], [4]], "item": [[0], [1]], "now": [[1], [2]]}
    same = run(parts, CROSS | {"inputs": ["user", "item", "now"]})
    assert ids_of(found["crossed"]) == ids_of(same["x"])
    assert ids_of(found["bucket"]) == [[0], [1]]


def test_a_cross_of_no_ids_is_empty():
    assert ids_of(run({"user": [[], [1]], "item": [[2], []]}, CROSS)["x"]) == [[], []]


def test_a_cross_that_explodes_is_refused_by_feature_and_row():
    cross = {"kind": "cross", "max_ids": 5}
    feature = {"name": "x", "inputs": ["items", "ids"], "table": "t", "transforms": [cross]}
    with pytest.raises(
        ValueError,
        match=r"feature 'x', transforms\[0\] \(cross\): column 'items' x column 'ids', row 1 of the batch "
        "gives 2 x 3 combinations, need at most max_ids 5; truncate the inputs, or raise max_ids",
    ):
        run({"items": [[1], [1, 2]], "ids": [[1], [1, 2, 3]]}, feature)


def test_hash_and_modulo_follow_each_other():
    found = run(
        {"user": [[1], []]},
        {"name": "user", "table": "t", "transforms": ["hash"]},
        {"name": "small", "column": "user", "table": "t", "transforms": ["hash", {"kind": "modulo", "divisor": 100}]},
    )
    assert ids_of(found["user"]) == [[-8089716718896805586], []]
    assert ids_of(found["small"]) == [[(-8089716718896805586) % 2**64 % 100], []]


def test_a_batch_is_left_as_it_was():
    batch = {"user": make_rows([[1], [-1]]), "item": make_rows([[2], [3]])}
    before = {name: rows.values.clone() for name, rows in batch.items()}
    modulo = {"kind": "modulo", "divisor": 7}
    engine = FeatureEngine(
        make_schema(
            {"name": "user", "table": "t", "transforms": [modulo, modulo]},
            {"name": "raw", "column": "user", "table": "t"},
            CROSS | {"inputs": ["raw", "item"], "transforms": ["cross", modulo]},
        )
    )
    first = {name: rows.values.clone() for name, rows in engine(batch).items()}
    second = engine(batch)
    assert all(torch.equal(batch[name].values, values) for name, values in before.items())
    assert all(torch.equal(second[name].values, values) for name, values in first.items())


def test_multi_hash_gives_one_hash_or_all_in_ranges_of_their_own():
    both = {"kind": "multi_hash", "buckets": [1000, 500]}
    found = run(
        {"items": [[1001, 1002], []], "weights": [[0.5, 2.0], []]},
        {"name": "all", "column": "items", "table": "t", "weights": "weights", "transforms": [both]},
        {"name": "second", "column": "items", "table": "t", "transforms": [both | {"index": 1}]},
    )
    second = [1001 * 3 % 23497 % 500, 1002 * 3 % 23497 % 500]  # 23497: the largest prime up to 47 * 500
    assert ids_of(found["second"]) == [second, []]
    assert ids_of(found["all"]) == [[1, 1000 + second[0], 2, 1000 + second[1]], []]
    assert found["all"].weights.tolist() == [0.5, 0.5, 2.0, 2.0]


def test_a_vocabulary_of_strings_finds_hashed_strings():
    ids = [[signed(farm_fingerprint64(name.encode()))] for name in ("ios", "android", "other")]
    words = {"kind": "vocabulary", "values": ["android", "ios"]}
    found = run({"device": ids}, {"name": "device", "table": "t", "transforms": [words]})
    assert ids_of(found["device"]) == [[1], [0], [2]]


def test_unknown_ids_can_be_dropped_with_their_weights():
    known = {"kind": "vocabulary", "values": [70, 30], "unknown": "drop"}
    found = run(
        {"items": [[30, 8], [8], [], [70]], "weights": [[0.5, 1.5], [2.5], [], [3.5]]},
        {"name": "items", "table": "t", "weights": "weights", "transforms": [known]},
    )
    assert ids_of(found["items"]) == [[1], [], [], [0]]
    assert found["items"].weights.tolist() == [0.5, 3.5]


def test_a_vocabulary_comes_from_a_file(tmp_path, monkeypatch):
    (tmp_path / "items.txt").write_text("70\n30\n")
    monkeypatch.setenv("LISTS", str(tmp_path))
    feature = {"name": "items", "table": "t", "transforms": [{"kind": "vocabulary", "file": "${LISTS}/items.txt"}]}
    assert ids_of(run({"items": [[30, 70, 5]]}, feature)["items"]) == [[1, 0, 2]]
    (tmp_path / "items.txt").write_text("70\n30\n70\n")
    with pytest.raises(ValueError, match=r"feature 'items', .*line 3 holds '70', which is the same id as '70' at 1"):
        FeatureEngine(make_schema(feature))
    (tmp_path / "items.txt").write_text("70\nx\n")
    with pytest.raises(ValueError, match=r"feature 'items', .*lists 'x', which is no 64-bit integer"):
        FeatureEngine(make_schema(feature))


def test_a_sequence_is_cut_together_weights_and_all():
    group = [{"name": "history", "columns": ["items", "cates", "weights"], "length": 2}]
    found = run(
        {"items": [[1, 2, 3], [4]], "cates": [[7, 8, 9], [6]], "weights": [[0.1, 0.2, 0.3], [0.4]]},
        {"name": "items", "table": "t", "weights": "weights", "pooling": "none"},
        {"name": "cates", "table": "u", "pooling": "none"},
        sequences=group,
    )
    assert ids_of(found["items"]) == [[2, 3], [4]]
    assert ids_of(found["cates"]) == [[8, 9], [6]]
    assert torch.equal(found["items"].weights, torch.tensor([0.2, 0.3, 0.4]))
    assert found["items"].offsets.tolist() == found["cates"].offsets.tolist()


def test_columns_of_a_sequence_that_differ_in_length_are_refused():
    with pytest.raises(ValueError, match="sequence 'h': row 1 of the batch has 2 entries in column 'items', but 1 in"):
        run(
            {"items": [[1], [2, 3]], "cates": [[1], [2]]},
            {"name": "items", "table": "t"},
            {"name": "cates", "table": "t"},
            sequences=[{"name": "h", "columns": ["items", "cates"], "length": 2}],
        )


def test_truncate_keeps_the_first_or_the_last():
    found = run(
        {"items": [[1, 2, 3], [], [4]]},
        {"name": "last", "column": "items", "table": "t", "transforms": [{"kind": "truncate", "length": 2}]},
        {
            "name": "first",
            "column": "items",
            "table": "t",
            "transforms": [{"kind": "truncate", "length": 1, "keep": "first"}],
        },
    )
    assert ids_of(found["last"]) == [[2, 3], [], [4]]
    assert ids_of(found["first"]) == [[1], [], [4]]


def test_truncate_cuts_nested_rows_at_the_outermost_level():
    nested = Ragged.from_lists([[[1], [2, 3], []], [[4, 5]], []])
    feature = {"name": "items", "table": "t", "transforms": [{"kind": "truncate", "length": 2}]}
    found = FeatureEngine(make_schema(feature))({"items": nested})["items"]
    assert ids_of(found) == [[[2, 3], []], [[4, 5]], []]


GAP = {"name": "gap", "inputs": ["times", "now"], "table": "t", "transforms": [{"kind": "time_gap", "unit": 60}]}


def test_time_gaps_become_buckets():
    buckets = GAP | {"name": "bucket", "transforms": [*GAP["transforms"], {"kind": "bucketize", "boundaries": [0, 2]}]}
    batch = {"times": [[0, 90], [], [200]], "now": [[100], [5], [-(2**63)]]}
    found = run(batch, GAP, buckets)
    assert ids_of(found["gap"]) == [[1, 0], [], [-(2**63) // 60]]
    assert ids_of(found["bucket"]) == [[1, 1], [], [0]]


def test_a_time_gap_needs_one_now():
    with pytest.raises(ValueError, match=r"\(time_gap\): column 'times' x column 'now', row 1 of the batch has 0"):
        run({"times": [[], [1]], "now": [[], []]}, GAP)


@pytest.mark.parametrize(
    ("measure", "expected"), [("count", [1, 0, 0, 1]), ("ratio", [0.5, 0, 0, 1]), ("contains", [0, 0, 0, 1])]
)
def test_overlap_compares_sets_of_ids(measure, expected):
    batch = {"items": [[1, 2, 2], [], [1], [5]], "ids": [[2, 3], [1], [], [5, 5]]}
    feature = {"name": "o", "inputs": ["items", "ids"], "transforms": [{"kind": "overlap", "measure": measure}]}
    assert run(batch, feature)["o"].tolist() == [[value] for value in expected]


MAP = {"user": [[9], [7], []], "keys": [[7, 9, 9], [], [1]], "values": [[0.5, 0.25, 0.75], [], [2.0]]}


def test_lookup_reads_a_map_column_by_a_feature():
    lookup = {"kind": "lookup", "missing": -1.0}
    mean = {"kind": "reduce", "how": "mean", "empty": 9.0}
    found = run(MAP, {"name": "r", "inputs": ["user", "keys", "values"], "transforms": [lookup, mean]})
    assert found["r"].tolist() == [[0.25], [-1.0], [9.0]]


def test_lookup_by_a_constant_key_gives_one_number():
    found = run(
        MAP, {"name": "r", "inputs": ["keys", "values"], "transforms": [{"kind": "lookup", "key": 1, "missing": 0}]}
    )
    assert found["r"].tolist() == [[0.0], [0.0], [2.0]]


def test_lookup_of_ids_can_drop_what_is_missing():
    batch = {"user": [[9], [7]], "keys": [[7, 9], [1]], "ids": [[70, 90], [10]]}
    feature = {"name": "r", "inputs": ["user", "keys", "ids"], "table": "t"}
    found = run(batch, feature | {"transforms": [{"kind": "lookup", "missing": "drop"}]})
    assert ids_of(found["r"]) == [[90], []]
    with pytest.raises(
        ValueError, match=r"feature 'r', .*\(lookup\): .*row 1 of the batch has no key 7 in its map, need every key"
    ):
        run(batch, feature | {"transforms": ["lookup"]})


def test_a_map_with_fewer_values_than_keys_is_refused():
    feature = {"name": "r", "inputs": ["keys", "values"], "transforms": [{"kind": "lookup", "key": 1, "missing": 0}]}
    with pytest.raises(ValueError, match="row 1 of the batch has 2 keys and 1 values, need one value for each key"):
        run({"keys": [[1], [1, 2]], "values": [[0.5], [0.5]]}, feature)


def test_lists_of_one_length_are_vectors():
    batch = {"image": [[1.0, 2.0], [], [3.0, 4.0]]}
    filled = {"name": "image", "transforms": [{"kind": "vector", "dim": 2, "fill": 0.5}]}
    assert run(batch, filled)["image"].tolist() == [[1.0, 2.0], [0.5, 0.5], [3.0, 4.0]]
    assert make_schema(filled).width_of(make_schema(filled).feature("image")) == 2
    exact = {"name": "image", "transforms": [{"kind": "vector", "dim": 2}]}
    with pytest.raises(ValueError, match="column 'image', row 1 of the batch has 0 numbers, need 2; declare fill"):
        run(batch, exact)


def test_numbers_are_standardized_and_ranked():
    price = {"column": "price"}
    found = run(
        {"price": torch.tensor([2.0, 10.0])},
        price | {"name": "z", "transforms": [{"kind": "z_score", "mean": 2, "std": 4}]},
        price | {"name": "m", "transforms": [{"kind": "min_max", "low": 2, "high": 18}]},
        price | {"name": "q", "transforms": [{"kind": "quantile", "knots": [0, 10, 100]}]},
    )
    assert found["z"].tolist() == [[0.0], [2.0]]
    assert found["m"].tolist() == [[0.0], [0.5]]
    assert torch.equal(found["q"][:, 0], torch.tensor([0.1, 0.5]))


class Scale(nn.Module):
    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, price: Tensor, other: Tensor) -> Tensor:
        return self.factor * price + other


def longest_first(rows: Ragged, most: int) -> Ragged:
    return rows.with_values(rows.values.clamp(max=most))


def test_any_module_or_function_is_a_transform():
    scale = {"kind": "custom", "class_path": f"{__name__}.Scale", "init_args": {"factor": 3.0}}
    clamp = {
        "kind": "custom",
        "class_path": f"{__name__}.longest_first",
        "init_args": {"most": 5},
        "takes": "ids",
        "gives": "ids",
        "form": "rows",
    }
    engine = FeatureEngine(
        make_schema(
            {"name": "scaled", "inputs": ["price", "price"], "transforms": [scale]},
            {"name": "items", "table": "t", "transforms": [clamp]},
        )
    )
    found = engine({"price": torch.tensor([1.0, 2.0]), "items": make_rows([[9], [1, 2]])})
    assert found["scaled"].tolist() == [[4.0], [8.0]]
    assert ids_of(found["items"]) == [[5], [1, 2]]
    assert [parameter.item() for parameter in engine.parameters()] == [3.0]


@pytest.mark.parametrize(
    ("custom", "message"),
    [
        ({"class_path": "recis_lightning.nowhere.f"}, "'recis_lightning.nowhere.f' can't be made: No module named"),
        (
            {"class_path": f"{__name__}.Scale", "init_args": {"x": 1}},
            "can't be made: .*unexpected keyword argument 'x'",
        ),
        ({"class_path": f"{__name__}.COLUMNS"}, "name a function or an nn.Module"),
    ],
)
def test_what_cannot_be_made_is_named_at_set_up(custom, message):
    feature = {"name": "c", "inputs": ["price"], "transforms": [{"kind": "custom"} | custom]}
    with pytest.raises(ValueError, match=rf"feature 'c', transforms\[0\] \(custom\): .*{message}"):
        FeatureEngine(make_schema(feature))


def test_what_a_function_gives_is_held_against_its_declaration():
    custom = {"kind": "custom", "class_path": "torch.abs", "form": "vector", "dim": 2}
    with pytest.raises(
        ValueError, match=r"'torch.abs' gives Tensor of torch.float32 \[1\], need \[1, 2\] of torch.float"
    ):
        run({"price": torch.tensor([1.0])}, {"name": "c", "inputs": ["price"], "transforms": [custom]})


def test_an_engine_needs_fitted_numbers():
    with pytest.raises(
        ValueError, match=r"feature 'price', transforms\[0\] \(z_score\) is not fitted\nrun `recis features fit"
    ):
        FeatureEngine(make_schema({"name": "price", "transforms": ["z_score"]}))


ALL = [
    {"name": "user", "table": "t", "transforms": ["hash", {"kind": "modulo", "divisor": 9}]},
    CROSS | {"inputs": ["user", "items"]},
    {
        "name": "v",
        "column": "item",
        "table": "t",
        "transforms": [{"kind": "vocabulary", "values": [1], "unknown": "drop"}],
    },
    {"name": "m", "column": "item", "table": "t", "transforms": [{"kind": "multi_hash", "buckets": [9, 9]}]},
    GAP,
    {"name": "o", "inputs": ["items", "ids"], "transforms": ["overlap"]},
    {"name": "r", "inputs": ["keys", "values"], "transforms": [{"kind": "lookup", "key": 1, "missing": 0}]},
    {"name": "sum", "column": "weights", "transforms": ["reduce"]},
    {"name": "price", "transforms": ["log1p", {"kind": "z_score", "mean": 1, "std": 2}, {"kind": "clip", "low": 0}]},
    {"name": "q", "column": "price", "transforms": [{"kind": "quantile", "knots": [0, 1]}]},
    {"name": "b", "column": "price", "table": "t", "transforms": [{"kind": "bucketize", "boundaries": [1]}]},
    {"name": "image", "transforms": [{"kind": "vector", "dim": 2, "fill": 0}]},
]


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_all_transforms_take_batches_without_rows_and_rows_without_values(rows):
    batch: dict[str, Any] = {column: Ragged.from_lists([[]] * rows) for column in ("item", "items", "ids", "keys")}
    batch |= {"user": make_rows([[1]] * rows), "now": make_rows([[1]] * rows), "times": Ragged.from_lists([[]] * rows)}
    batch |= {name: Ragged.from_lists([[]] * rows, torch.float32) for name in ("values", "weights", "image")}
    batch["price"] = torch.ones(rows)
    group = [{"name": "g", "columns": ["items", "ids"], "length": 2}]
    found = FeatureEngine(make_schema(*ALL, sequences=group))(batch)
    assert list(found) == [feature["name"] for feature in ALL]
    assert all(len(value) == rows for value in found.values())


@pytest.mark.parametrize(
    ("features", "problem"),
    [
        (
            [
                {"name": "a", "inputs": ["b"], "internal": True, "transforms": ["hash"]},
                {"name": "b", "inputs": ["a"], "internal": True, "transforms": ["hash"]},
            ],
            "features 'a' -> 'b' -> 'a' read each other in a cycle; drop one of the inputs",
        ),
        ([CROSS | {"inputs": ["user", "x"]}], "features 'x' -> 'x' read each other in a cycle"),
        ([CROSS | {"inputs": ["user"]}], "feature 'x', transforms[0] (cross) takes two or more inputs, but gets 1"),
        (
            [CROSS | {"inputs": ["user", "itme"]}],
            "feature 'x' takes 'itme', which is no feature and no column; did you",
        ),
        ([CROSS | {"inputs": ["user", "price"]}], "feature 'x', transforms[0] (cross) works on ids, but gets floats"),
        ([CROSS | {"column": "user"}], "feature 'x' has a column and inputs; name the column among the inputs"),
        ([CROSS | {"transforms": []}], "feature 'x' has inputs, but no transform that takes them; add one, such as"),
        (
            [CROSS | {"weights": "weights"}],
            "feature 'x' takes weights from 'weights'; with inputs, write weights: inputs",
        ),
        ([CROSS | {"weights": "inputs"}], "feature 'x' has weights: inputs, but none of its inputs comes with weights"),
        (
            [{"name": "user", "internal": True, "transforms": ["hash"]}],
            "feature 'user' is internal, but is no feature's",
        ),
        ([{"name": "user", "transforms": ["hash"]}], "feature 'user' is dense, but hash gives ids; name a table"),
        (
            [{"name": "device", "table": "t", "transforms": [{"kind": "z_score", "mean": 0, "std": 1}]}],
            "feature 'device', transforms[0] (z_score) works on numbers, but column 'device' is hashed to ids",
        ),
        (
            [{"name": "user", "table": "t", "transforms": [{"kind": "multi_hash", "buckets": [1] * 5}]}],
            "feature 'user', transforms[0] (multi_hash): 5 numbers of buckets; give one to four",
        ),
        (
            [{"name": "user", "table": "t", "transforms": [{"kind": "vocabulary", "values": [1, 2, 1]}]}],
            "feature 'user', transforms[0] (vocabulary): values[2] is 1 for a second time; drop one of them",
        ),
        (
            [{"name": "price", "transforms": [{"kind": "z_score", "mean": 0}]}],
            "feature 'price', transforms[0] (z_score): only one of mean and std is given; give both, or neither",
        ),
        (
            [{"name": "price", "transforms": [{"kind": "min_max", "low": 1, "high": 1}]}],
            "feature 'price', transforms[0] (min_max): low 1 is not below high 1",
        ),
        (
            [{"name": "price", "transforms": [{"kind": "quantile", "knots": [2, 1]}]}],
            "feature 'price', transforms[0] (quantile): knots [2, 1] fall; sort them, give at least two",
        ),
        (
            [{"name": "price", "transforms": [{"kind": "vector", "dim": 2}]}],
            "feature 'price', transforms[0] (vector) works on rows of several values, but column 'price' has",
        ),
        (
            [{"name": "x", "inputs": ["keys", "values"], "transforms": ["lookup"]}],
            "feature 'x', transforms[0] (lookup) takes inputs [ids, keys, values], but gets 2",
        ),
        (
            [CROSS | {"transforms": [{"kind": "cross", "max_ids": 0}]}],
            "feature 'x', transforms[0] (cross): max_ids is 0, need at least 1 and less than 2^31",
        ),
        ([{"name": "values"}], "feature 'values' is dense, but column 'values' is a list; name a table, or declare"),
        (
            [{"name": "x", "inputs": ["user", "keys", "values"], "transforms": [{"kind": "lookup"}]}],
            "feature 'x' is dense, but gets rows of several numbers from column 'values'; add reduce",
        ),
    ],
)
def test_what_cannot_be_meant_is_named_when_the_schema_is_read(features, problem):
    with pytest.raises(SchemaError) as caught:
        make_schema(*features)
    assert any(line.startswith(problem) for line in caught.value.problems), caught.value.problems


def test_a_sequence_names_what_cannot_be_cut():
    groups = [
        {"name": "a", "columns": ["items", "price", "itmes"], "length": 0},
        {"name": "b", "columns": ["items"], "length": 1},
    ]
    with pytest.raises(SchemaError) as caught:
        make_schema({"name": "items", "table": "t"}, sequences=groups)
    assert list(caught.value.problems) == [
        "sequence 'a': length is 0, need at least 1 and less than 2^31",
        "sequence 'a' cuts column 'price', which is scalar; only lists (layout: list) can be cut",
        "sequence 'a' cuts column 'itmes', which is not declared; did you mean 'times'?",
        "sequence 'b' cuts column 'items', which is cut by sequence 'a' as well; name it in one",
    ]
