"""Twenty kills -9 of a fit on two ranks, five of them in a save, beside a fit that nobody disturbed.

    python -m tests.chaos --seed 7         # make chaos SEED=7

One start in four is a user's, `recis fit`, which imports everything in one process, then in the other; the rest are
forked from a process that has, in a tenth of the time. Ends with status 0 where both fits have the same losses, batch
by batch and rank by rank, and the same sha256 of every table, ids, rows and optimizer state. What is killed when is
drawn from the seed; the clock does the rest.
"""

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.fits import Fit, fork, launch, make_data, write_recipe
from tests.chaos.kills import Kill, compare, kill_often, let_end, summary


def main() -> int:
    parser = argparse.ArgumentParser("make chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--saves", type=int, default=5, help="how many of the kills must cut off a save")
    parser.add_argument("--steps", type=int, default=160)
    args = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_data(folder / "data", args.steps)
        calm, wild = (write_recipe(folder / name, folder / "data") for name in ("calm", "wild"))
        let_end(Fit(calm, launch))
        print(f"{time.monotonic() - started:5.0f} s  a fit of {args.steps} steps that nobody disturbed", flush=True)

        def tell(kill: Kill) -> None:
            print(f"{time.monotonic() - started:5.0f} s  {kill}", flush=True)

        aims = {"kills": args.kills, "saves": args.saves, "seed": args.seed}
        ways = itertools.cycle((launch, fork, fork, fork))
        kills = kill_often(lambda: Fit(wild, next(ways)), args.steps, **aims, on_kill=tell)
        print(f"\n{summary(kills)}; {time.monotonic() - started:.0f} s")
        differences = compare(calm.parent, wild.parent)
    print(
        "\n".join(differences) or "every loss of every rank, and sha256 of every table and of the dense weights: equal"
    )
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
