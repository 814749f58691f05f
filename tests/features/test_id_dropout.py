"""Ids that go missing in training: together for all features of a column, never in evaluation, and exactly resumed."""

from typing import Any

import pytest
import torch

from recis_lightning.features.id_dropout import IdDropout
from recis_lightning.ragged import Ragged
from recis_lightning.schema import Schema, SchemaError
from tests.training.helpers import make_batch, make_module, make_schema


def settings(**columns: dict[str, Any]) -> dict[str, Any]:
    """Two ids, a list and a number, some of the columns declared otherwise."""
    declared: dict[str, dict[str, Any]] = {
        "user": {"dtype": "int64"},
        "item": {"dtype": "int64"},
        "history": {"dtype": "int64", "layout": "list"},
        "age": {"dtype": "float32"},
        "label": {"dtype": "float32"},
    }
    return {
        "columns": [{"name": name} | options | columns.get(name, {}) for name, options in declared.items()],
        "tables": [{"name": "t", "dim": 2}],
        "features": [
            *({"name": name, "table": "t"} for name in ("user", "item", "history")),
            {"name": "item_again", "column": "item", "table": "t"},
            {"name": "user_item", "inputs": ["user", "item"], "table": "t", "transforms": ["cross"]},
            {"name": "age"},
        ],
        "tasks": [{"name": "ctr", "label": "label"}],
    }


def make_columns(rows: int) -> dict[str, Any]:
    ids = Ragged(torch.arange(rows), torch.arange(rows + 1))
    lists = Ragged.from_lists([[1, 2]] * rows)
    return {"user": ids, "item": ids, "history": lists, "age": torch.ones(rows), "label": torch.ones(rows)}


def test_a_share_of_the_rows_goes_without_its_ids_and_the_others_keep_theirs() -> None:
    torch.manual_seed(0)
    columns = make_columns(10_000)
    dropped = IdDropout(Schema.from_dict(settings(item={"dropout": 0.3})))(columns)
    rows = dropped["item"].check().to_lists()
    assert all(ids in ([], [row]) for row, ids in enumerate(rows))
    assert sum(not ids for ids in rows) == pytest.approx(3000, abs=150)  # three standard deviations
    assert all(dropped[name] is columns[name] for name in columns if name != "item")


def test_rows_without_ids_stay_without() -> None:
    dropout = IdDropout(Schema.from_dict(settings(item={"dropout": 0.5})))
    rows = [[], [5], [], [2**63 - 1], [-(2**63)]]
    seen = [dropout(make_columns(5) | {"item": Ragged.from_lists(rows)})["item"].to_lists() for _ in range(40)]
    for row, ids in enumerate(rows):
        assert {tuple(each[row]) for each in seen} == {tuple(ids), ()}
    empty = Ragged(torch.empty(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    assert dropout({"item": empty})["item"].to_lists() == []


def test_columns_lose_their_ids_apart_from_each_other() -> None:
    torch.manual_seed(0)
    schema = Schema.from_dict(settings(user={"dropout": 0.5}, item={"dropout": 0.5}))
    dropped = IdDropout(schema)(make_columns(4000))
    both = ((dropped["user"].lengths == 0) & (dropped["item"].lengths == 0)).sum().item()
    assert both == pytest.approx(1000, abs=100)


def test_all_features_of_a_column_miss_its_ids_together() -> None:
    schema = Schema.from_dict(settings(item={"dropout": 0.5}))
    module = make_module(schema).train()
    seen: dict[str, Any] = {}
    module.embedding.register_forward_pre_hook(lambda _, inputs: seen.update(inputs[0]))
    batch = make_columns(100)
    module._inputs(batch)
    lengths = seen["item"].lengths
    assert 20 < lengths.sum() < 80
    for name in ("item_again", "user_item"):
        assert torch.equal(seen[name].lengths, lengths)
    module.eval()._inputs(batch)
    assert seen["item"].lengths.tolist() == [1] * 100


def test_without_dropout_nothing_is_drawn() -> None:
    before = torch.get_rng_state()
    columns = make_columns(5)
    assert IdDropout(Schema.from_dict(settings()))(columns) is columns
    assert IdDropout(Schema.from_dict(settings(item={"dropout": 0.5}))).eval()(columns) is columns
    assert torch.equal(torch.get_rng_state(), before)


def test_a_dropped_id_gets_no_row() -> None:
    declared = make_schema().to_dict()
    declared["columns"][0]["dropout"] = 0.5
    module = make_module(Schema.from_dict(declared)).train()
    torch.manual_seed(0)
    module(make_batch(200, ids=10_000))
    assert 60 < len(module.tables["user"]) < 140


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item": {"dropout": 1.0}}, "column 'item': dropout is 1.0, need 0 <= dropout < 1"),
        ({"item": {"dropout": -0.1}}, "column 'item': dropout is -0.1"),
        ({"history": {"dropout": 0.1}}, "column 'history' is a list; dropout is for columns with one id a row"),
        ({"age": {"dropout": 0.1}}, "column 'age' is read as ids by no feature; dropout is for ids"),
        ({"label": {"dropout": 0.1}}, "column 'label' is read as ids by no feature; dropout is for ids"),
    ],
)
def test_dropout_of_what_cannot_go_missing_is_refused(columns: dict[str, dict[str, Any]], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        Schema.from_dict(settings(**columns))
