"""Kinds of transforms of a feature's values: numbers, ids, and rows of them.

A transform's docstring says what it takes and gives: ids (int64), numbers (float32), one a row or rows of several.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

HashKind = Literal["farm", "murmur", "xxh64"]

# ------------------------------------------------------------------------------------------------------ of numbers


@dataclass(frozen=True, kw_only=True)
class Log1p:
    """log(1 + x); negative x below -1 is an error at the batch that holds it."""

    kind: ClassVar[str] = "log1p"


@dataclass(frozen=True, kw_only=True)
class Clip:
    """min(max(x, low), high); one bound may be left out."""

    kind: ClassVar[str] = "clip"
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class ZScore:
    """(x - mean) / std in float32: mean 2, std 4, x = 10 -> 2. Fitted where mean and std are left out."""

    kind: ClassVar[str] = "z_score"
    mean: float | None = None
    std: float | None = None


@dataclass(frozen=True, kw_only=True)
class MinMax:
    """(x - low) / (high - low) in float32: low 0, high 4, x = 3 -> .75. Fitted where both are left out."""

    kind: ClassVar[str] = "min_max"
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Quantile:
    """The share of values below x, by straight lines between knots: knots [0, 10, 100], x = 55 -> .75.

    Knot i of n stands for the share i / (n - 1); x below the first gives 0, above the last 1. Where neighbouring knots
    are equal, x at them gives the middle of their shares. Fitted, with ``count`` pieces, where knots are left out.
    """

    kind: ClassVar[str] = "quantile"
    knots: tuple[float, ...] = ()
    count: int = 100


@dataclass(frozen=True, kw_only=True)
class Bucketize:
    """How many boundaries are <= x, as torch.bucketize(right=True): boundaries [0, 10], x = 10 -> 2. Gives ids.

    ``quantiles: 20`` in the place of boundaries has them fitted: 19 of them, so that 20 buckets are as full as equal
    values allow.
    """

    kind: ClassVar[str] = "bucketize"
    boundaries: tuple[float, ...] = ()
    quantiles: int | None = None


# ---------------------------------------------------------------------------------------------------------- of ids


@dataclass(frozen=True, kw_only=True)
class Modulo:
    """id mod divisor, the id read as unsigned 64-bit: -1 mod 10 is 5, since 2^64 - 1 ends in 5."""

    kind: ClassVar[str] = "modulo"
    divisor: int


@dataclass(frozen=True, kw_only=True)
class Hash:
    """The hash of an id's 8 bytes, little-endian, all 64 bits: what the same bytes give when they are read as a string.

    murmur (MurmurHash64A, seed 0) of 1 is -8089716718896805586.
    """

    kind: ClassVar[str] = "hash"
    algorithm: HashKind = "murmur"


@dataclass(frozen=True, kw_only=True)
class MultiHash:
    """Up to four cheap hashes of an id: h_j = id * (1, 3, 5, 7)_j mod p_j mod buckets_j.

    p_j is the largest prime up to (29, 47, 67, 83)_j * buckets_j. With ``index`` the hash of that number alone:
    buckets [1000], index 0, id 1001 -> 1. Without it all of them, one behind the other in the row, each in a range of
    its own: buckets [1000, 1000], id 1001 -> 1, 1003.
    """

    kind: ClassVar[str] = "multi_hash"
    buckets: tuple[int, ...]
    index: int | None = None


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """An id's place in a list: values [70, 30], 30 -> 1. Fitted where neither values nor a file are given.

    Strings stand for the hashes that their column makes of them. ``unknown`` is what others become: one of so many ids
    behind those of the list, chosen by hash (1: all share one), or no id (drop). The places are kept for ever: append
    to a list, never insert into one. Fitted are the ids that occur ``min_count`` times, commonest first, ``max_size``
    at most.
    """

    kind: ClassVar[str] = "vocabulary"
    values: tuple[int | str, ...] = ()
    file: str | None = None
    """One value a line; `${NAME}` in it is an environment variable."""
    unknown: int | Literal["drop"] = 1
    min_count: int = 1
    max_size: int | None = None


# --------------------------------------------------------------------------------------------------------- of rows


@dataclass(frozen=True, kw_only=True)
class Cross:
    """Every combination of ids of two or more inputs, hashed: the MurmurHash64A of their bytes, one behind the other.

    Ids of 1001 and 1 give -7808879811642834040. An id that a row repeats counts once, with its first weight; weights
    are multiplied. A row of more than ``max_ids`` combinations is an error.
    """

    kind: ClassVar[str] = "cross"
    max_ids: int = 1024


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """What a row's map holds for a key. Inputs: [ids, keys, values], or [keys, values] and the ``key`` of every row.

    Keys [7, 9] and values [.5, .25] give .25 for 9. Of equal keys the first counts. A key that the map lacks is an
    error, gives ``missing`` where that is a number, or nothing (drop).
    """

    kind: ClassVar[str] = "lookup"
    key: int | str | None = None
    missing: float | int | Literal["error", "drop"] = "error"


@dataclass(frozen=True, kw_only=True)
class Truncate:
    """At most ``length`` entries of a row, the last or the first, weights too: [1, 2, 3], length 2 -> [2, 3]."""

    kind: ClassVar[str] = "truncate"
    length: int
    keep: Literal["last", "first"] = "last"


@dataclass(frozen=True, kw_only=True)
class TimeGap:
    """How long before now: inputs [times, now], one now a row; unit 60, times [0, 90], now 100 -> [1, 0].

    Both are read as integers. Gaps are rounded down and stay inside 64 bits; what lies ahead is negative.
    """

    kind: ClassVar[str] = "time_gap"
    unit: int = 1


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How many ids of the first input's row are in the second's, each counted once: [1, 2, 2] and [2, 3] -> 1.

    ratio divides by the number of different ids of the first: .5. contains is 1 where all of them are, 0 elsewhere.
    Without ids in the first all are 0.
    """

    kind: ClassVar[str] = "overlap"
    measure: Literal["count", "ratio", "contains"] = "count"


