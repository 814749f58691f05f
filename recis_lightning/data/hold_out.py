"""Split files by the values of a column, so that some items are never seen in training.

hold_out("log/train", "item_id", "split/train", share=0.1)   # split/train/seen, split/train/held_out
hold_out("log/valid", "item_id", "split/valid", share=0.1)   # the same items are held out
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from recis_lightning.data.errors import DataError
from recis_lightning.data.files.formats import read_stripe
from recis_lightning.data.files.manifest import Manifest, Paths, read_manifest
from recis_lightning.data.files.orc_writer import PartWriter
from recis_lightning.schema import did_you_mean

SEEN, HELD_OUT = "seen", "held_out"


@dataclass(frozen=True)
class Split:
    """How many rows went where."""

    seen: int
    held_out: int


def hold_out(
    paths: Paths, column: str, out: str | Path, *, share: float = 0.1, seed: int = 0, part_rows: int = 200_000
) -> Split:
    """Write rows whose value is held out to ``out/held_out``, all others to ``out/seen``, in the order of the files.

    Whether a value is held out depends on (value, seed, share) alone, so that several data sets split alike; a row
    without a value is seen. About ``share`` of the values are held out, and with a larger share the same and others.
    DataError where the column is missing or holds neither integers nor strings.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}, need 0 to 1")
    manifest, problems = read_manifest(paths)
    problems += _find_problems(manifest, column)
    if problems:
        raise DataError(problems)
    counts = {SEEN: 0, HELD_OUT: 0}
    with ExitStack() as stack:
        writers = {name: stack.enter_context(PartWriter(Path(out, name), part_rows)) for name in counts}
        for file in manifest.files:
            for stripe in range(len(file.stripe_rows)):
                rows = pa.Table.from_batches([read_stripe(file.path, file.format, stripe)])
                held_out_B = is_held_out(rows[column].combine_chunks(), share, seed)
                for name, chosen_B in ((SEEN, ~held_out_B), (HELD_OUT, held_out_B)):
                    writers[name].write(rows.filter(pa.array(chosen_B)))
                    counts[name] += int(chosen_B.sum())
    return Split(**counts)


def _find_problems(manifest: Manifest, column: str) -> Iterator[str]:
    for file in manifest.files:
        found = file.columns.get(column)
        if found is None:
            yield f"{file.path} has no column '{column}'{did_you_mean(column, file.columns)}"
        elif not (pa.types.is_integer(found) or pa.types.is_string(found)):
            yield f"column '{column}' is {found} in {file.path}, need integers or strings"


def is_held_out(values: pa.Array, share: float, seed: int) -> NDArray[np.bool_]:
    """Which values are held out, bool [B]: those whose hash lies in the first ``share`` of all hashes."""
    encoded = values.dictionary_encode()
    below = [_hash(value, seed) < share * 2.0**64 for value in encoded.dictionary.to_pylist()]
    # One more for null, which is never held out.
    places = encoded.indices.fill_null(len(below)).to_numpy(zero_copy_only=False)
    return np.array([*below, False])[places]


def _hash(value: int | str, seed: int) -> int:
    data = value.encode() if isinstance(value, str) else value.to_bytes(8, "little", signed=True)
    return xxhash.xxh3_64_intdigest(data, seed)
