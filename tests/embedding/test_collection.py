"""EmbeddingCollection: pooling by hand, torch's embedding bags and sparse optimizers, evaluation, and its errors."""

import copy
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recis_lightning.embedding import EmbeddingCollection
from recis_lightning.optim import SparseOptimizer
from recis_lightning.ragged import Ragged, stack_features
from recis_lightning.schema import Schema
from tests.tables.blocks import ON_ALL, choose_implementation

UNIFORM = {"kind": "uniform", "low": -0.5, "high": 0.5}


@pytest.fixture(params=ON_ALL, autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    choose_implementation(request.param, monkeypatch)
    return request.param


def make_collection(
    features: Mapping[str, Mapping[str, Any]], tables: Mapping[str, Mapping[str, Any]] | None = None
) -> EmbeddingCollection:
    """A collection over list columns named as the features; tables are fp64, 3 wide, unless said otherwise."""
    tables = tables or {str(options["table"]): {} for options in features.values()}
    weights = {str(options["weights"]) for options in features.values() if "weights" in options}
    columns = [{"name": name, "dtype": "int64", "layout": "list"} for name in features]
    columns += [{"name": name, "dtype": "float32", "layout": "list"} for name in weights]
    schema = Schema.from_dict(
        {
            "columns": columns,
            "tables": [
                {"name": name, "dim": 3, "dtype": "float64", "initializer": UNIFORM} | dict(options)
                for name, options in tables.items()
            ],
            "features": [{"name": name, **options} for name, options in features.items()],
        }
    )
    return EmbeddingCollection(schema, seed=3, max_rows=10_000)


def rows_of(collection: EmbeddingCollection, table: str, ids: Sequence[int]) -> Tensor:
    found = collection.tables[table].find(torch.tensor(ids, dtype=torch.int64))
    return collection.tables[table].weight(found)


def random_ragged(rows: int, ids: int = 50, longest: int = 4, seed: int = 0) -> Ragged:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(longest, (rows,), generator=generator)
    offsets = nn.functional.pad(lengths.cumsum(0), (1, 0))
    return Ragged(torch.randint(ids, (int(offsets[-1]),), generator=generator), offsets)


IDS = Ragged.from_lists([[5, 7], [], [5]])


@pytest.mark.parametrize(("pooling", "factor"), [("sum", 1.0), ("mean", 0.5), ("sqrtn", 0.5**0.5)])
def test_rows_are_pooled_as_declared(pooling: str, factor: float) -> None:
    collection = make_collection({"a": {"table": "t", "pooling": pooling}})
    pooled = collection({"a": IDS})["a"]
    five, seven = rows_of(collection, "t", [5, 7])
    torch.testing.assert_close(pooled, torch.stack([(five + seven) * factor, torch.zeros(3).double(), five]))


@pytest.mark.parametrize(("pooling", "divisor"), [("sum", 1.0), ("mean", 7.0), ("sqrtn", 5.0)])
def test_weights_weigh_the_rows(pooling: str, divisor: float) -> None:
    collection = make_collection({"a": {"table": "t", "pooling": pooling, "weights": "w"}})
    pooled = collection({"a": Ragged(IDS.values, IDS.offsets, torch.tensor([3.0, 4.0, 0.0]))})["a"]
    five, seven = rows_of(collection, "t", [5, 7])
    zeros = torch.zeros(3).double()
    torch.testing.assert_close(pooled, torch.stack([(3 * five + 4 * seven) / divisor, zeros, zeros]))


def test_sequences_keep_their_rows_weights_and_gradients() -> None:
    collection = make_collection({"a": {"table": "t", "pooling": "none", "weights": "w"}})
    weights = torch.tensor([3.0, 4.0, 0.0])
    sequence = collection({"a": Ragged(IDS.values, IDS.offsets, weights)})["a"]
    assert isinstance(sequence, Ragged)
    assert sequence.offsets is IDS.offsets
    assert sequence.weights is weights
    assert torch.equal(sequence.values, rows_of(collection, "t", [5, 7, 5]))
    (sequence.values * torch.tensor([[1.0], [10.0], [100.0]])).sum().backward()
    pending = collection.groups[0].coalesce()
    assert pending is not None
    assert pending.grads[pending.rows >= 0].tolist() == [[101.0] * 3, [10.0] * 3]


def test_nested_sequences_are_looked_up_at_the_innermost_level() -> None:
    collection = make_collection({"a": {"table": "t", "pooling": "none"}})
    nested = Ragged.from_lists([[[1, 2], [3]], []])
    found = collection({"a": nested})["a"]
    assert isinstance(found, Ragged)
    assert [len(row) for row in found.to_lists()] == [2, 0]
    assert torch.equal(found.values, rows_of(collection, "t", [1, 2, 3]))


@pytest.mark.parametrize("lists", [[], [[]], [[], [], []]])
def test_batches_without_rows_or_ids_give_zeros(lists: list[list[int]]) -> None:
    collection = make_collection({"a": {"table": "t"}, "s": {"table": "t", "pooling": "none"}})
    empty = Ragged.from_lists(lists)
    found = collection({"a": empty, "s": empty})
    assert found["a"].shape == (len(lists), 3)
    assert (found["a"] == 0).all()
    assert isinstance(found["s"], Ragged)
    assert found["s"].values.shape == (0, 3)
    (found["a"].sum() + found["s"].values.sum()).backward()
    SparseOptimizer(collection.groups).step()
    assert len(collection.tables["t"]) == 0


def test_features_share_a_table_and_differ_in_rows_and_pooling() -> None:
    features = {
        "a": {"table": "t"},
        "b": {"table": "t", "pooling": "mean"},
        "c": {"table": "u"},
        "d": {"table": "t", "pooling": "none"},
    }
    collection = make_collection(features, {"t": {}, "u": {}})
    inputs = {name: random_ragged(rows, seed=rows) for name, rows in {"a": 4, "b": 4, "c": 6, "d": 5}.items()}
    found = collection(inputs)
    assert list(found) == ["a", "b", "c", "d"]
    assert len(collection.groups) == 1
    for name, pooling in {"a": "sum", "b": "mean", "c": "sum"}.items():
        weight = rows_of(collection, features[name]["table"], inputs[name].values.tolist())
        values = torch.arange(len(weight))
        expected = nn.functional.embedding_bag(
            values, weight, inputs[name].offsets, mode=pooling, include_last_offset=True
        )
        torch.testing.assert_close(found[name], expected)


def make_control(kind: str, lr: float, weights: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(weights, lr=lr)
    return torch.optim.Adagrad(weights, lr=lr) if kind == "adagrad" else torch.optim.SparseAdam(weights, lr=lr)


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "adam"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 2e-5)])
def test_fifty_steps_equal_torch(kind: str, dtype: str, tolerance: float) -> None:
    """One table a feature, of 60 ids, against nn.EmbeddingBag(sparse=True) and torch's sparse optimizers."""
    tables = {name: {"dtype": dtype, "optimizer": {"kind": kind, "lr": 0.05}} for name in ("t", "u")}
    collection = make_collection({"a": {"table": "t"}, "b": {"table": "u", "pooling": "mean"}}, tables)
    optimizer = SparseOptimizer(collection.groups)
    every_id = Ragged(torch.arange(60), torch.arange(61))
    collection({"a": every_id, "b": every_id})
    bags = [
        nn.EmbeddingBag.from_pretrained(
            rows_of(collection, table, range(60)), freeze=False, mode=mode, sparse=True, include_last_offset=True
        )
        for table, mode in (("t", "sum"), ("u", "mean"))
    ]
    control = make_control(kind, 0.05, [bag.weight for bag in bags])
    for step in range(50):
        inputs = {name: random_ragged(20, ids=60, seed=2 * step + k) for k, name in enumerate("ab")}
        target = torch.randn(20, 3, generator=torch.Generator().manual_seed(step), dtype=getattr(torch, dtype))
        optimizer.zero_grad()
        control.zero_grad()
        found = collection(inputs)
        ((found["a"] * found["b"] - target) ** 2).mean().backward()
        expected = [bag(inputs[name].values, inputs[name].offsets) for bag, name in zip(bags, "ab", strict=True)]
        ((expected[0] * expected[1] - target) ** 2).mean().backward()
        optimizer.step()
        with torch.sparse.check_sparse_tensor_invariants():  # torch warns unless told whether to
            control.step()
    for bag, table in zip(bags, "tu", strict=True):
        ours = rows_of(collection, table, range(60))
        torch.testing.assert_close(ours, bag.weight.detach(), rtol=tolerance, atol=tolerance)
    assert {table.step for table in collection.tables.values()} == {50}


