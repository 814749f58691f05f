"""Triton without a GPU: kernels that Python runs, program after program."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OPS = Path(__file__).parents[1] / "triton_ops"


@contextmanager
def interpreting() -> Iterator[None]:
    """Triton decides when it is imported, and of a kernel when that is, whether Python runs it."""
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        yield
    finally:
        os.environ.pop("TRITON_INTERPRET")
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before


def kernel_modules() -> list[str]:
    """The kernels.py of every op."""
    return sorted(f"triton_ops.{path.parent.name}.kernels" for path in OPS.glob("*/kernels.py"))


def import_interpreted() -> None:
    """Import the kernels of all ops, to be interpreted."""
    with interpreting():
        repair_ranges()
        for module in kernel_modules():
            importlib.import_module(module)


def repair_ranges() -> None:
    """Let the interpreter of Triton 3.6 count to a number that a kernel has worked out: NumPy 2.4 wants a scalar."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_and_repair(tensor: type, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_and_repair
