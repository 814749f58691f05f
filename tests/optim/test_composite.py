"""CompositeOptimizer: one optimizer to schedulers, closures, checkpoints and Lightning's automatic optimisation."""

import copy
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn

from recis_lightning.embedding import EmbeddingCollection
from recis_lightning.optim import CompositeOptimizer, SparseOptimizer
from recis_lightning.ragged import Ragged
from recis_lightning.schema import Schema

SCHEMA = Schema.from_dict(
    {
        "columns": [{"name": "a", "dtype": "int64", "layout": "list"}],
        "tables": [
            {
                "name": "a",
                "dim": 2,
                "dtype": "float64",
                "initializer": {"kind": "uniform"},
                "optimizer": {"kind": "sgd", "lr": 0.5},
            }
        ],
        "features": [{"name": "a", "table": "a"}],
    }
)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.linear = EmbeddingCollection(SCHEMA, max_rows=1000), nn.Linear(2, 1).double()

    def loss(self, ids: Ragged) -> Tensor:
        return self.linear(self.embedding({"a": ids})["a"]).square().mean()

    def optimizer(self, lr: float = 0.25) -> CompositeOptimizer:
        return CompositeOptimizer(torch.optim.SGD(self.linear.parameters(), lr), SparseOptimizer(self.embedding.groups))

    def rows(self) -> Tensor:
        return self.embedding.tables["a"].export().weight


IDS = Ragged.from_lists([[5, 7], [], [5]])


def test_one_scheduler_drives_dense_and_sparse_learning_rates() -> None:
    optimizer = Model().optimizer()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.25]
    assert optimizer.dense is not None
    assert optimizer.dense.param_groups[0]["lr"] == 0.125
    assert optimizer.sparse.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize("dense", [torch.optim.SGD, torch.optim.AdamW])
def test_a_scheduler_that_cycles_momentum_takes_sparse_groups_along(dense: Any) -> None:
    model = Model()
    optimizer = CompositeOptimizer(dense(model.linear.parameters(), 0.1), SparseOptimizer(model.embedding.groups))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=[0.1, 0.2], total_steps=5, cycle_momentum=dense is torch.optim.AdamW
    )
    model.loss(IDS).backward()
    optimizer.step()
    scheduler.step()
    first, second = (group["lr"] for group in optimizer.param_groups)
    assert second == pytest.approx(2 * first)


def test_the_closure_runs_first_and_gives_its_loss() -> None:
    model = Model()
    optimizer, expected = model.optimizer(), model.loss(IDS).item()
    before = model.rows(), model.linear.weight.detach().clone()

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = model.loss(IDS)
        loss.backward()
        assert torch.equal(model.rows(), before[0])
        assert torch.equal(model.linear.weight, before[1])
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert loss.item() == expected
    assert not torch.equal(model.rows(), before[0])
    assert not torch.equal(model.linear.weight, before[1])


def test_zero_grad_forgets_dense_and_sparse_gradients() -> None:
    model = Model()
    optimizer = model.optimizer()
    model.loss(IDS).backward()
    optimizer.zero_grad()
    assert model.linear.weight.grad is None
    assert model.embedding.groups[0].pending == []
    before = model.rows()
    optimizer.step()
    assert torch.equal(model.rows(), before)


def test_a_broken_row_gradient_leaves_dense_parameters_as_they_are() -> None:
    model = Model()
    optimizer, before = model.optimizer(), model.linear.weight.detach().clone()
    (model.loss(IDS) * float("nan")).backward()
    with pytest.raises(FloatingPointError, match="table 'a'"):
        optimizer.step()
    assert torch.equal(model.linear.weight, before)


def test_groups_stay_linked_when_a_state_is_loaded() -> None:
    model = Model()
    optimizer = model.optimizer()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    model.loss(IDS).backward()
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    scheduler.step()
    optimizer.load_state_dict(saved)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.5]
    optimizer.step()
    scheduler.step()
    assert optimizer.dense is not None
    assert [optimizer.dense.param_groups[0]["lr"], optimizer.sparse.param_groups[0]["lr"]] == [0.125, 0.25]


def test_states_with_and_without_dense_parameters_do_not_mix() -> None:
    model = Model()
    alone = CompositeOptimizer(None, SparseOptimizer(model.embedding.groups))
    with pytest.raises(ValueError, match="saved optimizer is one with dense parameters, this one is without"):
        alone.load_state_dict(model.optimizer().state_dict())
    with pytest.raises(ValueError, match="saved optimizer is one without dense parameters, this one is with"):
        model.optimizer().load_state_dict(alone.state_dict())
    alone.load_state_dict(alone.state_dict())


def test_without_dense_parameters_rows_train_alone() -> None:
    model = Model()
    optimizer = CompositeOptimizer(None, SparseOptimizer(model.embedding.groups))
    model.loss(IDS).backward()
    before = model.rows()
    optimizer.step()
    assert not torch.equal(model.rows(), before)
    assert dict(optimizer.state) == {}
    with pytest.raises(ValueError, match="no dense optimizer to add parameters to"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})


def test_added_parameters_are_the_dense_optimizers() -> None:
    optimizer = Model().optimizer()
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 9.0})
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 9.0, 0.5]


def test_step_hooks_run() -> None:
    optimizer, seen = Model().optimizer(), []
    optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))
    optimizer.step()
    assert seen == ["pre", "post"]


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = Model()

    def training_step(self, batch: Ragged, batch_idx: int) -> Tensor:
        return self.model.loss(batch)

    def configure_optimizers(self) -> Any:
        optimizer = self.model.optimizer()
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5), "interval": "step"}]


def test_lightning_accumulates_schedules_and_steps_as_a_plain_loop_does() -> None:
    batches = [Ragged.from_lists([[5 + k, 7], [5], [k]]) for k in range(6)]
    module, plain = Module(), Model()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        accumulate_grad_batches=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))  # type: ignore[arg-type]

    optimizer = plain.optimizer()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        optimizer.zero_grad()
        for batch in (first, second):
            (plain.loss(batch) / 2).backward()
        optimizer.step()
        scheduler.step()
    assert trainer.global_step == 3
    torch.testing.assert_close(module.model.rows(), plain.rows(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(module.model.linear.weight, plain.linear.weight, rtol=1e-12, atol=1e-12)
    assert module.model.embedding.tables["a"].step == 3