def test_rows_that_no_loss_depends_on_are_not_touched() -> None:
    collection = make_collection({"a": {"table": "t"}, "b": {"table": "u"}}, {"t": {}, "u": {}})
    found = collection({"a": IDS, "b": IDS})
    before = rows_of(collection, "u", [5, 7])
    found["a"].sum().backward()
    SparseOptimizer(collection.groups).step()
    assert torch.equal(rows_of(collection, "u", [5, 7]), before)
    assert [collection.tables[name].step for name in "tu"] == [1, 0]
    assert collection.tables["u"].export().count.tolist() == [0, 0]


def test_training_records_when_and_how_often_ids_were_looked_up() -> None:
    collection = make_collection({"a": {"table": "t"}})
    optimizer = SparseOptimizer(collection.groups)
    for lists in ([[5, 7], [5]], [[5]]):
        collection({"a": Ragged.from_lists(lists)})["a"].sum().backward()
        optimizer.step()
    exported = collection.tables["t"].export()
    records = zip(exported.ids.tolist(), exported.last_step.tolist(), exported.count.tolist(), strict=True)
    assert sorted(records) == [(5, 2, 3), (7, 1, 1)]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [False, True])
def test_evaluation_never_inserts_and_training_goes_on(mode: Any, training: bool) -> None:
    collection = make_collection({"a": {"table": "t"}}).train(training)
    with mode():
        assert (collection({"a": IDS})["a"] == 0).all()
    assert len(collection.tables["t"]) == 0
    collection.train()
    collection({"a": IDS})["a"].sum().backward()
    SparseOptimizer(collection.groups).step()
    collection.eval()
    with mode():
        known = collection({"a": Ragged.from_lists([[5], [99]])})["a"]
    assert torch.equal(known, torch.stack([rows_of(collection, "t", [5])[0], torch.zeros(3).double()]))
    assert len(collection.tables["t"]) == 2


