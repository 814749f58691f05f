"""What a call asks of a device: Triton's launches, torch's operations, and looks at numbers that would wait for it."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {
    "aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten._unique2", "aten.unique_dim",
    "aten.unique_consecutive", "aten.bincount", "aten.equal",
}  # fmt: skip
"""Operations whose result, or its size, the host reads."""
FREE = {"aten.empty", "aten.view", "aten.slice", "aten.select", "aten.unsqueeze", "aten.detach", "aten.as_strided"}
"""Operations that launch nothing; others such as these do no harm in a count that is compared with another."""


class _Watch(TorchDispatchMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        name = str(operation).rsplit(".", 1)[0]
        given = named or {}
        is_unbounded = name == "aten.repeat_interleave" and given.get("output_size") is None
        is_masked = name.startswith("aten.index") and any(_is_mask(each) for each in arguments[1:2])
        is_waiting = name in WAITS or is_unbounded or is_masked
        assert not is_waiting, f"{name} would wait for the device"
        if name not in FREE:
            self.found[name] += 1
        return operation(*arguments, **given)


def _is_mask(indices: Any) -> bool:
    given = indices if isinstance(indices, list | tuple) else []
    return any(isinstance(each, torch.Tensor) and each.dtype == torch.bool for each in given)


@contextmanager
def launches() -> Iterator[Counter[str]]:
    """Count what is launched within; AssertionError for a look that would wait."""
    import triton
    from triton.runtime.interpreter import InterpretedFunction

    found: Counter[str] = Counter()

    def counting(run: Callable[..., Any]) -> Callable[..., Any]:
        def count_and_run(self: Any, *arguments: Any, **named: Any) -> Any:
            found[self.fn.__name__] += 1
            return run(self, *arguments, **named)

        return count_and_run

    with pytest.MonkeyPatch.context() as patch:
        for kind in (InterpretedFunction, triton.JITFunction):
            patch.setattr(kind, "run", counting(kind.run))
        with _Watch(found):
            yield found
