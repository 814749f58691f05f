"""What a lookup expects of its inputs, and what is said where they are otherwise."""

from collections.abc import Mapping
from typing import NoReturn

import torch
from torch import Tensor

from recis_lightning.ragged import Ragged
from recis_lightning.schema import Feature, did_you_mean


def describe(feature: Feature) -> str:
    return f"feature '{feature.name}' (table '{feature.table}')"


def check_input(feature: Feature, inputs: Mapping[str, Tensor | Ragged], device: torch.device) -> Ragged:
    """The ids of a feature; ValueError where there are none, or where their dtype, place or weights do not fit."""
    if feature.name not in inputs:
        raise ValueError(f"{describe(feature)} is missing from the inputs{did_you_mean(feature.name, inputs)}")
    part = inputs[feature.name]
    if not isinstance(part, Ragged):
        raise ValueError(f"{describe(feature)} is a {type(part).__name__}; give its ids as Ragged")
    values, weights = part.values, part.weights
    if values.dtype != torch.int64 or values.dim() != 1:
        raise ValueError(f"{describe(feature)}: ids are {values.dtype} {list(values.shape)}; give int64 [N]")
    if values.device != device:
        raise ValueError(f"{describe(feature)}: ids are on {values.device}, its table on {device}; move them there")
    if part.inner_offsets and feature.pooling != "none":
        raise ValueError(
            f"{describe(feature)}: rows are nested {len(part.inner_offsets) + 1} deep, but {feature.pooling} pools one "
            "level; flatten them, or declare pooling: none"
        )
    if (weights is None) != (feature.weights is None):
        found, declared = ("no weights", f"'{feature.weights}'") if weights is None else ("weights", "none")
        raise ValueError(f"{describe(feature)}: {found} came with the ids, {declared} is declared in the schema")
    if weights is not None and (not weights.dtype.is_floating_point or weights.shape != values.shape):
        raise ValueError(
            f"{describe(feature)}: weights are {weights.dtype} {list(weights.shape)} for {len(values)} ids; "
            "give one float for each"
        )
    if weights is not None and weights.requires_grad:
        raise ValueError(
            f"{describe(feature)}: weights require a gradient, and pooling gives them none; "
            "declare pooling: none and weigh the sequence in the model"
        )
    return part


def explain_offsets(feature: Feature, part: Ragged) -> NoReturn:
    """Raise ValueError for offsets that do not fit a feature's ids, saying how."""
    try:
        part.check()
    except ValueError as error:
        raise ValueError(f"{describe(feature)}: {error}") from None
    raise AssertionError(f"{describe(feature)}: offsets were found not to fit, but do")
