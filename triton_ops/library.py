"""Registering ops with torch, so that torch.compile, torch.export and profilers see them under their own names."""

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "triton_ops"


def register(schema: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Make a function a torch op: @register("twice(Tensor x) -> Tensor", torch.empty_like) -> ops.triton_ops.twice.

    ``schema`` marks what is written in place, as in `Tensor(a!) weight`; ``fake`` says the shapes of what it returns.
    The function serves every device and chooses by itself. Not torch.library.custom_op, whose wrapper costs 30 us a
    call where this costs 4: a step calls several ops for each group of tables.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        name = f"{NAMESPACE}::{schema.split('(')[0]}"
        torch.library.define(name, schema[schema.index("(") :])
        torch.library.impl(name, "CompositeExplicitAutograd", function)
        torch.library.register_fake(name, fake)
        return getattr(getattr(torch.ops, NAMESPACE), schema.split("(")[0]).default

    return decorate
