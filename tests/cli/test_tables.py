import json
from pathlib import Path

import pytest
import torch

from recis_lightning import cli
from recis_lightning.cli.tables import COLUMNS, inspect_checkpoint
from recis_lightning.training import RecModule
from tests.training.helpers import MemoryLoader, make_module, make_trainer
from tests.training.test_policies import schema_with


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[RecModule, str]:
    root = tmp_path_factory.mktemp("run")
    module = make_module(schema_with(admission={"kind": "counter", "threshold": 3}, eviction="lru", capacity=12))
    trainer = make_trainer(root)
    trainer.fit(module, MemoryLoader(), MemoryLoader(1))
    trainer.save_checkpoint(root / "x.ckpt")
    return module, str(root / "x.ckpt")


def test_inspect_shows_what_stats_of_the_table_say(
    trained: tuple[RecModule, str], capsys: pytest.CaptureFixture[str]
) -> None:
    module, path = trained
    assert cli.main(["tables", "inspect", path]) == 0
    header, *lines = (line.split() for line in capsys.readouterr().out.splitlines() if line.strip(" ─━╸"))
    assert tuple(header[: len(COLUMNS)]) == COLUMNS
    assert [line[0] for line in lines[:2]] == list(module.tables)
    for line, table in zip(lines, module.tables.values(), strict=False):
        shown, stats = dict(zip(COLUMNS, line, strict=False)), table.stats(scan=True)
        for event in ("ids", "inserted", "admitted", "refused", "evicted", "waiting"):
            assert int(shown[event]) == stats[event]
        assert stats["evicted"] > 0
        assert float(shown["probes"].split("/")[0]) >= 1
        norms = [f"{stats[f'norm_{norm}']:.3g}" for norm in ("min", "p5", "p50", "mean", "p95", "max")]
        assert line[len(COLUMNS) :] == norms


def test_inspect_as_json_equals_stats_but_for_what_memory_a_fresh_copy_takes(
    trained: tuple[RecModule, str], capsys: pytest.CaptureFixture[str]
) -> None:
    module, path = trained
    assert cli.main(["tables", "inspect", path, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert list(shown) == list(module.tables)
    for name, table in module.tables.items():
        stats = table.stats(scan=True)
        assert shown[name].keys() == stats.keys() | {"dim"}
        for key in ("ids", "inserted", "admitted", "refused", "evicted", "waiting", "norm_mean", "norm_p5", "norm_max"):
            assert shown[name][key] == stats[key]
        assert stats["bytes"] == stats["row_bytes"] + stats["index_bytes"] + stats["admission_bytes"]


def test_inspect_of_one_table_leaves_the_others_out_and_helps_with_names(
    trained: tuple[RecModule, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(dict(inspect_checkpoint(trained[1], ["item"]))) == ["item"]
    assert cli.main(["tables", "inspect", trained[1], "--table", "itm"]) == 2
    assert "holds no table 'itm'; did you mean 'item'" in capsys.readouterr().err


def test_inspect_of_no_checkpoint_ends_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tables", "inspect", str(tmp_path / "none.ckpt")]) == 2
    assert capsys.readouterr().err.startswith("recis: ")


def test_export_and_import_tell_what_they_wrote(
    trained: tuple[RecModule, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, path = trained
    count = len(module.tables["item"])
    file, folder, new = (str(tmp_path / name) for name in ("item.parquet", "parts", "new.ckpt"))
    assert cli.main(["tables", "export", path, "--table", "item", "--out", file]) == 0
    assert capsys.readouterr().out == f"{file}: {count} rows of table 'item'\n"
    options = ["--format", "orc", "--ids", ":10", "--shards", "0:4096", "--weights-only"]
    assert cli.main(["tables", "export", path, "--table", "item", "--out", folder, *options]) == 0
    assert [path.name for path in Path(folder).iterdir()] == ["part-00000.orc"]
    capsys.readouterr()
    assert cli.main(["tables", "import", path, "--table", "item", "--from", file, "--out", new]) == 0
    told = capsys.readouterr().out
    assert told == f"{new}: table 'item' took {count} rows; it held {count} ids, and now {count}\n"
    loaded = RecModule.load_from_checkpoint(new).tables["item"]
    assert torch.equal(loaded.export().weight, module.tables["item"].export().weight)


@pytest.mark.parametrize("wrong", ["10", "a:b", "5:2", "1:2:3"])
def test_a_range_that_is_none_is_told(
    trained: tuple[RecModule, str], capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    assert cli.main(["tables", "export", trained[1], "--table", "item", "--out", "x.orc", "--ids", wrong]) == 2
    assert f"'{wrong}' is no range; write LOW:HIGH" in capsys.readouterr().err


def test_mistakes_of_files_end_in_a_line(
    trained: tuple[RecModule, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["tables", "import", trained[1], "--table", "item", "--from", str(tmp_path / "no.orc")]
    assert cli.main([*line, "--out", str(tmp_path / "y.ckpt")]) == 2
    assert capsys.readouterr().err == f"recis: there is no file or folder '{tmp_path / 'no.orc'}'\n"
