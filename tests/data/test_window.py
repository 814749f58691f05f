"""What values alone can tell: each fault is an error at the first batch that reaches its row, and names the row."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import orc

from recis_lightning.data.columns import Selection
from recis_lightning.data.errors import DataError
from recis_lightning.data.files.manifest import read_manifest
from recis_lightning.data.files.stripes import StripeReader
from recis_lightning.data.loader import OrcLoader
from recis_lightning.data.plan import EpochPlan, Order
from recis_lightning.data.window import WindowPacker
from recis_lightning.ragged import Batch, Ragged
from recis_lightning.schema import Schema
from tests.data.click_rows import write_stripes

LIST = pa.list_(pa.int64())
FLOATS = pa.list_(pa.float32())


def make_schema(columns: dict[str, dict[str, Any]], weights: str | None = None) -> Schema:
    """Columns named id... are looked up, `weights` weighs `ids`, `label` is the label, all others are dense."""
    ids = [name for name in columns if name.startswith("id")]
    features: list[dict[str, Any]] = [{"name": name, "table": name} for name in ids]
    if weights:
        features[ids.index("ids")]["weights"] = weights
    features += [{"name": name} for name in columns if name not in [*ids, "label", weights]]
    settings = {
        "columns": [{"name": name, **column} for name, column in columns.items()],
        "tables": [{"name": name, "dim": 4} for name in ids],
        "features": features,
        "tasks": [{"name": "ctr", "label": "label"}] if "label" in columns else [],
    }
    return Schema.from_dict(settings)


def make_loader(folder: Path, schema: Schema, **order: Any) -> OrcLoader:
    settings = {"batch_size": 2, "streams": 1, "shuffle": False} | order
    return OrcLoader(read_manifest(folder)[0], Selection.of(schema), Order(**settings))


def read_column(tmp_path: Path, values: pa.Array, **column: Any) -> list[Any]:
    """The one column of one batch, as a feature with a table where the name says so."""
    name = column.pop("name", "x")
    orc.write_table(pa.table({name: values}), tmp_path / "a.orc")
    (batch,) = make_loader(tmp_path, make_schema({name: column}), batch_size=len(values))
    entry = batch[name]
    return entry.to_lists() if isinstance(entry, Ragged) else entry.tolist()


def fault_of(tmp_path: Path, values: pa.Array, **column: Any) -> str:
    """The error that the one column meets, without the place in front of it."""
    with pytest.raises(DataError) as caught:
        read_column(tmp_path, values, **column)
    place, _, fault = str(caught.value).partition(": ")
    assert place.startswith(f"{tmp_path}/a.orc, stripe 0, row ")
    return fault


# --------------------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ({"dtype": "int8"}, pa.array([1, -2], pa.int8()), [1, -2]),
        ({"dtype": "int16"}, pa.array([1, -2], pa.int16()), [1, -2]),
        ({"dtype": "int32", "default": 0.5}, pa.array([1, None], pa.int32()), [1, 0.5]),
        ({"dtype": "int64"}, pa.array([2**24, -(2**24)]), [2.0**24, -(2.0**24)]),
        ({"dtype": "bool", "default": 0}, pa.array([True, False, None]), [1, 0, 0]),
        ({"dtype": "float64", "default": 0.5}, pa.array([1.5, None]), [1.5, 0.5]),
        ({"dtype": "string", "parse": "float32", "default": 0}, pa.array(["1.5", None, "-2e3"]), [1.5, 0, -2000]),
        ({"dtype": "string", "parse": "int64"}, pa.array(["15", "-2"]), [15, -2]),
        (
            {"dtype": "float64", "layout": "optional_list", "default": 0.5},
            pa.array([[1.5], [], None, [None]], pa.list_(pa.float64())),
            [1.5, 0.5, 0.5, 0.5],
        ),
    ],
)
def test_dense_columns_become_one_float_a_row(
    tmp_path: Path, column: dict[str, Any], values: pa.Array, expected: list[float]
) -> None:
    assert read_column(tmp_path, values, **column) == expected


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ({"dtype": "int64"}, pa.array([2**63 - 1, None, -(2**63)]), [[2**63 - 1], [], [-(2**63)]]),
        ({"dtype": "int64", "default": 7}, pa.array([5, None]), [[5], [7]]),
        ({"dtype": "int32"}, pa.array([5, None], pa.int32()), [[5], []]),
        ({"dtype": "bool"}, pa.array([True, None]), [[1], []]),
        ({"dtype": "string", "hash": "murmur"}, pa.array(["", None, "a"]), [[0], [], [510903276987443985]]),
        ({"dtype": "string", "parse": "int64"}, pa.array(["15", None]), [[15], []]),
        ({"dtype": "int64", "layout": "optional_list"}, pa.array([[5], [], None], LIST), [[5], [], []]),
        ({"dtype": "int64", "layout": "optional_list", "default": 7}, pa.array([[5], [], None], LIST), [[5], [7], [7]]),
        ({"dtype": "int64", "layout": "list"}, pa.array([[5, 6], [], None], LIST), [[5, 6], [], []]),
        ({"dtype": "int64", "layout": "list", "default": 7}, pa.array([[5, None], [], None], LIST), [[5, 7], [], []]),
        (
            {"dtype": "string", "hash": "murmur", "layout": "list"},
            pa.array([["a", ""], [], None], pa.list_(pa.string())),
            [[510903276987443985, 0], [], []],
        ),
        ({"dtype": "string", "hash": "farm", "layout": "list"}, pa.array([[], None], pa.list_(pa.string())), [[], []]),
        ({"dtype": "string", "hash": "farm"}, pa.array([None, None], pa.string()), [[], []]),
    ],
)
def test_id_columns_become_rows_of_ids(
    tmp_path: Path, column: dict[str, Any], values: pa.Array, expected: list[list[int]]
) -> None:
    assert read_column(tmp_path, values, name="id", **column) == expected


def test_repeated_reads_are_bit_equal_where_rows_are_null(tmp_path: Path) -> None:
    numbers = [None if n % 3 else n for n in range(5000)]
    write_stripes(tmp_path / "a.orc", [pa.table({"x": pa.array(numbers, pa.float32()), "id": pa.array(numbers)})])
    schema = make_schema({"x": {"dtype": "float32", "default": 0.5}, "id": {"dtype": "int64"}})
    loader = make_loader(tmp_path, schema, batch_size=1000)
    reads = [[batch.buffer for batch in loader] for _ in range(5)]
    assert all(one.equal(other) for read in reads[1:] for one, other in zip(reads[0], read, strict=True))


# --------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("column", "values", "fault"),
    [
        (
            {"dtype": "float32"},
            pa.array([1, None], pa.float32()),
            "column 'x', an input of feature 'x', is missing and has no default; declare default: <number>",
        ),
        (
            {"dtype": "float32"},
            pa.array([None, None], pa.float32()),
            "column 'x', an input of feature 'x', is missing (as in all rows of this stripe) and has no default",
        ),
        (
            {"name": "label", "dtype": "float32"},
            pa.array([1, None], pa.float32()),
            "column 'label', the label of task 'ctr', is missing and has no default",
        ),
        (
            {"dtype": "float64", "layout": "optional_list"},
            pa.array([[1.0], []], pa.list_(pa.float64())),
            "column 'x', an input of feature 'x', is missing and has no default",
        ),
        (
            {"dtype": "int64"},
            pa.array([1, 2**24 + 1]),
            "column 'x', an input of feature 'x', holds 16777217, which float32 can't stand for",
        ),
        (
            {"dtype": "float64"},
            pa.array([1, -1e39]),
            "column 'x', an input of feature 'x', holds -1e+39, which float32",
        ),
        (
            {"dtype": "string", "parse": "float32", "default": 0},
            pa.array(["1", None, "one"]),
            "column 'x', an input of feature 'x', holds 'one', which is no number (float32); mend it, or declare hash",
        ),
        (
            {"dtype": "string", "parse": "float32"},
            pa.array(["1", "1e39"]),
            "column 'x', an input of feature 'x', holds 1e+39, which float32 can't stand for",
        ),
        (
            {"dtype": "string", "parse": "float32", "default": 0},
            pa.array(["1", ""]),
            "column 'x', an input of feature 'x', holds '', which is no number",
        ),
        (
            {"name": "id", "dtype": "string", "parse": "int64"},
            pa.array(["1", "1.5"]),
            "column 'id', an input of feature 'id', holds '1.5', which is no number (int64)",
        ),
        (
            {"name": "id", "dtype": "int64", "layout": "optional_list"},
            pa.array([[1], [2, 3]], LIST),
            "column 'id', an input of feature 'id', holds 2 values, layout optional_list allows one; declare layout",
        ),
        (
            {"dtype": "float32", "layout": "optional_list", "default": 0},
            pa.array([[1], [2, 3]], FLOATS),
            "column 'x', an input of feature 'x', holds 2 values, layout optional_list allows one",
        ),
        (
            {"name": "id", "dtype": "int64", "layout": "list"},
            pa.array([[1], [2, None]], LIST),
            "column 'id', an input of feature 'id', holds a null inside a list and has no default",
        ),
        (
            {"name": "id", "dtype": "string", "parse": "int64", "layout": "list"},
            pa.array([["1"], ["2", "x"]], pa.list_(pa.string())),
            "column 'id', an input of feature 'id', holds 'x', which is no number",
        ),
    ],
)
def test_a_fault_names_column_role_value_and_remedy(
    tmp_path: Path, column: dict[str, Any], values: pa.Array, fault: str
) -> None:
    assert fault_of(tmp_path, values, **column).startswith(fault)


WEIGHTED = make_schema(
    {"ids": {"dtype": "int64", "layout": "list"}, "w": {"dtype": "float32", "layout": "list"}}, weights="w"
)


def write_weighted(folder: Path, ids: list[Any], weights: list[Any]) -> None:
    orc.write_table(pa.table({"ids": pa.array(ids, LIST), "w": pa.array(weights, FLOATS)}), folder / "a.orc")


def test_weights_ride_beside_their_ids(tmp_path: Path) -> None:
    write_weighted(tmp_path, [[1, 2], None, [3]], [[0.5, 1.5], [], [2.5]])
    (batch,) = make_loader(tmp_path, WEIGHTED, batch_size=3)
    assert batch["ids"].to_lists() == [[1, 2], [], [3]]
    assert batch["w"].to_lists() == [[0.5, 1.5], [], [2.5]]


@pytest.mark.parametrize("weights", [[0.5], None, [1, 2, 3]])
def test_a_row_with_other_than_one_weight_for_each_id_is_named(tmp_path: Path, weights: Any) -> None:
    write_weighted(tmp_path, [[3], [1, 2]], [[1], weights])
    with pytest.raises(DataError, match=r"a.orc, stripe 0, row 1 .* column 'w', the weights of feature 'ids', has \d"):
        list(make_loader(tmp_path, WEIGHTED))


def test_single_ids_with_weights_keep_the_form_of_lists(tmp_path: Path) -> None:
    schema = make_schema(
        {"ids": {"dtype": "int64", "layout": "optional_list"}, "w": {"dtype": "float32", "layout": "optional_list"}},
        weights="w",
    )
    write_weighted(tmp_path, [[1], [], [3]], [[0.5], None, [2.5]])
    (batch,) = make_loader(tmp_path, schema, batch_size=3)
    assert (batch["ids"].to_lists(), batch["w"].to_lists()) == ([[1], [], [3]], [[0.5], [], [2.5]])
    write_weighted(tmp_path, [[1], [2, 2]], [[0.5], [1, 1]])
    with pytest.raises(DataError, match="row 1 .* column 'ids', .* holds 2 values, layout optional_list allows one"):
        list(make_loader(tmp_path, schema))


def test_a_default_for_single_ids_with_weights_is_refused() -> None:
    columns = {
        "ids": {"dtype": "int64", "layout": "optional_list", "default": 1},
        "w": {"dtype": "float32", "layout": "optional_list"},
    }
    with pytest.raises(DataError, match="column 'ids' has a default and goes with weights"):
        Selection.of(make_schema(columns, weights="w"))


def label_stripes(rows: int, missing: set[int]) -> list[pa.Table]:
    labels = [None if row in missing else float(row) for row in range(rows)]
    return [pa.table({"label": pa.array(labels[first : first + 10], pa.float32())}) for first in range(0, rows, 10)]


LABELS = make_schema({"label": {"dtype": "float32"}, "id": {"dtype": "int64"}})


def with_ids(tables: list[pa.Table]) -> list[pa.Table]:
    return [table.append_column("id", pa.array(range(len(table)))) for table in tables]


def test_batches_before_a_fault_are_delivered(tmp_path: Path) -> None:
    write_stripes(tmp_path / "a.orc", with_ids(label_stripes(40, missing={25, 31})))
    batches: list[Batch] = []
    with pytest.raises(DataError, match=r"a.orc, stripe 2, row 5 \(row 25 of the file\)"):
        batches.extend(make_loader(tmp_path, LABELS))
    assert [int(batch["label"][0]) for batch in batches] == list(range(0, 24, 2))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_fault_stops_at_the_batch_of_the_plan_for_any_threads(tmp_path: Path, seed: int, threads: int) -> None:
    write_stripes(tmp_path / "a.orc", with_ids(label_stripes(80, missing={25, 31, 77})))
    manifest = read_manifest(tmp_path)[0]
    order = Order(batch_size=8, streams=4, window_rows=60, seed=seed)
    plan = EpochPlan(manifest.stripe_rows, order, 0)
    faulty = {(2, 5), (3, 1), (7, 7)}
    steps = [step for step in range(plan.steps) if faulty & set(plan.addresses(step, range(4)))]
    delivered: list[Batch] = []
    with pytest.raises(DataError, match="is missing"):
        delivered.extend(OrcLoader(manifest, Selection.of(LABELS), order, read_threads=threads))
    assert len(delivered) == steps[0]


def test_a_resumed_run_does_not_step_over_a_fault(tmp_path: Path) -> None:
    write_stripes(tmp_path / "a.orc", with_ids(label_stripes(10, missing={2})))
    loader = make_loader(tmp_path, LABELS)
    loader.load_state_dict(loader.state_dict() | {"step": 3})
    with pytest.raises(DataError, match="row 2 "):
        next(iter(loader))


def test_a_stripe_that_cannot_be_decoded_is_an_error_at_its_first_row(tmp_path: Path) -> None:
    path = write_stripes(tmp_path / "a.orc", with_ids(label_stripes(60, missing=set())))
    manifest = read_manifest(tmp_path)[0]
    whole = path.read_bytes()
    at = whole.index(orc.ORCFile(path).read_stripe(3).column("label").buffers()[1].to_pybytes()[:8])
    # What lies in front of the fourth stripe's floats tells their length: the stripe's index.
    path.write_bytes(whole[: at - 150] + b"\xff" * 150 + whole[at:])
    loader = OrcLoader(manifest, Selection.of(LABELS), Order(batch_size=2, streams=1, shuffle=False))
    batches: list[Batch] = []
    with pytest.raises(DataError, match=r"a.orc, stripe \d, rows 0 to 9: can't be decoded \(.+\); copy or") as caught:
        batches.extend(loader)
    assert isinstance(caught.value.__cause__, OSError)
    assert batches


def test_a_file_that_changes_under_the_run_is_an_error(tmp_path: Path) -> None:
    path = write_stripes(tmp_path / "a.orc", with_ids(label_stripes(20, missing=set())))
    loader = make_loader(tmp_path, LABELS)
    write_stripes(path, [with_ids(label_stripes(10, missing=set()))[0].slice(0, 7)] * 2)
    with pytest.raises(DataError, match="stripe 0: has 7 rows, had 10 when the run began"):
        list(loader)


def test_a_file_that_is_gone_is_an_error(tmp_path: Path) -> None:
    path = write_stripes(tmp_path / "a.orc", with_ids(label_stripes(20, missing=set())))
    loader = make_loader(tmp_path, LABELS)
    path.unlink()
    with pytest.raises(DataError, match="a.orc, stripe 0, rows 0 to 9: can't be decoded"):
        list(loader)


# ------------------------------------------------------------------------------------------------- what is not copied


def test_columns_in_file_order_lie_in_the_stripe_itself_where_nothing_is_to_be_filled(tmp_path: Path) -> None:
    table = pa.table(
        {"id": pa.array(range(10)), "id2": pa.array([None, *range(9)]), "label": pa.array([1.0] * 10, pa.float32())}
    )
    write_stripes(tmp_path / "a.orc", [table])
    manifest = read_manifest(tmp_path)[0]
    columns = {"id": {"dtype": "int64"}, "id2": {"dtype": "int64"}, "label": {"dtype": "float32"}}
    packer = WindowPacker(manifest, Selection.of(make_schema(columns)))
    plan = EpochPlan(manifest.stripe_rows, Order(batch_size=2, streams=2, shuffle=False), 0)
    (window,) = plan.windows(1)  # rows 5 to 9
    stripe = StripeReader(manifest, ["id", "id2", "label"]).read(0)
    for order, is_copied in ((None, False), (np.arange(5)[::-1].copy(), True)):
        packing = packer.begin(window, order)
        packing.add(0, stripe)
        block = packing.finish()
        ids, ids2, label = block.addresses[[0, 1, 4]] - [
            stripe.column(name).buffers()[1].address + 5 * width
            for name, width in (("id", 8), ("id2", 8), ("label", 4))
        ]
        assert (ids != 0, ids2 != 0, label != 0) == (is_copied, True, is_copied)
