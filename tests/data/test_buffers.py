"""Where columns of a stripe are found: in the stripe itself, or in plain numbers that were made of it."""

import ctypes

import numpy as np
import pyarrow as pa

from recis_lightning.data.buffers import Located, Locator
from recis_lightning.data.columns import Selection
from recis_lightning.schema import Schema
from triton_ops.hash_bytes.reference import farm_fingerprint64
from triton_ops.pack.types import COUNT, KIND, KINDS, OFFSETS, VALUE_BITS, VALUES

SCHEMA = Schema.from_dict(
    {
        "columns": [
            {"name": "label", "dtype": "float32"},
            {"name": "user", "dtype": "int64"},
            {"name": "city", "dtype": "string", "hash": "farm"},
            {"name": "small", "dtype": "int32"},
            {"name": "price", "dtype": "string", "parse": "float32", "default": 0},
            {"name": "items", "dtype": "int64", "layout": "list"},
            {"name": "words", "dtype": "string", "hash": "farm", "layout": "list"},
        ],
        "tables": [{"name": name, "dim": 4} for name in ("user", "city", "small", "items", "words")],
        "features": [
            {"name": "price"},
            *({"name": name, "table": name} for name in ("user", "city", "small", "items", "words")),
        ],
        "tasks": [{"name": "ctr", "label": "label"}],
    }
)
STRIPE = pa.record_batch(
    {
        "label": pa.array([1, 0, 1], pa.float32()),
        "user": pa.array([7, None, 9]),
        "city": pa.array(["a", None, "bc"]),
        "small": pa.array([4, 5, 6], pa.int32()),
        "price": pa.array(["1.5", None, "2"]),
        "items": pa.array([[1, 2], [], None], pa.list_(pa.int64())),
        "words": pa.array([["a"], None, ["bc", "a"]], pa.list_(pa.string())),
    }
)


def values_of(locator: Locator, found: Located, name: str) -> list[float]:
    """All values of a column as the table tells, whatever is null."""
    slot = [column.name for column in locator.columns].index(name)
    source = found.sources_K6[slot].tolist()
    dtype = KINDS[source[KIND]]
    return np.frombuffer(ctypes.string_at(source[VALUES], dtype.itemsize * source[COUNT]), dtype).tolist()


def signed(text: str) -> int:
    value = farm_fingerprint64(text.encode())
    return value - (value >> 63 << 64)


def test_numbers_lie_in_the_stripe_and_all_else_is_made_into_numbers() -> None:
    locator = Locator(Selection.of(SCHEMA))
    found = locator.locate(STRIPE)
    slots = {column.name: slot for slot, column in enumerate(locator.columns)}
    for name, array in (("user", STRIPE["user"]), ("label", STRIPE["label"]), ("items", STRIPE["items"].values)):
        assert found.sources_K6[slots[name], VALUES] == array.buffers()[1].address
    assert values_of(locator, found, "small") == [4, 5, 6]
    assert values_of(locator, found, "price")[::2] == [1.5, 2]
    assert values_of(locator, found, "city")[::2] == [signed("a"), signed("bc")]
    assert values_of(locator, found, "words") == [signed("a"), signed("bc"), signed("a")]
    is_null = {name: bool(found.sources_K6[slot, VALUE_BITS]) for name, slot in slots.items()}
    assert [name for name, null in is_null.items() if null] == ["user", "city", "price"]
    is_list = {name: bool(found.sources_K6[slot, OFFSETS]) for name, slot in slots.items()}
    assert [name for name, list_ in is_list.items() if list_] == ["items", "words"]
    assert not found.suspects


def test_columns_are_found_by_name_in_stripes_of_any_order() -> None:
    locator = Locator(Selection.of(SCHEMA))
    turned = STRIPE.select(STRIPE.schema.names[::-1])
    for stripe in (STRIPE, turned, STRIPE):
        assert values_of(locator, locator.locate(stripe), "label") == [1, 0, 1]


def test_columns_with_strings_that_are_no_numbers_are_suspect() -> None:
    stripe = STRIPE.set_column(4, "price", pa.array(["1.5", "cheap", "2"]))
    assert Locator(Selection.of(SCHEMA)).locate(stripe).suspects == {"price"}
