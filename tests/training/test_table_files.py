"""Tables of checkpoints out to files and in from files."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recis_lightning.tables import TableSlice
from recis_lightning.tables.row_files import TableFileError
from recis_lightning.training import RecModule, strategy
from recis_lightning.training.checkpoint import save_checkpoint
from recis_lightning.training.files import CheckpointError, DirectoryReader
from recis_lightning.training.table_files import export_saved_table, import_into_checkpoint
from tests.tables.test_table import assert_equal_slices
from tests.training.helpers import MemoryLoader, make_module, make_schema, make_trainer

README = Path(__file__).parents[2] / "README.md"


def saved(root: Path, module: RecModule | None = None) -> tuple[RecModule, str]:
    module = module or make_module(make_schema(kind="adam"))
    trainer = make_trainer(root)
    trainer.fit(module, MemoryLoader(), MemoryLoader(1))
    trainer.save_checkpoint(root / "x.ckpt")
    return module, str(root / "x.ckpt")


def rows_of(path: str, table: str) -> TableSlice:
    return RecModule.load_from_checkpoint(path).tables[table].export()


@pytest.mark.parametrize("format", ["safetensors", "parquet", "orc"])
def test_a_table_that_goes_out_and_into_an_emptied_one_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    monkeypatch.setattr(strategy, "save_checkpoint", partial(save_checkpoint, part_bytes=500))  # several parts
    module, path = saved(tmp_path)
    table, file = module.tables["item"], tmp_path / f"item.{format}"
    assert len(DirectoryReader(path).manifest["tables"]["item"]["parts"]) > 1
    written = export_saved_table(path, "item", file)
    assert written.rows == len(table)
    imported = import_into_checkpoint(path, "item", file, str(tmp_path / "y.ckpt"), replace=True)
    assert (imported.rows, imported.before, imported.after) == (len(table),) * 3
    assert_equal_slices(rows_of(str(tmp_path / "y.ckpt"), "item"), table.export())
    assert_equal_slices(rows_of(str(tmp_path / "y.ckpt"), "user"), module.tables["user"].export())
    old, new = (DirectoryReader(str(tmp_path / name)).manifest for name in ("x.ckpt", "y.ckpt"))
    assert old["tables"]["item"] | {"parts": 0} == new["tables"]["item"] | {"parts": 0}
    trainer = make_trainer(tmp_path, max_epochs=2)
    trainer.fit(make_module(make_schema(kind="adam")), MemoryLoader(), ckpt_path=tmp_path / "y.ckpt")
    assert trainer.global_step == 2 * len(MemoryLoader())


def test_export_by_ids_and_shards_equals_that_of_the_live_table(tmp_path: Path) -> None:
    module, path = saved(tmp_path)
    table = module.tables["item"]
    export_saved_table(path, "item", tmp_path / "few.parquet", ids=(3, 9), optimizer=False)
    few = pq.read_table(tmp_path / "few.parquet")
    assert sorted(few["ids"].to_pylist()) == [id_ for id_ in range(3, 9) if table.find(torch.tensor([id_])) >= 0]
    export_saved_table(path, "item", tmp_path / "half.parquet", shards=(0, 2048))
    assert pq.read_table(tmp_path / "half.parquet")["ids"].to_pylist() == table.export(0, 2048).ids.tolist()


def test_vectors_from_elsewhere_go_into_a_checkpoint(tmp_path: Path) -> None:
    module, path = saved(tmp_path)
    vectors = pa.table({"id": [0, 10**12], "vector": [[1.0, 2.0, 3.0, 4.0]] * 2})
    pq.write_table(vectors, tmp_path / "v.parquet")
    options = {"ids": "id", "vector": "vector"}
    imported = import_into_checkpoint(path, "item", tmp_path / "v.parquet", str(tmp_path / "y.ckpt"), **options)
    found = RecModule.load_from_checkpoint(str(tmp_path / "y.ckpt")).tables["item"]
    assert imported.after == len(found) > len(module.tables["item"])
    assert found.weight(found.find(torch.tensor([0, 10**12]))).tolist() == [[1.0, 2.0, 3.0, 4.0]] * 2
    assert not found.slice(found.find(torch.tensor([0]))).slots["exp_avg"].any(), "another vector has no moments yet"


def test_what_cannot_be_done_is_told(tmp_path: Path) -> None:
    _, path = saved(tmp_path)
    with pytest.raises(CheckpointError, match="holds no table 'itm'; did you mean 'item'"):
        export_saved_table(path, "itm", tmp_path / "x.orc")
    export_saved_table(path, "item", tmp_path / "item.orc")
    with pytest.raises(CheckpointError, match="is what is read; write to another place"):
        import_into_checkpoint(path, "item", tmp_path / "item.orc", path)
    with pytest.raises(TableFileError, match="there is no file or folder"):
        import_into_checkpoint(path, "item", tmp_path / "none.orc", str(tmp_path / "y.ckpt"))
    assert not (tmp_path / "y.ckpt").exists()


def test_the_ten_lines_of_the_readme_read_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, path = saved(tmp_path)
    table = module.tables["item"]
    monkeypatch.chdir(tmp_path)
    export_saved_table(path, "item", "item.safetensors")
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (lines,) = [block for block in blocks if 'load_file("item.safetensors")' in block]
    assert len([line for line in lines.splitlines() if line]) <= 10
    found: dict = {}
    exec(lines, found)
    wanted = np.arange(-2, 12)
    rows = table.find(torch.from_numpy(wanted))
    expected = torch.where((rows >= 0)[:, None], table.weight(rows.clamp(min=0)), 0.0)
    assert (rows >= 0).any()
    assert (rows < 0).any()
    np.testing.assert_array_equal(found["embed"](wanted), expected.numpy())
