"""All embeddings of a model: features in, pooled or sequence tensors out."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from recis_lightning.embedding.exchange import Exchange, owned_shards
from recis_lightning.embedding.lookup import GroupLookup, look_up
from recis_lightning.embedding.route import OneRank, Route
from recis_lightning.ragged import Ragged
from recis_lightning.schema import Schema
from recis_lightning.tables import DynamicTable, TableGroup, build_groups


class EmbeddingCollection(nn.Module):
    """Looks up every feature that has a table, and pools as declared: ids [[5, 7], []] -> [[row 5 + row 7], [0]].

    Takes a mapping that holds, by feature name, each embedded feature's ids as Ragged int64, with weights where the
    schema declares them; other entries are passed over. Returns by feature name the pooled [B, D], of tile [B,
    tile_length * D], or for pooling none a Ragged with values [N, D]; in float32 of tables of bfloat16, float16 and
    int8, in int64 of int32, else in the dtype of the table. mean divides by the sum of weights, sqrtn by the root of
    the sum of their squares; an empty row gives zeros. Pooled features of a width share memory, so that
    `recis_lightning.ragged.stack_features` need not copy them: change none in place.

    New ids get rows only in training mode, with gradients enabled, and where their table admits them; otherwise ids
    without a row read zeros and get no gradient. Backward leaves the gradients in ``groups``, where
    `recis_lightning.optim.SparseOptimizer` takes them. Tables are neither parameters nor buffers: they move with the
    module, and casting it leaves them as they are.

    Raises ValueError, naming feature and table, where an input is missing or does not fit; on a GPU what only values
    can tell is raised by a later step, which names this one, since nobody waits for the device.
    """

    def __init__(self, schema: Schema, *, seed: int = 0, max_rows: int | None = None) -> None:
        """``seed`` decides the first values of rows; ``max_rows`` is as for `TableGroup`, for each group."""
        super().__init__()
        self.groups: list[TableGroup] = build_groups(schema.tables, seed=seed, max_rows=max_rows)
        self.features = tuple(feature.name for feature in schema.embedded_features)
        self._lookups = []
        for group in self.groups:
            names = {table.name for table in group}
            features = [feature for feature in schema.embedded_features if feature.table in names]
            self._lookups.append(GroupLookup(group, features))
        self.route: Route = OneRank()
        """What connects this rank to those that hold rows of the same tables."""
        self._anchor = _make_anchor(torch.device("cpu"))
        self._stays = False

    @property
    def tables(self) -> dict[str, DynamicTable]:
        """Its tables by name."""
        return {table.name: table for group in self.groups for table in group}

    def forward(self, inputs: Mapping[str, Tensor | Ragged]) -> dict[str, Tensor | Ragged]:
        insert = self.training and torch.is_grad_enabled()
        outputs = dict(look_up(self._lookups, inputs, self.route, self._anchor, insert))
        return {name: outputs[name] for name in self.features}

    def shard(self, exchange: Exchange) -> None:
        """Share the tables with the other ranks of an exchange: from here on this rank holds the ids that it owns.

        Of what tables hold already it keeps its share, and takes it that the other ranks have the others'.
        """
        for table in self.tables.values():
            table.keep(*owned_shards(exchange.rank, exchange.world_size))
        self.route = exchange

    def evict(self) -> dict[str, int]:
        """Let tables forget the ids that their evictions name: how many, for each table that forgot some.

        To be called after each optimizer step, where `RecModule` does not do so; see `TableGroup.evict`.
        """
        return {name: count for group in self.groups for name, count in group.evict().items()}

    def erase(self, ids: Mapping[str, Tensor]) -> dict[str, int]:
        """Forget ids, `{"user": ids_N, "item": ids_N}`: how many of them each of these tables held.

        One call for each group of tables; of several ranks each forgets those that it holds. Raises KeyError for a
        table that is none of these, and as `TableGroup.erase`.
        """
        erased: dict[str, int] = {}
        tables = {name: self.tables[name] for name in ids}
        for group in self.groups:
            mine = [table for table in tables.values() if table.group is group]
            if mine:
                parts = [ids[table.name].to(group.device) for table in mine]
                splits = torch.tensor([0, *map(len, parts)]).cumsum(0)
                counts = group.erase(torch.cat(parts), splits, torch.tensor([table.number for table in mine]))
                erased |= {table.name: counts[table.number] for table in mine}
        return erased

    @property
    def device(self) -> torch.device:
        """Where the tables are, and where they expect ids."""
        return self.groups[0].device if self.groups else self._anchor.device

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "EmbeddingCollection":
        """Move the tables where the module is moved; they keep the dtype they were declared with."""
        device = fn(torch.empty(0, device=self.device)).device
        if device != self.device and device.type != "meta" and not self._stays:
            for group in self.groups:
                group.move_to(device)
            self._anchor = _make_anchor(self.device)
        return self

    @contextmanager
    def staying(self) -> Iterator[None]:
        """Within this tables stay where they are, wherever the module goes."""
        before, self._stays = self._stays, True
        try:
            yield
        finally:
            self._stays = before

    def extra_repr(self) -> str:
        return "\n".join(
            f"group of {len(group)} tables, dim {group.dim}, {group.dtype}, {group.layout.rule}"
            for group in self.groups
        )


def _make_anchor(device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.zeros((), requires_grad=True, device=device)
