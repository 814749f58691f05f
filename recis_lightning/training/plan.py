"""What a run takes on each of its ranks, reckoned before it runs: rows, memory, and what ranks send each other.

    workload = Workload(schema, batch_size=65_536, rows={"item": 10**9, ...}, ids={"item": 1.0, ...})
    plan = make_plan(workload, world_size=64)
    plan.bytes, plan.tables[0].row_bytes, plan.sent

All is of the rank that owns the most virtual shards. A row takes its embedding, its optimizer's state, its record and
its part of the index, as the layout of tables says. Ids are taken to be spread evenly over a table's rows, so that a
batch repeats few of them: what is sent is at most that, and less where some ids are frequent.

U different ids of a table in a rank's share of a batch.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from recis_lightning.embedding.exchange import owned_shards
from recis_lightning.embedding.wire import Codec, Precision, codec_of
from recis_lightning.schema import Column, Cross, Feature, Schema, Table
from recis_lightning.schema.policies import Always, Bloom
from recis_lightning.tables.layout import Layout
from recis_lightning.tables.places import MOST_ROWS
from triton_ops.index import SHARDS
from triton_ops.index.cpu import SLOT_BYTES
from triton_ops.index.directory import slots_for
from triton_ops.row_layout import GRANULE, RECORD

WORD = torch.int64.itemsize
ALL_TO_ALLS = 4  # of a step: numbers of ids, ids, rows, gradients


@dataclass(frozen=True, kw_only=True)
class Dense:
    """The dense part."""

    parameters: int = 0
    bytes_each: int = 4
    state: float = 2.0
    """Numbers that the optimizer keeps of each trained parameter."""
    is_cut: bool = False
    """Whether ranks share it (fsdp2), or each has all of it (ddp)."""

    def bytes_on(self, world_size: int) -> int:
        """Weights, gradients and optimizer state on a rank."""
        whole = self.parameters * self.bytes_each * (2 + self.state)
        return math.ceil(whole / world_size) if self.is_cut else math.ceil(whole)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is trained on what."""

    schema: Schema
    batch_size: int
    """Rows of a batch of all ranks together."""
    rows: Mapping[str, int]
    """How many ids each table is to hold."""
    ids: Mapping[str, float]
    """How many ids each embedded feature has in a row of data, on average."""
    dense: Dense = field(default_factory=Dense)
    rows_as: Precision = "full"
    grads_as: Precision = "full"


@dataclass(frozen=True, kw_only=True)
class ExchangeCosts:
    """What ranks and what connects them take for an exchange, in seconds; bandwidth in bytes a second.

    The defaults are what `make bench BENCH=exchange` has measured of two ranks over gloo, within one machine of two
    x86-64 cores: other networks and processors have others.
    """

    latency: float = 240e-6
    """Of an all-to-all, whatever is sent."""
    bandwidth: float = 1.2e9
    """What a rank sends."""
    per_group: float = 2e-3
    """For each group of tables, however few its ids: calls of small functions."""
    per_id: float = 36e-9
    """For each id of a rank's batch: finding repeats and owners."""
    per_row: float = 80e-9
    """For each different one: it is asked for, looked up by its owner, and its gradient summed there."""
    per_byte: float = 0.8e-9
    """Packing and unpacking a byte that is sent, to others or to itself."""


@dataclass(frozen=True)
class ExchangeTime:
    """Seconds of a step's exchange, without waiting for a rank that comes later to it than others."""

    all_to_alls: float
    work: float
    """Of this rank's core: partition, packing, lookups for other ranks, sums of gradients."""

    @property
    def total(self) -> float:
        return self.all_to_alls + self.work


@dataclass(frozen=True)
class TablePlan:
    """One table on one rank."""

    name: str
    rows: int
    """Of the whole table."""
    rows_here: int
    row_bytes: float
    """Of one row: `weight`, `state`, `record` and `index` together."""
    weight: int
    state: int
    record: float
    index: float
    bytes: int
    """Of the rows here, and of a Bloom filter's part."""
    unique: int
    """Different ids in a rank's share of a batch, at most."""
    looked_up: int
    """Ids in it, repeated ones too."""
    packed: int
    """Bytes of ids, rows and gradients that it packs in a step for it: those for others, and its own."""
    sent: int
    """Bytes that a rank sends others in a step for it."""


@dataclass(frozen=True)
class Plan:
    """A rank of so many."""

    world_size: int
    tables: tuple[TablePlan, ...]
    dense: int
    """Bytes of the dense part."""
    buffers: int
    """Bytes of what is on the way in a step: ids, rows and gradients, packed and unpacked."""
    exchange: ExchangeTime
    """Of a step."""
    problems: tuple[str, ...] = ()
    """What cannot be, whatever the memory."""

    @property
    def bytes(self) -> int:
        return self.dense + self.buffers + sum(table.bytes for table in self.tables)

    @property
    def sent(self) -> int:
        """Bytes that a rank sends others in a step."""
        return sum(table.sent for table in self.tables)

    @property
    def packed(self) -> int:
        return sum(table.packed for table in self.tables)

    @property
    def looked_up(self) -> int:
        return sum(table.looked_up for table in self.tables)

    @property
    def unique(self) -> int:
        return sum(table.unique for table in self.tables)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"bytes": self.bytes, "sent": self.sent}


