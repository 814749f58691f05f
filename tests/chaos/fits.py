"""A fit of `recis` on two ranks that can be killed, and what is left of it: losses, checkpoints, tables.

The fit is a recipe with tables, dropout and Adam, that saves every few steps and says `--ckpt_path last`, as one does
whose scheduler starts it again. Each rank appends its losses to a file of its own, a line of fixed width a batch.
"""

import hashlib
import os
import signal
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from lightning.pytorch import Callback, Trainer

from recis_lightning.cli import main
from recis_lightning.data.synthetic.schema import synthesize
from recis_lightning.schema import Schema
from recis_lightning.training.checkpoint import read_rows
from recis_lightning.training.files import DirectoryReader
from tests.ranks import ROOT, forked, launched_environment, shell_environment

RANKS, BATCH, EPOCHS, EVERY = 2, 32, 2, 5  # a checkpoint every 5 steps
PATIENCE = 60.0  # seconds in which ranks whose peer was killed have to end
LINE = len("00000000 0000000000000000\n")

SCHEMA: dict[str, Any] = {
    "columns": [
        {"name": "click", "dtype": "float32"},
        {"name": "{user,item}", "dtype": "int64"},
        {"name": "tags", "dtype": "int64", "layout": "list"},
    ],
    "tables": [
        {"name": "{user,tags}", "dim": 8, "optimizer": {"kind": "adagrad", "lr": 0.05}},
        {"name": "item", "dim": 8, "optimizer": {"kind": "adam", "lr": 0.01}},
    ],
    "features": [{"name": "{user,item,tags}", "table": "{user,item,tags}"}],
    "tasks": [{"name": "ctr", "label": "click"}],
}


class LossLog(Callback):
    """Writes down which process a rank is, and the loss of each batch, to the bit, once it is trained on."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self._file = -1

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        rank = trainer.global_rank
        (self.folder / f"process-{rank}").write_text(str(os.getpid()))
        self._file = os.open(self.folder / f"losses-{rank}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = struct.pack("<d", outputs["loss"].item()).hex()
        os.write(self._file, f"{trainer.fit_loop.total_batch_idx:08d} {loss}\n".encode())


class KillOnce(Callback):
    """kill -9 of rank 1 at a batch, the first time that torchrun has started it."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        is_due = trainer.global_rank == 1 and trainer.fit_loop.total_batch_idx == self.batch
        if is_due and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)


