"""Schemas: patterns, reading from plain mappings, and every mistake named in one message."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recis_lightning.schema import (
    INITIALIZERS,
    OPTIMIZERS,
    TRANSFORMS,
    Adagrad,
    Adam,
    AdamW,
    Bucketize,
    Clip,
    Column,
    Constant,
    Feature,
    KaimingNormal,
    Log1p,
    Modulo,
    Normal,
    RowwiseAdagrad,
    Schedule,
    Schema,
    SchemaError,
    Sgd,
    Table,
    Task,
    TruncatedNormal,
    Uniform,
    did_you_mean,
    expand,
)
from recis_lightning.schema.policies import Age, Counter, Lru, ReadOnly


def settings(**changes: Any) -> dict[str, Any]:
    """A small schema without a mistake, some sections of it replaced."""
    return {
        "columns": [
            {"name": "label", "dtype": "float32"},
            {"name": "price", "dtype": "float32"},
            {"name": "c{1..2}", "dtype": "int64"},
            {"name": "words", "dtype": "string", "hash": "farm", "layout": "list"},
            {"name": "word_weights", "dtype": "float32", "layout": "list"},
        ],
        "tables": [{"name": "c{1..2}", "dim": 4}, {"name": "words", "dim": 4}],
        "features": [
            {"name": "price"},
            {"name": "c{1..2}", "table": "c{1..2}"},
            {"name": "words", "table": "words", "pooling": "mean", "weights": "word_weights"},
        ],
        "tasks": [{"name": "ctr", "label": "label"}],
    } | changes


def with_items(section: str, *items: Any) -> dict[str, Any]:
    return settings(**{section: [*settings()[section], *items]})


def problems_of(mapping: Any) -> list[str]:
    with pytest.raises(SchemaError) as caught:
        Schema.from_dict(mapping)
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("label", ["label"]),
        ("c{1..3}", ["c1", "c2", "c3"]),
        ("{user,item}_id", ["user_id", "item_id"]),
        ("{ user , item }_id", ["user_id", "item_id"]),
        ("d{08..10}", ["d08", "d09", "d10"]),
        ("d{0..2}", ["d0", "d1", "d2"]),
        ("c{7..7}", ["c7"]),
        ("{only}", ["only"]),
    ],
)
def test_expand_lists_the_names_of_a_pattern(pattern, names):
    assert expand(pattern) == names


@pytest.mark.parametrize("pattern", ["c{3..1}", "c{}", "c{a,}", "{a,b}{1..2}", "c{1..2", "c1..2}", "c{{1..2}}"])
def test_expand_refuses_a_pattern_that_names_nothing(pattern):
    with pytest.raises(ValueError, match="names nothing; write one {1..26} or one {user,item}"):
        expand(pattern)


@given(first=st.integers(0, 30), count=st.integers(1, 30))
def test_expand_counts_from_first_to_last(first, count):
    assert expand(f"x{{{first}..{first + count - 1}}}y") == [f"x{n}y" for n in range(first, first + count)]


def test_patterns_of_one_declaration_run_in_step():
    schema = Schema.from_dict(
        {
            "columns": [{"name": "c{1..3}", "dtype": "int64"}],
            "tables": [{"name": "deep_{1..3}", "dim": 8}, {"name": "wide", "dim": 1}],
            "features": [
                {"name": "c{1..3}_deep", "column": "c{1..3}", "table": "deep_{1..3}"},
                {"name": "c{1..3}_wide", "column": "c{1..3}", "table": "wide"},
            ],
        }
    )
    read = [(feature.name, feature.column, feature.table) for feature in schema.features]
    assert read[1] == ("c2_deep", "c2", "deep_2")
    assert read[3:] == [("c1_wide", "c1", "wide"), ("c2_wide", "c2", "wide"), ("c3_wide", "c3", "wide")]


def test_patterns_out_of_step_are_a_mistake():
    assert problems_of(with_items("features", {"name": "x{1..3}", "column": "c{1..2}", "table": "words"})) == [
        "feature 'x{1..3}': 'column' expands to 2 names, 'name' to 3; let them run in step"
    ]


def test_lookups_find_declarations_by_name():
    schema = Schema.from_dict(settings())
    assert schema.column("c2") == Column(name="c2", dtype="int64")
    assert schema.feature("c2") == Feature(name="c2", table="c2")
    assert schema.table("words") == Table(name="words", dim=4)
    assert schema.task("ctr") == Task(name="ctr", label="label")
    assert schema.column_of(schema.feature("price")).name == "price"
    assert [feature.name for feature in schema.dense_features] == ["price"]
    assert [feature.name for feature in schema.embedded_features] == ["c1", "c2", "words"]
    assert [column.name for column in schema.input_columns] == ["price", "c1", "c2", "words", "word_weights"]
    assert [column.name for column in schema.label_columns] == ["label"]


def test_from_dict_gives_a_schema_back_as_it_is():
    schema = Schema.from_dict(settings())
    assert Schema.from_dict(schema) is schema


def test_label_columns_hold_where_and_sample_weight():
    schema = Schema.from_dict(
        {
            "columns": [{"name": "{click,buy,weight,other}", "dtype": "float32"}],
            "tasks": [{"name": "buy", "label": "buy", "where": "click", "sample_weight": "weight"}],
        }
    )
    assert [column.name for column in schema.label_columns] == ["click", "buy", "weight"]


@pytest.mark.parametrize(
    ("transforms", "holds_ids"),
    [
        ([], True),
        ([{"kind": "clip", "low": 0}], True),
        ([{"kind": "modulo", "divisor": 10}], True),
        ([{"kind": "bucketize", "boundaries": [1, 2]}], False),
        (["log1p", {"kind": "bucketize", "boundaries": [1, 2]}, {"kind": "modulo", "divisor": 2}], False),
        ([{"kind": "modulo", "divisor": 24}, {"kind": "bucketize", "boundaries": [6, 18]}], True),
    ],
)
def test_a_column_holds_ids_where_a_lookup_or_a_modulo_reads_it(transforms, holds_ids):
    schema = Schema.from_dict(
        {
            "columns": [{"name": "hour", "dtype": "int64"}, {"name": "count", "dtype": "int64"}],
            "tables": [{"name": "hour", "dim": 2}],
            "features": [{"name": "hour", "table": "hour", "transforms": transforms}, {"name": "count"}],
        }
    )
    assert schema.is_id_column("hour") is holds_ids
    assert not schema.is_id_column("count")


def test_kinds_are_read_by_name_or_as_a_mapping():
    tables = [
        {"name": "a", "dim": 2, "optimizer": "sgd", "initializer": "zeros"},
        {"name": "b", "dim": 2, "optimizer": {"kind": "adam", "lr": "1e-3", "betas": [0.5, 0.9]}},
        {"name": "c", "dim": 2, "optimizer": AdamW(weight_decay=0.1), "initializer": {"kind": "uniform", "high": 1}},
    ]
    features = [{"name": name, "column": "c1", "table": name} for name in "abc"]
    schema = Schema.from_dict(settings(tables=tables, features=features))
    assert schema.table("a").optimizer == Sgd()
    assert schema.table("a").initializer == Constant(value=0.0)
    assert schema.table("b").optimizer == Adam(lr=1e-3, betas=(0.5, 0.9))
    assert schema.table("c").optimizer == AdamW(weight_decay=0.1)
    assert schema.table("c").initializer == Uniform(high=1)


def test_every_kind_is_registered_under_its_name():
    assert set(OPTIMIZERS) == {"sgd", "adagrad", "rowwise_adagrad", "adam", "adamw", "ftrl"}
    scaled = {"xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"}
    assert set(INITIALIZERS) == {"zeros", "constant", "uniform", "normal", "truncated_normal"} | scaled
    numbers = {"log1p", "clip", "z_score", "min_max", "quantile", "bucketize"}
    ids = {"modulo", "hash", "multi_hash", "vocabulary"}
    rows = {"cross", "lookup", "truncate", "time_gap", "overlap", "vector", "reduce", "custom"}
    assert set(TRANSFORMS) == numbers | ids | rows


@pytest.mark.parametrize("number", ["1e-3", "1E-3", ".1e-2", "1.e-3", "+1.0e-3"])
def test_yaml_numbers_without_a_dot_are_read_as_meant(number):
    table = {"name": "words", "dim": 4, "optimizer": {"kind": "adagrad", "lr": number}}
    schema = Schema.from_dict(settings(tables=[{"name": "c{1..2}", "dim": 4}, table]))
    assert schema.table("words").optimizer.lr == 1e-3


def test_a_name_that_looks_like_a_number_stays_a_name():
    schema = Schema.from_dict({"columns": [{"name": "1e5", "dtype": "float32"}]})
    assert schema.column("1e5").dtype == "float32"


ROWWISE = RowwiseAdagrad(lr=0.5, schedule=Schedule(warmup_steps=5))


def test_to_dict_holds_plain_values_that_from_dict_reads_back():
    schema = Schema(
        columns=(
            Column(name="label", dtype="bool"),
            Column(name="price", dtype="string", parse="float32", default=0.5),
            Column(name="ids", dtype="int64", layout="optional_list"),
        ),
        tables=(
            Table(name="ids", dim=3, dtype="float64", optimizer=ROWWISE, initializer=Normal(std=0.1)),
            Table(name="cents", dim=1, optimizer=Adam(betas=(0.8, 0.9)), initializer=TruncatedNormal(low=-1.0)),
        ),
        features=(
            Feature(name="ids", table="ids", pooling="sqrtn", transforms=(Modulo(divisor=7),)),
            Feature(
                name="cents",
                column="price",
                table="cents",
                transforms=(Clip(low=0.0), Log1p(), Bucketize(boundaries=(0.5, 1.5))),
            ),
        ),
        tasks=(Task(name="ctr", label="label", weight=0.5),),
    )
    plain = json.loads(json.dumps(schema.to_dict()))
    assert plain["tables"][0]["optimizer"] == {
        "kind": "rowwise_adagrad",
        "lr": 0.5,
        "eps": 1e-10,
        "initial_accumulator_value": 0.0,
        "schedule": {"warmup_steps": 5, "decay": "constant", "total_steps": None, "floor": 0.0, "every": None}
        | {"gamma": 0.1},
        "state_dtype": None,
    }
    assert Schema.from_dict(plain) == schema


@given(
    optimizer=st.sampled_from([Sgd(), Adagrad(lr=0.3), RowwiseAdagrad(), Adam(betas=(0.0, 0.5)), AdamW(eps=1e-4)]),
    initializer=st.sampled_from([Constant(value=2.0), Uniform(low=-1.0, high=1.0), KaimingNormal(), TruncatedNormal()]),
    dim=st.integers(1, 512),
    names=st.lists(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), min_size=1, max_size=5, unique=True),
)
def test_a_round_trip_gives_an_equal_schema(optimizer, initializer, dim, names):
    schema = Schema(
        columns=tuple(Column(name=name, dtype="int64") for name in names),
        tables=tuple(Table(name=name, dim=dim, optimizer=optimizer, initializer=initializer) for name in names),
        features=tuple(Feature(name=name, table=name) for name in names),
    )
    assert Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema


@pytest.mark.parametrize(
    ("mapping", "problem"),
    [
        ([], "it is []; write a mapping with columns, features, tables, towers, tasks, sequences"),
        ({}, "section 'columns' is missing"),
        (settings(tasks="ctr"), "section 'tasks' is 'ctr'; write a list"),
        (settings(tasks=None), "section 'tasks' is None; write a list"),
        (settings(task=[]), "unknown section 'task'; did you mean 'tasks'?"),
        (
            with_items("tasks", "cvr"),
            "tasks[1] is 'cvr'; write a mapping with name, label, loss, weight, where, sample_weight",
        ),
        (
            with_items("tasks", {"name": "cvr", "label": "label", "weigth": 2}),
            "task 'cvr': unknown option 'weigth'; did you mean 'weight'?",
        ),
        (with_items("tasks", {"name": "cvr"}), "task 'cvr': 'label' is missing"),
        (with_items("tasks", {"label": "label"}), "tasks[1]: 'name' is missing"),
        (
            with_items("columns", {"name": "x", "dtype": "int46"}),
            "column 'x'.dtype is 'int46', need one of int8, int16, int32, int64, float32, float64, bool, string, "
            "timestamp, decimal, binary",
        ),
        (with_items("columns", {"name": 7, "dtype": "int64"}), "column '7'.name is 7, need a name"),
        (with_items("columns", {"name": "", "dtype": "int64"}), "columns[5].name is '', need a name"),
        (
            with_items("columns", {"name": "x{", "dtype": "int64"}),
            "column 'x{': pattern 'x{' names nothing; write one ",
        ),
        (
            with_items("columns", {"name": "x", "dtype": "int64", "default": "0"}),
            "column 'x'.default is '0', need a finite number or an integer or a tuple (a list in YAML), "
            "each a finite number or nothing",
        ),
        (
            with_items("features", {"name": "c1_again", "column": "c1", "table": "c1", "transforms": {"kind": "clip"}}),
            "feature 'c1_again'.transforms is {'kind': 'clip'}; write a list",
        ),
        (
            with_items("features", {"name": "p", "column": "price", "transforms": ["log2p"]}),
            "feature 'p'.transforms[0]: unknown kind 'log2p'; did you mean 'log1p'?",
        ),
        (
            with_items("features", {"name": "p", "column": "price", "transforms": [{"low": 1}]}),
            "feature 'p'.transforms[0] is {'low': 1}; write a mapping with a kind, one of log1p, clip, modulo, ",
        ),
        (
            with_items("features", {"name": "p", "column": "price", "transforms": [{"kind": ["clip"]}]}),
            "feature 'p'.transforms[0] is {'kind': ['clip']}; write a mapping with a kind, one of log1p, ",
        ),
        (
            with_items("features", {"name": "p", "column": "price", "transforms": [{"kind": "log1p", "low": 1}]}),
            "feature 'p'.transforms[0]: unknown option 'low'; there are none",
        ),
        (
            with_items("features", {"name": "p", "column": "c1", "table": "c1", "transforms": ["modulo"]}),
            "feature 'p'.transforms[0]: 'divisor' is missing",
        ),
        (
            with_items(
                "features",
                {"name": "p", "column": "price", "table": "c1", "transforms": [{"kind": "bucketize", "boundaries": 3}]},
            ),
            "feature 'p'.transforms[0].boundaries is 3, need a tuple (a list in YAML), each a finite number",
        ),
    ],
)
def test_reading_names_each_mistake(mapping, problem):
    (found,) = problems_of(mapping)
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"dim": "16"}, "table 'words'.dim is '16', need an integer"),
        ({"dim": True}, "table 'words'.dim is True, need an integer"),
        (
            {"dtype": "bf16"},
            "table 'words'.dtype is 'bf16', need one of float32, float64, bfloat16, float16, int8, int32, int64",
        ),
        (
            {"optimizer": {"kind": "adam", "betas": 0.9}},
            "table 'words'.optimizer.betas is 0.9, need a tuple (a list in YAML) of 2, each a finite number",
        ),
        (
            {"optimizer": {"kind": "adam", "betas": [0.9]}},
            "table 'words'.optimizer.betas is (0.9,), need a tuple (a list in YAML) of 2, each a finite number",
        ),
        ({"optimizer": {"kind": "sgd", "lr": "fast"}}, "table 'words'.optimizer.lr is 'fast', need a finite number"),
        ({"optimizer": {"kind": "sgd", "lr": float("nan")}}, "table 'words'.optimizer.lr is nan, need a finite number"),
        (
            {"optimizer": "adagard"},
            "table 'words'.optimizer: unknown kind 'adagard'; did you mean 'adagrad'?",
        ),
        (
            {"optimizer": {"kind": "adam", "schedule": {"warmup": 9}}},
            "table 'words'.optimizer.schedule: unknown option 'warmup'; did you mean 'warmup_steps'?",
        ),
        (
            {"initializer": 0.5},
            "table 'words'.initializer is 0.5; write a mapping with a kind, one of constant, uniform, normal, "
            "truncated_normal, xavier_uniform, xavier_normal, kaiming_uniform, kaiming_normal, zeros",
        ),
    ],
)
def test_reading_names_each_mistake_of_a_table(options, problem):
    tables = [{"name": "c{1..2}", "dim": 4}, {"name": "words", "dim": 4} | options]
    assert problems_of(settings(tables=tables)) == [problem]


def test_a_pattern_with_a_mistake_is_reported_once():
    tables = [{"name": "c{1..2}", "dim": "4"}, {"name": "words", "dim": 4}]
    assert problems_of(settings(tables=tables)) == ["table 'c{1..2}'.dim is '4', need an integer"]


def test_python_declarations_are_checked_as_yaml_is():
    with pytest.raises(SchemaError) as caught:
        Schema(
            columns=(Column(name="x", dtype="int46"), {"name": "y"}),  # type: ignore[arg-type]
            tables=(Table(name="t", dim=2, optimizer=Sgd(lr=None)),),  # type: ignore[arg-type]
            features=(Feature(name="x", table="t", transforms=(Modulo(divisor=0.5),)),),  # type: ignore[arg-type]
        )
    assert caught.value.problems == (
        "column 'x'.dtype is 'int46', need one of int8, int16, int32, int64, float32, float64, bool, string, "
        "timestamp, decimal, binary",
        "column 'y' is {'name': 'y'}, need a Column; Schema.from_dict reads plain mappings",
        "feature 'x'.transforms[0].divisor is 0.5, need an integer",
        "table 't'.optimizer.lr is None, need a finite number",
    )


@pytest.mark.parametrize(
    ("column", "problem"),
    [
        ({"dtype": "int64", "hash": "farm"}, "column 'x' is int64; hash, parse and tokenizer are for strings"),
        ({"dtype": "float32", "parse": "int64"}, "column 'x' is float32; hash, parse and tokenizer are for strings"),
        ({"dtype": "string"}, "column 'x' is a string; say hash: farm (or murmur) to get ids, parse: float32"),
        ({"dtype": "string", "hash": "farm", "parse": "int64"}, "column 'x' is a string; say hash: farm (or murmur)"),
        (
            {"dtype": "string", "hash": "farm", "default": 3},
            "column 'x' is hashed; a missing id is no id, so leave default out",
        ),
    ],
)
def test_column_mistakes_are_named(column, problem):
    (found,) = problems_of(with_items("columns", {"name": "x"} | column))
    assert found.startswith(problem)


@pytest.mark.parametrize("default", [0.5, 2**63, -(2**63) - 1])
def test_the_default_of_an_id_is_a_64_bit_integer(default):
    columns = [{"name": "id", "dtype": "int64", "default": default}]
    mapping = {
        "columns": columns,
        "tables": [{"name": "t", "dim": 1}],
        "features": [{"name": "f", "column": "id", "table": "t"}],
    }
    assert problems_of(mapping) == [f"column 'id' holds ids, its default is {default!r}; give a 64-bit integer"]
    columns[0]["default"] = -1
    assert Schema.from_dict(mapping).column("id").default == -1


@pytest.mark.parametrize(
    ("feature", "problem"),
    [
        (
            {"column": "prise"},
            "feature 'x' reads column 'prise', which is not declared; did you mean 'price'?",
        ),
        (
            {"column": "c1", "table": "werds"},
            "feature 'x' looks up table 'werds', which is not declared; did you mean 'words'?",
        ),
        (
            {"column": "price", "table": "c1"},
            "feature 'x' looks up table 'c1' with floats from column 'price'; add bucketize, or drop the table",
        ),
        (
            {"column": "c1", "table": "c1", "transforms": ["log1p"]},
            "feature 'x' looks up table 'c1' with floats from column 'c1'; add bucketize, or drop the table",
        ),
        (
            {
                "column": "price",
                "table": "c1",
                "transforms": [{"kind": "modulo", "divisor": 3}],
            },
            "feature 'x', transforms[0] (modulo) works on ids, but gets floats from column 'price'; put bucketize",
        ),
        (
            {"column": "c1", "table": "c1", "transforms": [{"kind": "modulo", "divisor": 0}]},
            "feature 'x', transforms[0] (modulo): divisor is 0, need at least 1 and less than 2^63",
        ),
        (
            {"column": "c1", "table": "c1", "transforms": [{"kind": "modulo", "divisor": 2**63}]},
            f"feature 'x', transforms[0] (modulo): divisor is {2**63}, need at least 1 and less than 2^63",
        ),
        (
            {"column": "price", "table": "c1", "transforms": [{"kind": "bucketize", "boundaries": [2, 1]}]},
            "feature 'x', transforms[0] (bucketize): boundaries [2, 1] are not rising; sort them, drop repeats",
        ),
        (
            {"column": "price", "table": "c1", "transforms": [{"kind": "bucketize", "boundaries": [1, 1]}]},
            "feature 'x', transforms[0] (bucketize): boundaries [1, 1] are not rising",
        ),
        (
            {"column": "price", "table": "c1", "transforms": [{"kind": "bucketize", "boundaries": []}]},
            "feature 'x', transforms[0] (bucketize): boundaries [] are not rising; sort them, drop repeats, give at",
        ),
        (
            {"column": "price", "transforms": [{"kind": "clip", "low": 2, "high": 1}]},
            "feature 'x', transforms[0] (clip): low 2 is above high 1",
        ),
        (
            {"column": "price", "transforms": ["clip"]},
            "feature 'x', transforms[0] (clip): neither low nor high is given",
        ),
        (
            {"column": "words", "table": "words", "transforms": [{"kind": "clip", "low": 0}]},
            "feature 'x', transforms[0] (clip) works on numbers, but column 'words' is hashed to ids",
        ),
        (
            {"column": "word_weights"},
            "feature 'x' is dense, but column 'word_weights' is a list; name a table, or declare layout: optional_list",
        ),
        (
            {"column": "c1"},
            "feature 'x' is dense, but column 'c1' is read as ids by another feature; a column is one or the other",
        ),
        (
            {"column": "price", "transforms": [{"kind": "bucketize", "boundaries": [1]}]},
            "feature 'x' is dense, but bucketize gives ids; name a table, or drop it",
        ),
        (
            {"column": "price", "pooling": "mean"},
            "feature 'x' has pooling 'mean' but no table; pooling is for embeddings",
        ),
        (
            {"column": "price", "weights": "word_weights"},
            "feature 'x' has weights but no table; weights are for pooling",
        ),
        (
            {"column": "words", "table": "words", "weights": "word_wights"},
            "feature 'x' takes weights from 'word_wights', which is not declared; did you mean 'word_weights'?",
        ),
        (
            {"column": "c1", "table": "words", "weights": "word_weights"},
            "feature 'x' takes weights from 'word_weights' (float32, list) for ids in 'c1' (scalar); "
            "both must be lists, the weights floats",
        ),
        (
            {"column": "words", "table": "words", "weights": "c1"},
            "feature 'x' takes weights from 'c1' (int64, scalar) for ids in 'words' (list); both must be lists",
        ),
    ],
)
def test_feature_mistakes_are_named(feature, problem):
    found = problems_of(with_items("features", {"name": "x"} | feature))
    assert any(line.startswith(problem) for line in found)
    assert all("feature 'x'" in line for line in found)


def test_a_dense_feature_of_hashed_strings_is_a_mistake():
    columns = [{"name": "text", "dtype": "string", "hash": "murmur"}]
    assert problems_of({"columns": columns, "features": [{"name": "text"}]}) == [
        "feature 'text' is dense, but column 'text' is hashed to ids; name a table"
    ]


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"name": "x", "dim": 4}, "table 'x' is looked up by no feature; name it in one, or drop it"),
        ({"dim": 0}, "table 'words': dim is 0, need at least 1"),
        ({"optimizer": {"kind": "adam", "lr": -1}}, "table 'words': optimizer lr is -1, need at least 0"),
        ({"optimizer": {"kind": "adam", "eps": -1}}, "table 'words': optimizer eps is -1, need at least 0"),
        (
            {"optimizer": {"kind": "adagrad", "initial_accumulator_value": -0.5}},
            "table 'words': optimizer initial_accumulator_value is -0.5, need at least 0",
        ),
        (
            {"optimizer": {"kind": "adamw", "weight_decay": -0.1}},
            "table 'words': optimizer weight_decay is -0.1, need at least 0",
        ),
        (
            {"optimizer": {"kind": "adam", "betas": [0.9, 1.0]}},
            "table 'words': optimizer betas are (0.9, 1.0), need 0 <= beta < 1",
        ),
        (
            {"initializer": {"kind": "uniform", "low": 1, "high": 1}},
            "table 'words': initializer low 1 is not below high 1",
        ),
        ({"initializer": {"kind": "normal", "std": -1}}, "table 'words': initializer std is -1, need at least 0"),
    ],
)
def test_table_mistakes_are_named(table, problem):
    tables = [{"name": "c{1..2}", "dim": 4}, {"name": "words", "dim": 4}]
    tables = [*tables, table] if "name" in table else [tables[0], tables[1] | table]
    assert problems_of(settings(tables=tables)) == [problem]


@pytest.mark.parametrize("name", ["a/b", "a\\b", "..", "."])
def test_a_table_name_must_serve_as_a_folder(name):
    mapping = {
        "columns": [{"name": "c", "dtype": "int64"}],
        "tables": [{"name": name, "dim": 1}],
        "features": [{"name": "c", "table": name}],
    }
    assert problems_of(mapping) == [f"table '{name}': a name is also a folder in checkpoints; leave out / and \\"]


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        ({"label": "lable"}, "task 'x' takes its label from 'lable', which is not declared; did you mean 'label'?"),
        ({"where": "clock"}, "task 'x' takes its where from 'clock', which is not declared; there are: c1, c2, label,"),
        (
            {"sample_weight": "word_weights"},
            "task 'x' takes its sample_weight from 'word_weights', which holds ids or lists; need one number a row",
        ),
        ({"label": "words"}, "task 'x' takes its label from 'words', which holds ids or lists; need one number a row"),
        ({"label": "c1"}, "task 'x' takes its label from 'c1', which holds ids or lists; need one number a row"),
        ({"group": "c3"}, "task 'x' is grouped by 'c3', which is not declared; there are: c1, c2,"),
        ({"group": "words"}, "task 'x' is grouped by 'words', which holds numbers or lists; need one id a row"),
        ({"group": "price"}, "task 'x' is grouped by 'price', which holds numbers or lists; need one id a row"),
        ({"group": "c1", "loss": "mse"}, "task 'x' is grouped by 'c1', and its loss is mse; groups are for gauc"),
        ({"weight": -1}, "task 'x': weight is -1, need at least 0"),
    ],
)
def test_task_mistakes_are_named(task, problem):
    (found,) = problems_of(with_items("tasks", {"name": "x", "label": "label"} | task))
    assert found.startswith(problem)


@pytest.mark.parametrize("section", ["columns", "features", "tables", "tasks"])
def test_a_name_declared_twice_is_a_mistake(section):
    again = settings()[section][0]
    name = expand(again["name"])[0]
    assert f"{section}: '{name}' is declared twice" in problems_of(with_items(section, again))


def test_one_message_holds_mistakes_of_reading_and_of_reference_alike():
    mapping = settings(
        columns=[*settings()["columns"], {"name": "broken", "dtype": "int46"}, {"name": "odd", "dtpe": "int64"}],
        tables=[{"name": "c{1..2}", "dim": "4"}, {"name": "words", "dim": 0}],
        features=[
            *settings()["features"],
            {"name": "a", "column": "broken", "table": "words"},
            {"name": "b", "column": "odd", "table": "wrods"},
            {"name": "c", "column": "prise", "poling": "mean"},
            {"name": "d", "column": "prise"},
        ],
        tasks=[{"name": "ctr", "label": "lable"}, {"name": "cvr"}],
        extra=[],
    )
    with pytest.raises(SchemaError) as caught:
        Schema.from_dict(mapping)
    assert str(caught.value).splitlines() == [
        "the schema has 11 problems:",
        "  - unknown section 'extra'; there are: columns, features, sequences, tables, tasks, towers",
        "  - column 'odd': unknown option 'dtpe'; did you mean 'dtype'?",
        "  - column 'odd': 'dtype' is missing",
        "  - feature 'c': unknown option 'poling'; did you mean 'pooling'?",
        "  - task 'cvr': 'label' is missing",
        "  - column 'broken'.dtype is 'int46', need one of int8, int16, int32, int64, float32, float64, bool, string, "
        "timestamp, decimal, binary",
        "  - table 'c{1..2}'.dim is '4', need an integer",
        "  - feature 'b' looks up table 'wrods', which is not declared; did you mean 'words'?",
        "  - feature 'd' reads column 'prise', which is not declared; did you mean 'price'?",
        "  - table 'words': dim is 0, need at least 1",
        "  - task 'ctr' takes its label from 'lable', which is not declared; did you mean 'label'?",
    ]


def test_references_to_what_could_not_be_read_are_not_reported():
    columns = [{"name": "label", "dtype": "float32"}, {"dtype": "int64"}]  # the nameless one may declare anything
    assert problems_of(settings(columns=columns)) == ["columns[1]: 'name' is missing"]
    assert problems_of(settings(columns="label")) == ["section 'columns' is 'label'; write a list"]
    without_columns = settings()
    del without_columns["columns"]
    assert problems_of(without_columns) == ["section 'columns' is missing"]


def test_a_table_is_not_called_unused_where_a_feature_could_not_be_read():
    features = [*settings()["features"][:2], {"name": "words", "tabel": "words"}]
    assert problems_of(settings(features=features)) == [
        "feature 'words': unknown option 'tabel'; did you mean 'table'?"
    ]


def test_did_you_mean_lists_what_there_is_where_nothing_is_close():
    assert did_you_mean("zzz", ["b", "a"]) == "; there are: a, b"
    assert did_you_mean("zzz", []) == "; there are none"
    assert did_you_mean("zzz", map(str, range(20))).endswith(", ...")


def policies(**options: Any) -> dict[str, Any]:
    """The settings of a schema whose table has these policies."""
    return settings(tables=[{"name": "c1", "dim": 4, **options}], features=[{"name": "c1", "table": "c1"}])


def test_policies_of_a_table_read_alone_in_a_list_or_by_name() -> None:
    table = Schema.from_dict(
        policies(
            capacity=1000,
            admission={"kind": "counter", "threshold": 3},
            eviction=[{"kind": "age", "steps": 100, "every": 100}, "lru"],
        )
    ).tables[0]
    assert (table.capacity, table.admission) == (1000, Counter(threshold=3))
    assert table.eviction == (Age(steps=100, every=100), Lru())
    alone = Schema.from_dict(policies(admission="read_only", eviction={"kind": "age", "steps": 9})).tables[0]
    assert (alone.admission, alone.eviction) == (ReadOnly(), (Age(steps=9),))
    assert Schema.from_dict(policies()).tables[0].eviction == ()
    schema = Schema.from_dict(policies(capacity=10, eviction="lfu"))
    assert Schema.from_dict(schema.to_dict()) == schema


def test_policies_that_contradict_or_cannot_be_are_all_told_at_once() -> None:
    found = problems_of(
        policies(
            capacity=0,
            admission={"kind": "bloom", "threshold": 300, "bytes": 10, "hashes": 9},
            eviction=["lru", "lfu", {"kind": "age", "steps": 0, "every": 0}, {"kind": "age", "steps": 1}],
        )
    )
    assert found == [
        "table 'c1': capacity is 0, need at least 1 and less than 2^31",
        "table 'c1': admission bloom threshold is 300, its cells count to 255; take counter",
        "table 'c1': admission bloom bytes is 10, need at least 65536, 16 for each virtual shard",
        "table 'c1': admission bloom hashes is 9, need 1 to 8",
        "table 'c1': eviction age every is 0, need at least 1",
        "table 'c1': eviction age steps is 0, need at least 1",
        "table 'c1': evictions lru and lfu both keep to the capacity; take one of them",
        "table 'c1': eviction age is declared 2 times; take one of them",
    ]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"admission": "countr"}, "table 'c1'.admission: unknown kind 'countr'; did you mean 'counter'?"),
        ({"admission": "counter"}, "table 'c1'.admission: 'threshold' is missing"),
        (
            {"eviction": {"kind": "lru", "evry": 2}},
            "table 'c1'.eviction[0]: unknown option 'evry'; did you mean 'every'?",
        ),
        ({"eviction": "lru"}, "table 'c1': eviction lru keeps to a capacity, and the table has none; give it capacity"),
        (
            {"eviction": {"kind": "score", "function": "f"}, "capacity": 5},
            "table 'c1': eviction score function is 'f'; write module.name",
        ),
        (
            {"admission": {"kind": "probability", "probability": 0}},
            "table 'c1': admission probability is 0, need more than 0 and at most 1; for none at all say read_only",
        ),
        ({"eviction": {"kind": "ttl", "seconds": -1}}, "table 'c1': eviction ttl seconds is -1, need more than 0"),
        ({"eviction": {"kind": "l2_norm", "below": 0}}, "table 'c1': eviction l2_norm below is 0, need more than 0"),
        (
            {"admission": {"kind": "bloom", "threshold": 2, "halve_every": 0}},
            "table 'c1': admission bloom halve_every is 0, need at least 1, or nothing to keep all counts",
        ),
        (
            {"admission": {"kind": "counter", "threshold": 0}},
            "table 'c1': admission counter threshold is 0, need at least 1",
        ),
    ],
)
def test_mistakes_in_policies_say_what_to_write(options: dict[str, Any], problem: str) -> None:
    assert problems_of(policies(**options)) == [problem]
