"""The synthetic click log: a function of its settings, true to its recipe,and whole."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.orc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recis_lightning.data.errors import DataError
from recis_lightning.data.synthetic import generator
from recis_lightning.data.synthetic.generator import (
    ID_COLUMNS,
    NOUNS,
    SCALES,
    World,
    is_written,
    to_ids,
    write_click_log,
)

ROWS, VALIDATION_ROWS = 70_000, 10_000  # two blocks of training


def read(folder: Path) -> pa.Table:
    return pa.concat_tables([pyarrow.orc.read_table(path) for path in sorted(folder.glob("*.orc"))])


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    write_click_log(folder, rows=ROWS, validation_rows=VALIDATION_ROWS, seed=3)
    return folder


@pytest.fixture(scope="module")
def train(log: Path) -> pa.Table:
    return read(log / "train")


@pytest.fixture(scope="module")
def valid(log: Path) -> pa.Table:
    return read(log / "valid")


def test_a_log_has_the_rows_and_parts_asked_for(log: Path, train: pa.Table, valid: pa.Table) -> None:
    assert (len(train), len(valid)) == (ROWS, VALIDATION_ROWS)
    assert len(list((log / "train").iterdir())) == 10
    assert len(list((log / "valid").iterdir())) == 2


def test_columns_have_the_declared_types(valid: pa.Table) -> None:
    expected = {column.name: pa.int64() for column in ID_COLUMNS} | {f"d{index}": pa.float32() for index in range(4)}
    expected |= {"click": pa.float32(), "conversion": pa.float32(), "timestamp": pa.int64(), "day": pa.int32()}
    expected |= {"price": pa.float32(), "referrer_id": pa.int64(), "min_train_count": pa.int32()}
    expected |= {"item_key": pa.string(), "device": pa.string(), "title": pa.string()}
    expected |= {"interests": pa.list_(pa.int64()), "interest_weights": pa.list_(pa.float32())}
    expected |= {"p_click": pa.float64(), "p_conversion": pa.float64()}
    found = {field.name: field.type for field in valid.schema}
    assert {name: str(kind).replace("element", "item") for name, kind in found.items()} == {
        name: str(kind).replace("element", "item") for name, kind in expected.items()
    }


def test_the_same_settings_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_click_log(tmp_path / name, rows=3000, validation_rows=500, seed=1)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 13
    for path in files:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()


def test_another_seed_gives_other_rows_and_other_ids(tmp_path: Path) -> None:
    tables = []
    for seed in (1, 2):
        write_click_log(tmp_path / str(seed), rows=2000, validation_rows=100, seed=seed)
        tables.append(read(tmp_path / str(seed) / "train"))
    devices = [set(table["device_id"].to_pylist()) for table in tables]
    assert not devices[0] & devices[1]
    assert tables[0]["d0"] != tables[1]["d0"]


def test_a_seed_keeps_its_meaning(train: pa.Table) -> None:
    # A change here changes every log of every user: raise FORMAT with it.
    assert train["user_id"][:3].to_pylist() == [-5148077404747505422, -9118456369471807420, 7269988725901658799]
    assert sum(train["click"].to_pylist()) == 11053


def test_side_columns_are_the_probabilities_behind_the_labels(train: pa.Table) -> None:
    p_click, click = train["p_click"].to_numpy(), train["click"].to_numpy()
    # Calibrated in every tenth of the probabilities, within four standard errors.
    for rows in np.array_split(np.argsort(p_click), 10):
        error = np.sqrt((p_click[rows] * (1 - p_click[rows])).sum()) / len(rows)
        assert abs(click[rows].mean() - p_click[rows].mean()) < 4 * error
    clicked = click > 0
    p_conversion, conversion = train["p_conversion"].to_numpy(), train["conversion"].to_numpy()
    assert not conversion[~clicked].any()
    error = np.sqrt((p_conversion * (1 - p_conversion))[clicked].sum()) / clicked.sum()
    assert abs(conversion[clicked].mean() - p_conversion[clicked].mean()) < 4 * error


def test_click_logits_follow_the_recipe(train: pa.Table) -> None:
    world = World.draw(3)
    ranks = []
    for column, vocabulary in zip(ID_COLUMNS, world.vocabularies, strict=True):
        rank_of = {value: rank for rank, value in enumerate(vocabulary.ids_V.tolist())}
        ranks.append(np.array([rank_of[value] for value in train[column.name].to_pylist()]))
    logits = np.full(len(train), -2.2)
    for vocabulary, ranks_B in zip(world.vocabularies, ranks, strict=True):
        logits += vocabulary.click_V[ranks_B]
    logits += (world.user_factors_VK[ranks[0]] * world.item_factors_VK[ranks[1]]).sum(1)
    d0, d1, d2, d3 = (train[f"d{index}"].to_numpy().astype(np.float64) for index in range(4))
    logits += 0.3 * d0 - 0.2 * d1 + 0.2 * d2 * d3
    np.testing.assert_allclose(train["p_click"].to_numpy(), 1 / (1 + np.exp(-logits)), rtol=1e-12)


def test_effects_and_factors_have_the_declared_spread() -> None:
    world = World.draw(0)
    for column, vocabulary in zip(ID_COLUMNS, world.vocabularies, strict=True):
        four_errors = 4 / np.sqrt(2 * column.values)
        assert abs(vocabulary.click_V.std() / column.effect - 1) < max(four_errors, 0.02)
        assert abs(vocabulary.conversion_V.std() / column.effect - 0.5) < max(four_errors, 0.02)
    for factors in (world.user_factors_VK, world.item_factors_VK):
        assert factors.shape[1] == 4
        np.testing.assert_allclose(factors.std(0), 0.45, atol=0.01)


def test_ids_are_zipf_over_their_values(train: pa.Table) -> None:
    world = World.draw(3)
    for column, vocabulary in zip(ID_COLUMNS[2:], world.vocabularies[2:], strict=True):
        rank_of = {value: rank for rank, value in enumerate(vocabulary.ids_V.tolist())}
        counts = np.bincount([rank_of[value] for value in train[column.name].to_pylist()], minlength=column.values)
        weights = np.arange(1, column.values + 1) ** -1.05
        expected = weights / weights.sum() * len(train)
        assert (abs(counts - expected)[:5] < 5 * np.sqrt(expected[:5])).all()


@given(st.integers(0, 9), st.integers(0, 2**48 - 2), st.integers(0, 100))
def test_ids_of_different_columns_and_ranks_never_meet(space: int, rank: int, seed: int) -> None:
    ids = [to_ids(s, np.array([rank, rank + 1]), seed) for s in (space, space + 1)]
    assert len(np.unique(np.concatenate(ids))) == 4


def test_ids_use_all_64_bits() -> None:
    ids = to_ids(0, np.arange(10_000), seed=0)
    bits = (ids.view(np.uint64)[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert (abs(bits.mean(0) - 0.5) < 0.03).all()


def test_new_users_and_items_enter_over_time(train: pa.Table, valid: pa.Table) -> None:
    world, day = World.draw(3), train["day"].to_numpy()
    for space, name in enumerate(("user_id", "item_id")):
        vocabulary = world.vocabularies[space]
        late = set(vocabulary.ids_V[vocabulary.entry_V > 0].tolist())
        assert 0.17 < len(late) / len(vocabulary.ids_V) < 0.22
        is_late = np.array([value in late for value in train[name].to_pylist()])
        assert is_late[day == 9].mean() > 3 * is_late[day == 0].mean()
        seen = set(train[name].to_pylist())
        assert any(value in late and value not in seen for value in valid[name].to_pylist())


def test_no_id_appears_before_it_enters(train: pa.Table) -> None:
    vocabulary = World.draw(3).vocabularies[1]
    entry_of = dict(zip(vocabulary.ids_V.tolist(), vocabulary.entry_V.tolist(), strict=True))
    entries = np.array([entry_of[value] for value in train["item_id"].to_pylist()])
    assert (entries <= np.arange(ROWS) / (ROWS + VALIDATION_ROWS)).all()


def test_rows_are_in_the_order_of_time_and_days_are_even(train: pa.Table, valid: pa.Table) -> None:
    timestamps = np.concatenate([train["timestamp"].to_numpy(), valid["timestamp"].to_numpy()])
    assert (np.diff(timestamps) >= 0).all()
    assert np.bincount(train["day"].to_numpy()).tolist() == [ROWS // 10] * 10
    assert valid["day"].to_numpy().min() == 10


def test_min_train_count_is_that_of_the_rarest_id(train: pa.Table, valid: pa.Table) -> None:
    counts = []
    for column in ID_COLUMNS:
        values, times = np.unique(train[column.name].to_numpy(), return_counts=True)
        seen = dict(zip(values.tolist(), times.tolist(), strict=True))
        counts.append([seen.get(value, 0) for value in valid[column.name].to_pylist()])
    assert valid["min_train_count"].to_pylist() == np.min(counts, axis=0).tolist()
    assert "min_train_count" not in train.column_names


def test_only_the_extra_columns_have_nulls(train: pa.Table) -> None:
    shares = {name: train[name].null_count / len(train) for name in train.column_names if train[name].null_count}
    assert shares == {
        "price": pytest.approx(0.1, abs=0.01),
        "referrer_id": pytest.approx(0.3, abs=0.01),
        "interests": pytest.approx(0.05, abs=0.01),
        "interest_weights": pytest.approx(0.05, abs=0.01),
    }


def test_interests_vary_in_length_and_have_a_weight_each(train: pa.Table) -> None:
    lists = [
        (ids, weights)
        for ids, weights in zip(*(train[n].to_pylist() for n in ("interests", "interest_weights")), strict=True)
    ]
    assert all((ids is None) == (weights is None) for ids, weights in lists)
    assert all(len(ids) == len(weights) for ids, weights in lists if ids is not None)
    assert {len(ids) for ids, _ in lists if ids is not None} == {0, 1, 2, 3, 4, 5}


def test_titles_describe_effect_and_factors() -> None:
    world = World.draw(0)
    items = world.vocabularies[1]
    traits = np.column_stack([items.click_V, world.item_factors_VK / 0.45])
    titles = [title.split() for title in world.titles_V.to_pylist()]
    for trait, scale in enumerate(SCALES):
        level_of = {word: level for level, word in enumerate(scale)}
        levels = np.array([next(level_of[word] for word in title if word in level_of) for title in titles])
        # The octile of a trait tells 1 - (within-octile variance) of it: about .97 of a normal one.
        means = np.array([traits[levels == level, trait].mean() for level in range(8)])
        assert (np.diff(means) > 0).all()
        assert np.corrcoef(means[levels], traits[:, trait])[0, 1] ** 2 > 0.9
    assert {title[-1] for title in titles} == set(NOUNS)


def test_string_columns_name_items_and_devices_one_to_one(train: pa.Table) -> None:
    for key, name in (("item_key", "item_id"), ("device", "device_id")):
        pairs = set(zip(train[key].to_pylist(), train[name].to_pylist(), strict=True))
        assert len(pairs) == len({key for key, _ in pairs}) == len({value for _, value in pairs})


def test_a_written_log_is_recognised_by_its_settings(log: Path, tmp_path: Path) -> None:
    assert is_written(log, rows=ROWS, validation_rows=VALIDATION_ROWS, seed=3)
    assert not is_written(log, rows=ROWS, validation_rows=VALIDATION_ROWS, seed=4)
    assert not is_written(tmp_path)


def test_progress_counts_every_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "BLOCK_ROWS", 700)
    told: list[int] = []
    write_click_log(tmp_path, rows=2000, validation_rows=100, on_rows=told.append)
    assert told == [700, 700, 600, 100]


@pytest.mark.parametrize("wrong", [{"rows": 9}, {"validation_rows": 0}, {"seed": -1}])
def test_sizes_that_make_no_log_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(DataError, match="need at least 10 rows"):
        write_click_log(tmp_path, **wrong)
