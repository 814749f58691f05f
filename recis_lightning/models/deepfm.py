"""DeepFM: a factorization machine and a deep network over the same embeddings.

B batch rows, F fields, D embedding width, I dense features, T tasks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recis_lightning.models.blocks import MLP, FactorizationMachine
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


class DeepFM(nn.Module):
    """First order + pairs + deep, from "DeepFM: A Factorization-Machine based Neural Network" (arXiv 1703.04247).

    Embedded features whose table has dim 1 are first-order terms; the others are the fields of the factorization
    machine and share one dim. To give an id both, as the paper does, declare two features on its column: one with a
    table of dim 1, one with a table of dim 16. Dense features enter the first order linearly, and the deep network by
    value. With several tasks each has its own weights on dense features and on the deep network's last layer; the terms
    of ids are shared.

    Takes dense features [B, 1] and pooled embeddings [B, D] by feature name, in any float dtype; gives logits [B] by
    task name, in the dtype of its parameters. Raises ModelError where the schema does not fit.
    """

    def __init__(self, schema: Schema, *, hidden: Sequence[int] = (256, 128), dropout: float = 0.0) -> None:
        super().__init__()
        widths = pooled_widths(schema, "DeepFM")
        self.tasks = task_names(schema, "DeepFM")
        self.dense = dense_names(schema)
        self.first_order = [name for name, width in widths.items() if width == 1]
        self.fields = [name for name, width in widths.items() if width > 1]
        width = shared_width({name: widths[name] for name in self.fields}, "DeepFM") if self.fields else 0
        if not self.fields and not self.dense:
            raise ModelError(
                "DeepFM's deep network has no input: declare dense features, or embedded ones with dim above 1"
            )
        self.machine = FactorizationMachine()
        self.deep = MLP(len(self.fields) * width + dense_width(schema), hidden, dropout)
        self.head = nn.Linear(self.deep.output_dim, len(self.tasks))
        self.dense_weights = nn.Linear(dense_width(schema), len(self.tasks), bias=False) if self.dense else None

    def forward(self, inputs: Inputs) -> dict[str, Tensor]:
        dtype = self.head.weight.dtype
        deep_inputs: list[Tensor] = []
        logits_BT: Tensor | float = 0.0
        if self.first_order:
            logits_BT = logits_BT + stack_fields(inputs, self.first_order, dtype).sum(1)
        if self.fields:
            fields_BFD = stack_fields(inputs, self.fields, dtype)
            logits_BT = logits_BT + self.machine(fields_BFD)[:, None]
            deep_inputs.append(fields_BFD.flatten(1))
        if self.dense_weights is not None:
            dense_BI = join_dense(inputs, self.dense, dtype)
            logits_BT = logits_BT + self.dense_weights(dense_BI)
            deep_inputs.append(dense_BI)
        return by_task(logits_BT + self.head(self.deep(torch.cat(deep_inputs, dim=1))), self.tasks)
