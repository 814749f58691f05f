"""Fitted numbers of transforms: kept in a file beside the schema, put into it when it is read, compared later.

The file is what `recis features fit` writes:

    {"format": 1, "version": "1f0c...", "rows": 80000, "files": ["log/train"],
     "features": {"price": {"0": {"kind": "quantile", "knots": [0.0, 1.5, 99.0]}}}}

``version`` is a hash of ``features``: the same numbers, the same version.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from recis_lightning.schema.declarations import Column, Feature
from recis_lightning.schema.names import did_you_mean
from recis_lightning.schema.transforms import Transform, is_fitted

FIT_FORMAT = 1
FITTED = {
    "z_score": ("mean", "std"),
    "min_max": ("low", "high"),
    "quantile": ("knots",),
    "bucketize": ("boundaries",),
    "vocabulary": ("values",),
}
Numbers = Mapping[str, Mapping[str, Mapping[str, Any]]]


def version_of(numbers: Numbers) -> str:
    """16 hexadecimal digits that name these numbers."""
    return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()[:16]


def read_fits(fits: Any) -> tuple[Numbers, list[str]]:
    """The numbers of a file, given by its path or as a mapping, and what is wrong with it."""
    where, found = "fits", fits
    if isinstance(fits, str):
        path = os.path.expandvars(fits)
        where = f"fits '{path}'"
        try:
            with open(path, encoding="utf-8") as file:
                found = json.load(file)
        except OSError as error:
            hint = "write it by `recis features fit --config RECIPE`"
            return {}, [f"{where} can't be read ({error.strerror}); {hint}, or drop the line"]
        except ValueError as error:
            return {}, [f"{where} is no JSON ({error}); write it again by `recis features fit`"]
    sound = isinstance(found, Mapping) and isinstance(found.get("features"), Mapping)
    if not sound or found.get("format") != FIT_FORMAT:
        return {}, [f"{where} is not of format {FIT_FORMAT}; write it again by `recis features fit`"]
    if found.get("version") != version_of(found["features"]):
        return {}, [f"{where} was changed by hand: its version is not that of its numbers; write it again"]
    return found["features"], []


def apply_fits(features: Sequence[Feature], numbers: Numbers) -> tuple[list[Feature], list[str]]:
    """The features with the numbers put in, and what does not fit together."""
    problems = [
        f"fits hold numbers for feature '{name}', which is not declared{did_you_mean(name, [f.name for f in features])}"
        for name in numbers
        if name not in {feature.name for feature in features}
    ]
    fitted = []
    for feature in features:
        transforms = list(feature.transforms)
        for index, entry in numbers.get(feature.name, {}).items():
            where = f"fits for feature '{feature.name}', transforms[{index}]"
            place = int(index)
            kind = entry.get("kind")
            if place >= len(transforms) or transforms[place].kind != kind:
                declared = transforms[place].kind if place < len(transforms) else "none"
                problems.append(f"{where} are of a {kind}, but there is {declared}; run `recis features fit` again")
                continue
            if is_fitted(transforms[place]):
                problems.append(f"{where} ({kind}): its numbers are declared too; drop them in one place")
                continue
            values = {name: _tuples(entry[name]) for name in FITTED[kind]}
            transforms[place] = dataclasses.replace(transforms[place], **values)
        fitted.append(dataclasses.replace(feature, transforms=tuple(transforms)))
    return fitted, problems


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def find_unfitted(features: Sequence[Feature]) -> Iterator[str]:
    """Transforms that lack their numbers, one line each."""
    for feature in features:
        for index, transform in enumerate(feature.transforms):
            if not is_fitted(transform):
                yield f"feature '{feature.name}', transforms[{index}] ({transform.kind}) is not fitted"


def find_changed_transforms(saved: Sequence[Feature], current: Sequence[Feature]) -> list[str]:
    """What differs between the transforms a model was trained with and those it has now, one line each.

    Knots [0, 1.5] that are [0, 1.7] now give "feature 'price', transforms[0] (quantile): knots[1] was 1.5, is 1.7".
    Features that only one of them has are left to those who load weights.
    """
    lines, now = [], {feature.name: feature for feature in current}
    for before in saved:
        after = now.get(before.name)
        if after is None:
            continue
        where = f"feature '{before.name}'"
        kinds = [[transform.kind for transform in feature.transforms] for feature in (before, after)]
        reads = [(feature.inputs or (feature.column or feature.name,)) for feature in (before, after)]
        if reads[0] != reads[1]:
            lines.append(f"{where} read {', '.join(reads[0])}, reads {', '.join(reads[1])}")
        if kinds[0] != kinds[1]:
            lines.append(f"{where} had transforms {_listed(kinds[0])}, has {_listed(kinds[1])}")
            continue
        for index, (old, new) in enumerate(zip(before.transforms, after.transforms, strict=True)):
            lines += [f"{where}, transforms[{index}] ({old.kind}): {line}" for line in _differences(old, new)]
    return lines


def find_changed_hashes(saved: Sequence[Column], current: Sequence[Column]) -> list[str]:
    """Of which columns strings become other ids than those a model was trained with, one line each.

    "column 'device' was hashed by farm, is by murmur". Columns that only one of them has are left out.
    """
    now = {column.name: column.hash for column in current}
    return [
        f"column '{before.name}' was hashed by {before.hash}, is by {now[before.name]}"
        for before in saved
        if now.get(before.name, before.hash) != before.hash
    ]


def _listed(kinds: Sequence[str]) -> str:
    return ", ".join(kinds) or "none"


def _differences(old: Transform, new: Transform) -> Iterator[str]:
    for field in dataclasses.fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before == after:
            continue
        if isinstance(before, tuple) and isinstance(after, tuple):
            if len(before) != len(after):
                yield f"{field.name} were {len(before)}, are {len(after)}"
            places = [place for place, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]]
            if places:
                more = f", and {len(places) - 1} more" if len(places) > 1 else ""
                yield f"{field.name}[{places[0]}] was {before[places[0]]}, is {after[places[0]]}{more}"
        else:
            yield f"{field.name} was {before}, is {after}"
