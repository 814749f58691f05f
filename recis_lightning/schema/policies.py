"""Which ids a table takes up, and which it forgets: declarations of admission and eviction.

    tables:
      - name: item
        dim: 16
        capacity: 1_000_000
        admission: {kind: counter, threshold: 3}
        eviction: [{kind: age, steps: 100_000, every: 1000}, {kind: lru, every: 10}]

RecIS's ReadOnly is `admission: read_only`; its GlobalStepFilter(filter_step=100), run by HashTableFilterHook with
filter_interval=100, is `eviction: {kind: age, steps: 100, every: 100}`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, get_args


@dataclass(frozen=True, kw_only=True)
class Always:
    """Each id that training looks up gets a row."""

    kind: ClassVar[str] = "always"


@dataclass(frozen=True, kw_only=True)
class Counter:
    """An id gets a row with its ``threshold``-th occurrence; all occurrences of one lookup are counted before it."""

    kind: ClassVar[str] = "counter"
    threshold: int


@dataclass(frozen=True, kw_only=True)
class Probability:
    """Each lookup of an unknown id gives it a row with this probability, a function of seed, table, id and step."""

    kind: ClassVar[str] = "probability"
    probability: float


@dataclass(frozen=True, kw_only=True)
class Bloom:
    """`Counter` in a fixed number of bytes: a counting Bloom filter. It may count an id too often, never too rarely.

    Of n ids seen, with c = bytes / 4096 * 4096 one-byte cells, about (1 - exp(-hashes * n / c)) ** hashes meet a count
    that others left: 3 % for 4 bytes an id and 3 hashes, 15 % for 2. Without ``halve_every`` n is all ids ever seen, so
    that the filter of an endless stream fills up and lets everything through; `DynamicTable.stats(scan=True)` tells as
    ``bloom_passes`` which share of ids it has never seen would pass now.
    """

    kind: ClassVar[str] = "bloom"
    threshold: int
    bytes: int = 1 << 24
    hashes: int = 3
    halve_every: int | None = None
    """Every so many steps all counts are halved: an id then has to come often enough within about as many."""


@dataclass(frozen=True, kw_only=True)
class ReadOnly:
    """No id gets a row by being looked up; those loaded are trained."""

    kind: ClassVar[str] = "read_only"


@dataclass(frozen=True, kw_only=True)
class Age:
    """Every ``every`` steps, forget ids that were last looked up more than ``steps`` steps ago."""

    kind: ClassVar[str] = "age"
    steps: int
    every: int = 100


@dataclass(frozen=True, kw_only=True)
class Ttl:
    """Every ``every`` steps, forget ids that were last looked up more than ``seconds`` ago, by the wall clock.

    Times are known per ``every`` steps: an id may stay that much longer, never shorter.
    """

    kind: ClassVar[str] = "ttl"
    seconds: float
    every: int = 100


@dataclass(frozen=True, kw_only=True)
class Lru:
    """Every ``every`` steps, keep the ``capacity`` ids that were looked up last; of one step, those with higher ids.

    Between two evictions a table may hold more: at most twice its capacity, or 65,536 beyond a small one.
    """

    kind: ClassVar[str] = "lru"
    every: int = 1


@dataclass(frozen=True, kw_only=True)
class Lfu:
    """Every ``every`` steps, keep the ``capacity`` ids looked up most often; of equal ones the latest, the higher.

    It reads the records of all rows: some 30 ms for a million. Between two evictions as `Lru`.
    """

    kind: ClassVar[str] = "lfu"
    every: int = 100


@dataclass(frozen=True, kw_only=True)
class L2Norm:
    """Every ``every`` steps, forget ids whose embedding has a Euclidean norm under ``below``."""

    kind: ClassVar[str] = "l2_norm"
    below: float
    every: int = 1000


@dataclass(frozen=True, kw_only=True)
class Score:
    """Every ``every`` steps, forget the ids that a function of yours scores lowest.

    ``function`` is `module.name` of what takes (rows: TableSlice, step: int) and gives a number for each of its N ids,
    looking at each id alone: it is called with a part of the table at a time. Forgotten are ids that score under
    ``below``, or, where no ``below`` is given, as many as the table holds beyond its capacity, the lower of equal ones.
    """

    kind: ClassVar[str] = "score"
    function: str
    below: float | None = None
    every: int = 1000


Admission = Always | Counter | Probability | Bloom | ReadOnly
Eviction = Age | Ttl | Lru | Lfu | L2Norm | Score

ADMISSIONS: dict[str, type] = {cls.kind: cls for cls in get_args(Admission)}
EVICTIONS: dict[str, type] = {cls.kind: cls for cls in get_args(Eviction)}

BLOOM_CELLS_MOST = 255  # what a cell of one byte counts to


def keeps_to_capacity(policy: Eviction) -> bool:
    """Whether an eviction brings a table back to its capacity."""
    return isinstance(policy, Lru | Lfu) or (isinstance(policy, Score) and policy.below is None)


def find_mistakes(
    where: str, capacity: int | None, admission: Admission, eviction: Sequence[Eviction]
) -> Iterator[str]:
    """What cannot be meant in a table's policies, alone or together; one line each."""
    if capacity is not None and not 1 <= capacity < 2**31:
        yield f"{where}: capacity is {capacity}, need at least 1 and less than 2^31"
    yield from (f"{where}: admission {line}" for line in _find_bad_admission(admission))
    for policy in eviction:
        yield from (f"{where}: eviction {policy.kind} {line}" for line in _find_bad_eviction(policy))
        if capacity is None and keeps_to_capacity(policy):
            yield f"{where}: eviction {policy.kind} keeps to a capacity, and the table has none; give it capacity"
    to_capacity = [policy.kind for policy in eviction if keeps_to_capacity(policy)]
    if len(to_capacity) > 1:
        yield f"{where}: evictions {' and '.join(to_capacity)} both keep to the capacity; take one of them"
    kinds = [policy.kind for policy in eviction if policy.kind not in ("score", *to_capacity)]
    for kind in dict.fromkeys(kind for kind in kinds if kinds.count(kind) > 1):
        yield f"{where}: eviction {kind} is declared {kinds.count(kind)} times; take one of them"


