from pathlib import Path

import pytest

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
    header, *lines = (line.split() for line in capsys.readouterr().out.splitlines())
    assert tuple(header) == COLUMNS
    assert [line[0] for line in lines] == list(module.tables)
    for line, table in zip(lines, module.tables.values(), strict=True):
        shown, stats = dict(zip(header, line, strict=True)), table.stats(scan=True)
        for event in ("ids", "inserted", "admitted", "refused", "evicted", "waiting"):
            assert int(shown[event]) == stats[event]
        assert stats["evicted"] > 0
        assert shown["norms"].split("/")[1] == f"{stats['norm_mean']:.3g}"
        assert float(shown["probes"].split("/")[0]) >= 1


def test_inspect_of_one_table_leaves_the_others_out_and_helps_with_names(
    trained: tuple[RecModule, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert [line.split()[0] for line in inspect_checkpoint(trained[1], ["item"]).splitlines()] == ["table", "item"]
    assert cli.main(["tables", "inspect", trained[1], "--table", "itm"]) == 2
    assert "holds no table 'itm'; did you mean 'item'" in capsys.readouterr().err


def test_inspect_of_no_checkpoint_ends_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tables", "inspect", str(tmp_path / "none.ckpt")]) == 2
    assert capsys.readouterr().err.startswith("recis: ")
