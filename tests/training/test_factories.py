from functools import partial
from typing import Any

import pytest
import torch

from recis_lightning.training.factories import describe, restore
from recis_lightning.training.files import CheckpointError
from tests.training.helpers import SmallNet, make_schema


def test_a_class_and_its_options_become_plain_values() -> None:
    assert describe(SmallNet) == {"class_path": "tests.training.helpers.SmallNet"}
    assert describe(partial(SmallNet, hidden=16)) == {
        "class_path": "tests.training.helpers.SmallNet",
        "init_args": {"hidden": 16},
    }


def test_options_of_nested_partials_add_up_the_outer_ones_first() -> None:
    nested = partial(partial(SmallNet, hidden=16, dropout=0.1), hidden=32)
    description = describe(nested)
    assert description is not None
    assert description["init_args"] == {"hidden": 32, "dropout": 0.1}


def test_the_factory_of_a_recipe_is_described_by_its_class() -> None:
    def instantiate(cls: Any, *arguments: Any, **options: Any) -> Any:
        return cls(*arguments, **options)

    expected = {"class_path": "torch.optim.adam.Adam", "init_args": {"lr": 0.1, "betas": [0.9, 0.99]}}
    assert describe(partial(instantiate, torch.optim.Adam, lr=0.1, betas=(0.9, 0.99))) == expected
    assert describe(partial(instantiate, instantiate, torch.optim.Adam, lr=0.1, betas=(0.9, 0.99))) == expected


def test_what_is_described_is_made_again() -> None:
    factory = restore(describe(partial(SmallNet, hidden=16)), "network")
    assert factory is not None
    assert factory(make_schema()).body[0].out_features == 16
    assert restore(describe(None), "lr_scheduler") is None


@pytest.mark.parametrize("factory", [lambda schema: SmallNet(schema), partial(torch.nn.Sequential, torch.nn.ReLU())])
def test_what_has_no_name_is_asked_for(factory: Any) -> None:
    description = describe(factory)
    assert description is not None
    assert "class_path" not in description
    with pytest.raises(CheckpointError, match=r"load_from_checkpoint\(path, network=...\)"):
        restore(description, "network")


def test_a_class_that_is_gone_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"the network was tests.training.helpers.Gone"):
        restore({"class_path": "tests.training.helpers.Gone"}, "network")
