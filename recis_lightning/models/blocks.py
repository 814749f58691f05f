"""The parts that models are made of.

B batch rows, F fields (embedded features), D embedding width, P pairs of fields, I inputs, O outputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers, each followed by ReLU and dropout: MLP(3, [8, 4]) makes [B, 4] of [B, 3].

    ``output_dim`` is the width of what it gives. Without hidden layers it gives its input as it is.
    """

    def __init__(self, input_dim: int, hidden: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        widths = [input_dim, *hidden]
        if min(widths) < 1:
            raise ValueError(f"layer widths are {widths}, need at least 1 each")
        layers: list[nn.Module] = []
        for inputs, outputs in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers)
        self.output_dim = widths[-1]

    def forward(self, values_BI: Tensor) -> Tensor:
        return self.layers(values_BI)


class FactorizationMachine(nn.Module):
    """Sum of the dot products of all pairs of fields: fields (1, 2), (3, 4), (0, 1) -> 11 + 2 + 4 = 17.

    [B, F, D] -> [B]. Half of (square of the sum - sum of the squares), which is linear in F (Rendle, "Factorization
    Machines", ICDM 2010, lemma 3.1).
    """

    def forward(self, fields_BFD: Tensor) -> Tensor:
        return 0.5 * (fields_BFD.sum(1).square() - fields_BFD.square().sum(1)).sum(1)


class DotInteraction(nn.Module):
    """The dot product of each pair of fields: fields (1, 2), (3, 4), (0, 1) -> [11, 2, 4].

    [B, F, D] -> [B, P] with P = F (F - 1) / 2, ordered (1, 0), (2, 0), (2, 1), (3, 0), ...
    """

    firsts_P: Tensor
    seconds_P: Tensor

    def __init__(self, fields: int) -> None:
        super().__init__()
        firsts_P, seconds_P = torch.tril_indices(fields, fields, offset=-1)
        # Copies: torch.export warns of buffers that are parts of one tensor.
        self.register_buffer("firsts_P", firsts_P.clone(), persistent=False)
        self.register_buffer("seconds_P", seconds_P.clone(), persistent=False)
        self.output_dim = len(firsts_P)

    def forward(self, fields_BFD: Tensor) -> Tensor:
        products_BFF = fields_BFD @ fields_BFD.transpose(1, 2)
        return products_BFF[:, self.firsts_P, self.seconds_P]
