"""The two graphs of an exported model, traced by torch.export from the modules that were trained.

    features   columns -> ids and dense features        the transforms of the schema
    scores     rows of the tables, dense -> scores      pooling, the network, probabilities

Between them ids become rows, which is all that whoever serves has to do: nothing else is written twice.
What is ragged goes through as {"values": [N, ...], "offsets": int64 [B + 1], "weights": [N]}.

B batch rows, N values of a feature, D row width.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from recis_lightning.features import FeatureEngine
from recis_lightning.ragged import Ragged
from recis_lightning.schema import Custom, Feature
from recis_lightning.training import RecModule
from triton_ops.gather_pool import pool_coefficients, read_dtype
from triton_ops.gather_pool.reference import bag_of_value, sum_bags

Parts = Mapping[str, Tensor]
TRACED_ROWS = 7  # any number that is neither 0 nor 1, which torch takes for constants


class FeatureProgram(nn.Module):
    """Columns to features: {"c1": {"values": [12], "offsets": [0, 1]}}, modulo 10 -> {"c1": {"values": [2], ...}}.

    Takes what a batch holds, id columns and lists as parts, others as float32 [B]; gives by feature name parts for
    embedded features, float32 [B, 1] or [B, dim] for dense ones; and int64 [C], for each of `FeatureEngine.looks` the
    first row that is refused, B or more where none is.
    """

    def __init__(self, engine: FeatureEngine) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, columns: Mapping[str, Tensor | Parts]) -> tuple[dict[str, Tensor | Parts], Tensor]:
        batch = {name: entry if isinstance(entry, Tensor) else _to_ragged(entry) for name, entry in columns.items()}
        features, misfits = self.engine.graph(batch)
        return {name: _to_parts(entry) for name, entry in features.items()}, misfits


class ScoreProgram(nn.Module):
    """Rows and dense features to scores [B] by task: what the model does behind its tables, pooling included.

    ``dense`` are float32 [B, 1] or [B, dim] by feature name; ``embedded`` are parts whose values are rows [N, D] of the
    feature's table, zeros for an id that has none.
    """

    def __init__(self, module: RecModule) -> None:
        super().__init__()
        self.network = module.network
        self.score: Callable[..., dict[str, Tensor]] = module.scores
        self.features = module.schema.embedded_features

    def forward(self, dense: Mapping[str, Tensor], embedded: Mapping[str, Parts]) -> dict[str, Tensor]:
        inputs: dict[str, Tensor | Ragged] = dict(dense)
        for feature in self.features:
            inputs[feature.name] = _pool(feature, embedded[feature.name])
        sizes = [tensor.shape[0] for tensor in dense.values()]
        sizes += [parts["offsets"].shape[0] - 1 for parts in embedded.values()]
        return self.score(inputs, sizes[0])


def _to_ragged(parts: Parts) -> Ragged:
    return Ragged(parts["values"], parts["offsets"], parts.get("weights"))


def _to_parts(entry: Tensor | Ragged) -> Tensor | Parts:
    if isinstance(entry, Tensor):
        return entry
    parts = {"values": entry.values, "offsets": entry.offsets}
    return parts if entry.weights is None else parts | {"weights": entry.weights}


def _pool(feature: Feature, parts: Parts) -> Tensor | Ragged:
    rows_ND, offsets_B1 = parts["values"], parts["offsets"]
    rows_ND = rows_ND.to(read_dtype(rows_ND.dtype))
    if feature.tile_length is not None:
        return _tile(rows_ND, offsets_B1, feature.tile_length)
    if feature.pooling == "none":
        return Ragged(rows_ND, offsets_B1, parts.get("weights"))
    weights_N = parts.get("weights")
    if weights_N is None and feature.pooling != "sum":
        weights_N = torch.ones_like(rows_ND[:, 0])  # of a known length, which a graph can't read off the offsets
    coefficients_N = pool_coefficients(offsets_B1, feature.pooling, weights_N, rows_ND.dtype)
    return sum_bags(rows_ND, torch.arange(rows_ND.shape[0]), offsets_B1, coefficients_N)


def _tile(rows_ND: Tensor, offsets_B1: Tensor, length: int) -> Tensor:
    """As `ragged_ops.tile`, without a look at any number."""
    bag_N = bag_of_value(offsets_B1, rows_ND.shape[0])
    place_N = torch.arange(rows_ND.shape[0]) - offsets_B1[bag_N]
    slots = (offsets_B1.shape[0] - 1) * length
    slot_N = torch.where(place_N < length, bag_N * length + place_N, slots)  # the last one takes what is cut off
    tiles = rows_ND.new_zeros(slots + 1, rows_ND.shape[1]).index_copy(0, slot_N, rows_ND)
    return tiles[:slots].reshape(offsets_B1.shape[0] - 1, length * rows_ND.shape[1])


# -------------------------------------------------------------------------------------------------------------- tracing


def trace_features(module: RecModule, is_ragged: Mapping[str, bool]) -> ExportedProgram:
    """The graph of `FeatureProgram`; ``is_ragged`` says of each column it reads how a batch carries it."""
    sizes = _Sizes()
    columns: dict[str, Any] = {}
    for name, ragged in is_ragged.items():
        dtype = torch.int64 if module.schema.is_id_column(name) else torch.float32
        columns[name] = sizes.parts(torch.ones(sizes.next(), dtype=dtype)) if ragged else torch.ones(TRACED_ROWS)
    for feature in module.schema.features:  # weights are as many as their ids
        if feature.column_weights is not None:
            ids = columns[module.schema.column_of(feature).name]
            columns[feature.column_weights] = {"values": ids["values"].float(), "offsets": ids["offsets"].clone()}
    custom = [
        f"feature '{feature.name}', transforms[{index}] '{transform.class_path}'"
        for feature in module.schema.features
        for index, transform in enumerate(feature.transforms)
        if isinstance(transform, Custom)
    ]
    hint = f"; of your own there are {', '.join(custom)}" if custom else ""
    return _trace("the transforms of features", FeatureProgram(module.features), (columns,), hint)


def trace_scores(module: RecModule) -> ExportedProgram:
    """The graph of `ScoreProgram`."""
    sizes = _Sizes()
    schema = module.schema
    dense = {feature.name: torch.ones(TRACED_ROWS, schema.width_of(feature)) for feature in schema.dense_features}
    embedded = {}
    for feature in schema.embedded_features:
        table, count = module.tables[str(feature.table)], sizes.next()
        weights = torch.ones(count) if feature.weights else None
        embedded[feature.name] = sizes.parts(torch.ones(count, table.dim, dtype=table.dtype), weights)
    return _trace(f"the network {type(module.network).__name__}", ScoreProgram(module), (dense, embedded))


class _Sizes:
    """Sizes that occur once: of two equal ones a graph may keep that they are always equal."""

    def __init__(self) -> None:
        self._last = 2 * TRACED_ROWS

    def next(self) -> int:
        self._last += 1
        return self._last

    def parts(self, values: Tensor, weights: Tensor | None = None) -> Parts:
        """Some values over the traced rows, all of them in the first."""
        offsets = torch.full((TRACED_ROWS + 1,), len(values))
        offsets[0] = 0
        parts = {"values": values, "offsets": offsets}
        return parts if weights is None else parts | {"weights": weights}


def _trace(what: str, program: nn.Module, inputs: tuple[Any, ...], hint: str = "") -> ExportedProgram:
    """Export with every first dimension open, from 4 on: see `scorer._pad`."""
    shapes = torch.utils._pytree.tree_map(lambda tensor: {0: Dim.AUTO}, inputs)
    try:
        with torch.no_grad():
            return torch.export.export(program.eval(), inputs, dynamic_shapes=shapes, strict=True)
    except Exception as error:  # torch raises a score of kinds, and the modules it traces any
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise MisconfigurationException(
            f"{what} can't be written as a graph by torch.export: {reason[0]}{hint}; "
            "write it in operations of torch, without a branch on values"
        ) from error
