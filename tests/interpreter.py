"""Triton without a GPU: kernels that Python runs, program after program."""

import functools
import importlib
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
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


@functools.cache
def import_interpreted() -> None:
    """Import the kernels of all ops, to be interpreted."""
    with interpreting():
        repair_ranges()
        prepare_once()
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


def prepare_once() -> None:
    """Have the interpreter prepare triton.language once a launch, not again at each call of a function within a kernel.

    It searches all of that package each time, which took up to two thirds of a launch.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    @functools.cache
    def builtins_of(package: Any) -> list[tuple[str, Any]]:
        return [(name, member) for name, member in inspect.getmembers(package) if tl.core.is_builtin(member)]

    def prepare_builtins(package: Any, builder: Any, scope: Any) -> None:
        for name, member in builtins_of(package):
            interpreter._patch_attr(package, name, member, builder, scope)

    # What the functions of triton.language itself call is looked up in its core.
    for_both = FunctionType(prepare_once.__code__, {"tl": tl, "core": tl.core})
    prepare = interpreter._patch_lang

    def call(function: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return function.rewrite()(*arguments, **named)
        except Exception as error:
            raise interpreter.InterpreterError(repr(error)) from error

    interpreter._patch_builtin = prepare_builtins
    interpreter._patch_lang = lambda kernel: prepare(for_both)
    interpreter.InterpretedFunction.__call__ = call
