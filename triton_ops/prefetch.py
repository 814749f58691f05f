"""Asking for memory ahead of its use, from Numba kernels."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LINE = 64  # bytes a prefetch brings


@intrinsic
def _prefetch(typingctx: Any, array: Any, byte: Any) -> Any:
    """Bring the cache line that lies ``byte`` bytes behind an array's start near."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        address = builder.gep(builder.bitcast(data, pointer), [arguments[1]])
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        for_reading, keep_near, is_data = number(0), number(3), number(1)
        instruction = builder.module.declare_intrinsic("llvm.prefetch", (pointer,), kind)
        builder.call(instruction, [address, for_reading, keep_near, is_data])
        return context.get_dummy_value()

    return types.void(array, byte), generate


prefetch: Any = _prefetch  # called without the typing context, which type checkers do not know
