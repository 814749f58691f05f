"""Every trap that docs/lightning.md tells of has the test that it names."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
ROWS = re.findall(
    r"^\| (\d+) \|.*\| `(\S+)::(\w+)` \|$", (TESTS.parent / "docs/lightning.md").read_text(), re.MULTILINE
)


def traps_of(path: Path) -> dict[str, set[int]]:
    """The traps that each test of a file guards against, by the test's name."""
    found: dict[str, set[int]] = {}
    for node in ast.parse(path.read_text()).body:
        for mark in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.trap":
                found[node.name] = {number.value for number in mark.args}  # type: ignore[attr-defined]
    return found


def test_there_are_21_traps() -> None:
    assert [int(number) for number, *_ in ROWS] == list(range(1, 22))


def test_each_has_the_test_it_names() -> None:
    for number, file, test in ROWS:
        assert int(number) in traps_of(TESTS / file)[test], (number, file, test)


def test_no_test_names_a_trap_that_is_not_told_of() -> None:
    named = {number for path in TESTS.rglob("test_*.py") for numbers in traps_of(path).values() for number in numbers}
    assert named == set(range(1, 22))
