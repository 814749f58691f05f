"""Every transform, exported: sequences, maps, graphs of features, modules of the user's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch._dynamo.utils import counters

from recis_lightning.schema import TRANSFORMS, Schema
from recis_lightning.serving import export_model, scorer
from recis_lightning.serving.verify import score_alone
from recis_lightning.training import RecModule
from tests.serving.forms import SETTINGS, TYPES, Network, make_rows, settings_of
from tests.serving.rows import predict, read_batches, write_rows


def make_module(folder: Path, compile: bool | str = False) -> RecModule:
    torch.manual_seed(0)
    module = RecModule(Schema.from_dict(SETTINGS), network=Network, compile=compile)
    for batch in read_batches(module.schema, write_rows(make_rows(200), folder / "seen.orc", TYPES)):
        module(batch)
    return module


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> RecModule:
    return make_module(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def folder(module: RecModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving") / "exported"
    export_model(module, folder)
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path) -> scorer.Scorer:
    return scorer.Scorer(folder)


def expected_of(module: RecModule, rows: dict[str, Any], path: Path) -> np.ndarray:
    return predict(module, read_batches(module.schema, write_rows(rows, path, TYPES)))["ctr"].numpy()


def test_the_schema_has_every_transform():
    schema = Schema.from_dict(SETTINGS)
    assert {each.kind for feature in schema.features for each in feature.transforms} == set(TRANSFORMS)


def test_files_alone_score_every_form_as_the_model_does(module, folder, tmp_path):
    requests = [make_rows(100, seed=0), make_rows(100, seed=1, ids=400)]  # ids seen, ids mostly unknown
    scores, _ = score_alone(folder, requests)
    expected = [expected_of(module, rows, tmp_path / f"{seed}.orc") for seed, rows in enumerate(requests)]
    assert np.abs(scores["ctr"] - np.concatenate(expected)).max() < 1e-5
    assert np.ptp(scores["ctr"]) > 0.01  # of different rows different ones


@pytest.mark.parametrize("count", [0, 1, 2])
def test_small_requests_score_as_the_model_does(module, loaded, count, tmp_path):
    rows = make_rows(count, seed=5)
    found = loaded.score(rows)["ctr"]
    np.testing.assert_allclose(found, expected_of(module, rows, tmp_path / "rows.orc") if count else [], atol=1e-6)


def test_rows_whose_lists_are_all_empty_are_scored(module, loaded, tmp_path):
    rows = make_rows(3) | {name: [[]] * 3 for name, dtype in TYPES.items() if "list" in str(dtype) and name != "image"}
    expected = expected_of(module, rows, tmp_path / "rows.orc")
    np.testing.assert_allclose(loaded.score(rows)["ctr"], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": [[1, 2], [1]]}, r"'image', transforms\[0\] \(vector\): column 'image', row 1 has no result, need 2"),
        ({"picture": [[1], []]}, r"feature 'picture', .*row 0 has no result, need 3"),
        ({"price": [1, -3]}, r"\(log1p\): column 'price', row 1 has no result, need numbers above -1"),
        ({"times": [[1], [1, 2, 3]], "items": [[1], [1]], "weights": [[1], [1]]}, "row 1 has 1 values in 'items', 3"),
        ({"keys": [["a"], []], "values": [[1], [1]], "numbers": [[1], [1]]}, "row 1 has 0 values in 'keys', 1 in 'val"),
    ],
)  # fmt: skip
def test_what_the_model_refuses_the_files_refuse(loaded, changes, message):
    with pytest.raises(ValueError, match=message):
        loaded.score(make_rows(2) | changes)


def test_a_cross_that_explodes_is_refused(tmp_path):
    cross = {"kind": "cross", "max_ids": 3}
    features = [
        {"name": "crossed", "inputs": ["words", "title"], "table": "crossed", "transforms": [cross]},
        {"name": "price"},
    ]
    module = RecModule(Schema.from_dict(settings_of(*features)), network=Network)
    export_model(module, tmp_path / "exported")
    rows = make_rows(2) | {"words": [[1], [1, 2]], "title": [[1], [1, 2]]}
    with pytest.raises(ValueError, match=r"\(cross\): column 'words' x column 'title', row 1 .*need at most max_ids 3"):
        scorer.Scorer(tmp_path / "exported").score(rows)


def test_what_is_no_graph_is_refused_by_name(tmp_path):
    custom = {"kind": "custom", "class_path": "tests.serving.forms.branch"}
    module = RecModule(Schema.from_dict(settings_of({"name": "price", "transforms": [custom]})), network=Network)
    with pytest.raises(MisconfigurationException, match=r"can't be written .*feature 'price', transforms\[0\] 'tests"):
        export_model(module, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_every_form_compiles_to_one_graph(tmp_path):
    torch._dynamo.reset()
    counters.clear()
    plain, compiled = make_module(tmp_path).eval(), make_module(tmp_path, "eager").eval()
    for seed, count in enumerate([30, 9, 50]):
        rows = make_rows(count, seed)
        (batch,) = read_batches(plain.schema, write_rows(rows, tmp_path / "rows.orc", TYPES))
        torch.testing.assert_close(compiled(batch), plain(batch))
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
    rows = make_rows(9) | {"image": [[1.0]] * 9}
    (batch,) = read_batches(plain.schema, write_rows(rows, tmp_path / "rows.orc", TYPES))
    with pytest.raises(ValueError, match="column 'image', row 0 of the batch has 1 numbers, need 2"):
        compiled(batch)
    torch._dynamo.reset()
