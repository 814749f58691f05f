"""Rules of the house: who may import whom, what importing may do, and what it may need."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A package imports only packages with a higher number; within a number nobody, but for WITHIN_A_LAYER.
LAYERS = {
    "recis_lightning": 0,
    "recis_lightning.__main__": 0,
    "recis_lightning.cli": 1,
    "recis_lightning.serving": 1.5,
    "recis_lightning.training": 2,
    "recis_lightning.embedding": 3,
    "recis_lightning.optim": 3,
    "recis_lightning.data": 4,
    "recis_lightning.features": 4,
    "recis_lightning.metrics": 4,
    "recis_lightning.models": 4,
    "recis_lightning.tables": 4,
    "recis_lightning.towers": 4,
    "recis_lightning.errors": 5.5,
    "recis_lightning.llm_extra": 5,
    "recis_lightning.paths": 5,
    "recis_lightning.ragged": 5,
    "recis_lightning.ragged_ops": 5,
    "recis_lightning.schema": 5,
    "triton_ops": 6,
}
WITHIN_A_LAYER = {
    ("recis_lightning.models", "recis_lightning.towers"),
    ("recis_lightning.ragged_ops", "recis_lightning.ragged"),
}
NEEDED_BY_KERNELS = {"torch", "numpy", "numba", "llvmlite", "triton", "triton_ops"}
USED_LAZILY = ("triton", "wandb", "jsonargparse", "transformers", "peft", "tokenizers")


def module_files() -> dict[str, Path]:
    """Every module of both packages, by dotted name."""
    files = sorted(path for package in ("recis_lightning", "triton_ops") for path in (ROOT / package).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]
    return dict(zip(names, files, strict=True))


def package_of(module: str) -> str:
    """The entry of LAYERS a module belongs to: recis_lightning.data.plan -> recis_lightning.data."""
    depth = 1 if module.startswith("triton_ops") else 2
    return ".".join(module.split(".")[:depth])


def imports_of(source: str) -> Iterator[tuple[str, int]]:
    """Modules that a source imports, anywhere in it, with the line; `from x import *` counts as x.*"""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                # `from recis_lightning import data` names a package, `from recis_lightning.data import x` its content.
                is_root = node.module in ("recis_lightning", "triton_ops") and alias.name != "__version__"
                yield f"{node.module}.{alias.name}" if is_root or alias.name == "*" else str(node.module), node.lineno


def find_breaches(module: str, source: str) -> list[str]:
    """What a module imports against the rules."""
    importer, breaches = package_of(module), []
    for name, line in imports_of(source):
        where = f"{module}, line {line}, imports {name}"
        if name.endswith("*"):
            breaches.append(f"{where}: name what is needed")
        elif name.split(".")[0] in ("recis_lightning", "triton_ops"):
            imported = package_of(name)
            if imported not in (importer, "recis_lightning") and (importer, imported) not in WITHIN_A_LAYER:
                if imported not in LAYERS:
                    breaches.append(f"{where}: no such package in the table of layers")
                elif LAYERS[importer] >= LAYERS[imported]:
                    breaches.append(f"{where}: layer {LAYERS[importer]} may not import layer {LAYERS[imported]}")
        if importer == "triton_ops":
            top = name.split(".")[0]
            if top not in NEEDED_BY_KERNELS and top not in sys.stdlib_module_names:
                breaches.append(f"{where}: kernels need only {', '.join(sorted(NEEDED_BY_KERNELS))}")
    return breaches


@pytest.mark.parametrize("module", module_files())
def test_imports_point_from_lower_layers_to_higher_ones(module):
    assert package_of(module) in LAYERS, f"{module} is in no layer; add its package to LAYERS"
    assert find_breaches(module, module_files()[module].read_text()) == []


@pytest.mark.parametrize(
    ("module", "source", "breach"),
    [
        ("recis_lightning.data.plan", "import recis_lightning.training.module", "layer 4 may not import layer 2"),
        ("recis_lightning.data.plan", "from recis_lightning.tables import x", "layer 4 may not import layer 4"),
        ("recis_lightning.data.plan", "from recis_lightning import tables", "layer 4 may not import layer 4"),
        ("recis_lightning.towers.text", "import recis_lightning.models", "layer 4 may not import layer 4"),
        ("recis_lightning.schema", "def f():\n    import recis_lightning.data", "layer 5 may not import layer 4"),
        ("triton_ops.index.op", "from recis_lightning.schema import Schema", "layer 6 may not import layer 5"),
        ("triton_ops.index.op", "import pyarrow.orc", "kernels need only"),
        ("recis_lightning.cli", "from recis_lightning.training import *", "name what is needed"),
        ("recis_lightning.cli", "import recis_lightning.new", "no such package in the table of layers"),
    ],
)
def test_a_breach_of_the_layers_is_found(module, source, breach):
    found = find_breaches(module, source)
    assert found
    assert breach in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("recis_lightning.models.dlrm", "from recis_lightning.towers import x"),
        ("recis_lightning.training.module", "from recis_lightning.embedding.collection import EmbeddingCollection"),
        (
            "recis_lightning.data.plan",
            "from recis_lightning.data.plan import x\nimport triton_ops.pack",
        ),
        ("recis_lightning.training.checkpoint", "from recis_lightning import __version__"),
        ("triton_ops.index.cpu", "import os, numpy, numba\nfrom llvmlite import ir\nfrom triton_ops.jit import kernel"),
    ],
)
def test_imports_along_the_layers_are_no_breach(module, source):
    assert find_breaches(module, source) == []


def find_circle(sources: Mapping[str, str]) -> list[str]:
    """Parts of triton_ops, which are ops' folders and files beside them, that import each other in a circle."""
    imported: dict[str, set[str]] = {}
    for module, source in sources.items():
        part = module.split(".")[1]
        names = (name.split(".") for name, _ in imports_of(source) if name.startswith("triton_ops."))
        imported.setdefault(part, set()).update(name[1] for name in names if name[1] != part)
    try:
        TopologicalSorter(imported).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_ops_import_each_other_in_no_circle():
    files = {module: file for module, file in module_files().items() if module.startswith("triton_ops.")}
    assert find_circle({module: file.read_text() for module, file in files.items()}) == []


