"""A module on a GPU that is pretended: its tensors may not mix with the CPU's, and nobody may wait for it."""

from functools import partial
from typing import Any

import torch

from recis_lightning.schema import Schema
from tests.interpreter import import_interpreted
from tests.pretend_gpu import GPU, on_pretended_gpu, pretending
from tests.training.helpers import SmallNet, make_batch, make_module

STEPS = 4
CPU = torch.device("cpu")


def make(schema: Schema | None = None) -> Any:
    dense = partial(torch.optim.SGD, lr=0.1)
    return make_module(schema, network=partial(SmallNet, dropout=0.0), dense_optimizer=dense)


def train(module: Any, device: torch.device, waits: list[str]) -> list[list[str]]:
    """Some steps with clipping; what the host has waited for in each."""
    optimizer = module.configure_optimizers()[0][0]
    found = []
    for step in range(STEPS):
        batch = make_batch(8, seed=step).to(device)
        before = len(waits)
        optimizer.zero_grad()
        module.training_step(batch, step).backward()
        module.configure_gradient_clipping(optimizer, 0.1)
        optimizer.step()
        found.append(waits[before:])
    return found


@on_pretended_gpu
def test_a_module_trains_on_a_gpu_as_on_the_cpu_and_comes_back() -> None:
    import_interpreted()
    here, there = make(), make()
    train(here, CPU, [])
    with pretending() as gpu:
        there.to(GPU)
        waits = train(there, GPU, gpu.waits)
        assert there.tables["user"].export().ids.device == CPU
        there.to(CPU)
    assert waits[1:] == [[]] * (STEPS - 1)
    for name, table in here.tables.items():
        expected, found = table.export(), there.tables[name].export()
        assert torch.equal(found.ids, expected.ids)
        torch.testing.assert_close(found.weight, expected.weight, rtol=1e-5, atol=1e-6)
    for name, value in here.network.state_dict().items():
        torch.testing.assert_close(there.network.state_dict()[name], value, rtol=1e-5, atol=1e-6)
