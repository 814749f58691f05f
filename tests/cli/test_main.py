import subprocess
import sys
from pathlib import Path

import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException as Misconfiguration

from recis_lightning import __version__, cli
from recis_lightning.errors import UserError
from recis_lightning.tables.rows import TableFullError
from recis_lightning.training.files import CheckpointError


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        assert cli.main(arguments) == 0
        shown = capsys.readouterr().out
        assert all(f"\n  {command} " in shown for command in ("fit", "validate", "test", "predict", "data", "doctor"))


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_a_misspelt_command_ends_with_status_2_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["validat"]) == 2
    assert "there is no command 'validat'; did you mean 'validate'" in capsys.readouterr().err


def test_doctor_shows_versions_devices_and_the_kernels_that_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert f"recis-lightning {__version__}" in shown
    assert "CPU cores for this process" in shown
    assert "index" in shown.partition("kernels")[2]
    assert "Numba" in shown
    assert "tables train on" in shown
    assert "gather_pool" in shown.partition("\n  gpu")[2], "what would run on a GPU is told without one, too"
    monkeypatch.setenv("TRITON_OPS", "reference")
    cli.main(["doctor"])
    assert "TRITON_OPS=reference" in capsys.readouterr().out


def test_mistakes_end_in_lines_and_others_in_a_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: BaseException) -> None:
        def dispatch(command: str, arguments: list[str]) -> int:
            raise error

        monkeypatch.setattr(cli, "dispatch", dispatch)

    fail(CheckpointError("checkpoint 'x' is torn"))
    assert cli.main(["fit"]) == 2
    assert capsys.readouterr().err == "recis: checkpoint 'x' is torn\n"
    monkeypatch.setenv("RECIS_TRACEBACK", "1")
    with pytest.raises(CheckpointError):
        cli.main(["fit"])
    monkeypatch.delenv("RECIS_TRACEBACK")
    for mistake in (UserError("no such thing"), TableFullError("no such thing"), Misconfiguration("no such thing")):
        fail(mistake)
        assert cli.main(["fit"]) == 2
        assert capsys.readouterr().err == "recis: no such thing\n"
    fail(ValueError("in the user's network"))
    with pytest.raises(ValueError, match="in the user's network"):
        cli.main(["fit"])
    fail(KeyboardInterrupt())
    assert cli.main(["fit"]) == 130
    fail(SystemExit(3))
    assert cli.main(["fit"]) == 3


def test_mistakes_in_making_data_end_with_status_2(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text("data: {schema: {columns: [{name: a, dtype: int64}]}}")
    made = ["data", "synth", str(tmp_path / "made"), "--schema", str(tmp_path / "recipe.yaml"), "--rows", "10"]
    assert cli.main(made) == 0
    assert cli.main(made) == 2
    assert "holds ORC files already; remove them" in capfd.readouterr().err
    assert cli.main(["data", "synth", str(tmp_path / "other"), "--schema", "/no.yaml"]) == 2
    assert cli.main(["data"]) == 2


def test_lightning_is_not_imported_for_what_needs_none() -> None:
    program = (
        "import sys; from recis_lightning.cli import main\n"
        "codes = [main(arguments) for arguments in (['--help'], ['nope'], ['doctor'])]\n"
        "sys.exit(0 if codes == [0, 2, 0] and 'lightning' not in sys.modules else 1)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60).returncode == 0
