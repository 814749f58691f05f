"""The plan of a schema's transforms as text: order, groups, inputs, outputs and calls."""

from collections.abc import Iterable, Sequence

from recis_lightning.features.engine import STEPS
from recis_lightning.features.plan import Call, Step, dtype_of, plan_transforms
from recis_lightning.schema import Schema, Value, find_unfitted


def describe_plan(schema: Schema) -> str:
    """One line a step: which features go through which transform together, what they read and give, in how many calls.

    A custom transform is called once for each feature; others take the same number of calls for one feature as for all.
    """
    header = ("order", "depth", "transform", "calls", "features", "takes", "gives")
    rows: list[Sequence[str]] = []
    for sequence in schema.sequences:
        what = f"{len(sequence.columns)}: {_listed(sequence.columns)}"
        rows.append(("-", f"truncate ({sequence.name})", "1", what, "lists", f"at most {sequence.length} entries"))
    steps = plan_transforms(schema)
    for step in steps:
        names = f"{len(step.calls)}: {_listed(call.feature.name for call in step.calls)}"
        gives = " or ".join(dict.fromkeys(_describe(call.result) for call in step.calls))
        rows.append((str(step.depth), step.kind.kind, str(calls_of(step)), names, _describe_inputs(step), gives))
    numbered = [header, *((str(index), *row) for index, row in enumerate(rows, start=1))]
    widths = [max(len(row[column]) for row in numbered) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in numbered]
    total = sum(calls_of(step) for step in steps) + bool(schema.sequences)
    transforms = sum(len(step.calls) for step in steps)
    lines.append(f"{transforms} transforms of {len(schema.features)} features in {total} calls")
    return "\n".join([*lines, *find_unfitted(schema.features)])


def calls_of(step: Step) -> int:
    """How many calls a step takes on the CPU; launches on a GPU."""
    return len(step.calls) if step.kind.kind == "custom" else STEPS[step.kind.kind].launches


def _describe_inputs(step: Step) -> str:
    several = [call for call in step.calls if len(call.inputs) > 1]
    if several:
        return _listed((" x ".join(name for _, name in call.inputs) for call in step.calls), most=3)
    return " or ".join(dict.fromkeys(_describe(_first(call)) for call in step.calls))


def _first(call: Call) -> Value:
    return call.values[0]


def _describe(value: Value) -> str:
    dtype = str(dtype_of(value)).removeprefix("torch.")
    shape = {"number": "[B]", "rows": "rows", "vector": f"[B, {value.dim}]"}[value.form]
    return f"{dtype} {shape}" + (" with weights" if value.weighted else "")


def _listed(names: Iterable[str], most: int = 6) -> str:
    listed = list(names)
    return ", ".join(listed if len(listed) <= most else [*listed[: most - 2], "...", listed[-1]])
