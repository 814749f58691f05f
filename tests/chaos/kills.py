"""kill -9 of a fit again and again, at moments drawn from a seed, and what comes out in the end.

A kill takes one rank or both: while they start, after some batch, or while a checkpoint is written, as soon as its
directory is seen to be begun. That a save was cut off is told by what it has left: a directory `<name>.ckpt.tmp` that
was begun and not committed. After each kill the fit is started anew and goes on from the last committed checkpoint.
"""

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from recis_lightning.training.files import ASIDE, MANIFEST, CheckpointError, DirectoryReader
from tests.chaos.fits import EVERY, PATIENCE, RANKS, SECONDS_TO_START, Fit, batches_done, digests_of, losses_of

Moment = Literal["starting", "training", "saving"]
MOMENTS: tuple[Moment, ...] = ("starting", "training", "training", "saving", "saving")
SAVE = 0.03  # about what a save takes
GIVE_UP = 120.0


@dataclass(frozen=True, kw_only=True)
class Kill:
    """What was done, and what it has left."""

    moment: Moment
    rank: int | None  # None: all of them at once
    batch: int  # of the last one that rank 0 had trained on
    torn: tuple[str, ...]  # checkpoints that were being written
    seconds: float  # until the last process had ended

    def __str__(self) -> str:
        whom = "all ranks" if self.rank is None else f"rank {self.rank}"
        left = f", left {', '.join(self.torn)}" if self.torn else ""
        return f"{self.moment:8}  {whom:9}  batch {self.batch:4}  all ended after {self.seconds:4.1f} s{left}"


def kill_often(
    start: Callable[[], Fit],
    steps: int,  # of the whole fit
    *,
    kills: int,
    saves: int,
    seed: int,
    on_kill: Callable[[Kill], None] = lambda kill: None,
) -> list[Kill]:
    """Start a fit and kill it, ``kills`` times or more, ``saves`` times at least in a save; then let it end."""
    draw, done = random.Random(seed), list[Kill]()
    while len(done) < kills or sum(bool(kill.torn) for kill in done) < saves:
        missing = saves - sum(bool(kill.torn) for kill in done)
        left = max(kills - len(done), missing, 1)
        moment = "saving" if missing >= left else draw.choice(MOMENTS)
        rank = None if moment == "starting" else draw.choice([None, *range(RANKS)])
        fit = start()
        before = batches_done(fit.folder)
        # On average as far as lets the fit end at its last batch behind the last kill.
        batch = before + draw.randint(1, max(2 * (steps - before) // (left + 2), 1))
        done.append(_kill(fit, moment, rank, min(batch, steps - 2 * EVERY), draw))
        on_kill(done[-1])
    let_end(start())
    return done


def let_end(fit: Fit) -> None:
    """Wait for the end of a fit that nobody disturbs."""
    assert set(fit.wait(seconds=600)) == {0}, fit.errors()


def _kill(fit: Fit, moment: Moment, rank: int | None, batch: int, draw: random.Random) -> Kill:
    before = _begun(fit.folder)
    if moment == "starting":
        time.sleep(draw.uniform(0.0, SECONDS_TO_START[fit.start]))
    else:
        _wait_for(fit, lambda: fit.has_trained and batches_done(fit.folder) > batch)
        if moment == "saving":
            _wait_for(fit, lambda: _begun(fit.folder) - before)
        time.sleep(draw.uniform(0.0, SAVE))
    fit.kill(rank)
    started = time.monotonic()
    fit.wait(PATIENCE)
    if rank is not None:
        assert "killed, perhaps for want of memory" in fit.errors(), fit.errors()
    torn = _begun(fit.folder) - before
    for name, _ in torn:
        _check_refused(fit.folder / "checkpoints" / name)
    return Kill(
        moment=moment,
        rank=rank,
        batch=batches_done(fit.folder),
        torn=tuple(name for name, _ in sorted(torn)),
        seconds=time.monotonic() - started,
    )


def _wait_for(fit: Fit, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + GIVE_UP
    while not condition():
        assert set(fit.statuses) == {None}, f"the fit has ended by itself:\n{fit.errors()}"
        assert time.monotonic() < deadline, f"nothing happened for {GIVE_UP} s:\n{fit.errors()}"
        time.sleep(0.0002)


def _begun(folder: Path) -> set[tuple[str, int]]:
    """Checkpoints that are written aside, or were when their writer was killed; a new attempt has another inode."""
    found = set()
    for path in (folder / "checkpoints").glob(f"*{ASIDE}"):
        try:
            found.add((path.name, path.stat().st_ino))
        except FileNotFoundError:  # committed in between
            continue
    return found


def _check_refused(path: Path) -> None:
    """What a kill has left is refused by name, if it is not whole: killed between its last file and its new name."""
    if (path / MANIFEST).exists():
        reader = DirectoryReader(str(path))
        for name in reader.manifest["files"]:
            reader.read(name)
        return
    with pytest.raises(CheckpointError, match=f"{path.name}' has no {MANIFEST}: writing or removing it"):
        DirectoryReader(str(path))


def summary(kills: list[Kill]) -> str:
    by_moment = Counter(kill.moment for kill in kills)
    torn = sum(bool(kill.torn) for kill in kills)
    alone = sum(kill.rank is not None for kill in kills)
    listed = ", ".join(f"{count} while {moment}" for moment, count in sorted(by_moment.items()))
    return f"{len(kills)} kills -9 ({listed}); {alone} of one rank alone, {torn} cut off a save"


def compare(calm: Path, wild: Path) -> list[str]:
    """In what two fits differ, by their folders: losses of each rank, tables, dense weights, and what lies about."""
    found = []
    for rank in range(RANKS):
        expected, losses = losses_of(calm, rank), losses_of(wild, rank)
        different = sorted(
            batch for batch in expected.keys() | losses.keys() if expected.get(batch) != losses.get(batch)
        )
        if different:
            found.append(f"rank {rank}: {len(different)} losses differ, the first that of batch {different[0]}")
    digests = [digests_of(folder / "checkpoints" / "last.ckpt") for folder in (calm, wild)]
    found += [f"sha256 of {name} differs" for name in digests[0] if digests[0][name] != digests[1][name]]
    left = [path.name for path in (wild / "checkpoints").iterdir() if path.suffix != ".ckpt"]
    return found + [f"left behind: {name}" for name in left]
