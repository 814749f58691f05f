"""TowerCollection: the towers of a schema, and the vectors they give to its features.

B batch rows, R rows of all features of a tower, D width of a tower.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from recis_lightning.paths import expand_path
from recis_lightning.ragged import Ragged
from recis_lightning.schema import Feature, Schema
from recis_lightning.schema.towers import Tower
from recis_lightning.towers.backbone import check_tokenizer
from recis_lightning.towers.errors import TowerError
from recis_lightning.towers.text import TextTower


class TowerCollection(nn.Module):
    """Token ids by feature name -> vectors [B, D] by feature name, for the features that name a tower.

    Features of one tower go through it together: a text that is in two of them is computed once. Raises TowerError
    where a tower cannot be made as declared, or a tokenizer gives ids that its model does not know.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.features = {
            tower.name: [feature.name for feature in schema.tower_features if feature.tower == tower.name]
            for tower in schema.towers
        }
        self.towers = nn.ModuleDict({tower.name: _make(tower) for tower in schema.towers})
        for feature in schema.tower_features:
            _check_tokenizer(schema, feature, self[str(feature.tower)])

    def __getitem__(self, name: str) -> TextTower:
        return cast(TextTower, self.towers[name])

    def __iter__(self) -> Iterator[TextTower]:
        return (cast(TextTower, tower) for tower in self.towers.values())

    def forward(self, inputs: Mapping[str, Tensor | Ragged]) -> dict[str, Tensor]:
        """Vectors [B, D] of each feature that names a tower. TowerError for rows that a model cannot take."""
        vectors: dict[str, Tensor] = {}
        for name, features in self.features.items():
            tokens = [cast(Ragged, inputs[feature]) for feature in features]
            for feature, each in zip(features, tokens, strict=True):
                self[name].check(each, f"feature '{feature}'")
            vectors_RD = self[name](join_rows(tokens))
            vectors |= zip(features, vectors_RD.split([len(each) for each in tokens]), strict=True)
        return vectors

    def flush_caches(self) -> None:
        """Write the vectors that wait in memory; the end of an epoch is a good time."""
        for tower in self:
            tower.flush_cache()


def _make(tower: Tower) -> TextTower:
    try:
        return TextTower(
            tower.model,
            tower.dim,
            name=tower.name,
            pooling=tower.pooling,
            train=tower.train,
            lora=tower.lora,
            seed=tower.seed,
            dtype=getattr(torch, tower.dtype),
            bf16=tower.bf16,
            gradient_checkpointing=tower.gradient_checkpointing,
            empty=tower.empty,
            lr=tower.lr,
            schedule=tower.schedule,
            cache=None if tower.cache is None else expand_path(tower.cache),
            cache_bytes=tower.cache_bytes,
            block_tokens=tower.block_tokens,
        )
    except ValueError as error:
        raise TowerError(f"tower '{tower.name}': {error}") from error


def _check_tokenizer(schema: Schema, feature: Feature, tower: TextTower) -> None:
    column = schema.column_of(feature)
    if column.tokenizer is not None:
        check_tokenizer(column.tokenizer, tower.vocabulary, f"column '{column.name}'")
    if column.max_length is not None and tower.longest is not None and column.max_length > tower.longest:
        raise TowerError(
            f"column '{column.name}': max_length is {column.max_length}, and the model of tower '{tower.name}' takes "
            f"{tower.longest} tokens at most; declare max_length: {tower.longest}"
        )


def join_rows(parts: Sequence[Ragged]) -> Ragged:
    """Rows one part behind the other: [[1], [2, 3]] and [[4]] -> [[1], [2, 3], [4]]."""
    if len(parts) == 1:
        return parts[0]
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + len(part.values))
    offsets = [part.offsets[:-1] + start for part, start in zip(parts, starts, strict=False)]
    end = parts[0].offsets.new_tensor([starts[-1]])
    return Ragged(torch.cat([part.values for part in parts]), torch.cat([*offsets, end]))
