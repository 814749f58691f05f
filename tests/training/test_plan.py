"""What a plan says is what tables take and what ranks send."""

import json
import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from recis_lightning import cli
from recis_lightning.data.synthetic.schema import synthesize
from recis_lightning.embedding import EmbeddingCollection
from recis_lightning.embedding.exchange import Exchange
from recis_lightning.ragged import Ragged
from recis_lightning.schema import Schema
from recis_lightning.tables import TableGroup
from recis_lightning.training.plan import (
    ExchangeCosts,
    ExchangeTime,
    Workload,
    ids_of_features,
    make_plan,
    measure_dense,
    rows_of_tables,
)
from tests.embedding.test_exchange import make_schema as make_embedded
from tests.ranks import run_ranks
from triton_ops.index.directory import slots_for

ROOT = Path(__file__).parents[2]


def schema_of(**item: Any) -> Schema:
    table = {"name": "item", "dim": 16, "optimizer": {"kind": "adam"}, **item}
    settings = {
        "columns": [{"name": "item", "dtype": "int64"}, {"name": "items", "dtype": "int64", "layout": "list"}],
        "tables": [table],
        "features": [{"name": "item", "table": "item"}, {"name": "items", "table": "item"}],
        "tasks": [],
    }
    return Schema.from_dict(settings)


def workload_of(schema: Schema, rows: int, batch_size: int = 64, **options: Any) -> Workload:
    names = [feature.name for feature in schema.embedded_features]
    every = {table.name: rows for table in schema.tables}
    return Workload(schema=schema, batch_size=batch_size, rows=every, ids=dict.fromkeys(names, 2.0), **options)


@pytest.mark.parametrize(
    "options",
    [{}, {"dtype": "bfloat16", "optimizer": {"kind": "rowwise_adagrad"}}, {"dim": 3, "optimizer": {"kind": "sgd"}}],
)
@pytest.mark.parametrize("rows", [1000, 60_000, 98_000, 800_000])
def test_a_row_takes_what_a_table_of_so_many_takes(rows: int, options: dict[str, Any]) -> None:
    schema = schema_of(**options)
    (planned,) = make_plan(workload_of(schema, rows), 1).tables
    table = TableGroup(schema.tables, max_rows=rows + 8192)[0]
    for ids in torch.arange(rows).split(50_000):
        table.find_or_insert(ids)
    stats = table.stats()
    assert planned.index * rows == pytest.approx(stats["index_bytes"], rel=0.2)
    assert planned.weight + planned.state + 32 == stats["row_bytes"] / stats["rows"]
    # Blocks of rows that are begun are there as a whole.
    assert planned.bytes == pytest.approx(stats["bytes"], rel=0.15 if rows > 4096 else 0.4)


def test_slots_are_between_a_quarter_and_a_half_full() -> None:
    for ids in (0, 1, 63, 64, 65, 98_304, 98_305, 131_072, 10**6, 10**9):
        assert slots_for(ids) >= 2 * ids
        assert ids < 64 or slots_for(ids) <= 4 * ids + 2, ids
    assert slots_for(100) == 256


def distinct_ids(rank: int, step: int, count: int) -> torch.Tensor:
    return (torch.arange(count) + 10_000 * (2 * step + rank)) * 2654435761


def bytes_of_exchange(schema: dict[str, Any], rows: int, options: dict[str, Any]) -> float:
    """Bytes that a rank sends in a step in which no id comes twice."""
    collection = EmbeddingCollection(Schema.from_dict(schema), max_rows=100_000)
    assert dist.group.WORLD is not None
    exchange = Exchange(dist.group.WORLD, **options)
    collection.shard(exchange)
    offsets = torch.arange(rows + 1) * 2
    for step in range(3):
        inputs = {
            name: Ragged(distinct_ids(dist.get_rank(), step, 2 * rows) + number * 7 * 10**9, offsets)
            for number, name in enumerate(collection.features)
        }
        outputs = collection(inputs).values()
        values = [output.values if isinstance(output, Ragged) else output for output in outputs]
        torch.stack([value.double().square().sum() for value in values]).sum().backward()
    return exchange.take_costs()["exchange/bytes"]


@pytest.mark.parametrize("options", [{}, {"rows_as": "bf16", "grads_as": "fp16"}])
@pytest.mark.parametrize("admission", ["always", "counter"])
def test_ranks_send_what_the_plan_says(admission: str, options: dict[str, Any]) -> None:
    schema, rows = make_embedded("float32", admission), 500
    sent = run_ranks(2, bytes_of_exchange, schema.to_dict(), rows, options)
    plan = make_plan(workload_of(schema, 10**12, batch_size=2 * rows, **options), 2)
    # Ids fall to either rank by chance, and sections are padded; refused ids have no gradient and are sent as zeros.
    assert sum(sent) / 2 == pytest.approx(plan.sent, rel=0.05)


