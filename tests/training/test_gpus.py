"""A module on a GPU that is pretended: its tensors may not mix with the CPU's, and nobody may wait for it."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from recis_lightning.training.checkpoint import READER, load_checkpoint, load_tables, save_checkpoint
from tests.interpreter import import_interpreted
from tests.pretend_gpu import GPU, on_pretended_gpu, pretending
from tests.training.helpers import SmallNet, make_batch, make_module, table_bytes

STEPS = 4
CPU = torch.device("cpu")


def make(**options: Any) -> Any:
    dense = partial(torch.optim.SGD, lr=0.1)
    return make_module(**options, network=partial(SmallNet, dropout=0.0), dense_optimizer=dense)


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


@on_pretended_gpu
def test_what_a_gpu_saves_a_gpu_and_the_cpu_load_to_the_bit(tmp_path: Path) -> None:
    import_interpreted()
    saved, there, here = make(), make(seed=4), make(seed=4)
    with pretending() as gpu:
        saved.to(GPU)
        train(saved, GPU, gpu.waits)
        content = {"state_dict": {}, "optimizer_states": [], "epoch": 0, "global_step": STEPS}
        save_checkpoint(content, str(tmp_path / "x.ckpt"), saved.tables)
        there.to(GPU)
        for module in (there, here):
            load_tables(module.tables, load_checkpoint(str(tmp_path / "x.ckpt"))[READER])
        expected = table_bytes(saved)
        assert table_bytes(there) == table_bytes(here) == expected
    assert all(len(table) for table in here.tables.values())


@on_pretended_gpu
def test_evaluation_catalogue_and_a_loss_scaler_find_all_they_need_on_the_gpu() -> None:
    import_interpreted()
    with pretending() as gpu:
        module = make().to(GPU)
        train(module, GPU, gpu.waits)
        ((ids, rows),) = module.catalogue(torch.arange(3), table="user")
        assert torch.equal(rows.cpu(), module.tables["user"].weight(module.tables["user"].find(ids)).cpu())
        optimizer, found_inf = module.configure_optimizers()[0][0], torch.zeros((), device=GPU)
        module.training_step(make_batch(8).to(GPU), 0).backward()
        before = len(gpu.waits)
        optimizer.sparse.unscale_(torch.tensor(0.5).to(GPU, non_blocking=True), found_inf)
        assert gpu.waits[before:] == []
        optimizer.zero_grad()
        module.eval().validation_step(make_batch(8, seed=9).to(GPU), 0)
        found = {name: float(value) for name, value in next(module._metrics("val")).compute().items()}
        assert 0 < found["loss"] < 1
        assert module.embedding.erase({"user": torch.arange(2)})["user"] > 0
