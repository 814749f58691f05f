"""Files of rows by themselves: dtypes, the order of columns, pieces."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recis_lightning.tables import row_files
from recis_lightning.tables.row_files import FORMATS, RowWriter, open_row_files

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.int32]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_of_every_dtype_come_back(tmp_path: Path, format: str, dtype: torch.dtype) -> None:
    weight = (torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 20).to(dtype)
    columns = {"ids": torch.arange(50) * 2**57, "weight": weight}
    with RowWriter(tmp_path / f"x.{format}", step=3) as writer:
        writer.write({name: column[:20] for name, column in columns.items()})
        writer.write({name: column[20:] for name, column in reversed(columns.items())})
    (file,) = open_row_files(tmp_path / f"x.{format}")
    assert file.step == 3
    pieces = list(file.read(["ids", "weight"]))
    assert torch.equal(torch.cat([piece["ids"] for piece in pieces]), columns["ids"])
    assert torch.equal(torch.cat([piece["weight"] for piece in pieces]).to(dtype), weight)


@pytest.mark.parametrize("format", ["safetensors", "parquet"])
def test_pieces_are_bounded_whatever_the_size_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    monkeypatch.setattr(row_files, "PIECE_BYTES", 1 << 12)
    with RowWriter(tmp_path / f"x.{format}") as writer:
        for begin in range(0, 1000, 100):
            writer.write({"ids": torch.arange(begin, begin + 100), "weight": torch.ones(100, 4)})
    (file,) = open_row_files(tmp_path / f"x.{format}")
    sizes = [len(piece["ids"]) for piece in file.read(["ids", "weight"])]
    assert sum(sizes) == 1000
    if format == "safetensors":
        assert max(sizes) <= (1 << 12) // (8 + 4 * 8)


def test_unsigned_ids_keep_all_their_bits(tmp_path: Path) -> None:

    ids = np.array([0, 2**63, 2**64 - 1], dtype=np.uint64)
    pq.write_table(pa.table({"id": ids}), tmp_path / "x.parquet")
    (file,) = open_row_files(tmp_path / "x.parquet")
    (piece,) = file.read(["id"])
    assert piece["id"].tolist() == [0, -(2**63), -1]