def make_data(folder: Path, steps: int) -> None:
    """Rows for ``steps`` batches over all epochs."""
    synthesize(Schema.from_dict(SCHEMA), folder, steps // EPOCHS * BATCH)


def write_recipe(folder: Path, data: Path, *callbacks: dict[str, Any]) -> Path:
    """A recipe whose checkpoints and losses go to ``folder``, with more callbacks if wanted."""
    keep = {
        "dirpath": str(folder / "checkpoints"),
        "every_n_train_steps": EVERY,
        "monitor": "step",
        "mode": "max",
        "save_top_k": 2,
        "save_last": True,
        "filename": "{step}",
    }
    settings = {
        "seed_everything": 0,
        "model": {"network": {"class_path": "DeepFM", "init_args": {"hidden": [16], "dropout": 0.2}}},
        "data": {"schema": SCHEMA, "train": str(data), "batch_size": BATCH},
        "trainer": {
            "devices": RANKS,
            "max_epochs": EPOCHS,
            "default_root_dir": str(folder),
            "log_every_n_steps": 10,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [
                {"class_path": "tests.chaos.fits.LossLog", "init_args": {"folder": str(folder)}},
                {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": keep},
                *callbacks,
            ],
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings))
    return recipe


Started = list["subprocess.Popen[bytes] | BaseProcess"]


def launch(recipe: Path, errors: Path) -> Started:
    """`recis fit --trainer.devices 2`: a process that starts the other one."""
    return _start(["-m", "recis_lightning", *_arguments(recipe)], errors)


def launch_again(recipe: Path, errors: Path) -> Started:
    """`torchrun --max-restarts 1`: it starts both ranks once more when one has failed."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS), "--max-restarts", "1"]
    return _start(["-m", *launcher, "-m", "recis_lightning", *_arguments(recipe)], errors)


def _start(arguments: list[str], errors: Path) -> Started:
    command = [sys.executable, "-W", "ignore", *arguments]
    environment = shell_environment() | {"OMP_NUM_THREADS": "1"}
    with errors.open("wb") as file:
        return [subprocess.Popen(command, stderr=file, cwd=ROOT, env=environment, start_new_session=True)]


def fork(recipe: Path, errors: Path) -> Started:
    """Both ranks as torchrun starts them, but from a process that has imported everything: in a tenth of the time."""
    environment = shell_environment() | launched_environment(RANKS)
    started = [
        forked.Process(target=_run_rank, args=(rank, environment, recipe, errors), daemon=True) for rank in range(RANKS)
    ]
    errors.write_bytes(b"")
    for process in started:
        process.start()
    return [*started]


def _run_rank(rank: int, environment: dict[str, str], recipe: Path, errors: Path) -> None:
    os.setsid()
    os.dup2(os.open(errors, os.O_WRONLY | os.O_APPEND), 2)
    os.environ.clear()
    os.environ |= environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sys.exit(main(_arguments(recipe)))


def _arguments(recipe: Path) -> list[str]:
    return ["fit", "--config", str(recipe), "--ckpt_path", "last"]


SECONDS_TO_START: dict[Callable[[Path, Path], Started], float] = {launch: 6.0, launch_again: 6.0, fork: 1.0}
"""How long each way takes until the first batch, about."""


class Fit:
    """A running fit, and all of its processes."""

    def __init__(self, recipe: Path, start: Callable[[Path, Path], Started]) -> None:
        self.folder = recipe.parent
        self.start = start
        self._logged = self._log_bytes()
        for old in self.folder.glob("process-*"):
            old.unlink()
        self._errors = self.folder / "stderr.txt"
        self._started = start(recipe, self._errors)

    def _log_bytes(self) -> int:
        log = self.folder / "losses-0"
        return log.stat().st_size if log.exists() else 0

    @property
    def has_trained(self) -> bool:
        """Whether it has done a batch: what those before it had done may be more than it begins with."""
        return self._log_bytes() > self._logged

    def kill(self, rank: int | None) -> None:
        """kill -9 of one rank, or of all at once."""
        if rank is None:
            self._kill_all()
        else:
            os.kill(int((self.folder / f"process-{rank}").read_text()), signal.SIGKILL)

    def _kill_all(self) -> None:
        for process in self._started:
            assert process.pid is not None
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:  # it was forked, and has yet to make a group of its own
                os.kill(process.pid, signal.SIGKILL)

    def wait(self, seconds: float) -> list[int | None]:
        """Wait until no process is left; the status of those that were started here.

        AssertionError where one outlives its time.
        """
        deadline = time.monotonic() + seconds
        ranks = [int(file.read_text()) for file in self.folder.glob("process-*")]
        while None in self.statuses or any(map(is_running, ranks)):
            if time.monotonic() > deadline:
                self._kill_all()
                raise AssertionError(f"processes went on for {seconds} s after another had ended:\n{self.errors()}")
            time.sleep(0.01)
        return self.statuses

    @property
    def statuses(self) -> list[int | None]:
        """Of the processes that were started here; None of one that is running."""
        return [each.poll() if isinstance(each, subprocess.Popen) else each.exitcode for each in self._started]

    def errors(self) -> str:
        """What it has written to stderr."""
        return self._errors.read_text()


def is_running(process: int) -> bool:
    """Whether a process is there and has not ended; one that has ended may wait for its parent to notice."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def batches_done(folder: Path) -> int:
    """How many batches rank 0 has trained on, in this process or one before it."""
    try:
        with (folder / "losses-0").open("rb") as file:
            file.seek(-LINE, os.SEEK_END)
            return int(file.read(8)) + 1
    except OSError:
        return 0


def losses_of(folder: Path, rank: int) -> dict[int, str]:
    """The loss of each batch; AssertionError where a batch that was trained on again gave another one."""
    found: dict[int, str] = {}
    for line in (folder / f"losses-{rank}").read_text().splitlines():
        batch, loss = line.split()
        assert found.setdefault(int(batch), loss) == loss, f"batch {int(batch)} gave another loss the second time"
    return found


def digests_of(checkpoint: Path) -> dict[str, str]:
    """sha256 of each table, its rows in the order of their ids with their optimizer state, and of the dense weights."""
    reader = DirectoryReader(str(checkpoint))
    found = {}
    for name in reader.manifest["tables"]:
        parts = list(read_rows(reader, name))
        columns = [{"weight": p.weight, "last_step": p.last_step, "count": p.count, **p.slots} for p in parts]
        ids = torch.cat([part.ids for part in parts])
        order = ids.argsort()
        digest = hashlib.sha256(ids[order].numpy().tobytes())
        for key in sorted(columns[0]):
            digest.update(torch.cat([column[key] for column in columns])[order].numpy().tobytes())
        found[name] = digest.hexdigest()
    dense = safetensors.torch.load(reader.read("dense.safetensors"))
    digest = hashlib.sha256()
    for name in sorted(dense):
        digest.update(dense[name].numpy().tobytes())
    return found | {"dense": digest.hexdigest()}