def test_a_circle_of_ops_is_found():
    circle = {
        "triton_ops.index.kernels": "from triton_ops.pack import op",
        "triton_ops.pack.op": "import triton_ops.index",
    }
    assert set(find_circle(circle)) == {"index", "pack"}
    assert find_circle({"triton_ops.index.op": "from triton_ops import pack", "triton_ops.pack": ""}) == []


IMPORT_ALL = """
import importlib
import importlib.metadata
import os
import sys
import threading

hidden = sys.argv[1].split(",")
find = importlib.metadata.Distribution.from_name


def find_unless_hidden(name):
    if name in hidden:
        raise importlib.metadata.PackageNotFoundError(name)
    return find(name)


# As if they were not installed: for import, and for those who ask for a version first.
sys.modules.update(dict.fromkeys(hidden))
importlib.metadata.Distribution.from_name = find_unless_hidden

import lightning.pytorch, numba, pyarrow, torch  # some of these set environment variables: not our doing

before = (dict(os.environ), list(sys.path), torch.get_rng_state().tolist(), torch.get_default_dtype())
for module in sys.argv[2:]:
    importlib.import_module(module)
after = (dict(os.environ), list(sys.path), torch.get_rng_state().tolist(), torch.get_default_dtype())
assert before == after, "importing changed the environment, the path, the random state or the default dtype"
assert threading.active_count() == 1, f"importing started {threading.enumerate()[1:]}"
"""


def run_imports(hidden: tuple[str, ...], modules: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, ",".join(hidden), *modules],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_module_imports_quietly_without_what_is_used_lazily():
    # kernels.py is where Triton is at home; those who use one import it in a function.
    modules = [name for name in module_files() if not name.endswith(".kernels")]
    result = run_imports(USED_LAZILY, modules)
    assert result.returncode == 0, result.stderr
    assert (result.stdout, result.stderr) == ("", "")


def test_a_hidden_package_does_fail_to_import():
    result = run_imports(("numba",), ["triton_ops.jit"])
    assert result.returncode != 0
    assert "numba" in result.stderr
