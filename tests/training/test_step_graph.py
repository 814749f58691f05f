"""A training step as a graph: what the host does around each replay, and on a GPU the graph itself."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from recis_lightning.embedding import EmbeddingCollection
from recis_lightning.optim import CompositeOptimizer, SparseOptimizer, sparse
from recis_lightning.ragged import Ragged
from recis_lightning.schema import Schema
from recis_lightning.tables import group as groups
from recis_lightning.training.step_graph import StepGraph
from tests.tables.blocks import choose_implementation

ROWS, STEPS = 12, 10


def make_schema() -> Schema:
    tables = [{"name": n, "dim": 4, "optimizer": {"kind": "adam", "lr": 0.1}} for n in ("user", "item")]
    tables.append({"name": "fixed", "dim": 4, "trainable": False, "initializer": {"kind": "constant", "value": 0.5}})
    names = ("user", "item", "fixed")
    columns = [{"name": name, "dtype": "int64"} for name in names]
    features = [{"name": name, "table": name} for name in names]
    return Schema.from_dict({"columns": columns, "tables": tables, "features": features})


class Job:
    """A model, its tables, and a step on ids that lie in one place; each step brings ids that are new."""

    def __init__(self, device: torch.device) -> None:
        torch.manual_seed(0)
        self.embedding = EmbeddingCollection(make_schema(), seed=1, max_rows=1 << 12).to(device)
        self.network = torch.nn.Linear(12, 1).to(device)
        dense = torch.optim.Adam(self.network.parameters(), lr=0.1, capturable=device.type == "cuda")
        self.optimizer = CompositeOptimizer(dense, SparseOptimizer(self.embedding.groups))
        self.ids = {name: torch.zeros(ROWS, dtype=torch.int64, device=device) for name in self.embedding.features}
        self.offsets = torch.arange(ROWS + 1, device=device)
        self.losses: list[float] = []

    def load(self, step: int) -> None:
        for number, ids in enumerate(self.ids.values()):
            ids.copy_((torch.arange(ROWS) * (number + 3) + 7 * step) % (20 + 9 * step))

    def run(self) -> torch.Tensor:
        self.optimizer.zero_grad(set_to_none=False)
        embedded = self.embedding({name: Ragged(ids, self.offsets) for name, ids in self.ids.items()})
        loss = (self.network(torch.cat(list(embedded.values()), dim=1)) - 1).square().mean()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def train(self, step: Callable[[], torch.Tensor], first: int) -> None:
        for number in range(first, STEPS):
            self.load(number)
            self.losses.append(float(step()))

    def held(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, table in self.embedding.tables.items():
            rows = table.export()
            found[name] = [table.step, rows.ids.tolist(), rows.last_step.tolist(), rows.count.tolist()]
            found[f"{name} weight"] = rows.weight
        return found


def assert_alike(job: Job, other: Job) -> None:
    assert job.losses == pytest.approx(other.losses, rel=1e-5)
    for (name, found), expected in zip(job.held().items(), other.held().values(), strict=True):
        if isinstance(found, torch.Tensor):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        else:
            assert found == expected, name
    assert all(len(table) > 30 for table in job.embedding.tables.values()), "tables have grown meanwhile"


class PlayedGraph:
    """In the place of a CUDA graph: captures by a step that is taken back, and replays by calling the step again."""

    def __init__(self, run: Callable[[], Any], capturing: Callable[[], Any]) -> None:
        self._run, self._capturing = run, capturing
        self.output = torch.zeros(())

    def replay(self) -> None:
        with self._capturing():
            self.output.copy_(self._run())


@pytest.mark.parametrize("where", ["blocks", "triton"])
def test_host_does_around_replays_what_it_does_in_plain_steps(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choose_implementation(where, monkeypatch)
    played, plain = Job(torch.device("cpu")), Job(torch.device("cpu"))
    plain.train(plain.run, 0)

    @contextmanager
    def capturing() -> Iterator[None]:
        before = [group.captured for group in played.embedding.groups]
        for group in played.embedding.groups:
            group.captured = groups.Captured()  # a replay runs no Python, and notes nothing
        with monkeypatch.context() as patch:
            for module in (groups, sparse):
                patch.setattr(module, "is_capturing", lambda: True)
            if where == "triton":
                from triton_ops.index.device import DeviceIndex

                patch.setattr(DeviceIndex, "_is_captured", lambda index: True)
            yield
        for group, kept in zip(played.embedding.groups, before, strict=True):
            group.captured = kept

    played.load(0)
    played.losses.append(float(played.run()))
    graph = StepGraph.__new__(StepGraph)
    graph._groups, graph._optimizer = played.embedding.groups, played.optimizer
    for group in graph._groups:  # what capturing the step notes
        trained = frozenset() if group.is_frozen else frozenset(range(len(group)))
        settings = played.optimizer.sparse._settings_of_tables[played.embedding.groups.index(group)]
        runs = torch.arange(0, ROWS * len(group) + 1, ROWS), torch.arange(len(group))
        updates = None if group.is_frozen else (settings, trained)
        frozen = set(range(len(group))) if group.is_frozen else set()
        group.captured = groups.Captured([runs] if where == "triton" else [], 1, frozen, updates)
    graph._graph = PlayedGraph(played.run, capturing)  # type: ignore[assignment]
    graph._output = graph._graph.output
    played.train(graph, 1)
    assert_alike(played, plain)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_ten_replays_of_a_captured_step_equal_ten_plain_steps_while_tables_grow() -> None:
    captured, plain = Job(torch.device("cuda")), Job(torch.device("cuda"))
    for _ in range(3):
        captured.load(0)
        captured.losses.append(float(captured.run()))
        plain.load(0)
        plain.losses.append(float(plain.run()))
    captured.load(0)
    graph = StepGraph(captured.run, captured.embedding, captured.optimizer, warm_up=0)
    captured.train(graph, 0)
    plain.train(plain.run, 0)
    assert_alike(captured, plain)
