"""The packages of the extra `llm`, imported when they are used: a job without text towers does without them."""

import importlib
from types import ModuleType

from recis_lightning.errors import UserError


class MissingExtra(UserError, ImportError):
    """A package of the extra that is not installed, and the line that installs it."""


def import_llm(module: str) -> ModuleType:
    """Import transformers, peft or tokenizers; MissingExtra where it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise  # it is there, and something else is wrong with it
        raise MissingExtra(
            f"text needs the package '{module}', which is not installed; pip install 'recis-lightning[llm]'"
        ) from error
