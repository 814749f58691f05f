"""The parts of models against loops that are plainly right."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recis_lightning.models.blocks import MLP, DotInteraction, FactorizationMachine

sizes = st.integers(0, 5), st.integers(1, 6), st.integers(1, 5)
BY_HAND = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [0.0, 1.0]]])


def draw_fields(rows: int, fields: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * 100 + fields * 10 + width)
    return torch.randn(rows, fields, width, generator=generator, dtype=torch.float64)


def test_a_factorization_machine_sums_the_pairs_by_hand():
    assert FactorizationMachine()(BY_HAND).tolist() == [17]


@given(rows=sizes[0], fields=sizes[1], width=sizes[2])
def test_a_factorization_machine_equals_the_sum_over_pairs(rows, fields, width):
    values = draw_fields(rows, fields, width)
    expected = torch.zeros(rows, dtype=torch.float64)
    for first in range(fields):
        for second in range(first + 1, fields):
            expected += (values[:, first] * values[:, second]).sum(1)
    torch.testing.assert_close(FactorizationMachine()(values), expected, rtol=1e-12, atol=1e-12)


def test_the_dot_interaction_lists_the_pairs_by_hand():
    assert DotInteraction(3)(BY_HAND).tolist() == [[11, 2, 4]]


@given(rows=sizes[0], fields=sizes[1], width=sizes[2])
def test_the_dot_interaction_equals_a_loop(rows, fields, width):
    values = draw_fields(rows, fields, width)
    interaction = DotInteraction(fields)
    expected = [
        torch.tensor([row[first] @ row[second] for first in range(fields) for second in range(first)]) for row in values
    ]
    found = interaction(values)
    assert found.shape == (rows, interaction.output_dim)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.to(torch.float64), rtol=1e-12, atol=1e-12)


def test_an_mlp_alternates_linear_layers_and_relu():
    torch.manual_seed(0)
    mlp = MLP(3, [8, 4])
    first, second = (layer for layer in mlp.layers if isinstance(layer, torch.nn.Linear))
    values = torch.randn(5, 3)
    torch.testing.assert_close(mlp(values), second(first(values).relu()).relu())
    assert mlp.output_dim == 4


def test_an_mlp_without_layers_gives_its_input():
    values = torch.randn(2, 3)
    assert torch.equal(MLP(3, [])(values), values)
    assert MLP(3, []).output_dim == 3


def test_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    mlp = MLP(4, [64], dropout=0.5)
    values = torch.ones(1, 4)
    assert (mlp(values) == 0).sum() > (mlp.eval()(values) == 0).sum()
    assert torch.equal(mlp(values), mlp(values))


def test_layers_have_at_least_one_unit():
    with pytest.raises(ValueError, match=r"layer widths are \[3, 0\], need at least 1 each"):
        MLP(3, [0])