def make_plan(workload: Workload, world_size: int, costs: ExchangeCosts | None = None) -> Plan:
    """What each rank of so many takes; ValueError where a rank would own no virtual shard.

    ``costs`` are those of the ranks and of what connects them, for the time of an exchange.
    """
    if not 1 <= world_size <= SHARDS:
        raise ValueError(f"{world_size} ranks: tables are shared by 1 to {SHARDS}")
    tables = tuple(_plan_table(workload, table, world_size) for table in workload.schema.tables)
    layouts = {table.name: Layout.of(table) for table in workload.schema.tables}
    buffers = sum(_buffers(workload, layouts[table.name], table.unique) for table in tables) if world_size > 1 else 0
    dense = workload.dense.bytes_on(world_size)
    exchange = _exchange_time(tables, len(set(layouts.values())), world_size, costs or ExchangeCosts())
    return Plan(world_size, tables, dense, buffers, exchange, tuple(_problems(workload, layouts, tables, world_size)))


def _exchange_time(tables: Sequence[TablePlan], groups: int, world_size: int, costs: ExchangeCosts) -> ExchangeTime:
    """Seconds of a step: latency and bytes / bandwidth of its all-to-alls, and what a rank does for each id and byte.

    200 us and 1 GB/s, 10 MB sent: 4 x 0.2 + 10 = 10.8 ms. The four bring the numbers of ids, ids, rows, gradients.
    """
    if world_size == 1 or not tables:
        return ExchangeTime(0.0, 0.0)
    sent, packed, unique, looked_up = (
        sum(getattr(table, name) for table in tables) for name in ("sent", "packed", "unique", "looked_up")
    )
    all_to_alls = ALL_TO_ALLS * costs.latency + sent / costs.bandwidth
    of_ids = looked_up * costs.per_id + unique * costs.per_row + packed * costs.per_byte
    return ExchangeTime(all_to_alls, groups * costs.per_group + of_ids)


def _problems(
    workload: Workload, layouts: Mapping[str, Layout], tables: tuple[TablePlan, ...], world_size: int
) -> Iterator[str]:
    groups: dict[Layout, int] = {}
    for table in tables:
        groups[layouts[table.name]] = groups.get(layouts[table.name], 0) + table.rows_here
    for layout, rows in groups.items():
        if rows > MOST_ROWS:
            names = [table.name for table in tables if layouts[table.name] == layout]
            yield (
                f"tables {', '.join(names[:5])} of dim {layout.dim} are to have {rows:,} rows on a rank, where a group "
                f"of tables has at most {MOST_ROWS:,}; take more ranks"
            )
    for declared in workload.schema.tables:
        if declared.capacity is not None and workload.rows[declared.name] > declared.capacity:
            yield (
                f"table '{declared.name}' is to hold {workload.rows[declared.name]:,} rows, and its capacity is "
                f"{declared.capacity:,}"
            )
    if workload.batch_size % world_size:
        yield f"batch_size {workload.batch_size} is no multiple of {world_size} ranks"


def _plan_table(workload: Workload, table: Table, world_size: int) -> TablePlan:
    layout, rows = Layout.of(table), workload.rows[table.name]
    shards = max(last - first for first, last in (owned_shards(rank, world_size) for rank in range(world_size)))
    rows_here = math.ceil(rows * shards / SHARDS)
    weight, state = layout.dim * layout.dtype.itemsize, layout.state_width * layout.state_dtype.itemsize
    record = RECORD * WORD + torch.int32.itemsize / GRANULE
    index = slots_for(rows_here) * SLOT_BYTES / max(rows_here, 1)
    row_bytes = weight + state + record + index
    bloom = math.ceil(table.admission.bytes * shards / SHARDS) if isinstance(table.admission, Bloom) else 0
    looked_up, unique = _ids_of_rank(workload, table, world_size)
    packed = _packed(workload, table, layout, unique)
    return TablePlan(
        name=table.name,
        rows=rows,
        rows_here=rows_here,
        row_bytes=row_bytes,
        weight=weight,
        state=state,
        record=record,
        index=index,
        bytes=math.ceil(rows_here * row_bytes) + bloom,
        unique=unique,
        looked_up=looked_up,
        packed=packed,
        sent=packed * (world_size - 1) // world_size,
    )


def _ids_of_rank(workload: Workload, table: Table, world_size: int) -> tuple[int, int]:
    """How many ids a rank looks up in a step, and how many different ones, were they drawn evenly."""
    rows = workload.rows[table.name]
    features = [feature for feature in workload.schema.embedded_features if feature.table == table.name]
    drawn = sum(workload.ids[feature.name] for feature in features) * math.ceil(workload.batch_size / world_size)
    return math.ceil(drawn), math.ceil(-rows * math.expm1(-drawn / rows)) if rows else 0