def test_ranks_share_rows_batches_and_a_cut_dense_part() -> None:
    schema = schema_of()
    module = torch.nn.Linear(100, 10)
    adam = partial(torch.optim.Adam, lr=0.1)
    dense = measure_dense(module, adam, is_cut=True)
    assert (dense.parameters, dense.state, dense.bytes_on(1), dense.bytes_on(4)) == (1010, 2, 16_160, 4040)
    assert measure_dense(module, partial(torch.optim.SGD, lr=0.1), is_cut=False).bytes_on(4) == 1010 * 4 * 2
    one, four, odd = (make_plan(workload_of(schema, 10**7, 4096, dense=dense), ranks) for ranks in (1, 4, 3))
    assert one.sent == one.buffers == 0
    assert four.tables[0].rows_here == 2_500_000
    assert odd.tables[0].rows_here == math.ceil(10**7 * 1366 / 4096), "the rank that owns the most shards"
    assert one.tables[0].unique == pytest.approx(4096 * 4, rel=0.01)
    assert four.tables[0].unique == pytest.approx(4096, rel=0.01)
    few = make_plan(workload_of(schema, 100, 4096), 4)
    assert few.tables[0].unique == 100, "a batch has no more different ids than the table"
    assert four.bytes == four.dense + four.buffers + four.tables[0].bytes
    with pytest.raises(ValueError, match="5000 ranks: tables are shared by 1 to 4096"):
        make_plan(workload_of(schema, 10), 5000)


def test_an_exchange_takes_latency_bytes_and_work() -> None:
    free = dict.fromkeys(("latency", "per_group", "per_id", "per_row", "per_byte"), 0.0)
    nothing = ExchangeCosts(bandwidth=math.inf, **free)
    work = workload_of(schema_of(), 10**9, batch_size=2000)  # 2 features of 2 ids each, hardly any twice

    def seconds(ranks: int = 2, **costs: float) -> ExchangeTime:
        return make_plan(work, ranks, replace(nothing, **costs)).exchange

    plan = make_plan(work, 2, nothing)
    assert (plan.looked_up, plan.unique) == (4000, 4000)
    assert plan.packed == 4000 * (8 + 64 + 4 + 64)  # an id, its row, its gradient with a count
    assert plan.sent == plan.packed // 2
    assert seconds() == ExchangeTime(0.0, 0.0)
    assert seconds(latency=1e-3).all_to_alls == pytest.approx(4e-3)
    assert seconds(bandwidth=1e6).all_to_alls == pytest.approx(0.28)
    assert seconds(ranks=4, bandwidth=1e6).all_to_alls == pytest.approx(0.21)  # of half as many ids three quarters
    assert seconds(per_group=0.5, per_id=1e-3, per_row=1e-2, per_byte=1e-6).work == pytest.approx(0.5 + 4 + 40 + 0.56)
    assert seconds(latency=1e-3, per_id=1e-3).total == pytest.approx(4.004)
    assert seconds(ranks=1, latency=1.0, per_group=1.0, per_id=1.0) == ExchangeTime(0.0, 0.0)
    frequent = make_plan(workload_of(schema_of(), 100, batch_size=2000), 2)
    assert (frequent.looked_up, frequent.unique) == (4000, 100)


def test_what_cannot_be_is_told() -> None:
    plan = make_plan(workload_of(schema_of(capacity=1000), 5 * 10**9, 10), 2)
    assert [line.split(":")[0].split(",")[0] for line in plan.problems] == [
        "tables item of dim 16 are to have 2",
        "table 'item' is to hold 5",
    ]
    assert make_plan(workload_of(schema_of(), 10, 10), 3).problems == ("batch_size 10 is no multiple of 3 ranks",)


