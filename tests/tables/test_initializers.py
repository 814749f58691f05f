"""First values as a schema declares them: what they are drawn from, for a row of its width."""

import pytest
import torch
from torch import Tensor, nn

from recis_lightning.schema import INITIALIZERS, Initializer, Normal, Schema, Table, Uniform
from recis_lightning.schema.kinds import KaimingNormal, KaimingUniform, XavierNormal, XavierUniform
from recis_lightning.tables import TableGroup

DIM = 16


def first_values(initializer: Initializer, ids: Tensor, dim: int = DIM) -> Tensor:
    table = TableGroup([Table(name="t", dim=dim, initializer=initializer)], max_rows=1 << 14)[0]
    return table.weight(table.find_or_insert(ids))


@pytest.mark.parametrize(
    ("declared", "drawn_as"),
    [
        (XavierUniform(), Uniform(low=-((3 / DIM) ** 0.5), high=(3 / DIM) ** 0.5)),
        (XavierUniform(gain=2.0), Uniform(low=-2 * (3 / DIM) ** 0.5, high=2 * (3 / DIM) ** 0.5)),
        (XavierNormal(), Normal(std=0.25)),
        (KaimingUniform(negative_slope=1.0), Uniform(low=-((3 / DIM) ** 0.5), high=(3 / DIM) ** 0.5)),
        (KaimingNormal(negative_slope=1.0), Normal(std=0.25)),
    ],
)
def test_xavier_and_kaiming_are_uniform_and_normal_with_the_row_width_as_fan(
    declared: Initializer, drawn_as: Initializer
) -> None:
    ids = torch.arange(-500, 500)
    assert torch.equal(first_values(declared, ids), first_values(drawn_as, ids))


@pytest.mark.parametrize(
    ("declared", "torchs"),
    [
        (XavierUniform(gain=1.5), lambda weight: nn.init.xavier_uniform_(weight, 1.5)),
        (XavierNormal(gain=1.5), lambda weight: nn.init.xavier_normal_(weight, 1.5)),
        (KaimingUniform(), nn.init.kaiming_uniform_),
        (KaimingUniform(negative_slope=0.3), lambda weight: nn.init.kaiming_uniform_(weight, 0.3)),
        (KaimingNormal(), nn.init.kaiming_normal_),
    ],
)
def test_spread_is_that_of_torch_for_a_square_layer(declared: Initializer, torchs) -> None:  # type: ignore[no-untyped-def]
    dim = 64
    torch.manual_seed(0)
    theirs = torchs(torch.empty(dim, dim, dtype=torch.float64))
    ours = first_values(declared, torch.arange(2000), dim)
    # 4096 draws of theirs: their standard deviation is known to 1.1 %, so that 5 % are beyond four standard errors.
    assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=0.05)
    assert abs(float(ours.mean())) < 4 * float(ours.std()) / ours.numel() ** 0.5
    if "uniform" in declared.kind:
        assert float(ours.abs().max()) == pytest.approx(float(theirs.abs().max()), rel=0.01)


@pytest.mark.parametrize("kind", INITIALIZERS)
def test_every_kind_by_its_name_gives_values_that_depend_on_seed_table_and_id_alone(kind: str) -> None:
    plain = {
        "columns": [{"name": "a", "dtype": "int64"}],
        "tables": [{"name": "a", "dim": 4, "initializer": kind}],
        "features": [{"name": "a", "table": "a"}],
        "tasks": [],
    }
    table = Schema.from_dict(plain).tables[0]
    ids = torch.arange(100)
    found = [TableGroup([table], seed=seed, max_rows=1 << 10)[0] for seed in (3, 3, 4)]
    orders = ids, ids.flip(0), ids
    first, again, other = (t.weight(t.find_or_insert(order)) for t, order in zip(found, orders, strict=True))
    assert torch.equal(first, again.flip(0))
    assert torch.equal(first, other) == (kind in ("zeros", "constant"))
    assert first.isfinite().all()
