"""What columns hold as one HTML file: numbers, histograms, commonest values; no script, nothing from the network."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recis_lightning.data.commands.inspect import describe_column, show
from recis_lightning.data.inspect.profile import ColumnProfile, Profile

BINS, TOP = 20, 10
WIDTH, HEIGHT = 360, 90
QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
HEADINGS = ("type", "missing", "distinct", "least", "mean", "largest", "length")
STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 72em; color: #222; }
section { display: grid; grid-template-columns: 26em 1fr; gap: 1em; border-top: 1px solid #ddd; padding: .8em 0; }
h2 { font-size: 1em; margin: 0; } td { padding-right: 1.2em; } .n { text-align: right; }
svg { background: #fafafa; } rect { fill: #4878a8; } text { font-size: 11px; fill: #555; }
"""


class Day(NamedTuple):
    """Rows of a day, and the mean of a label among them."""

    day: str
    rows: int
    label: float | None


def quantiles_of(its: ColumnProfile) -> list[float]:
    """Of the sampled values, at `QUANTILES`; none where there are no numbers."""
    sample = its.sampled()
    if not its.is_numeric or not len(sample):
        return []
    numbers = sample.to_numpy(zero_copy_only=False).astype(np.float64)
    return [float(value) for value in np.quantile(numbers[np.isfinite(numbers)], QUANTILES)]


def commonest(its: ColumnProfile, count: int = TOP) -> list[tuple[str, float]]:
    """The most frequent values of the sample, with their shares of it."""
    sample = its.sampled()
    if not len(sample):
        return []
    counted = pc.value_counts(sample)
    order = pc.sort_indices(counted.field("counts"), sort_keys=[("", "descending")])[:count]
    return [
        (str(counted[at.as_py()]["values"].as_py()), counted[at.as_py()]["counts"].as_py() / len(sample))
        for at in order
    ]


def write_report(profile: Profile, title: str, days: Sequence[Day] = ()) -> str:
    """The whole page."""
    sections = "".join(_section(its) for its in profile.columns.values())
    by_day = _days(days) if days else ""
    read = "" if profile.rows == profile.manifest.rows else f", {profile.rows:,} of them read"
    rows, files = profile.manifest.rows, len(profile.manifest.files)
    return (
        f"<!doctype html><html><head><meta charset='utf-8'><title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><h1>{escape(title)}</h1><p>{rows:,} rows in {files} files{read}. "
        "Quantiles, histograms and commonest values are of a sample drawn evenly from all stripes.</p>"
        f"{by_day}{sections}</body></html>\n"
    )


def _section(its: ColumnProfile) -> str:
    name, *cells = describe_column(its)
    rows = [(heading, cell) for heading, cell in zip(HEADINGS, cells, strict=True) if cell]
    points = [f"p{round(100 * at)} {show(value)}" for at, value in zip(QUANTILES, quantiles_of(its), strict=False)]
    rows += [("quantiles", ", ".join(points))] if points else []
    table = "".join(f"<tr><td>{heading}</td><td>{escape(cell)}</td></tr>" for heading, cell in rows)
    return f"<section><div><h2>{escape(name)}</h2><table>{table}</table></div><div>{_plot(its)}</div></section>"


def _plot(its: ColumnProfile) -> str:
    """Bars of the commonest values where there are few or they are names, else a histogram from p1 to p99."""
    if its.column.dtype == "binary" or not its.values:
        return ""
    if its.column.dtype == "string" or its.distinct.estimate() <= BINS:
        return _bars_of_values(commonest(its))
    low, *_, high = quantiles_of(its)
    if not low < high:
        return _bars_of_values(commonest(its))
    numbers = its.sampled().to_numpy(zero_copy_only=False).astype(np.float64)
    counts, _ = np.histogram(numbers, bins=BINS, range=(low, high))
    return _histogram([int(count) for count in counts], show(low), show(high))


def _histogram(counts: Sequence[int], left: str, right: str) -> str:
    most, width = max(1, *counts), WIDTH / len(counts)
    bars = "".join(
        f"<rect x='{at * width:.1f}' y='{HEIGHT - 15 - 70 * count / most:.1f}' width='{width - 1:.1f}' "
        f"height='{70 * count / most:.1f}'/>"
        for at, count in enumerate(counts)
    )
    return (
        f"<svg width='{WIDTH}' height='{HEIGHT}' role='img'>{bars}<text x='0' y='{HEIGHT - 3}'>{escape(left)}</text>"
        f"<text x='{WIDTH}' y='{HEIGHT - 3}' text-anchor='end'>{escape(right)}</text></svg>"
    )


def _bars_of_values(values: Sequence[tuple[str, float]]) -> str:
    most = max((share for _, share in values), default=1.0)
    rows = "".join(
        f"<rect x='0' y='{16 * at + 2}' width='{150 * share / most:.1f}' height='12'/>"
        f"<text x='156' y='{16 * at + 12}'>{share:.1%} {escape(value[:40])}</text>"
        for at, (value, share) in enumerate(values)
    )
    return f"<svg width='{WIDTH}' height='{16 * len(values) + 4}' role='img'>{rows}</svg>"


def _days(days: Sequence[Day]) -> str:
    rows = "".join(
        f"<tr><td>{escape(day.day)}</td><td class='n'>{day.rows:,}</td><td class='n'>"
        f"{'' if day.label is None else show(day.label)}</td></tr>"
        for day in days
    )
    plot = _histogram([day.rows for day in days], days[0].day, days[-1].day)
    head = "<tr><td>day</td><td>rows</td><td>label</td></tr>"
    return f"<section><div><h2>rows by day</h2><table>{head}{rows}</table></div><div>{plot}</div></section>"


def count_days(days: pa.Array, labels: pa.Array | None, counts: dict[str, tuple[int, float]]) -> None:
    """Add rows and labels of each day to ``counts``."""
    table = pa.table({"day": days, "label": labels if labels is not None else pa.nulls(len(days), pa.float64())})
    grouped = table.group_by("day").aggregate([("label", "sum"), ([], "count_all")])
    for day, total, rows in zip(grouped["day"], grouped["label_sum"], grouped["count_all"], strict=True):
        before = counts.get(day.as_py(), (0, 0.0))
        counts[day.as_py()] = (before[0] + rows.as_py(), before[1] + (total.as_py() or 0.0))