def test_rows_learn_in_eval_mode_too_but_unknown_ids_do_not() -> None:
    collection = make_collection({"a": {"table": "t"}})
    collection({"a": IDS})
    collection.eval()
    collection({"a": Ragged.from_lists([[5, 99]])})["a"].sum().backward()
    (pending,) = collection.groups[0].pending
    assert torch.equal(pending.rows, collection.tables["t"].find(torch.tensor([5])))


def test_a_collection_made_in_inference_mode_trains() -> None:
    with torch.inference_mode():
        collection = make_collection({"a": {"table": "t"}})
    collection({"a": IDS})["a"].sum().backward()
    assert len(collection.groups[0].pending) == 1


def test_moving_and_casting_leave_tables_as_they_are() -> None:
    collection = make_collection({"a": {"table": "t"}})
    collection({"a": IDS})
    before = rows_of(collection, "t", [5, 7])
    collection.half().to("meta").cpu().apply(lambda module: None)
    assert torch.equal(rows_of(collection, "t", [5, 7]), before)
    assert list(collection.parameters()) == list(collection.buffers()) == []
    assert collection.state_dict() == {}


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_train_apart(clone: Any) -> None:
    collection = make_collection({"a": {"table": "t"}})
    collection({"a": IDS})["a"].sum().backward()
    copied = clone(collection)
    before = rows_of(collection, "t", [5, 7])
    assert torch.equal(rows_of(copied, "t", [5, 7]), before)
    copied({"a": Ragged.from_lists([[8]])})["a"].sum().backward()
    SparseOptimizer(copied.groups).step()
    assert torch.equal(rows_of(collection, "t", [5, 7]), before)
    assert not torch.equal(rows_of(copied, "t", [5, 7]), before)
    assert (len(collection.tables["t"]), len(copied.tables["t"])) == (2, 3)


def test_stacked_features_are_not_copied_and_learn_alike() -> None:
    features = {
        name: {"table": name, "pooling": pooling} for name, pooling in zip("abc", ("sum", "mean", "sum"), strict=True)
    }
    inputs = {name: random_ragged(6, seed=k) for k, name in enumerate(features)}
    factors = torch.arange(6 * 3 * 3.0).double().view(6, 3, 3)
    pending = []
    for stack in (stack_features, lambda tensors: torch.stack(tensors, dim=1)):
        collection = make_collection(features)
        pooled = list(collection(inputs).values())
        stacked = stack(pooled)
        assert torch.equal(stacked, torch.stack(pooled, dim=1))
        assert (stacked.data_ptr() == pooled[0].data_ptr()) is (stack is stack_features)
        ((stacked * factors).sum() + pooled[1].square().sum()).backward()
        pending.append(collection.groups[0].coalesce())
    assert torch.equal(pending[0].rows, pending[1].rows)
    torch.testing.assert_close(pending[0].grads, pending[1].grads)


