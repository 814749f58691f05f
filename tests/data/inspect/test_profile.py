"""What is found in columns, against plain Python over the same rows."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recis_lightning.data.files.manifest import read_manifest
from recis_lightning.data.inspect.profile import (
    ColumnProfile,
    Distinct,
    choose_stripes,
    declare,
    hash_values,
    profile_files,
)
from tests.data.click_rows import write_stripes


def profile(folder: Path, stripes: list[dict[str, pa.Array]], **options: Any) -> dict[str, ColumnProfile]:
    write_stripes(folder / "a.orc", [pa.table(stripe) for stripe in stripes])
    return profile_files(read_manifest(folder)[0], **options).columns


NUMBERS = st.lists(st.none() | st.integers(-(2**31), 2**31), min_size=1, max_size=30)
LISTS = st.lists(st.none() | st.lists(st.none() | st.text("abc", max_size=3), max_size=4), min_size=1, max_size=15)


@settings(max_examples=30, deadline=None)
@given(numbers=NUMBERS, lists=LISTS, cut=st.integers(1, 29))
def test_counts_and_ranges_are_those_of_all_rows(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[Any], lists: list[Any], cut: int
) -> None:
    rows = min(len(numbers), len(lists))
    numbers, lists = numbers[:rows], lists[:rows]
    table = {"n": pa.array(numbers, pa.int64()), "l": pa.array(lists, pa.list_(pa.string()))}
    stripes = [{name: array[at : at + cut] for name, array in table.items()} for at in range(0, rows, cut)]
    found = profile(tmp_path_factory.mktemp("p"), stripes)
    present = [n for n in numbers if n is not None]
    n, texts = found["n"], found["l"]
    assert (n.rows, n.missing, n.values) == (rows, rows - len(present), len(present))
    assert (n.low, n.high) == ((min(present), max(present)) if present else (None, None))
    assert n.distinct.estimate() == len(set(present))
    assert math.isclose(n.mean, float(np.mean(present)) if present else 0.0, rel_tol=1e-9, abs_tol=1e-6)
    assert sorted(n.sampled().to_pylist()) == sorted(present)
    flat = [text for row in lists if row is not None for text in row]
    lengths = [len(row) for row in lists if row is not None]
    assert (texts.missing, texts.empty) == (lists.count(None), lists.count([]))
    assert (texts.values, texts.missing_values) == (len(flat) - flat.count(None), flat.count(None))
    assert (texts.shortest, texts.longest) == ((min(lengths), max(lengths)) if lengths else (None, None))
    assert texts.distinct.estimate() == len({text for text in flat if text is not None})


def test_distinct_values_are_exact_when_few_and_close_when_many() -> None:
    few, many = Distinct(), Distinct()
    for first in range(0, 400_000, 10_000):
        few.add(hash_values(pa.array([value % 16_000 for value in range(first, first + 10_000)])))
        many.add(hash_values(pa.array(range(first, first + 10_000))))
    assert (few.is_exact, few.estimate()) == (True, 16_000)
    assert not many.is_exact
    assert abs(many.estimate() / 400_000 - 1) < 4 / 128  # four standard errors


def test_equal_values_have_equal_hashes() -> None:
    assert hash_values(pa.array([0.0, -0.0]))[0] == hash_values(pa.array([-0.0]))[0]
    assert len(set(hash_values(pa.array(["a", "b", "a"])).tolist())) == 2


def test_parts_of_structs_maps_and_pairs_are_columns_of_their_own() -> None:
    pairs = pa.list_(pa.struct([("id", pa.int64()), ("weight", pa.float32())]))
    found = [*declare("tags", pairs), *declare("prices", pa.map_(pa.string(), pa.float64()))]
    assert [(c.name, c.source, c.dtype, c.layout) for c in found] == [
        ("tags_id", "tags.id", "int64", "list"),
        ("tags_weight", "tags.weight", "float32", "list"),
        ("prices_key", "prices.key", "string", "list"),
        ("prices_value", "prices.value", "float64", "list"),
    ]
    (nested,) = declare("x", pa.list_(pa.list_(pa.list_(pa.int64()))))
    assert (nested.layout, nested.levels) == ("nested_list", 3)
    assert [*declare("x", pa.list_(pa.binary()))] == []


def test_some_rows_are_read_evenly(tmp_path: Path) -> None:
    stripes = [{"x": pa.array([at] * 10)} for at in range(10)]
    rows = profile(tmp_path, stripes, max_rows=30)["x"].rows
    manifest, _ = read_manifest(tmp_path)
    chosen, last = choose_stripes(manifest, 30), len(manifest.stripe_rows) - 1
    assert (chosen[0], chosen[-1], rows) == (0, last, int(manifest.stripe_rows[chosen].sum()))
    assert 30 <= rows < 60
    assert choose_stripes(manifest, None) == choose_stripes(manifest, 100) == list(range(last + 1))


def test_nan_and_infinity_are_no_bounds(tmp_path: Path) -> None:
    found = profile(tmp_path, [{"x": pa.array([1.0, math.nan, math.inf, 3.0])}])["x"]
    assert (found.low, found.high, found.values) == (1, 3, 4)
