"""The packages of the extra `llm`, imported when they are used: a job without text towers does without them."""

import importlib
from types import ModuleType


def import_llm(module: str) -> ModuleType:
    """Import transformers, peft or tokenizers; ImportError with the line that installs it where it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise  # it is there, and something else is wrong with it
        raise ImportError(
            f"text needs the package '{module}', which is not installed; pip install 'recis-lightning[llm]'"
        ) from error