def test_changing_shared_memory_in_place_is_noticed() -> None:
    collection = make_collection({"a": {"table": "t"}, "b": {"table": "t"}})
    pooled = collection({"a": IDS, "b": IDS})
    with pytest.raises(RuntimeError, match="modified inplace"):
        pooled["a"].relu_()
    squares = pooled["a"].square().sum()
    stack_features([pooled["a"], pooled["b"]]).mul_(2)
    with pytest.raises(RuntimeError, match="modified"):
        squares.backward()


def test_large_outputs_are_kept_while_held_and_used_again_after() -> None:
    collection = make_collection({"a": {"table": "t"}}).eval()
    large = Ragged(torch.zeros(200_000, dtype=torch.int64), torch.arange(200_001))
    first, second = collection({"a": large})["a"], collection({"a": large})["a"]
    assert first.data_ptr() != second.data_ptr()
    place = first.data_ptr()
    del first
    assert collection({"a": large})["a"].data_ptr() == place


def test_ids_are_erased_by_the_names_of_their_tables() -> None:
    tables = {"t": {}, "u": {}, "wide": {"dim": 5}}
    collection = make_collection({name: {"table": name} for name in tables}, tables)
    collection(dict.fromkeys(tables, IDS))
    for group in collection.groups:
        group.pending.clear()
    assert collection.erase({"u": torch.tensor([5, 6]), "wide": torch.tensor([5, 7])}) == {"u": 1, "wide": 2}
    assert {name: len(table) for name, table in collection.tables.items()} == {"t": 2, "u": 1, "wide": 0}
    with pytest.raises(KeyError, match="shop"):
        collection.erase({"shop": torch.tensor([5])})


def test_a_second_backward_is_refused_as_everywhere() -> None:
    loss = make_collection({"a": {"table": "t"}})({"a": IDS})["a"].sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


FAULTS: list[tuple[Any, str]] = [
    (IDS.values, "is a Tensor; give its ids as Ragged"),
    (Ragged(IDS.values.int(), IDS.offsets, torch.ones(3)), r"ids are torch.int32 \[3\]; give int64"),
    (Ragged(IDS.values[:, None], IDS.offsets, torch.ones(3)), r"ids are torch.int64 \[3, 1\]; give int64 \[N\]"),
    (Ragged(IDS.values.to("meta"), IDS.offsets, torch.ones(3)), "ids are on meta, its table on cpu"),
    (IDS, "no weights came with the ids, 'w' is declared"),
    (Ragged(IDS.values, IDS.offsets, torch.ones(3, dtype=torch.int64)), r"weights are torch.int64 \[3\] for 3 ids"),
    (Ragged(IDS.values, IDS.offsets, torch.ones(3, requires_grad=True)), "weights require a gradient"),
    (Ragged(IDS.values, torch.tensor([0, 2, 2, 4]), torch.ones(3)), "offsets ends at 4, but there are 3 values"),
    (Ragged(IDS.values, torch.tensor([1, 2, 2, 3]), torch.ones(3)), r"offsets must start at 0, starts \[1\]"),
    (Ragged(IDS.values, torch.tensor([0, 2, 1, 3]), torch.ones(3)), "offsets falls at row 1"),
    (Ragged(IDS.values, torch.tensor([0, 2]), torch.ones(3), (torch.tensor([0, 1, 3]),)), "rows are nested 2 deep"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS)
def test_inputs_that_do_not_fit_name_feature_and_table(fault: Any, message: str) -> None:
    collection = make_collection({"good": {"table": "t"}, "bad": {"table": "u", "weights": "w"}})
    with pytest.raises(ValueError, match=rf"feature 'bad' \(table 'u'\).*{message}"):
        collection({"good": IDS, "bad": fault})
    assert len(collection.tables["t"]) == 0


def test_a_missing_feature_is_named() -> None:
    collection = make_collection({"item": {"table": "t"}})
    with pytest.raises(ValueError, match=r"feature 'item' \(table 't'\) is missing.*did you mean 'items'\?"):
        collection({"items": IDS})


def test_weights_nobody_declared_are_refused() -> None:
    collection = make_collection({"a": {"table": "t"}})
    with pytest.raises(ValueError, match="weights came with the ids, none is declared"):
        collection({"a": Ragged(IDS.values, IDS.offsets, torch.ones(3))})
