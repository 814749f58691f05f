"""What all contestants of the step benchmarks are given. Needs NumPy only.

B batch rows, F features.
"""

from collections.abc import Iterator

import numpy as np

FEATURES, BATCH = 26, 4096
RANKS, EXPONENT, NEW = 5_000_000, 1.05, 0.02
WARM_UP, TIMED = 12, 24
MIX = -7046029254386353131  # odd, so that ids stay different; they look like hashes then


def draw_ids(steps: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each step 64-bit ids [F, B], drawn with probability ~ rank^-1.05 or never seen; bool [F, B] tells which."""
    random = np.random.default_rng(1)
    power = 1 - EXPONENT
    unseen = 1 << 40
    for _ in range(steps):
        uniform = random.random((FEATURES, BATCH))
        ranks = (1 + uniform * ((RANKS + 1) ** power - 1)) ** (1 / power)
        ids = ranks.astype(np.int64)
        new = random.random(ids.shape) < NEW
        ids[new] = np.arange(unseen, unseen + new.sum())
        unseen += int(new.sum())
        ids += np.arange(FEATURES)[:, None] << 44
        yield ids * MIX, new


def draw_labels(steps: int) -> np.ndarray:
    """float32 [steps, B]."""
    return np.random.default_rng(2).integers(0, 2, (steps, BATCH)).astype(np.float32)


LOOKUP_IDS, LOOKUP_BATCH, LOOKUP_RUNS, LOOKUP_DIM = 5_000_000, 1 << 16, 24, 16


def draw_lookups() -> Iterator[np.ndarray]:
    """Batches of ids that a table of ids ``known(0)`` to ``known(LOOKUP_IDS - 1)`` holds, uniform."""
    random = np.random.default_rng(3)
    for _ in range(LOOKUP_RUNS):
        yield known(random.integers(0, LOOKUP_IDS, LOOKUP_BATCH))


def known(numbers: np.ndarray) -> np.ndarray:
    return numbers * MIX