@dataclass(frozen=True, kw_only=True)
class Vector:
    """A list of exactly ``dim`` numbers as a vector; an empty list is filled with ``fill``, or an error without it."""

    kind: ClassVar[str] = "vector"
    dim: int
    fill: float | None = None


@dataclass(frozen=True, kw_only=True)
class Reduce:
    """One number of a row's several: sum, mean, min, max, count, first or last; an empty row gives ``empty``."""

    kind: ClassVar[str] = "reduce"
    how: Literal["sum", "mean", "min", "max", "count", "first", "last"] = "sum"
    empty: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Custom:
    """Any function or nn.Module: called with its inputs, each a Tensor or Ragged, it gives one of either.

    ``init_args`` are the arguments of a module's class, or of the function besides its inputs. ``takes`` says how
    columns are read for it, ``gives`` and ``form`` what comes back: numbers or ids, one number a row [B], rows of
    several (Ragged), or a vector [B, dim].
    """

    kind: ClassVar[str] = "custom"
    class_path: str
    init_args: dict = field(default_factory=dict)
    takes: Literal["numbers", "ids"] = "numbers"
    gives: Literal["numbers", "ids"] = "numbers"
    form: Literal["number", "rows", "vector"] = "number"
    dim: int | None = None


OfNumbers = Log1p | Clip | ZScore | MinMax | Quantile | Bucketize
OfIds = Modulo | Hash | MultiHash | Vocabulary
OfRows = Cross | Lookup | Truncate | TimeGap | Overlap | Vector | Reduce | Custom
Transform = Log1p | Clip | Modulo | Bucketize | ZScore | MinMax | Quantile | OfIds | OfRows

TRANSFORMS: dict[str, type] = {cls.kind: cls for cls in get_args(Transform)}


def is_fitted(transform: Transform) -> bool:
    """Whether a transform has all numbers it needs; one that lacks them gets them from `recis features fit`."""
    if isinstance(transform, ZScore):
        return transform.mean is not None
    if isinstance(transform, MinMax):
        return transform.low is not None
    if isinstance(transform, Quantile):
        return bool(transform.knots)
    if isinstance(transform, Bucketize):
        return bool(transform.boundaries)
    if isinstance(transform, Vocabulary):
        return bool(transform.values) or transform.file is not None
    return True
