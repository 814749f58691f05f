"""Ranks end with the one that started them, and with one that has failed, where nothing else tells them."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment

from recis_lightning.training import ranks
from recis_lightning.training.ranks import connect, tell_started
from tests.chaos.fits import is_running, make_data, write_recipe
from tests.ranks import ROOT, forked, launched_environment, shell_environment
from tests.training.helpers import MemoryLoader, OnRank, make_module, make_trainer

SECONDS = 20.0  # the timeout of a connection is 30 minutes


def start_another(here: Connection) -> None:
    """Rank 0 as Lightning's launcher leaves it: it has started rank 1, which waits for it."""
    tell_started()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "LOCAL_RANK": "1"}  # nobody answers there
    child = os.fork()
    if child == 0:
        environment = LightningEnvironment()
        environment.set_world_size(2)
        environment.set_global_rank(1)
        connect(environment, "gloo", None, torch.device("cpu"))
        os._exit(0)
    here.send(child)
    time.sleep(SECONDS)


def wait_until_ended(process: int, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while is_running(process):
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
            pytest.fail(f"rank 1 went on for {seconds} s after rank 0 was killed")
        time.sleep(0.01)


def test_a_rank_that_waits_for_the_one_that_started_it_ends_with_it() -> None:
    here, there = forked.Pipe()
    rank_0 = forked.Process(target=start_another, args=(there,), daemon=True)
    rank_0.start()
    assert here.poll(SECONDS)
    rank_1 = here.recv()
    time.sleep(0.5)
    assert is_running(rank_1)
    rank_0.kill()
    rank_0.join()
    wait_until_ended(rank_1)


def test_a_fit_whose_first_process_is_killed_as_it_starts_leaves_no_other(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("full"):
        pytest.skip("starts processes as a user does, which takes seconds of importing: --full")
    make_data(tmp_path / "data", 4)
    recipe = write_recipe(tmp_path / "fit", tmp_path / "data")
    command = [sys.executable, "-W", "ignore", "-m", "recis_lightning", "fit", "--config", str(recipe)]
    rank_0 = subprocess.Popen(command, cwd=ROOT, env=shell_environment(), start_new_session=True)
    children = Path(f"/proc/{rank_0.pid}/task/{rank_0.pid}/children")
    while not (found := children.read_text().split()):
        assert rank_0.poll() is None
        time.sleep(0.01)
    rank_0.kill()
    rank_0.wait()
    for rank_1 in map(int, found):
        wait_until_ended(rank_1, seconds=60)  # it has to import everything first


def fail_and_go_on(rank: int, environment: dict[str, str], root: str) -> None:
    """A rank whose process goes on for a minute where its fit fails, which that of rank 1 does."""
    os.dup2(os.open(f"{root}/stderr-{rank}", os.O_WRONLY | os.O_CREAT), 2)
    os.environ.clear()
    os.environ |= environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    ranks.EVERY = ranks.GRACE = 0.2
    try:
        make_trainer(root, OnRank(1, 3, "fail"), devices=2).fit(make_module(), MemoryLoader())
    except Exception:
        time.sleep(60)


def test_a_rank_that_outlives_its_error_ends_the_others_at_once(tmp_path: Path) -> None:
    # As behind an `except`, or in a notebook: no connection breaks because a process ends.
    environment = shell_environment() | launched_environment(2)
    started = [
        forked.Process(target=fail_and_go_on, args=(rank, environment, str(tmp_path)), daemon=True) for rank in range(2)
    ]
    for process in started:
        process.start()
    started[0].join(SECONDS)
    outlives = started[1].is_alive()
    for process in started:
        process.kill()
    told = (tmp_path / "stderr-0").read_text()
    assert "rank 0 ends, as it waits for one that has failed: the first was rank 1: ValueError: row 7 is broken" in told
    assert started[0].exitcode == 1
    assert outlives
