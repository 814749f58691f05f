"""Ids that go missing at random in training, so that what else is known of a row learns to stand in for new ones.

"DropoutNet: Addressing Cold Start in Recommender Systems" (Volkovs, Yu, Poutanen, NIPS 2017).

B batch rows, N ids of a column.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from recis_lightning.ragged import Ragged
from recis_lightning.ragged_ops import offsets_of
from recis_lightning.schema import Schema

Columns = Mapping[str, Tensor | Ragged]


class IdDropout(nn.Module):
    """Empty rows of id columns while training: dropout .5, [[7], [5], [7], []] -> [[7], [], [], []], say.

    Each row of a column that declares ``dropout`` loses its ids with that probability, drawn from torch's generator;
    all features that read the column miss them together. Kept ids are not scaled up, as `nn.Dropout` does: an id that
    is missing adds nothing to a pool in evaluation too. In evaluation nothing changes.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.rates = {column.name: column.dropout for column in schema.columns if column.dropout}

    def forward(self, columns: Columns) -> Columns:
        """Columns by name, with the same rows; those without dropout as they are."""
        if not self.training or not self.rates:
            return columns
        return {**columns, **{name: _empty_rows(columns, name, rate) for name, rate in self.rates.items()}}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}: {rate}" for name, rate in self.rates.items())


def _empty_rows(columns: Columns, name: str, rate: float) -> Ragged:
    ids = columns[name]
    assert isinstance(ids, Ragged)  # the schema lets only columns of ids have a dropout
    is_kept_B = torch.rand(len(ids), device=ids.device) >= rate
    is_kept_N = is_kept_B.repeat_interleave(ids.lengths, output_size=len(ids.values))
    return Ragged(ids.values[is_kept_N], offsets_of(ids.lengths * is_kept_B))
