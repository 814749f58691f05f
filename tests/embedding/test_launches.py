"""What a step of one group launches on a device: as much for many tables and features as for few."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recis_lightning.embedding import EmbeddingCollection
from recis_lightning.optim import SparseOptimizer
from recis_lightning.ragged import Ragged
from recis_lightning.schema import Schema
from tests.tables.blocks import choose_implementation
from triton_ops.gather_pool import join_coefficients, join_offsets, pool_coefficients

ROWS, IDS = 3, 6


class Counter(TorchDispatchMode):
    """Counts torch's operations on this device and what Triton launches, views and what only the host does left out."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if not function.is_view and function.namespace == "aten":
            self.launches.append(str(function))
        return function(*arguments, **(options or {}))


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter]:
    from triton.runtime.interpreter import GridExecutor

    counter, launch = Counter(), GridExecutor.__call__

    def note(self: Any, *arguments: Any, **options: Any) -> Any:
        counter.launches.append(self.fn.__name__)
        with torch.utils._python_dispatch._disable_current_modes():
            return launch(self, *arguments, **options)

    with monkeypatch.context() as patch, counter:
        patch.setattr(GridExecutor, "__call__", note)
        yield counter


def make_collection(tables: int, features: int) -> EmbeddingCollection:
    """So many tables of one group, and features of them: sums, means, weighted ones, and sequences."""
    kinds: list[dict[str, Any]] = [{"pooling": "sum"}, {"pooling": "mean"}, {"pooling": "sqrtn", "weights": "w"}]
    names = [f"f{number}" for number in range(features)]
    columns = [{"name": name, "dtype": "int64", "layout": "list"} for name in names]
    columns.append({"name": "w", "dtype": "float32", "layout": "list"})
    options = [{"pooling": "none"} if n >= features - features // 4 else kinds[n % 3] for n in range(features)]
    return EmbeddingCollection(
        Schema.from_dict(
            {
                "columns": columns,
                "tables": [{"name": f"t{number}", "dim": 4, "optimizer": {"kind": "adam"}} for number in range(tables)],
                "features": [
                    {"name": name, "table": f"t{number % tables}", **options[number]}
                    for number, name in enumerate(names)
                ],
            }
        ),
        max_rows=1 << 12,
    )


def make_inputs(collection: EmbeddingCollection, schema_weights: set[str]) -> dict[str, Any]:
    offsets = torch.tensor([0, 2, 2, IDS])
    inputs: dict[str, Any] = {}
    for number, name in enumerate(collection.features):
        ids = torch.arange(IDS) % 4 + number
        weights = torch.linspace(0.5, 2, IDS) if name in schema_weights else None
        inputs[name] = Ragged(ids, offsets, weights)
    return inputs


def launches_of_a_step(tables: int, features: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    collection = make_collection(tables, features)
    optimizer = SparseOptimizer(collection.groups)
    weighted = {name for lookup in collection._lookups for f in lookup.features if f.weights for name in [f.name]}
    inputs = make_inputs(collection, weighted)
    for warm in (True, False):  # the first step supplies rows, and describes what later ones have
        outputs = collection(inputs)
        wholes = [value.values if isinstance(value, Ragged) else value for value in outputs.values()]
        grads = [torch.ones_like(whole) for whole in wholes]
        if warm:
            torch.autograd.backward(wholes, grads)
            optimizer.step()
    with counted(monkeypatch) as counter:
        collection(inputs)
    forward = list(counter.launches)
    with counted(monkeypatch) as counter:
        torch.autograd.backward(wholes, grads)
        optimizer.step()
    return forward + counter.launches


def test_launches_of_a_step_do_not_depend_on_tables_and_features(monkeypatch: pytest.MonkeyPatch) -> None:
    choose_implementation("triton", monkeypatch)
    few, many = launches_of_a_step(1, 4, monkeypatch), launches_of_a_step(5, 12, monkeypatch)
    kernels = [[name for name in launches if not name.startswith("aten.")] for launches in (few, many)]
    assert kernels[0] == kernels[1]
    assert len(kernels[0]) > 8
    assert len(many) - len(few) <= 3 * (12 - 4), "torch's own operations are those that put tensors side by side"


def test_coefficients_of_several_features_at_once_are_those_of_each() -> None:
    offsets = [torch.tensor(each) for each in ([0, 2, 2, 5], [0, 1, 4, 4], [0, 0, 0, 3], [0, 1, 2, 2])]
    values = [5, 4, 3, 2]
    poolings = ["mean", "sqrtn", "sum", "mean"]
    generator = torch.Generator().manual_seed(0)
    given = [None, torch.rand(4, generator=generator), torch.rand(3, generator=generator), torch.tensor([0.0, 1.0])]
    for weights in (given, [None] * 4):
        found = join_coefficients(join_offsets(offsets, values), poolings, weights, torch.float64)
        each = [pool_coefficients(o, p, w, torch.float64) for o, p, w in zip(offsets, poolings, weights, strict=True)]
        expected = [torch.ones(n, dtype=torch.float64) if e is None else e for e, n in zip(each, values, strict=True)]
        torch.testing.assert_close(found, torch.cat(expected))
    assert join_coefficients(join_offsets(offsets[:1], values[:1]), ["sum"], [None], torch.float32) is None
