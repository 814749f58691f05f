"""A starter recipe from what columns hold: something that trains at once, to be made better by hand.

    choose(profile, labels=["click"])        # which column becomes what, with the reason of each that is left out
    write_recipe(choices, ...)               # YAML

Strings and integers that look like ids are looked up, other numbers are scaled and dense, lists are pooled. Columns
that hardly can help are left out: constants, texts, one value a row, times, bytes, nested lists.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from recis_lightning.data.errors import DataError
from recis_lightning.data.inspect.profile import ColumnProfile, Profile
from recis_lightning.schema import Schema, did_you_mean

LABEL_NAME = re.compile(r"(label|click|clicked|is_click|target|y|conversion|converted|cvr|ctr)(_.*)?|(is|has)_.*")
ID_NAME = re.compile(r"(.*_)?(ids?|code|item|user|key)(_.*)?")
DIM = 8
FEW, MANY = 100, 1000  # distinct values of integers: categories up to here, ids from there on
LONG_TEXT = 40  # bytes
FROM_2_24 = 2**24
STEPS = 400  # an epoch, where that leaves batches of 8 rows to 4096


@dataclass
class Choices:
    """What becomes of the columns."""

    columns: list[dict[str, Any]] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    features: list[dict[str, Any]] = field(default_factory=list)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Columns by name, and why."""

    def schema(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("columns", "tables", "features", "tasks")}


def choose(profile: Profile, labels: Sequence[str] = ()) -> Choices:
    """Decide for every column; DataError where there is no label, or one that can't be learnt."""
    choices = Choices()
    names = list(labels) or _guess_labels(profile)
    for name in names:
        _add_task(choices, profile, name, len(names))
    weights = _pair_weights(profile)
    for name, its in profile.columns.items():
        if name in names or name in weights.values():
            continue
        reason = _reason_to_leave_out(its)
        if reason:
            choices.left_out[name] = reason
        elif its.column.layout == "list":
            _add_list(choices, profile, its, weights.get(name))
        elif _is_id(its):
            _add_id(choices, its, "scalar")
        else:
            _add_number(choices, its)
    for ids, weight in weights.items():
        if ids in choices.left_out:
            choices.left_out[weight] = f"weighs '{ids}', which is left out"
    Schema.from_dict(choices.schema())
    return choices


# ---------------------------------------------------------------------------------------------------------- labels


def _guess_labels(profile: Profile) -> list[str]:
    usable = [name for name, its in profile.columns.items() if _is_binary(its)]
    named = [name for name in usable if LABEL_NAME.fullmatch(name.lower())]
    found = [name for name in named if name.lower().startswith("label")] or named[:1] or usable[:1]
    if not found:
        listed = ", ".join(name for name, its in profile.columns.items() if its.is_numeric)
        raise DataError(f"no column of zeros and ones looks like a label; name one: --label COLUMN (numbers: {listed})")
    return found


def _is_binary(its: ColumnProfile) -> bool:
    is_whole = not its.missing and not its.missing_values and _holds_one_each(its)
    return (
        is_whole
        and its.is_numeric
        and its.column.dtype != "timestamp"
        and (its.low, its.high) == (0, 1)
        and (its.distinct.estimate() == 2)
    )


def _holds_one_each(its: ColumnProfile) -> bool:
    return its.column.layout == "scalar" or (its.column.layout == "list" and its.shortest == its.longest == 1)


def _add_task(choices: Choices, profile: Profile, name: str, count: int) -> None:
    its = profile.columns.get(name)
    if its is None:
        raise DataError(f"there is no column '{name}' for a label{did_you_mean(name, profile.columns)}")
    if not its.is_numeric or not _holds_one_each(its) or its.missing or its.missing_values:
        raise DataError(
            f"column '{name}' is {its.column.dtype} ({its.column.layout}) with {its.missing + its.missing_values} "
            "missing values; a label is one number in every row"
        )
    if its.low == its.high:
        raise DataError(f"column '{name}' is {its.low} in all {its.rows} rows; there is nothing to learn")
    task = re.sub(r"^label_(?=.)", "", name) if count > 1 else "ctr" if _is_binary(its) else name
    choices.columns.append(_declaration(its, "optional_list" if its.column.layout == "list" else "scalar"))
    choices.tasks.append({"name": task, "label": name} | ({} if _is_binary(its) else {"loss": "mse"}))


# --------------------------------------------------------------------------------------------------------- features


def _reason_to_leave_out(its: ColumnProfile) -> str | None:
    dtype, distinct = its.column.dtype, its.distinct.estimate()
    if dtype == "binary":
        return f"bytes, {its.mean_length:.0f} a row; decode them by a custom transform"
    if its.column.layout == "nested_list":
        return "lists of lists; a model takes them with pooling: none"
    if dtype == "timestamp":
        return "a time; make hours or days of it in a transform"
    if not its.values:
        return "missing in all rows"
    if distinct == 1 and not its.missing and not its.empty:
        return "the same in all rows"
    if dtype == "string" and its.column.layout == "scalar" and its.mean_length > LONG_TEXT:
        return f"text, {its.mean_length:.0f} bytes a row; a tower could read it"
    if its.column.layout == "scalar" and _is_id(its) and its.values > MANY and distinct > 0.95 * its.values:
        return "nearly one value a row"
    return None


