"""Runs a function on several ranks, each a process of its own, connected by gloo.

The processes are started once, from one that has imported torch and Lightning for all, which takes seconds, and serve
all tests of a session; after a failure they are replaced.
"""

import atexit
import os
import socket
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

SECONDS = 100
forked = mp.get_context("forkserver")
"""Starts processes by forking one that has imported what is slow to import, and has not done anything else."""
forked.set_forkserver_preload(["tests.interpreted", "recis_lightning.cli.run", "tests.training.helpers"])
ROOT = Path(__file__).parents[1]
OF_LAUNCHERS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
OF_LAUNCHERS += ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


def shell_environment() -> dict[str, str]:
    """The environment of a new process that finds this repository's packages, as a shell has it.

    With what launchers set, a process would take itself for one of several, and wait for the others.
    """
    environment = {name: value for name, value in os.environ.items() if name not in OF_LAUNCHERS}
    return environment | {"PYTHONPATH": str(ROOT)}


def run_ranks(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``function(*arguments)`` returned on each of the ranks of a process group; it is a module's own, by name."""
    with tempfile.TemporaryDirectory() as folder:
        return _pool(world_size).run({}, _connected, f"{folder}/store", world_size, function, arguments)


def _connected(rank: int, store: str, world_size: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    file = dist.FileStore(store, world_size)
    dist.init_process_group("gloo", store=file, rank=rank, world_size=world_size, timeout=timedelta(seconds=60))
    return function(*arguments)


def run_trainers(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """As `run_ranks`, but as torchrun starts ranks: they know of each other by the environment, and connect later."""
    return _pool(world_size).run(launched_environment(world_size), _launched, function, arguments)


def launched_environment(world_size: int) -> dict[str, str]:
    """What torchrun tells each rank, but for which one it is."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return {
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }


def _launched(rank: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    return function(*arguments)


class _Pool:
    def __init__(self, size: int) -> None:
        pipes = [forked.Pipe() for _ in range(size)]
        self.connections = [here for here, _ in pipes]
        self.processes = [forked.Process(target=_serve, args=(there,), daemon=True) for _, there in pipes]
        for process in self.processes:
            process.start()

    def run(self, settings: Mapping[str, str], function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """The results of all ranks; RuntimeError with what they raised, where any did."""
        for rank, connection in enumerate(self.connections):
            connection.send((dict(settings), function, (rank, *arguments)))
        results: dict[int, Any] = {}
        waiting = list(self.connections)
        while waiting:
            ready = wait(waiting, timeout=SECONDS)
            for connection in ready:
                assert isinstance(connection, Connection)
                results[self.connections.index(connection)] = _received(connection)
                waiting.remove(connection)
            if not ready:
                results |= {
                    self.connections.index(each): RuntimeError(f"{SECONDS} s were not enough") for each in waiting
                }
                break
        failures = {rank: error for rank, error in sorted(results.items()) if isinstance(error, Exception)}
        if failures:
            self.stop()
            del _POOLS[len(self.processes)]
            raise RuntimeError("\n".join(f"rank {rank}: {error}" for rank, error in failures.items()))
        return [results[rank] for rank in range(len(results))]

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def _received(connection: Connection) -> Any:
    try:
        return connection.recv()
    except EOFError:
        return RuntimeError("the process has ended")


def _serve(connection: Connection) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    environment = dict(os.environ)
    while True:
        settings, function, arguments = connection.recv()
        os.environ |= settings
        try:
            result = function(*arguments)
        except BaseException as error:
            result = RuntimeError("".join(traceback.format_exception(error)))
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
            os.environ.clear()
            os.environ |= environment
        connection.send(result)
        if isinstance(result, Exception):
            os._exit(1)  # as a rank that has failed does, for the others see it by its connections


_POOLS: dict[int, _Pool] = {}


def _pool(world_size: int) -> _Pool:
    if world_size not in _POOLS:
        _POOLS[world_size] = _Pool(world_size)
    return _POOLS[world_size]


@atexit.register
def _stop_all() -> None:
    for pool in _POOLS.values():
        pool.stop()
