"""Functions and modules of the user's as transforms, found by their class path."""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recis_lightning.features.plan import Call, Step
from recis_lightning.features.row_steps import RowStep
from recis_lightning.features.state import Values
from recis_lightning.ragged import Ragged
from recis_lightning.schema import Custom


class CustomStep(RowStep):
    """Calls what the user names; the parameters of modules are trained with those of the network."""

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        self.calls = step.calls
        self.launches = len(step.calls)  # type: ignore[misc]  # each is its own
        made = [_make(call) for call in step.calls]
        self.functions = made
        self.modules_K = nn.ModuleList(each for each in made if isinstance(each, nn.Module))

    def transform(self, calls: Sequence[Sequence[Values]]) -> list[Values]:
        return [
            _check(call, function(*inputs), len(inputs[0]))
            for call, function, inputs in zip(self.calls, self.functions, calls, strict=True)
        ]


def _make(call: Call) -> Callable[..., Any]:
    transform = call.transform
    assert isinstance(transform, Custom)
    where = f"feature '{call.feature.name}', transforms[{call.index}] (custom)"
    module, _, name = transform.class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
        if isinstance(found, type):
            return found(**transform.init_args)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: '{transform.class_path}' can't be made: {error}") from error
    if not callable(found):
        raise ValueError(f"{where}: '{transform.class_path}' is {found!r}; name a function or an nn.Module")
    return functools.partial(found, **transform.init_args) if transform.init_args else found


def _check(call: Call, result: Any, rows: int) -> Values:
    """What came back, if it is what was declared."""
    transform = call.transform
    assert isinstance(transform, Custom)
    dtype = torch.int64 if transform.gives == "ids" else torch.float32
    ragged = transform.form == "rows"
    shape = [rows] if transform.form == "number" else [rows, transform.dim]
    fits = isinstance(result, Ragged) if ragged else isinstance(result, Tensor) and list(result.shape) == shape
    values = result.values if isinstance(result, Ragged) else result
    if not fits or len(result) != rows or values.dtype != dtype:
        found = f"{values.dtype} {list(values.shape)}" if isinstance(values, Tensor) else repr(result)
        raise ValueError(
            f"feature '{call.feature.name}', transforms[{call.index}] (custom): '{transform.class_path}' gives "
            f"{type(result).__name__} of {found}, need {'Ragged of ' + str(rows) + ' rows' if ragged else shape} of "
            f"{dtype}; declare gives and form as it is"
        )
    assert isinstance(result, Tensor | Ragged)
    return result
