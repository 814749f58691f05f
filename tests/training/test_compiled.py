"""torch.compile with the backends eager and aot_eager: the graphs are torch's own, and no C++ compiler is needed."""

import re
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from recis_lightning.models import DeepFM
from recis_lightning.ragged import Batch, Ragged
from recis_lightning.schema import Schema
from recis_lightning.training import RecModule
from tests.training.helpers import MemoryLoader, everything, make_module, make_trainer

# Dynamo looks at .grad of what goes into a graph, and hides the warning by other means than pytest sees.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

SCHEMA = Schema.from_dict(
    {
        "columns": [
            {"name": "{user,shop}", "dtype": "int64"},
            {"name": "tags", "dtype": "int64", "layout": "list"},
            {"name": "tag_weights", "dtype": "float32", "layout": "list"},
            {"name": "{price,age}", "dtype": "float32"},
            {"name": "click", "dtype": "float32"},
        ],
        "tables": [{"name": "{user,shop,tags,age}", "dim": 4, "initializer": {"kind": "uniform"}}],
        "features": [
            {"name": "user", "table": "user", "transforms": [{"kind": "modulo", "divisor": 97}]},
            {"name": "shop", "table": "shop"},
            {"name": "tags", "table": "tags", "weights": "tag_weights", "pooling": "mean"},
            {
                "name": "age_group",
                "column": "age",
                "table": "age",
                "transforms": [{"kind": "bucketize", "boundaries": [0.2, 0.6]}],
            },
            {"name": "price", "transforms": [{"kind": "clip", "high": 5}, {"kind": "log1p"}]},
        ],
        "tasks": [{"name": "ctr", "label": "click"}],
    }
)


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def make_compiled(backend=False, schema=SCHEMA):
    torch.manual_seed(0)
    return RecModule(schema, network=partial(DeepFM, hidden=[8]), compile=backend)


def make_batch(rows, seed=0, price=None):
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 2, (rows,), generator=draw)
    tags = [
        torch.randint(0, 50, (int(n),), generator=draw).tolist() for n in torch.randint(0, 4, (rows,), generator=draw)
    ]
    tags = Ragged.from_lists(tags)
    weights = tags.with_values(torch.rand(len(tags.values), generator=draw))
    user = Ragged(
        torch.randint(-(2**62), 2**62, (int(lengths.sum()),), generator=draw),
        torch.nn.functional.pad(lengths.cumsum(0), (1, 0)),
    )
    return Batch.pack(
        {
            "user": user,
            "shop": Ragged(torch.randint(0, 9, (rows,), generator=draw), torch.arange(rows + 1)),
            "tags": tags,
            "tag_weights": weights,
            "price": torch.rand(rows, generator=draw) if price is None else torch.full((rows,), price),
            "age": torch.rand(rows, generator=draw),
            "click": torch.ones(rows),
        },
        rows,
    )  # fmt: skip


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_transforms_and_network_are_one_graph_each_whatever_the_sizes(backend):
    module = make_compiled(backend)
    for seed, rows in enumerate([9, 30, 17, 64, 12]):
        module(make_batch(rows, seed))["ctr"].sum().backward()
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
    assert not counters["unimplemented"]


def test_ids_that_go_missing_need_no_graph_of_their_own():
    settings = SCHEMA.to_dict()
    for column in settings["columns"]:
        column["dropout"] = 0.5 if column["name"] in ("user", "shop") else 0.0
    module = make_compiled("eager", Schema.from_dict(settings))
    for seed, rows in enumerate([30, 17, 64]):
        module(make_batch(rows, seed))["ctr"].sum().backward()
    module.eval()(make_batch(40))
    assert counters["stats"]["unique_graphs"] <= 4  # in training and in evaluation one each
    assert not counters["graph_break"]


def test_compiled_logits_and_gradients_are_those_of_the_module_as_it_is():
    plain, compiled = make_compiled(), make_compiled("aot_eager")
    for seed in range(3):
        batch = make_batch(20, seed)
        left, right = plain(batch)["ctr"], compiled(batch)["ctr"]
        torch.testing.assert_close(left, right)
        left.sum().backward()
        right.sum().backward()
    for (name, ours), (_, theirs) in zip(plain.named_parameters(), compiled.named_parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    for ours, theirs in zip(plain.embedding.groups, compiled.embedding.groups, strict=True):
        torch.testing.assert_close(ours.coalesce().grads, theirs.coalesce().grads)


def test_batches_of_no_and_of_one_row_run_as_they_are():
    plain, compiled = make_compiled().eval(), make_compiled("eager").eval()
    for rows in (0, 1):
        batch = make_batch(rows)
        torch.testing.assert_close(plain(batch), compiled(batch))
    assert counters["stats"]["unique_graphs"] == 0


def test_a_value_without_a_result_is_refused_as_ever():
    module = make_compiled("eager")
    module(make_batch(20))
    with pytest.raises(ValueError, match=r"feature 'price', transforms\[1\] \(log1p\): column 'price', row 0"):
        module(make_batch(20, price=-2.0))
    with pytest.raises(ValueError, match=r"\(clip\): column 'price', row 0"):
        module(make_batch(20, price=float("nan")))


def test_a_compiled_module_trains_saves_and_loads_as_another_does(tmp_path):
    trained = make_module(compile="eager")
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(trained, MemoryLoader())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    loaded = RecModule.load_from_checkpoint(tmp_path / "x.ckpt")
    assert loaded.hparams["compile"] == "eager"
    assert everything(loaded) == everything(trained)
    plain = make_module()
    make_trainer(tmp_path, max_epochs=1).fit(plain, MemoryLoader())
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], value, msg=name)


def test_value_that_a_graph_refuses_on_a_gpu_is_told_with_a_later_batch():
    compiled = make_compiled("eager")._compile()[0]
    rows = 4
    compiled.look_later(torch.tensor([rows] * len(compiled.engine.looks)), rows)
    compiled.look_later(torch.tensor([2, *[rows] * (len(compiled.engine.looks) - 1)]), rows)
    where, need = compiled.engine.looks[0]
    with pytest.raises(ValueError, match=f"row 2 of batch 2: need {re.escape(need)}") as error:
        compiled.look_later(torch.tensor([rows] * len(compiled.engine.looks)), rows)
    assert where in str(error.value)
    compiled.look_later(torch.tensor([rows] * len(compiled.engine.looks)), rows)
