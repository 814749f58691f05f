"""A model without ids: what dense features alone can tell, the floor under any model with embeddings.

B batch rows, I dense features, T tasks.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from recis_lightning.models.blocks import MLP
from recis_lightning.models.inputs import Inputs, ModelError, by_task, dense_names, dense_width, join_dense, task_names
from recis_lightning.schema import Schema


class DenseOnly(nn.Module):
    """An MLP over the dense features: 4 features [B, 1] -> logits [B]. Embedded features are left aside.

    Inputs are by feature name, in any float dtype; logits by task name, in the dtype of its parameters. With several
    tasks each has its own weights on the last layer. Raises ModelError where the schema has no dense features.
    """

    def __init__(self, schema: Schema, *, hidden: Sequence[int] = (256, 128), dropout: float = 0.0) -> None:
        super().__init__()
        self.tasks = task_names(schema, "DenseOnly")
        self.dense = dense_names(schema)
        if not self.dense:
            raise ModelError("DenseOnly needs dense features, found none; declare one: a feature without a table")
        self.mlp = MLP(dense_width(schema), hidden, dropout)
        self.head = nn.Linear(self.mlp.output_dim, len(self.tasks))

    def forward(self, inputs: Inputs) -> dict[str, Tensor]:
        dense_BI = join_dense(inputs, self.dense, self.head.weight.dtype)
        return by_task(self.head(self.mlp(dense_BI)), self.tasks)
