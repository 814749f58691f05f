"""Mistakes of the user have one base, and stay what Python calls them."""

import pytest

from recis_lightning.cli.explain import UsageError
from recis_lightning.data.convert.feature_config import FgError
from recis_lightning.data.errors import DataError
from recis_lightning.data.files.checksums import CorruptStripe
from recis_lightning.errors import UserError
from recis_lightning.llm_extra import MissingExtra
from recis_lightning.models.inputs import ModelError
from recis_lightning.schema import SchemaError
from recis_lightning.tables.row_files import TableFileError
from recis_lightning.tables.rows import TableFullError
from recis_lightning.towers.errors import TowerError
from recis_lightning.training.files import CheckpointError


@pytest.mark.parametrize(
    ("mistake", "kind"),
    [
        (CheckpointError, ValueError),
        (CorruptStripe, DataError),
        (DataError, ValueError),
        (FgError, ValueError),
        (MissingExtra, ImportError),
        (ModelError, ValueError),
        (SchemaError, ValueError),
        (TableFileError, ValueError),
        (TableFullError, RuntimeError),
        (TowerError, ValueError),
        (UsageError, Exception),
    ],
)
def test_a_mistake_is_one_of_the_user_and_of_its_python_kind(mistake: type[Exception], kind: type[Exception]) -> None:
    error = mistake(["the label is missing"]) if mistake is SchemaError else mistake("the label is missing")
    assert isinstance(error, UserError)
    assert isinstance(error, kind)
    assert "the label is missing" in str(error)
