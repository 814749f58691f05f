"""Training with rows in blocks, as on a GPU, against training on the CPU: the same rows, the same losses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from recis_lightning.ragged import Ragged
from recis_lightning.schema import Schema
from recis_lightning.tables import TableFullError, TableGroup
from recis_lightning.training import RecModule
from tests.tables.blocks import choose_implementation
from tests.training.helpers import (
    ListLoader,
    Losses,
    MemoryLoader,
    everything,
    make_batch,
    make_module,
    make_schema,
    make_trainer,
)
from triton_ops.blocks import Blocks

# Dynamo looks at .grad of what goes into a graph, and hides the warning by other means than pytest sees.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

ON_DEVICE = ["blocks", "triton"]


def make(implementation: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> RecModule:
    """A module whose tables lie as this implementation has them."""
    with monkeypatch.context() as patch:
        choose_implementation(implementation, patch)
        return make_module(**options)


def fit(module: RecModule, folder: Path, implementation: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    losses = Losses()
    trainer = make_trainer(folder, losses, **options)
    with monkeypatch.context() as patch:
        choose_implementation(implementation, patch)
        torch.manual_seed(1)  # of the network's dropout
        trainer.fit(module, MemoryLoader(6, rows=16))
        trainer.save_checkpoint(folder / "end.ckpt")
    return trainer, losses.by_batch


def groups_of(module: RecModule) -> list[TableGroup]:
    return module.embedding.groups


@pytest.mark.parametrize("where", ON_DEVICE)
def test_fit_on_a_device_equals_a_fit_on_the_cpu(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, here = (make(name, monkeypatch) for name in (where, "cpu"))
    assert isinstance(groups_of(there)[0].weight, Blocks)
    assert isinstance(groups_of(here)[0].weight, torch.Tensor)
    _, losses_there = fit(there, tmp_path / "there", where, monkeypatch)
    _, losses_here = fit(here, tmp_path / "here", "cpu", monkeypatch)
    assert losses_there == pytest.approx(losses_here, rel=1e-5)
    for name, table in there.tables.items():
        found, expected = table.export(), here.tables[name].export()
        for part in ("ids", "last_step", "count"):
            assert torch.equal(getattr(found, part), getattr(expected, part)), f"{part} of {name}"
        torch.testing.assert_close(found.weight, expected.weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(dict(found.slots), dict(expected.slots), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("first", "second"), [(place, "cpu") for place in ON_DEVICE] + [("cpu", p) for p in ON_DEVICE])
def test_checkpoint_of_one_place_goes_on_in_another_with_the_same_rows_and_losses(
    first: str, second: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make(first, monkeypatch)
    fit(module, tmp_path / "first", first, monkeypatch, max_epochs=1)
    losses = {}
    for name in (first, second):
        other = make(name, monkeypatch, seed=5)
        trainer = make_trainer(tmp_path / f"then_{name}", kept := Losses(), max_epochs=2)
        with monkeypatch.context() as patch:
            choose_implementation(name, patch)
            trainer.fit(other, MemoryLoader(6, rows=16), ckpt_path=str(tmp_path / "first" / "end.ckpt"))
        losses[name] = kept.by_batch
    assert len(losses[first]) == 6
    assert losses[first] == pytest.approx(losses[second], rel=1e-5)


@pytest.mark.parametrize("where", ON_DEVICE)
def test_loaded_rows_are_those_saved_to_the_bit(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make("cpu", monkeypatch)
    fit(module, tmp_path, "cpu", monkeypatch, max_epochs=1)
    with monkeypatch.context() as patch:
        choose_implementation(where, patch)
        loaded = RecModule.load_from_checkpoint(str(tmp_path / "end.ckpt"))
        assert isinstance(groups_of(loaded)[0].weight, Blocks)
        assert everything(loaded) == everything(module)


@pytest.mark.trap
@pytest.mark.parametrize("where", ON_DEVICE)
def test_tables_used_in_inference_mode_are_trained_afterwards(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A single device is evaluated under inference_mode, and what is made there can never be written outside of it.
    choose_implementation(where, monkeypatch)
    module = make_module()
    with torch.inference_mode():
        module.eval()
        module(make_batch(8))
        module.train()
    validation = ListLoader(make_batch(8, seed=3))
    make_trainer(tmp_path).fit(module, MemoryLoader(3), validation)
    with torch.inference_mode():
        module(make_batch(8, seed=1, ids=60))
        module.tables["user"].find_or_insert(torch.arange(5000))  # grows there
    make_trainer(tmp_path, max_epochs=1).fit(module, MemoryLoader(3, seed=4, ids=90), validation)
    assert all(not slab.is_inference() for group in groups_of(module) for slab in group.weight.slabs)


@pytest.mark.parametrize("where", ON_DEVICE)
def test_gradient_that_is_not_finite_is_told_by_the_next_step_and_updates_no_row(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_implementation(where, monkeypatch)
    module = make_module()
    optimizer = module.configure_optimizers()[0][0]
    batch = make_batch(8)
    embedded = module.embedding(module.features(batch))
    before = {name: table.export().weight for name, table in module.tables.items()}
    (embedded["user"].sum() + embedded["items"][2].sum() * float("inf")).backward()
    optimizer.sparse.step()
    for name, table in module.tables.items():
        assert torch.equal(table.export().weight, before[name]), "of a table whose own gradients are finite as well"
    table, id_ = "item", int(batch["items"].values[batch["items"].offsets[2]])  # type: ignore[union-attr]
    with pytest.raises(FloatingPointError, match=f"table '{table}': at step 1 the gradient of id {id_} was not finite"):
        module.embedding(module.features(batch))
    module.embedding(module.features(batch))["user"].sum().backward()
    optimizer.sparse.step()
    assert not torch.equal(module.tables["user"].export().weight, before["user"])


@pytest.mark.parametrize("where", ON_DEVICE)
def test_network_is_one_graph_beside_tables_of_a_device(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choose_implementation(where, monkeypatch)
    torch._dynamo.reset()
    counters.clear()
    compiled, plain = make_module(compile="eager"), make_module()
    for seed in range(2):
        batch = make_batch(8, seed=seed)
        logits = [module.eval()(batch)["ctr"] for module in (compiled, plain)]
        torch.testing.assert_close(*logits)
    assert not counters["graph_break"]
    torch._dynamo.reset()


def test_offsets_that_do_not_fit_and_full_tables_are_told_by_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    choose_implementation("triton", monkeypatch)
    module = make_module()
    inputs = module.features(make_batch(4))
    items = inputs["items"]
    assert isinstance(items, Ragged)
    module.embedding({**inputs, "items": Ragged(items.values, items.offsets + 1)})
    with pytest.raises(
        ValueError, match=r"feature 'items' \(table 'item'\): at step 1 its offsets did not rise from 0"
    ):
        module.embedding(inputs)
    module.embedding(inputs)
    schema = make_schema().to_dict()
    schema["tables"][0]["capacity"] = 4
    small = make_module(Schema.from_dict(schema))
    name = schema["tables"][0]["name"]
    many = small.features(make_batch(30, ids=10_000))
    small.embedding(many)
    with pytest.raises(TableFullError, match=rf"table '{name}' is full.*\(by step 1 \d+ occurrences of ids had found"):
        small.embedding(many)
    assert len(small.tables[name]) == 4
