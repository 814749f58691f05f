import json

import pytest
import yaml

from recis_lightning.cli import main
from recis_lightning.data.convert.feature_config import FgError, convert_fg
from recis_lightning.schema import TRANSFORMS, Schema


def feature(name, **settings):
    """An id feature as fg.json has it; None takes a key away."""
    base = {
        "feature_name": name,
        "feature_type": "id_feature",
        "value_type": "String",
        "expression": f"user:{name}",
        "hash_bucket_size": 100,
        "embedding_dimension": 8,
        "shared_name": name,
        "need_prefix": False,
        "gen_key_type": "hash",
        "gen_val_type": "lookup",
    }
    return {key: value for key, value in (base | settings).items() if value is not None}


PRICE = feature(
    "price",
    feature_type="raw_feature",
    value_type="Double",
    boundaries="0.0,2.5,10",
    hash_bucket_size=None,
    gen_key_type="boundary",
)
COUNT = feature(
    "count",
    feature_type="raw_feature",
    value_type="Double",
    hash_bucket_size=None,
    embedding_dimension=None,
    gen_key_type="idle",
    gen_val_type="idle",
)
ITEM_ID = feature("item", value_type="Integer", hash_bucket_size=None, gen_key_type="idle", combiner="sum")
SEQUENCE = {
    "sequence_name": "clicks",
    "feature_name": "clicks",
    "sequence_length": 20,
    "features": [feature("item", shared_name="item"), PRICE],
}


def convert(*features, **options):
    converted = convert_fg({"features": list(features)}, **options)
    return Schema.from_dict(converted.settings), converted.notes


def named(schema, name):
    return next(found for found in schema.features if found.name == name)


def column(schema, name):
    return next(found for found in schema.columns if found.name == name)


def kinds(found):
    return [transform.kind for transform in found.transforms]


def test_hashed_strings_become_ids_of_a_table():
    schema, _ = convert(feature("city"))
    city = named(schema, "city")
    assert (column(schema, "city").dtype, column(schema, "city").layout, column(schema, "city").hash) == (
        "string",
        "list",
        "farm",
    )
    assert (city.table, city.pooling, city.transforms[0].divisor) == ("city", "mean", 100)
    assert schema.table("city").dim == 8


def test_murmur_and_hashes_in_the_files_are_known():
    assert column(convert(feature("city", hash_type="murmur"))[0], "city").hash == "murmur"
    schema, _ = convert(feature("city"), already_hashed=True)
    assert (column(schema, "city").dtype, kinds(named(schema, "city"))) == ("int64", ["modulo"])


def test_integers_are_looked_up_as_they_are():
    schema, _ = convert(ITEM_ID)
    item = named(schema, "item")
    assert (column(schema, "item").dtype, item.transforms, item.pooling) == ("int64", (), "sum")


def test_boundaries_make_buckets_and_a_missing_number_is_zero_as_in_recis():
    schema, _ = convert(PRICE)
    assert named(schema, "price").transforms[0].boundaries == (0.0, 2.5, 10.0)
    assert column(schema, "price").default == 0.0


def test_boundaries_that_do_not_rise_are_sorted_and_noted():
    schema, notes = convert(PRICE | {"boundaries": "5,1,5"})
    assert named(schema, "price").transforms[0].boundaries == (1.0, 5.0)
    assert any("do not rise" in note for note in notes)


def test_single_numbers_are_dense_features():
    schema, _ = convert(COUNT)
    assert [found.name for found in schema.dense_features] == ["count"]


def test_sequences_keep_their_entries_and_the_names_recis_gives_them():
    schema, notes = convert(SEQUENCE)
    assert [found.name for found in schema.features] == ["clicks_item", "clicks_price"]
    assert {found.pooling for found in schema.features} == {"none"}
    assert {found.table for found in schema.features} == {"item", "price"}
    if "truncate" in TRANSFORMS:
        assert all(kinds(found)[0] == "truncate" for found in schema.features)
    else:
        assert sum("sequence_length 20" in note for note in notes) == 2


def test_features_that_no_block_names_are_left_out():
    mc = {"user": ["City"], "clicks": ["item"], "raw": ["clicks_price"]}
    schema, notes = convert(feature("city"), feature("other"), COUNT, SEQUENCE, mc=mc)
    assert [found.name for found in schema.features] == ["city", "clicks_item", "clicks_price"]
    assert any("the blocks of mc.json (user, clicks, raw)" in note for note in notes)


def test_a_shared_table_is_declared_once():
    schema, _ = convert(feature("seen", shared_name="item"), feature("bought", shared_name="item"))
    assert [table.name for table in schema.tables] == ["item"]


def test_a_feature_may_read_the_column_of_another():
    schema, _ = convert(feature("city"), feature("home", from_feature="city", shared_name="home"))
    assert named(schema, "home").column == "city"
    assert [found.name for found in schema.columns] == ["city"]


