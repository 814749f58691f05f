"""Loss scalers: gradients of rows are unscaled, and an overflow anywhere skips the step everywhere."""

import math

import pytest
import torch
from torch import Tensor, nn

from recis_lightning.embedding import EmbeddingCollection
from recis_lightning.optim import CompositeOptimizer, SparseOptimizer, clip_grad_norm, unscale_rows
from recis_lightning.ragged import Ragged
from tests.optim.test_kinds import assert_same_bytes, contents, make_collection

IDS = Ragged.from_lists([[5, 7], [], [5]])
ADAM = {"kind": "adam", "lr": 0.1}


class Model:
    def __init__(self, dtype: str = "float32") -> None:
        self.collection: EmbeddingCollection = make_collection({"name": "a", "dtype": dtype, "optimizer": ADAM})
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 1)
        dense = torch.optim.SGD(self.linear.parameters(), 0.1)
        self.optimizer = CompositeOptimizer(dense, SparseOptimizer(self.collection.groups))
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        unscale_rows(self.scaler)

    def loss(self) -> Tensor:
        return self.linear(self.collection({"a": IDS})["a"]).square().mean()

    def step(self, factor: float = 1.0, max_norm: float = 0.0) -> None:
        self.optimizer.zero_grad()
        self.scaler.scale(self.loss() * factor).backward()
        if max_norm:
            self.scaler.unscale_(self.optimizer)
            clip_grad_norm(self.optimizer, max_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state(self) -> dict[str, Tensor]:
        dense = {name: value.detach().clone() for name, value in self.linear.named_parameters()}
        return contents(self.collection) | dense


@pytest.mark.trap(16)
@pytest.mark.parametrize("max_norm", [0.0, 0.01])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_scaled_step_is_the_step(dtype: str, max_norm: float) -> None:
    scaled, plain = Model(dtype), Model(dtype)
    plain.scaler = torch.amp.GradScaler("cpu", init_scale=1.0, growth_interval=10**6)
    unscale_rows(plain.scaler)
    for _ in range(3):
        scaled.step(max_norm=max_norm)
        plain.step(max_norm=max_norm)
    assert_same_bytes(scaled.state(), plain.state())  # 2^16 is exact


@pytest.mark.trap(16)
@pytest.mark.parametrize("factor", [math.inf, math.nan, 1e38])
def test_an_overflow_skips_the_step_of_rows_and_dense_parameters(factor: float) -> None:
    model = Model()
    model.step()
    before = model.state()
    model.step(factor)
    after = model.state()
    for name in ("a/last_step", "a/count"):  # that they were looked up is true all the same
        before.pop(name), after.pop(name)
    assert_same_bytes(after, before)
    assert model.scaler.get_scale() == 2.0**15
    model.step()
    assert not torch.equal(model.state()["a/weight"], before["a/weight"])
    assert model.collection.tables["a"].step == 2


def test_an_overflow_of_rows_alone_skips_the_dense_step_too() -> None:
    model = Model()
    model.step()
    before = model.linear.weight.clone()
    model.optimizer.zero_grad()
    pooled = model.collection({"a": IDS})["a"]
    with torch.no_grad():
        model.linear.weight.grad = torch.ones_like(model.linear.weight)
    model.scaler.scale(pooled.sum() * math.inf).backward()
    model.scaler.step(model.optimizer)
    model.scaler.update()
    assert torch.equal(model.linear.weight, before)


def test_an_overflow_of_dense_parameters_alone_skips_the_rows_too() -> None:
    model = Model()
    model.step()
    before = contents(model.collection)["a/weight"]
    model.optimizer.zero_grad()
    model.scaler.scale(model.collection({"a": IDS})["a"].sum()).backward()
    model.linear.weight.grad = torch.full_like(model.linear.weight, math.inf)
    model.scaler.step(model.optimizer)
    model.scaler.update()
    assert torch.equal(contents(model.collection)["a/weight"], before)


def test_rows_without_dense_parameters_are_scaled_too() -> None:
    collection = make_collection({"name": "a", "optimizer": {"kind": "sgd", "lr": 1.0}})
    optimizer, scaler = CompositeOptimizer(None, SparseOptimizer(collection.groups)), torch.amp.GradScaler("cpu")
    unscale_rows(scaler)
    pooled = collection({"a": IDS})["a"]
    before = contents(collection)["a/weight"]
    scaler.scale(pooled.sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    order = contents(collection)["a/ids"].tolist()
    moved = dict(zip(order, (before - contents(collection)["a/weight"])[:, 0].tolist(), strict=True))
    assert moved == pytest.approx({5: 2.0, 7: 1.0})
