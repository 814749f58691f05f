"""DLRM: dot products between embeddings and a vector made of the dense features.

B batch rows, F fields, D embedding width, P pairs, T tasks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recis_lightning.models.blocks import MLP, DotInteraction
from recis_lightning.models.inputs import (
    Inputs,
    ModelError,
    by_task,
    dense_names,
    dense_width,
    join_dense,
    pooled_widths,
    shared_width,
    stack_fields,
    task_names,
)
from recis_lightning.schema import Schema


class DLRM(nn.Module):
    """Dense features -> bottom MLP; its output and all embeddings -> dot products; both -> top MLP -> logits.

    From "Deep Learning Recommendation Model for Personalization and Recommendation Systems" (arXiv 1906.00091). All
    embedded features share one dim, which is also the width of the bottom MLP's output. ``bottom`` and ``top`` are the
    hidden layers; with several tasks they are shared, and each task has its own weights on the last.

    Takes dense features [B, 1] and pooled embeddings [B, D] by feature name, in any float dtype; gives logits [B] by
    task name, in the dtype of its parameters. Raises ModelError where the schema does not fit.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        bottom: Sequence[int] = (128, 64),
        top: Sequence[int] = (256, 128),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = pooled_widths(schema, "DLRM")
        self.tasks = task_names(schema, "DLRM")
        self.dense = dense_names(schema)
        self.fields = list(widths)
        if not self.fields or not self.dense:
            raise ModelError(
                f"DLRM needs both, found {len(self.dense)} dense and {len(self.fields)} embedded features; "
                "DeepFM works with either alone"
            )
        width = shared_width(widths, "DLRM")
        self.bottom = MLP(dense_width(schema), [*bottom, width], dropout)
        self.interaction = DotInteraction(len(self.fields) + 1)
        self.top = MLP(width + self.interaction.output_dim, top, dropout)
        self.head = nn.Linear(self.top.output_dim, len(self.tasks))

    def forward(self, inputs: Inputs) -> dict[str, Tensor]:
        dtype = self.head.weight.dtype
        dense_BD = self.bottom(join_dense(inputs, self.dense, dtype))
        # Under autocast the bottom's output is of a lower dtype than the embeddings.
        fields_BFD = stack_fields(inputs, self.fields, dense_BD.dtype)
        pairs_BP = self.interaction(torch.cat([dense_BD[:, None], fields_BFD], dim=1))
        return by_task(self.head(self.top(torch.cat([dense_BD, pairs_BP], dim=1))), self.tasks)
