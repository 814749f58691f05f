"""Write a table, batch by batch, as ORC part files: zstd, stripes small enough to shuffle, shard and resume by."""

from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.orc

# Small stripes read as fast as large ones, and a loader holds whole ones, some for each stream that it shuffles.
STRIPE_BYTES = 1 << 20  # of encoded columns: 16 k rows of the synthetic log


class PartWriter:
    """Append record batches to ``folder/part-00000.orc``, ``part-00001.orc``, ...: parts of 4 rows, 10 rows -> 4, 4, 2.

    A context manager; ``folder`` is made, and FileExistsError raised where it holds ORC files already, since files of
    two data sets in one folder would be read as one. An error on the way removes what was
    written: a folder is whole, or holds nothing.
    """

    def __init__(self, folder: str | Path, part_rows: int, stripe_bytes: int = STRIPE_BYTES) -> None:
        if part_rows < 1:
            raise ValueError(f"part_rows is {part_rows}; write at least one row a part")
        self.folder = Path(folder)
        self.part_rows, self.stripe_bytes = part_rows, stripe_bytes
        self.paths: list[Path] = []
        self._writer: pyarrow.orc.ORCWriter | None = None
        self._room = 0

    def __enter__(self) -> "PartWriter":
        self.folder.mkdir(parents=True, exist_ok=True)
        if any(self.folder.glob("*.orc")):
            raise FileExistsError(f"{self.folder} holds ORC files already; remove them, or write to another folder")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_part()
        if error is not None:
            for path in self.paths:
                path.unlink()

    def write(self, rows: pa.Table) -> None:
        """Append rows, over as many parts as they fill."""
        start = 0
        while start < len(rows):
            if self._room == 0:
                self._open_part()
            count = min(self._room, len(rows) - start)
            assert self._writer is not None
            self._writer.write(_slice(rows, start, count))
            self._room -= count
            start += count

    def _open_part(self) -> None:
        self._close_part()
        path = self.folder / f"part-{len(self.paths):05d}.orc"
        self._writer = pyarrow.orc.ORCWriter(str(path), compression="zstd", stripe_size=self.stripe_bytes)
        self.paths.append(path)
        self._room = self.part_rows

    def _close_part(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _slice(rows: pa.Table, start: int, count: int) -> pa.Table:
    if start == 0 or not any(pa.types.is_struct(field.type) for field in rows.schema):
        return rows.slice(start, count)
    # pyarrow writes a slice of structs with the nulls of other rows.
    return rows.take(pa.array(range(start, start + count)))
