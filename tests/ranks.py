"""Runs a function on several ranks, each a process of its own, connected by gloo.

The processes are started once, since importing torch and Lightning takes them seconds, and serve all tests of a
session; after a failure they are replaced.
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
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

SECONDS = 100


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
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    settings = {
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }
    return _pool(world_size).run(settings, _launched, function, arguments)


def _launched(rank: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    return function(*arguments)


class _Pool:
    def __init__(self, size: int) -> None:
        context = mp.get_context("spawn")
        pipes = [context.Pipe() for _ in range(size)]
        self.connections = [here for here, _ in pipes]
        self.processes = [context.Process(target=_serve, args=(there,), daemon=True) for _, there in pipes]
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
            _POOLS.clear()
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


_POOLS: dict[int, _Pool] = {}


def _pool(world_size: int) -> _Pool:
    if world_size not in _POOLS:
        _POOLS[world_size] = _Pool(world_size)
    return _POOLS[world_size]


@atexit.register
def _stop_all() -> None:
    for pool in _POOLS.values():
        pool.stop()