def test_labels_become_columns_and_tasks():
    schema, _ = convert(feature("city"), labels=["click", "buy"])
    assert [(task.name, task.loss) for task in schema.tasks] == [("click", "bce"), ("buy", "bce")]
    assert column(schema, "click").layout == "optional_list"


def test_multi_hash_is_carried_over_where_schemas_have_it():
    multi = feature(
        "id", gen_key_type="multihash", gen_val_type="multihash_lookup", compress_strategy="yx:50,60:concat:4"
    )
    schema, notes = convert(feature("city"), multi)
    if "multi_hash" in TRANSFORMS:
        assert [found.name for found in schema.features] == ["city", "id_yx_0", "id_yx_1"]
        assert [found.table for found in schema.features] == ["city", "id-yx1", "id-yx2"]
    else:
        assert [found.name for found in schema.features] == ["city"]
        assert any("left out: multi-hash 'yx:50,60:concat:4'" in note for note in notes)


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"trainable": False}, "trainable: false is left out"),
        ({"admit_hook": {"name": "ReadOnly"}}, "admit_hook {'name': 'ReadOnly'} is left out"),
        ({"emb_type": "fp16"}, "emb_type 'fp16' is left out"),
        ({"emb_device": "cpu"}, "emb_device 'cpu' is left out"),
        ({"combiner": "tile"}, "combiner 'tile' is left out"),
        ({"need_prefix": True}, "need_prefix is left out"),
        ({"surprise": 1}, "surprise 1 is left out; it is no key"),
        ({"gen_key_type": "ev_hash"}, "ev_hash drops the highest bit"),
        ({"hash_bucket_size": None}, "all 64 bits of hashes are kept"),
        ({"gen_key_type": "mask", "gen_val_type": "idle"}, "left out: masks"),
        ({"gen_key_type": "idle"}, "left out: strings are looked up without a hash"),
        ({"gen_key_type": "idle", "gen_val_type": "idle"}, "left out: ids and sequences of numbers"),
        ({"value_type": "Double", "gen_key_type": "idle"}, "left out: doubles are looked up"),
    ],
)
def test_what_is_not_carried_over_is_noted(changes, note):
    _, notes = convert(feature("city", **changes), feature("other"))
    assert any(f"feature 'city': {note}" in found for found in notes), notes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (feature("city", gen_key_type="magic"), "gen_key_type 'magic'"),
        (feature("city", gen_val_type=None), "has no 'gen_val_type'"),
        (feature("city", value_type="Blob"), "value_type 'blob'"),
        (feature("city", hash_type="md5"), "hash_type 'md5', need one of farmhash, murmur"),
        (feature("city", embedding_dimension=None), "has no 'embedding_dimension'"),
        ({"sequence_name": "s", "features": []}, "sequence 's' has no 'sequence_length'"),
    ],
)
def test_what_cannot_be_read_is_named(settings, message):
    with pytest.raises(FgError, match=message):
        convert(settings)


def test_one_shared_name_with_two_widths_is_an_error():
    with pytest.raises(FgError, match="has embedding_dimension 4, its shared_name 'x' has 8"):
        convert(feature("a", shared_name="x"), feature("b", shared_name="x", embedding_dimension=4))


def test_a_file_without_features_is_refused():
    with pytest.raises(FgError, match="holds no list of features"):
        convert_fg({"feature": []})


def test_the_command_writes_a_schema_with_its_notes(tmp_path, capsys):
    (tmp_path / "fg.json").write_text(json.dumps({"features": [feature("city"), PRICE, COUNT, SEQUENCE]}))
    (tmp_path / "mc.json").write_text(json.dumps({"all": ["city", "price", "count"], "clicks": ["item"]}))
    out = tmp_path / "schema.yaml"
    paths = [str(tmp_path / "fg.json"), str(tmp_path / "mc.json")]
    assert main(["data", "convert-fg", *paths, "--label", "click", "--out", str(out)]) == 0
    schema = Schema.from_dict(yaml.safe_load(out.read_text()))
    assert [found.name for found in schema.features] == ["city", "price", "count", "clicks_item"]
    assert out.read_text().startswith("# sequence 'clicks'")
    assert "5 columns, 3 tables, 4 features, 1 tasks" in capsys.readouterr().err


def test_the_command_tells_a_mistake_in_a_line(tmp_path, capsys):
    assert main(["data", "convert-fg", str(tmp_path / "none.json")]) == 2
    assert "none.json can't be read" in capsys.readouterr().err
    (tmp_path / "fg.json").write_text("{")
    assert main(["data", "convert-fg", str(tmp_path / "fg.json")]) == 2
    assert "fg.json is no JSON" in capsys.readouterr().err
