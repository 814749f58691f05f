"""Several columns in one call, each where it lies: a table of addresses in the place of one joined tensor.

K columns; row k of a table [K, 3] is (address of the values, how many there are, address of the results).
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor


def allocate(lengths: Sequence[int], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Uninitialised tensors of these lengths, one behind the other in one piece of memory."""
    return list(torch.empty(sum(lengths), dtype=dtype, device=device).split_with_sizes(list(lengths)))


def describe(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> NDArray[np.int64]:
    """The table of pairs of contiguous tensors; both must be kept while it is used."""
    flat = [
        n for each, out in zip(inputs, outputs, strict=True) for n in (each.data_ptr(), each.numel(), out.data_ptr())
    ]
    return np.array(flat, np.int64).reshape(-1, 3)


def addresses(tensors: Sequence[Tensor]) -> NDArray[np.int64]:
    """Where contiguous tensors lie, int64 [K]."""
    return np.array([tensor.data_ptr() for tensor in tensors], np.int64)


def array_at(address: int, count: int, dtype: Any) -> NDArray[Any]:
    """What lies at an address, to read and to write: whoever calls keeps it alive."""
    nbytes = count * np.dtype(dtype).itemsize
    memory = (ctypes.c_uint8 * nbytes).from_address(address) if nbytes else bytearray()
    return np.frombuffer(memory, dtype)


def _pointer_to(element: Any) -> Any:
    @intrinsic
    def pointer(typing_context, address):  # type: ignore[no-untyped-def]
        signature = types.CPointer(element)(types.int64)

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return signature, generate

    return pointer


def _pointer_to_element() -> Any:
    @intrinsic
    def pointer(typing_context, address, like):  # type: ignore[no-untyped-def]
        signature = types.CPointer(like.dtype)(types.int64, like)

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return signature, generate

    return pointer


@intrinsic
def high_product(typing_context, left, right):  # type: ignore[no-untyped-def]
    """The upper 64 bits of the product of two uint64."""
    signature = types.uint64(types.uint64, types.uint64)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        wide = ir.IntType(128)
        factors = [builder.zext(argument, wide) for argument in arguments]
        return builder.trunc(builder.lshr(builder.mul(*factors), ir.Constant(wide, 64)), ir.IntType(64))

    return signature, generate


# Inside kernels: numba.carray(int64_at(address), count) is the column at an address.
int64_at = _pointer_to(types.int64)
int32_at = _pointer_to(types.int32)
uint8_at = _pointer_to(types.uint8)
float32_at = _pointer_to(types.float32)
float64_at = _pointer_to(types.float64)
values_at = _pointer_to_element()  # values_at(address, array): of the type that the array holds