def _packed(workload: Workload, table: Table, layout: Layout, unique: int) -> int:
    """Bytes of a step: ids, the rows that they ask for, gradients. Each rank owns as much as it asks for."""
    rows = _coded(codec_of(workload.rows_as), unique, layout.dim, layout.dtype)
    grads = torch.int32.itemsize * unique + _coded(codec_of(workload.grads_as), unique, layout.dim, layout.read_dtype)
    group = [other for other in workload.schema.tables if Layout.of(other) == layout]
    is_counted = not table.trainable or any(other.admission != Always() for other in group)
    counts = WORD * unique if is_counted else 0
    return WORD * unique + counts + rows + (grads if table.trainable else 0)


def _coded(codec: Codec, rows: int, dim: int, dtype: torch.dtype) -> int:
    return sum(section.itemsize * math.prod(shape) for section, shape in codec.sections(rows, dim, dtype))


def _buffers(workload: Workload, layout: Layout, unique: int) -> int:
    """Ids, rows and gradients of a table, as they leave and as they arrive, and unpacked."""
    rows = _coded(codec_of(workload.rows_as), unique, layout.dim, layout.dtype)
    grads = _coded(codec_of(workload.grads_as), unique, layout.dim, layout.read_dtype)
    plain = unique * layout.dim * (layout.dtype.itemsize + 2 * layout.read_dtype.itemsize)
    return 2 * (WORD * unique + rows + grads) + plain


# ------------------------------------------------------------------------------------------------ finding the numbers


def rows_of_tables(
    schema: Schema, given: Mapping[str, int], distinct: Mapping[str, int]
) -> tuple[dict[str, int], list[str]]:
    """How many rows each table is to have, and what is not known, a line each.

    As given, else as declared (expected_rows), else the distinct values that the columns of its features have in the
    data, else its capacity.
    """
    found, problems = dict(given), []
    for table in schema.tables:
        if table.name in given:
            continue
        columns = {
            column.name
            for feature in schema.embedded_features
            if feature.table == table.name
            for column in _columns_below(schema, feature)
        }
        if table.expected_rows is not None:
            found[table.name] = table.expected_rows
        elif columns and columns <= distinct.keys():
            # Columns of a table often share ids: between the most of one and the sum, the sum is safe.
            found[table.name] = min(sum(distinct[name] for name in columns), table.capacity or MOST_ROWS)
        elif table.capacity is not None:
            found[table.name] = table.capacity
        else:
            problems.append(
                f"table '{table.name}': nothing says how many rows it will have; give --rows {table.name}=1000000, "
                "expected_rows or capacity in its declaration, or --data to count ids in"
            )
    return found, problems


def ids_of_features(schema: Schema, lengths: Mapping[str, float]) -> tuple[dict[str, float], list[str]]:
    """How many ids each embedded feature has in a row, and what is not known, a line each.

    ``lengths`` are those of columns, on average; of others their longest counts (max_length, a sequence's length).
    """
    longest = {name: sequence.length for sequence in schema.sequences for name in sequence.columns}
    problems: list[str] = []

    def of_column(column: Column) -> float:
        if column.name in lengths:
            return lengths[column.name]
        if not column.has_rows and column.layout != "optional_list":
            return 1.0
        most = longest.get(column.name, column.max_length)
        if most is None and column.layout != "optional_list":
            problem = f"column '{column.name}': nothing says how long its lists are; give --length {column.name}=20"
            problems.append(f"{problem}, max_length in its declaration, or --data to measure")
        return float(most or 1)

    def of_feature(feature: Feature) -> float:
        inputs = [
            of_column(each) if isinstance(each, Column) else of_feature(each) for each in schema.inputs_of(feature)
        ]
        crosses = any(isinstance(transform, Cross) for transform in feature.transforms)
        return math.prod(inputs) if crosses else max(inputs)

    found = {
        feature.name: min(of_feature(feature), feature.tile_length or math.inf) for feature in schema.embedded_features
    }
    return found, list(dict.fromkeys(problems))


def _columns_below(schema: Schema, feature: Feature) -> Iterator[Column]:
    for each in schema.inputs_of(feature):
        if isinstance(each, Column):
            yield each
        else:
            yield from _columns_below(schema, each)


def measure_dense(module: nn.Module, optimizer: Callable[[Any], torch.optim.Optimizer], is_cut: bool) -> Dense:
    """The dense part of a module, and what its optimizer keeps of a parameter: found by a step on one of 16 numbers."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    probe = nn.Parameter(torch.zeros(16))
    probe.grad = torch.ones(16)
    made = optimizer([probe])
    made.step()
    kept = sum(value.numel() for value in made.state[probe].values() if isinstance(value, torch.Tensor))
    each = trained[0].itemsize if trained else 4
    return Dense(
        parameters=sum(parameter.numel() for parameter in trained), bytes_each=each, state=kept // 16, is_cut=is_cut
    )
