"""How kernels are launched, in a form that can be listed: what is compiled ahead of time is what runs."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Configuration(NamedTuple):
    """One way a kernel is launched. Each op's kernels.py lists its own as CONFIGURATIONS."""

    kernel: Any
    """The @triton.jit function."""
    signature: Mapping[str, str]
    """The type of each argument that is no constant, as in {"rows": "*i64", "count": "i32"}."""
    constants: Mapping[str, Any]
    """The value of each tl.constexpr argument; None for an argument that may be left out, such as weights."""
    options: Mapping[str, Any] = {}
    """Of the compiler: num_warps, enable_fp_fusion."""
    wide: bool = False
    """Whether it moves rows that fill 16 bytes and more, and so must do it by 16 bytes an instruction."""


MOST_ROWS = 64  # of a tile: more need more registers for their addresses than a thread has


def tile_of(width: int, elements: int, most_columns: int = 1 << 16) -> tuple[int, int]:
    """Rows and columns of a program's tile: tile_of(100, 2048) -> (16, 128). Both are powers of two."""
    columns = min(1 << max(width - 1, 0).bit_length(), most_columns)
    return min(max(elements // columns, 1), MOST_ROWS), columns
