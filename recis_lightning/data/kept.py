"""Columns that predictions carry along: read as they are in the files, row for row beside the batches."""

from collections.abc import Sequence

import pyarrow as pa

from recis_lightning.data.files.formats import read_stripe
from recis_lightning.data.files.manifest import Manifest
from recis_lightning.data.plan import EpochPlan, Order
from recis_lightning.schema import did_you_mean


class KeptRows:
    """The rows of batches that come in the order of the files, with the columns named: strings as strings.

    Batches carry what a model takes, hashed and as floats; this reads the chosen columns again, stripe by stripe. Steps
    are asked for in their order.
    """

    def __init__(self, manifest: Manifest, columns: Sequence[str], order: Order, streams: Sequence[int]) -> None:
        self.manifest, self.columns = manifest, list(columns)
        self._plan, self._streams = EpochPlan(manifest.stripe_rows, order, epoch=0), streams
        self._pieces = {stream: self._plan.windows(stream) for stream in streams}
        self._rest = {stream: self._empty() for stream in streams}
        self._step = 0

    def take(self, step: int) -> pa.Table:
        """The rows of a batch. ValueError for a step that has been passed."""
        if step < self._step:
            raise ValueError(f"step {step} is asked for after step {self._step - 1}; steps are read once, in order")
        while True:
            rows = pa.concat_tables([self._take(stream, self._step) for stream in self._streams])
            self._step += 1
            if self._step > step:
                return rows

    def _take(self, stream: int, step: int) -> pa.Table:
        first, last = self._plan.span(step, stream)
        while len(self._rest[stream]) < last - first:
            tables = [self._rest[stream]]
            for piece in next(self._pieces[stream]).pieces:
                file, stripe = self.manifest.locate(piece.stripe)
                rows = read_stripe(file.path, file.format, stripe, self.columns)
                tables.append(pa.Table.from_batches([rows]).slice(piece.first, piece.rows).select(self.columns))
            self._rest[stream] = pa.concat_tables(tables)
        taken = self._rest[stream].slice(0, last - first)
        self._rest[stream] = self._rest[stream].slice(last - first)
        return taken

    def _empty(self) -> pa.Table:
        types = self.manifest.files[0].columns
        return pa.schema([(name, types[name]) for name in self.columns]).empty_table()


def find_unknown(manifest: Manifest, columns: Sequence[str]) -> list[str]:
    """A line for each file that lacks one of the columns, or holds it in another type than the first."""
    problems = []
    for name in columns:
        for file in manifest.files:
            if name not in file.columns:
                problems.append(f"{file.path} has no column '{name}' to keep{did_you_mean(name, file.columns)}")
            elif file.columns[name] != manifest.files[0].columns.get(name):
                problems.append(
                    f"{file.path}: column '{name}' to keep is {file.columns[name]}, in {manifest.files[0].path} it is "
                    f"{manifest.files[0].columns.get(name, 'missing')}"
                )
    return problems
