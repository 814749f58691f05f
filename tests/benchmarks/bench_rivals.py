"""Steps and lookups against systems in environments of their own: FBGEMM TBE, torchrec's managed collision, TFRA.

    make rivals RIVALS=/some/folder                          # 3.5 GB, some minutes
    RECIS_RIVALS=/some/folder make bench BENCH=rivals        # a quarter of an hour; RECIS_RIVALS_RUNS=1 for a look

Steps are those of bench_step (26 features x 4096, 2 % of ids new, MLP, one thread), ours with counter admission and LRU
bookkeeping on, which none of the rivals has. TBE's ids are hashed to a table of fixed size before the clock starts, so
that it does less. Contestants run by turns, each in a process of its own; TFRA takes half a minute to trace a step.
Where an environment is not given its rivals are left out, and said to be.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from recis_lightning.schema import Adam, Table, Uniform
from recis_lightning.tables import TableGroup
from tests.benchmarks.bench_step import POLICIES, mean_time, ours
from tests.benchmarks.report import Result
from tests.benchmarks.rivals.draws import (
    BATCH,
    EXPONENT,
    FEATURES,
    LOOKUP_BATCH,
    LOOKUP_DIM,
    LOOKUP_IDS,
    NEW,
    RANKS,
    TIMED,
    WARM_UP,
    draw_lookups,
    known,
)

FOLDER = "RECIS_RIVALS"
WIDTHS, RUNS = (16, 64), int(os.environ.get("RECIS_RIVALS_RUNS", "5"))
SCRIPTS = {"torchrec": "torchrec_contestants.py", "tfra": "tfra_contestants.py"}


@dataclass(frozen=True)
class Rival:
    """One of them, and which of our optimizers it is compared with."""

    name: str
    environment: str
    contest: str
    optimizer: str


STEPS = (
    Rival("FBGEMM TBE, row-wise Adagrad", "torchrec", "tbe", "rowwise_adagrad"),
    Rival("torchrec managed collision + TBE", "torchrec", "mch", "rowwise_adagrad"),
    Rival("TFRA, Adam", "tfra", "step", "adam"),
)
LOOKUPS = (
    Rival("TFRA lookup", "tfra", "lookup", ""),
    Rival("FBGEMM TBE lookup, ids hashed before", "torchrec", "lookup", ""),
)


def run() -> list[Result]:
    given = os.environ.get(FOLDER)
    if not given:
        print(f"skipped: {FOLDER} names no folder of rivals' environments; see tests/benchmarks/bench_rivals.py")
        return []
    pythons = {name: Path(given) / name / "bin" / "python" for name in SCRIPTS}
    for name in [name for name, python in pythons.items() if not python.exists()]:
        print(f"skipped: there is no {pythons.pop(name)}; `make rivals` makes it")
    results = []
    for width in WIDTHS:
        results += _compare_steps(width, [rival for rival in STEPS if rival.environment in pythons], pythons)
    return results + _compare_lookups([rival for rival in LOOKUPS if rival.environment in pythons], pythons)


def _compare_steps(width: int, rivals: list[Rival], pythons: dict[str, Path]) -> list[Result]:
    optimizers = sorted({rival.optimizer for rival in rivals})
    for optimizer in optimizers:
        _measure_ours(optimizer, width)  # compiles what is not in the cache yet
    ours_ms: dict[str, list[float]] = {optimizer: [] for optimizer in optimizers}
    theirs_ms: dict[str, list[float]] = {rival.name: [] for rival in rivals}
    for _ in range(RUNS):
        for optimizer in optimizers:
            ours_ms[optimizer].append(_measure_ours(optimizer, width))
        for rival in rivals:
            theirs_ms[rival.name].append(_measure_theirs(rival, width, pythons))
    shapes = (
        f"{FEATURES} tables x batch {BATCH}, zipf({EXPONENT}) over {RANKS} ranks and {NEW:.0%} never seen, counter and "
        f"LRU on, MLP {FEATURES * width}-256-64-1, {RUNS} runs of {TIMED} steps after {WARM_UP}, mean step"
    )
    return [
        _result(f"step, width {width}, {rival.optimizer}", rival, ours_ms[rival.optimizer], theirs_ms, shapes)
        for rival in rivals
    ]


def _compare_lookups(rivals: list[Rival], pythons: dict[str, Path]) -> list[Result]:
    ours_ms: list[float] = []
    theirs_ms: dict[str, list[float]] = {rival.name: [] for rival in rivals}
    for _ in range(RUNS if rivals else 0):
        ours_ms.append(_measure_ours("lookup", LOOKUP_DIM))
        for rival in rivals:
            theirs_ms[rival.name].append(_measure_theirs(rival, LOOKUP_DIM, pythons))
    shapes = f"{LOOKUP_IDS} ids, batch {LOOKUP_BATCH} uniform, width {LOOKUP_DIM}, id -> row -> embedding"
    return [_result("lookup", rival, ours_ms, theirs_ms, shapes) for rival in rivals]


def _result(name: str, rival: Rival, ours_ms: list[float], theirs_ms: dict[str, list[float]], shapes: str) -> Result:
    ratios = [theirs / one for one, theirs in zip(ours_ms, theirs_ms[rival.name], strict=True)]
    return Result(
        name=name,
        rival=rival.name,
        ratio=statistics.median(ratios),
        worst_ratio=min(ratios),
        ours=statistics.median(ours_ms),
        theirs=statistics.median(theirs_ms[rival.name]),
        unit="ms",
        shapes=shapes,
        threads=1,
    )


def _measure_ours(contest: str, width: int) -> float:
    return _run([sys.executable, "-m", "tests.benchmarks.bench_rivals", contest, str(width)])


def _measure_theirs(rival: Rival, width: int, pythons: dict[str, Path]) -> float:
    script = Path(__file__).parent / "rivals" / SCRIPTS[rival.environment]
    return _run([str(pythons[rival.environment]), str(script), rival.contest, str(width)])


def _run(command: list[str]) -> float:
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    finished = subprocess.run(command, env=os.environ | one_thread, capture_output=True, text=True)
    if finished.returncode:
        sys.exit(f"{' '.join(command)} failed with {finished.returncode}:\n{finished.stderr[-2000:]}")
    return float(json.loads(finished.stdout.splitlines()[-1]))


def measure_lookup() -> float:
    """The median time to find the rows of a batch of ids and to read their embeddings, in milliseconds."""
    declared = Table(name="item", dim=LOOKUP_DIM, initializer=Uniform(), optimizer=Adam())
    group = TableGroup([declared], max_rows=2 * LOOKUP_IDS)
    for begin in range(0, LOOKUP_IDS, 1 << 18):
        group[0].find_or_insert(known(torch.arange(begin, min(begin + (1 << 18), LOOKUP_IDS))))
    times = []
    for ids in map(torch.from_numpy, draw_lookups()):
        begin_time = time.perf_counter()
        rows = group.lookup(ids, torch.tensor([0, len(ids)]), torch.tensor([0]), insert=False)
        group.weight.index_select(0, rows)
        times.append(1000 * (time.perf_counter() - begin_time))
    return statistics.median(times)


if __name__ == "__main__":
    torch.set_num_threads(1)
    contest, width = sys.argv[1], int(sys.argv[2])
    if contest == "lookup":
        print(json.dumps(measure_lookup()))
    else:
        print(json.dumps(mean_time(ours(width, WARM_UP + TIMED, "known", contest, POLICIES))))