def _find_bad_admission(admission: Admission) -> Iterator[str]:
    if isinstance(admission, Counter | Bloom) and admission.threshold < 1:
        yield f"{admission.kind} threshold is {admission.threshold}, need at least 1"
    if isinstance(admission, Probability) and not 0 < admission.probability <= 1:
        yield f"probability is {admission.probability}, need more than 0 and at most 1; for none at all say read_only"
    if isinstance(admission, Bloom):
        if admission.threshold > BLOOM_CELLS_MOST:
            yield f"bloom threshold is {admission.threshold}, its cells count to {BLOOM_CELLS_MOST}; take counter"
        if admission.bytes < 1 << 16:
            yield f"bloom bytes is {admission.bytes}, need at least 65536, 16 for each virtual shard"
        if admission.halve_every is not None and admission.halve_every < 1:
            yield f"bloom halve_every is {admission.halve_every}, need at least 1, or nothing to keep all counts"
        if not 1 <= admission.hashes <= 8:
            yield f"bloom hashes is {admission.hashes}, need 1 to 8"


def _find_bad_eviction(policy: Eviction) -> Iterator[str]:
    if policy.every < 1:
        yield f"every is {policy.every}, need at least 1"
    if isinstance(policy, Age) and policy.steps < 1:
        yield f"steps is {policy.steps}, need at least 1"
    if isinstance(policy, Ttl) and policy.seconds <= 0:
        yield f"seconds is {policy.seconds}, need more than 0"
    if isinstance(policy, L2Norm) and policy.below <= 0:
        yield f"below is {policy.below}, need more than 0"
    if isinstance(policy, Score) and not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", policy.function):
        yield f"function is '{policy.function}'; write module.name"
