"""Checkpoints of RecIS: files laid out as its csrc/serialize writes them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from recis_lightning.schema import Adagrad, AdamW, SparseOptimizer
from recis_lightning.tables import import_table, row_files
from recis_lightning.tables.row_files import TableFileError
from tests.tables.test_table import make_table

IDS = torch.cat([torch.arange(-20, 20), torch.tensor([2**52 - 1, -(2**63), 2**63 - 1])])


def column(seed: int, width: int = 3) -> torch.Tensor:
    return torch.randn(len(IDS), width, generator=torch.Generator().manual_seed(seed))


def write_checkpoint(
    folder: Path,
    slots: dict[str, torch.Tensor],
    table: str = "user",
    parts: int = 2,
    files: int = 2,
    step: int | None = 7,
) -> None:
    """Parts by id % 65536 in equal ranges; tensors go around the files one by one, as RecIS hands out its blocks."""
    folder.mkdir()
    tensors: list[dict[str, torch.Tensor]] = [{} for _ in range(files)]
    key_names, turn = {}, 0
    owner = (IDS & 65535) * parts // 65536
    for part in range(parts):
        for slot, values in {"id": IDS, **slots}.items():
            key = f"{table}.{slot}/part_{part}_{parts}"
            begin, end = part * 65536 // parts, (part + 1) * 65536 // parts
            key_names[key] = f"{table}@{slot}^{begin}@{end}@65536"
            tensors[turn % files][key] = values[owner == part].contiguous()
            turn += 1
    if step is not None:
        tensors[0]["sparse_adamw_tf_step^ "] = torch.tensor([step])
    tensors[0]["dense.weight^ "] = torch.ones(2, 2)
    for number, content in enumerate(tensors):
        save_file(content, folder / f"model-{number:06d}-of-{files:06d}.safetensors")
    (folder / "tensorkey.json").write_text(json.dumps(key_names))
    (folder / "index").write_text(json.dumps({"file_index": {}, "block_index": {}}))


ADAM = {
    "embedding": column(1),
    "sparse_adamw_tf_exp_avg": column(2),
    "sparse_adamw_tf_exp_avg_sq": column(3).abs(),
    "step_filter": torch.arange(len(IDS))[:, None],
}


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_rows_state_last_steps_and_the_step_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    monkeypatch.setattr(row_files, "PIECE_BYTES", 500)
    write_checkpoint(tmp_path / "ckpt", ADAM, parts=parts, files=3)
    table = make_table(AdamW())
    assert import_table(table, tmp_path / "ckpt") == len(IDS)
    assert table.step == 7
    found = table.slice(table.find(IDS))
    assert torch.equal(found.ids, IDS)
    assert torch.equal(found.weight, ADAM["embedding"])
    assert torch.equal(found.slots["exp_avg"], ADAM["sparse_adamw_tf_exp_avg"])
    assert torch.equal(found.slots["exp_avg_sq"], ADAM["sparse_adamw_tf_exp_avg_sq"])
    assert torch.equal(found.last_step, torch.arange(len(IDS)))


@pytest.mark.parametrize(
    ("optimizer", "slots"),
    [(Adagrad(), {"sparse_adagrad_state_sum": column(4).abs()}), (AdamW(), {}), (Adagrad(), {})],
)
def test_tables_of_other_names_and_optimizers_are_read_too(
    tmp_path: Path, optimizer: SparseOptimizer, slots: dict[str, Any]
) -> None:
    write_checkpoint(tmp_path / "ckpt", {"embedding": column(1)} | slots, table="shared.name", step=0)
    table = make_table(optimizer)
    assert import_table(table, tmp_path / "ckpt", name="shared.name") == len(IDS)
    found = table.slice(table.find(IDS))
    assert torch.equal(found.weight, column(1))
    for values in slots.values():
        assert torch.equal(found.slots["sum"], values)


def test_a_checkpoint_that_does_not_tell_its_step_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_checkpoint(tmp_path / "ckpt", ADAM, step=None)
    table = make_table(AdamW())
    table.step = 3
    import_table(table, tmp_path / "ckpt")
    assert table.step == 3
    assert "does not tell how many steps the optimizer of table 'user' had made; it goes on from step 3" in caplog.text


def test_names_are_read_from_the_tensors_where_tensorkey_json_is_gone(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "ckpt", ADAM)
    (tmp_path / "ckpt" / "tensorkey.json").unlink()
    assert import_table(make_table(AdamW()), tmp_path / "ckpt") == len(IDS)


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "ckpt"
    write_checkpoint(folder, ADAM, parts=2, files=8)
    with pytest.raises(TableFileError, match=r"RecIS checkpoint '.*' has no table 'usr'; did you mean 'user'"):
        import_table(make_table(AdamW()), folder, name="usr")
    with pytest.raises(TableFileError, match="holds the optimizer state exp_avg, exp_avg_sq; .* adagrad, with sum"):
        import_table(make_table(Adagrad()), folder)
    assert import_table(make_table(Adagrad()), folder, optimizer=False) == len(IDS)
    for number in range(5, 8):
        (folder / f"model-{number:06d}-of-000008.safetensors").write_bytes(b"")
    with pytest.raises(TableFileError, match=r"model-000005-of-000008.safetensors' cannot be read"):
        import_table(make_table(AdamW()), folder)
    for path in folder.glob("model-*"):
        path.unlink()
    write_checkpoint(tmp_path / "half", ADAM, parts=2, files=10)
    for number in range(5, 10):
        (tmp_path / "half" / f"model-{number:06d}-of-000010.safetensors").unlink()
    with pytest.raises(TableFileError, match="lacks part 1 of 2 of table 'user'; copy the files of all ranks"):
        import_table(make_table(AdamW()), tmp_path / "half")
