"""The feature engine on 40 columns at batch 4096: 26 hashed + modulo, 13 bucketized, 1 cross; against plain torch.

The rival is the fastest form found in torch whose output is equal bit for bit: columns of one kind are stacked
beforehand, outside the clock, so that every step of a hash is one call over all of them, in place; boundaries are
searched by torch.bucketize column by column (batched searchsorted and sums of comparisons take longer); and the cross
knows that its rows hold one id each. It has no checks, no rows and no names. Ours is a whole `FeatureEngine` on a
packed batch that it has not seen before: reading, checking for NaN, naming. Both on one thread, by turns.

B batch rows, C hashed columns, M boundaries.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from recis_lightning.features import FeatureEngine
from recis_lightning.ragged import Batch, Ragged
from recis_lightning.schema import Schema
from tests.benchmarks.report import Result
from triton_ops.transform import reference

ROWS, HASHED, BUCKETIZED, BOUNDARIES = 4096, 26, 13, 32
DIVISOR, CROSS_DIVISOR = 1_000_003, 100_003
RUNS, CALLS = 9, 30
MULTIPLIER = reference.signed(reference.MURMUR_M)


def make_schema(boundaries: Tensor) -> Schema:
    buckets = [{"kind": "bucketize", "boundaries": each.tolist()} for each in boundaries]
    modulo = {"kind": "modulo", "divisor": DIVISOR}
    return Schema.from_dict(
        {
            "columns": [
                {"name": f"c{{1..{HASHED}}}", "dtype": "int64"},
                {"name": f"i{{1..{BUCKETIZED}}}", "dtype": "float32"},
                {"name": "{left,right}", "dtype": "int64"},
            ],
            "tables": [{"name": "t", "dim": 4}],
            "features": [
                {"name": f"c{{1..{HASHED}}}", "table": "t", "transforms": ["hash", modulo]},
                *({"name": f"i{k + 1}", "table": "t", "transforms": [each]} for k, each in enumerate(buckets)),
                {
                    "name": "crossed",
                    "inputs": ["left", "right"],
                    "table": "t",
                    "transforms": ["cross", {"kind": "modulo", "divisor": CROSS_DIVISOR}],
                },
            ],
        }
    )


def make_columns() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids [C, B], numbers [13, B], boundaries [13, M], and the ids to cross [2, B]."""
    generator = torch.Generator().manual_seed(0)
    ids_CB = torch.randint(-(2**63), 2**63 - 1, (HASHED, ROWS), generator=generator)
    numbers = torch.randn(BUCKETIZED, ROWS, generator=generator)
    boundaries = torch.randn(BUCKETIZED, BOUNDARIES, generator=generator).sort(1).values
    return ids_CB, numbers, boundaries, torch.randint(0, 2**40, (2, ROWS), generator=generator)


class TorchForm:
    """The same values in plain torch, int64 [C, B] and so on; memory is taken once and written in place."""

    def __init__(self, ids_CB: Tensor, numbers: Tensor, boundaries: Tensor, crossed: Tensor) -> None:
        self.ids_CB, self.numbers, self.boundaries, self.crossed = ids_CB, numbers, boundaries, crossed
        self.hashes_CB, self.spare_CB = torch.empty_like(ids_CB), torch.empty_like(ids_CB)
        self.over_CB = torch.empty(ids_CB.shape, dtype=torch.bool)

    def __call__(self) -> list[Tensor]:
        torch.mul(self.ids_CB, MULTIPLIER, out=self.hashes_CB)
        self._fold(self.hashes_CB)
        self.hashes_CB.mul_(MULTIPLIER).bitwise_xor_(reference.signed(8 * reference.MURMUR_M)).mul_(MULTIPLIER)
        self._fold(self.hashes_CB)
        self._fold(self.hashes_CB.mul_(MULTIPLIER))
        self._modulo(self.hashes_CB)
        buckets = [
            torch.bucketize(values, each, right=True)
            for values, each in zip(self.numbers.unbind(0), self.boundaries, strict=True)
        ]
        crossed = reference.modulo(reference.murmur([*self.crossed]), CROSS_DIVISOR)
        return [*self.hashes_CB.unbind(0), *buckets, crossed]

    def _fold(self, words_CB: Tensor) -> None:
        """words ^ words >> 47, unsigned."""
        torch.bitwise_right_shift(words_CB, 47, out=self.spare_CB)
        words_CB.bitwise_xor_(self.spare_CB.bitwise_and_((1 << 17) - 1))

    def _modulo(self, words_CB: Tensor) -> None:
        """Unsigned modulo: the signed remainder, and 2^64 mod divisor more for negative words."""
        torch.bitwise_right_shift(words_CB, 63, out=self.spare_CB)
        words_CB.remainder_(DIVISOR).add_(self.spare_CB.bitwise_and_(2**64 % DIVISOR))
        torch.ge(words_CB, DIVISOR, out=self.over_CB)
        words_CB.sub_(torch.mul(self.over_CB, DIVISOR, out=self.spare_CB))


def seconds_of(call: Callable[[], object]) -> float:
    """The median of some calls, in time of this thread: a busy machine interrupts the longer call more often."""
    times = []
    for _ in range(CALLS):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return statistics.median(times)


def run() -> list[Result]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [measure()]
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def measure() -> Result:
    ids_CB, numbers, boundaries, crossed = make_columns()
    engine = FeatureEngine(make_schema(boundaries))
    offsets = torch.arange(ROWS + 1)
    entries: dict[str, Tensor | Ragged] = {f"c{c + 1}": Ragged(ids, offsets) for c, ids in enumerate(ids_CB)}
    entries |= {f"i{k + 1}": values for k, values in enumerate(numbers)}
    entries |= {name: Ragged(ids, offsets) for name, ids in zip(("left", "right"), crossed, strict=True)}
    batch = Batch.pack(entries, ROWS)

    rival = TorchForm(ids_CB, numbers, boundaries, crossed)
    expected = rival()
    found = [value.values for value in engine(batch).values()]
    assert len(found) == len(expected) == HASHED + BUCKETIZED + 1
    assert all(map(torch.equal, found, expected)), "the two forms differ"

    def ours() -> object:
        return engine(batch.with_buffer(batch.buffer))  # a batch keeps views of its columns; this one has none yet

    # One after the other in each run, so that a change of the machine's speed meets both.
    times = [(seconds_of(ours), seconds_of(rival)) for _ in range(RUNS)]
    ratios = [theirs / own for own, theirs in times]
    return Result(
        name="features: 26 hash + modulo, 13 bucketize, 1 cross",
        rival="torch on stacked columns",
        ratio=statistics.median(ratios),
        worst_ratio=min(ratios),
        ours=statistics.median(own for own, _ in times) * 1e3,
        theirs=statistics.median(theirs for _, theirs in times) * 1e3,
        unit="ms",
        shapes=f"B {ROWS}, {HASHED} + {BUCKETIZED} x {BOUNDARIES} boundaries + 1",
        threads=1,
    )