def test_numbers_come_from_declarations_options_and_data() -> None:
    assert rows_of_tables(schema_of(expected_rows=50), {}, {"item": 7, "items": 9}) == ({"item": 50}, [])
    assert rows_of_tables(schema_of(expected_rows=50), {"item": 3}, {}) == ({"item": 3}, [])
    assert rows_of_tables(schema_of(), {}, {"item": 7, "items": 9}) == ({"item": 16}, [])
    assert rows_of_tables(schema_of(capacity=12), {}, {"item": 7, "items": 9}) == ({"item": 12}, [])
    assert rows_of_tables(schema_of(capacity=12), {}, {"item": 7}) == ({"item": 12}, [])
    _, (problem,) = rows_of_tables(schema_of(), {}, {"item": 7})
    assert problem.startswith("table 'item': nothing says how many rows it will have; give --rows item=1000000")
    _, (problem,) = ids_of_features(schema_of(), {})
    assert problem.startswith("column 'items': nothing says how long its lists are; give --length items=20")
    assert ids_of_features(schema_of(), {"items": 7.5}) == ({"item": 1.0, "items": 7.5}, [])
    settings = schema_of().to_dict()
    settings["features"][1] |= {"pooling": "tile", "tile_length": 3}
    settings["columns"][1] |= {"max_length": 20}
    settings["features"].append({"name": "x", "inputs": ["item", "items"], "table": "item", "transforms": ["cross"]})
    assert ids_of_features(Schema.from_dict(settings), {}) == ({"item": 1.0, "items": 3.0, "x": 20.0}, [])


# ------------------------------------------------------------------------------------------------------ the command


def test_the_page_about_planning_shows_what_the_command_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs/plan.md").read_text()
    line, shown = re.findall(r"```\n\$ recis (.*?)\n(.*?)```", page, re.DOTALL)[0]
    assert cli.main(line.split()) == 0
    printed = [text.rstrip() for text in capsys.readouterr().out.splitlines()]
    assert "\n".join(printed).strip("\n") == shown.strip("\n")
    assert cli.main(["plan", "--config", "docs/plan_trillion.yaml", "--devices", "8", "--memory", "80GB"]) == 1
    assert "does not fit: 263.02 GB more than the 80.00 GB of a rank" in capsys.readouterr().out


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of a list column without a bound, and its data."""
    import yaml

    folder = tmp_path_factory.mktemp("plan")
    schema = schema_of().to_dict() | {"tasks": [{"name": "ctr", "label": "click"}]}
    schema["columns"].append({"name": "click", "dtype": "float32"})
    synthesize(Schema.from_dict(schema), folder / "train", 500)
    settings = {
        "seed_everything": 0,
        "model": {"network": {"class_path": "DeepFM", "init_args": {"hidden": [8]}}},
        "data": {"schema": json.loads(json.dumps(schema)), "train": str(folder / "train"), "batch_size": 64},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return folder / "recipe.yaml"


def test_the_command_counts_ids_in_the_data(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", str(recipe.parent / "train")]
    assert cli.main(["plan", "--config", str(recipe), *data, "--devices", "2", "--json"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)
    assert plan["fits"]
    assert plan["world_size"] == 2
    assert 0 < plan["tables"][0]["rows"] <= 500 * 10
    costs = ["--latency", "10ms", "--bandwidth", "8Kbit/s", "--work", "per_group=1", "--work", "per_row=0"]
    assert cli.main(["plan", "--config", str(recipe), *data, "--devices", "2", "--json", *costs]) == 0
    (slow,) = json.loads(capsys.readouterr().out)
    assert slow["exchange"]["all_to_alls"] == pytest.approx(0.04 + plan["sent"] / 1e3)
    assert slow["exchange"]["work"] == pytest.approx(1.0, abs=0.01)
    assert plan["bytes"] == plan["dense"] + plan["buffers"] + sum(table["bytes"] for table in plan["tables"])
    line = ["plan", "--config", str(recipe), "--rows", "item=1e6", "--length", "items=5", "--dense", "fsdp2"]
    assert cli.main([*line, "--memory", "100KB"]) == 1
    assert "does not fit: 0.28 GB more than the 0.00 GB of a rank" in capsys.readouterr().out


def test_mistakes_of_the_command_end_in_a_line(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["plan", "--config", str(recipe)]
    assert cli.main(line) == 2
    told = capsys.readouterr().err
    assert "table 'item': nothing says how many rows" in told
    assert "column 'items': nothing says how long" in told
    for options, message in (
        (["--rows", "itm=5"], "'itm=5' names no table; did you mean 'item'?"),
        (["--rows", "item=five"], "'item=five': 'five' is no number"),
        (["--length", "items"], "'items' names no column"),
        (["--memory", "lots"], "'lots' is no size; write 80GB or 80GiB"),
        (["--devices", "0.5"], "'0.5' is no whole number from 1 on"),
        (["--latency", "5"], "'5' is no time; write 50us or 0.05ms"),
        (["--bandwidth", "25Gb/s"], "'25Gb/s' is no rate; write 3GB/s or 25Gbit/s"),
        (
            ["--rows", "item=5", "--length", "items=1", "--work", "per_idd=1"],
            "'per_idd=1' names no cost; did you mean 'per_id'?",
        ),
    ):
        assert cli.main([*line, *options]) == 2
        assert message in capsys.readouterr().err
