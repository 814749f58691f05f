"""What the host waits for in a step on a pretended GPU: nothing, whatever a table takes up or forgets."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from recis_lightning.embedding import EmbeddingCollection
from recis_lightning.optim import SparseOptimizer
from recis_lightning.ragged import Ragged
from recis_lightning.schema import Schema
from recis_lightning.tables import TableFullError, group
from tests.interpreter import import_interpreted
from tests.pretend_gpu import GPU, on_pretended_gpu, pretending

pytestmark = on_pretended_gpu

ADMISSIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "counted": {"admission": {"kind": "counter", "threshold": 3}},
    "filtered": {"admission": {"kind": "bloom", "threshold": 2, "bytes": 1 << 16, "halve_every": 2}},
    "drawn": {"admission": {"kind": "probability", "probability": 0.3}},
    "full": {"admission": {"kind": "counter", "threshold": 2}, "capacity": 1000, "eviction": [{"kind": "lru"}]},
    "aging": {"eviction": [{"kind": "age", "steps": 1, "every": 4}]},
}


def make_schema() -> Schema:
    tables = [{"name": name, "dim": 2, "optimizer": "adagrad", **policies} for name, policies in ADMISSIONS.items()]
    columns = [{"name": name, "dtype": "int64", "layout": "list"} for name in ADMISSIONS]
    features = [{"name": name, "table": name} for name in ADMISSIONS]
    return Schema.from_dict({"columns": columns, "tables": tables, "features": features})


def make_inputs(step: int, device: torch.device) -> dict[str, Ragged]:
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(-10, 25, (40,), generator=generator)
    ids = torch.where(ids == 3, torch.iinfo(torch.int64).min, ids)
    return {name: Ragged(ids + number, torch.arange(21) * 2).to(device) for number, name in enumerate(ADMISSIONS)}


def train(device: torch.device, waits: list[str]) -> tuple[EmbeddingCollection, list[list[str]]]:
    collection, found = EmbeddingCollection(make_schema(), seed=5, max_rows=1 << 14).to(device), []
    optimizer = SparseOptimizer(collection.groups)
    for step in range(5):
        inputs = make_inputs(step, device)
        before = len(waits)
        torch.stack([output.square().sum() for output in collection(inputs).values()]).sum().backward()
        optimizer.step()
        collection.evict()
        found.append(waits[before:])
    return collection, found


def test_steps_with_every_admission_wait_for_nothing_and_hold_what_the_cpu_holds() -> None:
    import_interpreted()
    here, _ = train(torch.device("cpu"), [])
    with pretending() as gpu:
        there, waits = train(GPU, gpu.waits)
        assert [bool(found) for found in waits] == [False, False, False, True, False], "age is due after the fourth"
        for name, table in here.tables.items():
            expected, found = table.export(), there.tables[name].export()
            assert torch.equal(found.ids, expected.ids), name
            assert torch.equal(found.count, expected.count), name
            torch.testing.assert_close(found.weight, expected.weight, rtol=1e-5, atol=1e-6)
            admission, other = table.export_admission(), there.tables[name].export_admission()
            assert admission.keys() == other.keys()
            assert all(torch.equal(other[key], value) for key, value in admission.items()), name
            stats, of_other = table.stats(), there.tables[name].stats()
            for event in ("ids", "inserted", "admitted", "refused", "evicted"):
                assert of_other[event] == stats[event], (name, event)
    assert 0 < here.tables["counted"].stats()["admitted"] < here.tables["all"].stats()["ids"]


def test_ids_that_an_admission_has_no_room_to_count_are_told_by_the_next_step() -> None:
    import_interpreted()
    with pretending():
        schema = make_schema().to_dict()
        kept = [[each for each in schema[part] if each["name"] == "counted"] for part in ("tables", "features")]
        schema |= {"tables": kept[0], "features": kept[1]}
        collection = EmbeddingCollection(Schema.from_dict(schema), max_rows=64).to(GPU)
        many = {"counted": Ragged(torch.arange(200), torch.arange(201)).to(GPU)}
        assert not collection(many)["counted"].any()
        with pytest.raises(TableFullError, match="table 'counted': its admission has room to count 64 ids"):
            collection(many)


def test_an_admission_that_counts_is_refused_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    import_interpreted()
    with pretending() if torch.cuda.device_count() == 0 else nullcontext():
        collection = EmbeddingCollection(make_schema(), max_rows=1 << 14).to(GPU)
        collection(make_inputs(0, GPU))
        monkeypatch.setattr(group, "is_capturing", lambda: True)
        with pytest.raises(RuntimeError, match="can't be captured in a graph"):
            collection(make_inputs(0, GPU))