def _is_id(its: ColumnProfile) -> bool:
    """Whether values are names, not amounts."""
    dtype = its.column.dtype
    if dtype == "string":
        return True
    if not dtype.startswith("int"):
        return False
    distinct = its.distinct.estimate()
    is_wide = max(abs(its.low or 0), abs(its.high or 0)) > FROM_2_24
    return is_wide or distinct <= FEW or distinct > MANY or bool(ID_NAME.fullmatch(its.column.name.lower()))


def _declaration(its: ColumnProfile, layout: str, **more: Any) -> dict[str, Any]:
    column = its.column
    source = {} if column.source is None else {"source": column.source}
    hashed = {"hash": column.hash} if column.hash else {}
    layouts = {} if layout == "scalar" else {"layout": layout}
    return {"name": column.name} | source | {"dtype": column.dtype} | hashed | layouts | more


def _add_id(choices: Choices, its: ColumnProfile, layout: str, **more: Any) -> None:
    name = its.column.name
    nulls = {"default": 0} if layout == "list" and its.missing_values and its.column.dtype != "string" else {}
    choices.columns.append(_declaration(its, layout, **nulls))
    choices.tables.append(
        {
            "name": name,
            "dim": DIM,
            "initializer": {"kind": "uniform", "low": -0.01, "high": 0.01},
            "optimizer": {"kind": "adagrad", "lr": 0.05},
        }
    )
    choices.features.append({"name": name, "table": name} | more)


def _add_number(choices: Choices, its: ColumnProfile) -> None:
    """Centre and scale a number; amounts with a long tail by their logarithm. A missing one is an average one: other
    files may miss what these hold."""
    layout = "optional_list" if its.column.layout == "list" else "scalar"
    transforms: list[Any] = []
    low, high = float(its.low or 0), float(its.high or 0)
    if low >= 0 and high > 20 * its.std > 0:
        default, transforms = 0.0, ["log1p"]
    else:
        default = round(its.mean, 6)
        if its.std > 0:
            transforms = [{"kind": "z_score", "mean": default, "std": _rounded(its.std)}]
    choices.columns.append(_declaration(its, layout, default=default))
    choices.features.append({"name": its.column.name} | ({"transforms": transforms} if transforms else {}))


def _rounded(number: float) -> float:
    return float(f"{number:.6g}")


def _add_list(choices: Choices, profile: Profile, its: ColumnProfile, weights: str | None) -> None:
    name, dtype = its.column.name, its.column.dtype
    if (its.longest or 0) <= 1 and _is_id(its):
        _add_id(choices, its, "optional_list")
    elif (its.longest or 0) <= 1:
        _add_number(choices, its)
    elif dtype == "string" or dtype.startswith("int"):
        more = {"pooling": "mean"}
        if weights is not None:
            weighing = profile.columns[weights]
            filled = {"default": 1.0} if weighing.missing_values else {}
            choices.columns.append(_declaration(weighing, "list", **filled))
            more["weights"] = weights
        _add_id(choices, its, "list", **more)
    elif its.shortest == its.longest or (its.shortest == 0 and its.length == (its.longest or 0) * _filled_rows(its)):
        choices.columns.append(_declaration(its, "vector", dim=its.longest, default=0))
        choices.features.append({"name": name})
    else:
        choices.left_out[name] = "lists of numbers; say what they are: weights of ids, or a reduce transform"


def _filled_rows(its: ColumnProfile) -> int:
    return its.rows - its.missing - its.empty


def _pair_weights(profile: Profile) -> dict[str, str]:
    """Ids and weights that are parts of one column, lists of equal lengths."""
    parts: dict[str, list[ColumnProfile]] = {}
    for its in profile.columns.values():
        if its.column.source and its.column.layout == "list":
            parts.setdefault(its.column.source.split(".")[0], []).append(its)
    pairs = {}
    for sides in parts.values():
        floats = [its for its in sides if its.column.dtype.startswith("float")]
        ids = [its for its in sides if its not in floats]
        if len(ids) == len(floats) == 1 and (ids[0].longest or 0) > 1:
            pairs[ids[0].column.name] = floats[0].column.name
    return pairs


# ------------------------------------------------------------------------------------------------------- the recipe


def write_recipe(choices: Choices, sources: Mapping[str, str], title: str, rows: int) -> str:
    """A recipe as YAML, one line to a column, with what was left out as comments."""
    batch_size = max(8, min(4096, rows // STEPS // 8 * 8))
    lines = [
        f"# Written by recis data inspect from {title}: it trains as it is, and wants to be made better by hand.",
        "seed_everything: 0",
        "model:",
        "  network: {class_path: recis_lightning.models.DeepFM, init_args: {hidden: [128, 64]}}",
        "data:",
        *(f"  {name}: {_flow(path)}" for name, path in sources.items()),
        *(() if "validation" in sources else ("  # validation: <folder>  # without one there is no AUC to judge by",)),
        f"  batch_size: {batch_size}",
        "  schema:",
    ]
    for section, items in choices.schema().items():
        lines.append(f"    {section}:")
        lines += [f"      - {_flow(item)}" for item in items]
        if section == "columns":
            lines += [f"      # {name}: {reason}" for name, reason in choices.left_out.items()]
    trainer = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "strategy": "recis_sharded"}
    lines += ["trainer:", *(f"  {name}: {value}" for name, value in trainer.items())]
    return "\n".join(_without_empty(lines)) + "\n"


def _without_empty(lines: Sequence[str]) -> Iterator[str]:
    """Sections without an entry left out."""
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line == "    tables:" and not following.startswith("      - "):
            continue
        yield line


def _flow(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True)
    return text.strip().removesuffix("...").strip()
