"""Factories as plain data: what a checkpoint keeps of `network=partial(DeepFM, hidden=[64])`, to call it again.

    describe(partial(DeepFM, hidden=[64]))  ->  {"class_path": "recis_lightning.models.deepfm.DeepFM",
                                                 "init_args": {"hidden": [64]}}

The form is that of recipes. What cannot be found by name again (a lambda, a class in a function) keeps its name only.
"""

import inspect
import pkgutil
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from recis_lightning.training.checkpoint import as_json
from recis_lightning.training.files import CheckpointError


def describe(factory: Callable[..., Any] | None) -> dict[str, Any] | None:
    """A class, a function or a partial of one as {class_path, init_args}, in plain values."""
    if factory is None:
        return None
    options: dict[str, Any] = {}
    while isinstance(factory, partial):
        # A recipe's class comes as partial(instantiate, ..., Class, **options).
        of_recipe = inspect.isfunction(factory.func) and inspect.isclass(factory.args[-1] if factory.args else None)
        if factory.args and not of_recipe:
            return {"unnamed": repr(factory)}
        options = dict(factory.keywords) | options
        factory = factory.args[-1] if of_recipe else factory.func
    path = f"{getattr(factory, '__module__', '')}.{getattr(factory, '__qualname__', '')}"
    try:
        options = as_json(options, "options")
    except CheckpointError:
        return {"unnamed": path}
    if not path.strip(".") or "<" in path:
        return {"unnamed": path}
    return {"class_path": path, "init_args": options} if options else {"class_path": path}


def restore(description: Mapping[str, Any] | None, argument: str) -> Callable[..., Any] | None:
    """The factory that `describe` described; CheckpointError where it cannot be found by name."""
    if description is None:
        return None
    path = description.get("class_path")
    if path is not None:
        try:
            return partial(pkgutil.resolve_name(path), **description.get("init_args", {}))
        except (ImportError, AttributeError):
            pass
    raise CheckpointError(
        f"the {argument} was {path or description.get('unnamed')}, which cannot be imported; "
        f"pass it: load_from_checkpoint(path, {argument}=...)"
    )
