"""Run the benchmarks, or those named: python -m tests.benchmarks step.

Each part is a module bench_<part>.py beside this file whose `run()` returns results.
"""

import importlib
import sys
from pathlib import Path

from tests.benchmarks.report import print_table, write_json


def main(arguments: list[str]) -> None:
    parts = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))
    unknown = [part for part in arguments if part not in parts]
    if unknown:
        sys.exit(f"there is no benchmark '{unknown[0]}'; there are: {', '.join(parts)}")
    for part in arguments or parts:
        print(f"== {part}", flush=True)
        results = importlib.import_module(f"tests.benchmarks.bench_{part}").run()
        print_table(results)
        print(f"written to {write_json(part, results)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
