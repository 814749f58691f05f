"""The control: the same DeepFM in plain PyTorch on nn.EmbeddingBag(sparse=True), one row for every id in the data.

B batch rows, D row width, U ids of a table.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from recis_lightning.ragged import Batch, Ragged
from recis_lightning.schema import Schema


@dataclass
class LazyAdamW:
    """AdamW on the touched rows of sparse gradients, t counting all steps; dense AdamW would move every row."""

    parameters: list[nn.Parameter]
    lr: float
    weight_decay: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    moments: dict[nn.Parameter, tuple[Tensor, Tensor]] = field(default_factory=dict)
    t: int = 0

    @torch.no_grad()
    def step(self) -> None:
        self.t += 1
        beta1, beta2 = self.betas
        for parameter in self.parameters:
            assert parameter.grad is not None
            grad = parameter.grad.coalesce()
            rows, grads = grad.indices()[0], grad.values()
            m, v = self.moments.setdefault(parameter, (torch.zeros_like(parameter), torch.zeros_like(parameter)))
            m[rows] = beta1 * m[rows] + (1 - beta1) * grads
            v[rows] = beta2 * v[rows] + (1 - beta2) * grads * grads
            lr = self.lr * (1 - beta2**self.t) ** 0.5 / (1 - beta1**self.t)
            decayed = parameter[rows] * (1 - self.lr * self.weight_decay)
            parameter[rows] = decayed - lr * m[rows] / (v[rows].sqrt() + self.eps)


class Control(nn.Module):
    """One nn.EmbeddingBag a table and the network; ids become rows by their place among the table's sorted ids."""

    def __init__(self, schema: Schema, network: nn.Module, ids: dict[str, Tensor], first: dict[str, Tensor]) -> None:
        super().__init__()
        self.schema = schema
        self.network = network
        self.ids = ids
        self.bags = nn.ModuleDict(
            {
                # one more row, of zeros and never trained: the ids that no training row holds
                name: nn.EmbeddingBag.from_pretrained(
                    torch.cat([values, values.new_zeros(1, values.shape[1])]), freeze=False, mode="sum", sparse=True
                )
                for name, values in first.items()
            }
        )

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B] of the only task."""
        dtype = next(self.network.parameters()).dtype
        inputs: dict[str, Tensor | Ragged] = {}
        for feature in self.schema.dense_features:
            column = batch[self.schema.column_of(feature).name]
            assert isinstance(column, Tensor)
            # in float32, as files hold it and batches carry it, whatever the precision of the model
            inputs[feature.name] = torch.log1p(column.clamp(min=0)).to(dtype)[:, None]
        for feature in self.schema.embedded_features:
            ragged = batch[self.schema.column_of(feature).name]
            assert isinstance(ragged, Ragged)
            assert feature.table is not None
            ids_U = self.ids[feature.table]
            rows = torch.searchsorted(ids_U, ragged.values).clamp(max=len(ids_U) - 1)
            rows = torch.where(ids_U[rows] == ragged.values, rows, len(ids_U))
            inputs[feature.name] = self.bags[feature.table](rows, ragged.offsets[:-1])
        return self.network(inputs)[self.schema.tasks[0].name]


def clip_jointly(dense: list[nn.Parameter], sparse: list[nn.Parameter], max_norm: float) -> None:
    """Clip dense and sparse gradients by their joint 2-norm; sparse ones are coalesced first."""
    for parameter in sparse:
        assert parameter.grad is not None
        parameter.grad = parameter.grad.coalesce()
    squares = [parameter.grad.square().sum() for parameter in dense if parameter.grad is not None]
    squares += [parameter.grad.values().square().sum() for parameter in sparse if parameter.grad is not None]
    factor = (max_norm / (torch.stack(squares).sum().sqrt() + 1e-6)).clamp(max=1.0)
    for parameter in dense:
        if parameter.grad is not None:
            parameter.grad.mul_(factor)
    for parameter in sparse:
        assert parameter.grad is not None
        parameter.grad = parameter.grad * factor


def train_control(
    control: Control,
    batches: Iterable[Batch],
    make_sparse_optimizer: Callable[[list[nn.Parameter]], "torch.optim.Optimizer | LazyAdamW"],
    make_dense_optimizer: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer],
    *,
    accumulate: int = 1,
    max_norm: float | None = None,
) -> list[float]:
    """Train over the batches, stepping after every ``accumulate`` of them; gives each batch's loss before its step."""
    sparse_parameters = list(control.bags.parameters())
    dense_parameters = list(control.network.parameters())
    sparse = make_sparse_optimizer(sparse_parameters)
    dense = make_dense_optimizer(control.network.parameters())
    label = control.schema.tasks[0].label
    losses: list[float] = []
    for index, batch in enumerate(batches):
        if index % accumulate == 0:
            control.zero_grad(set_to_none=True)
        target = batch[label]
        logits = control(batch)
        assert isinstance(target, Tensor)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))
        losses.append(loss.item())
        (loss / accumulate).backward()
        if index % accumulate == accumulate - 1:
            if max_norm is not None:
                clip_jointly(dense_parameters, sparse_parameters, max_norm)
            sparse.step()
            dense.step()
    return losses
