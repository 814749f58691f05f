"""How long the kernels of the demo recipe take to compile, once for a machine, and to load from disk, once a process.

A process of its own trains and validates the recipe on a little data of the same kinds; the clock runs whenever Numba
is asked for a kernel that the process does not have yet. First with an empty cache, then with what that run has left.

    python -m tests.benchmarks.bench_compile recipes/synthetic_deepfm.yaml
"""

import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from numba.core.dispatcher import Dispatcher

from recis_lightning.cli import main
from recis_lightning.data.commands.synth import read_schema
from recis_lightning.data.synthetic.schema import synthesize
from tests.benchmarks.report import Result

RECIPE = Path("recipes/synthetic_deepfm.yaml")
COMPILING, LOADING = 10.0, 0.5
RUNS = 5


class Clock:
    """How long Numba loads and compiles kernels, those that a kernel calls counted with it."""

    def __init__(self) -> None:
        self.wall = 0.0
        """Seconds in which some thread waited for a kernel."""
        self.cpu: dict[str, float] = {}
        """Seconds on the processor, by kernel."""
        self._compile = Dispatcher.compile
        self._lock = threading.Lock()
        self._waiting, self._since = 0, 0.0
        self._depth = threading.local()

    def start(self) -> None:
        clock = self

        def compile_timed(dispatcher: Any, signature: Any) -> Any:
            depth = getattr(clock._depth, "value", 0)
            clock._depth.value = depth + 1
            begin = time.thread_time()
            clock._enter()
            try:
                return clock._compile(dispatcher, signature)
            finally:
                clock._leave()
                clock._depth.value = depth
                if depth == 0:
                    function = dispatcher.py_func
                    name = f"{function.__module__}.{function.__qualname__}"
                    clock.cpu[name] = clock.cpu.get(name, 0.0) + time.thread_time() - begin

        Dispatcher.compile = compile_timed

    def _enter(self) -> None:
        with self._lock:
            if self._waiting == 0:
                self._since = time.perf_counter()
            self._waiting += 1

    def _leave(self) -> None:
        with self._lock:
            self._waiting -= 1
            if self._waiting == 0:
                self.wall += time.perf_counter() - self._since


def measure(recipe: Path) -> dict[str, Any]:
    """Seconds that a run of the recipe waits for kernels, and what each of them took of the processor."""
    schema = read_schema(recipe)
    recipe = recipe.resolve()
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        for split, (name, rows) in enumerate({"train": 300, "valid": 100}.items()):
            synthesize(schema, Path(folder, name), rows, split=split)
        arguments = ["fit", "--config", str(recipe), "--data.batch_size", "64", "--trainer.max_epochs", "1"]
        arguments += ["--data.train", f"{folder}/train", "--data.validation", f"{folder}/valid"]
        for name in ("logger", "enable_progress_bar", "enable_model_summary"):
            arguments += [f"--trainer.{name}", "false"]
        os.chdir(folder)
        clock.start()
        with contextlib.redirect_stdout(io.StringIO()):
            status = main(arguments)
        os.chdir(recipe.parent)
    if status:
        sys.exit(f"recis {' '.join(arguments)} ended with {status}")
    return {"wall": clock.wall, "cpu": clock.cpu}


def run() -> list[Result]:
    times: dict[str, list[float]] = {"compiling": [], "loading": [], "compiling, cpu": [], "loading, cpu": []}
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory() as cache:
            for name in ("compiling", "loading"):
                found = _measure_apart(cache)
                times[name].append(found["wall"])
                times[f"{name}, cpu"].append(sum(found["cpu"].values()))
    compared = [
        ("compiling the demo's kernels", "compiling", COMPILING),
        ("the same, on the processor", "compiling, cpu", COMPILING),
        ("loading them from disk", "loading", LOADING),
        ("the same, on the processor", "loading, cpu", LOADING),
    ]
    return [
        Result(
            name=name,
            rival=f"bound {bound} s",
            ratio=bound / statistics.median(times[key]),
            worst_ratio=bound / max(times[key]),
            ours=statistics.median(times[key]),
            theirs=bound,
            unit="s",
            shapes=f"{RECIPE.name}: a fit of 5 batches and its validation, {len(found['cpu'])} kernels, {RUNS} runs",
            threads=1,
        )
        for name, key, bound in compared
    ]


def _measure_apart(cache: str) -> dict[str, Any]:
    """`measure` in a new process that keeps kernels in ``cache``."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_CACHE_DIR": cache}
    command = [sys.executable, "-m", "tests.benchmarks.bench_compile", str(RECIPE)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    if finished.returncode:
        sys.exit(f"{' '.join(command)} failed with {finished.returncode}:\n{finished.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
