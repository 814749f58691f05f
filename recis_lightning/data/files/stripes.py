"""Decode stripes: the only place that reads data from files."""

from collections import Counter
from threading import Lock

import pyarrow as pa

from recis_lightning.data.errors import DataError
from recis_lightning.data.files.checksums import Checks, CorruptStripe
from recis_lightning.data.files.formats import read_stripe
from recis_lightning.data.files.manifest import Manifest
from recis_lightning.data.files.storage import OpenFiles

KEPT_BYTES = 256 * 2**20


class StripeReader:
    """Reads stripes of a data set, only the named columns; safe to call from several threads.

    A stripe on the border of two streams is asked for twice, with much else in between. ``uses`` says how often; such a
    stripe is kept until its last use as long as all that are kept stay below ``kept_bytes``, and decoded again beyond.
    """

    def __init__(
        self,
        manifest: Manifest,
        names: list[str],
        uses: Counter[int] | None = None,
        kept_bytes: int = KEPT_BYTES,
        checks: Checks | None = None,
    ) -> None:
        self._checks, self._files = checks, OpenFiles()
        self.manifest, self._names = manifest, names
        self._uses, self._room = Counter(uses or ()), kept_bytes
        self._kept: dict[int, pa.RecordBatch] = {}
        self._lock = Lock()

    def read(self, stripe: int) -> pa.RecordBatch:
        """The rows of a stripe; CorruptStripe where it can't be decoded, or is not what was written."""
        with self._lock:
            batch = self._kept.get(stripe)
        if batch is None:
            batch = self._decode(stripe)
        with self._lock:
            self._count_use(stripe, batch)
        return batch

    def _count_use(self, stripe: int, batch: pa.RecordBatch) -> None:
        self._uses[stripe] -= 1
        if self._uses[stripe] <= 0:
            if self._kept.pop(stripe, None) is not None:
                self._room += batch.nbytes
        elif stripe not in self._kept and batch.nbytes <= self._room:
            self._kept[stripe] = batch
            self._room -= batch.nbytes

    def _decode(self, stripe: int) -> pa.RecordBatch:
        file, index = self.manifest.locate(stripe)
        if self._checks is not None:
            self._checks.check(stripe)
        row_filter = self.manifest.row_filter
        more = [] if row_filter is None else row_filter.file_columns(file.columns)
        try:
            batch = read_stripe(
                file.path, file.format, index, list(dict.fromkeys([*self._names, *more])), self._files.open
            )
        except (OSError, pa.ArrowException) as error:
            where = self.manifest.describe_rows(stripe, 0, file.stripe_rows[index])
            raise CorruptStripe(f"{where}: can't be decoded ({error}); copy or write the file again") from error
        if batch.num_rows != file.stripe_rows[index]:
            raise DataError(
                f"{file.path}, stripe {index}: has {batch.num_rows} rows, had {file.stripe_rows[index]} when the run "
                "began; leave files alone while they are read"
            )
        return batch if row_filter is None else batch.filter(row_filter.mask(batch)).select(self._names)
