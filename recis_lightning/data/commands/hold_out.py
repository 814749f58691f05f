"""`recis data hold-out`: part rows by the values of a column, the same way in every data set.

recis data hold-out log/train --column item_id --out split/train      split/train/seen, split/train/held_out
"""

import argparse
from pathlib import Path

from recis_lightning.data.hold_out import HELD_OUT, SEEN, hold_out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("data", metavar="DATA", nargs="+", help="ORC files, folders or globs")
    parser.add_argument("--column", required=True, help="whose values are held out: a column of integers or strings")
    parser.add_argument("--out", type=Path, required=True, help="folder to write seen/ and held_out/ in")
    parser.add_argument("--share", type=float, default=0.1, help="of the values (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which values depends on it (default %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Write what the arguments ask for and print how many rows went where."""
    split = hold_out(args.data, args.column, args.out, share=args.share, seed=args.seed)
    print(f"{args.out / SEEN}: {split.seen:,} rows")
    print(f"{args.out / HELD_OUT}: {split.held_out:,} rows, of values of '{args.column}' that are not in {SEEN}")
    return 0
