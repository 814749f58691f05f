"""A GPU that is none: tensors that say they lie on cuda:0, and compute on the CPU.

    with pretending() as gpu:
        collection = EmbeddingCollection(schema).to(GPU)
        ...
    assert gpu.waits == []

Code that mixes such tensors with those of the CPU fails as on a GPU, and wherever the host would wait for the device,
`Gpu.waits` names the operation: numbers read, copies that do not say non_blocking, results whose size depends on
values. Triton's interpreter runs the kernels. Streams are one, and whoever is waited for is done: what a GPU does late
is not seen here. Ranks may pretend, too: collectives run on what tensors hold.

To torch's own code such a tensor is one of the device meta, since a build without CUDA knows nothing of cuda:0.
"""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

GPU = torch.device("cuda", 0)
aten = torch.ops.aten

on_pretended_gpu = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or torch.cuda.device_count() > 0,
    reason="kernels are interpreted only where Triton is and a GPU is not",
)

_OF_VALUES = {  # what a GPU must be waited for, since values say how large the result is, or are the result
    aten._local_scalar_dense, aten.nonzero, aten._unique, aten._unique2, aten.unique_dim, aten.unique_consecutive,
    aten.masked_select, aten.bincount, aten.equal, aten.is_nonzero,
}  # fmt: skip
_INDEXED = {aten.index, aten.index_put, aten.index_put_}
_COPIES = {aten.copy_, aten._to_copy, aten._foreach_copy_, aten._copy_from}


class OnGpu(Tensor):
    """A tensor of the GPU that is none; ``held`` is what it holds."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnGpu":
        options = {"dtype": held.dtype, "device": "meta", "storage_offset": held.storage_offset()}
        return Tensor._make_wrapper_subclass(cls, held.size(), strides=held.stride(), **options)  # type: ignore[attr-defined]

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def set_(self, *place: Any) -> "OnGpu":  # type: ignore[override]
        with _disable_current_modes():
            return OnGpu(self.held.new_empty(0).set_(*place))

    def __getitem__(self, place: Any) -> Tensor:
        return super().__getitem__(_places(place))

    def __setitem__(self, place: Any, value: Any) -> None:
        super().__setitem__(_places(place), value)

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        return torch.tensor(data, **({"dtype": self.dtype, "device": GPU} | options))

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"OnGpu({list(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        raise RuntimeError(f"{function} on a tensor of the pretended GPU, outside of pretending()")


class Gpu(TorchDispatchMode):
    """Runs operations on what tensors hold, and notes what the host would wait for."""

    def __init__(self) -> None:
        super().__init__()
        # As torch's own mode for tensors that are none has it: else torch looks for CUDA before it comes here.
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE
        self.waits: list[str] = []
        """The operations that the host has waited for."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = dict(options or {})
        if function.namespace == "triton_ops":  # its operations are to be seen one by one
            with self:
                return function._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *arguments, **options)
        tensors = [leaf for leaf in tree_flatten((arguments, options))[0] if isinstance(leaf, Tensor)]
        here = [tensor for tensor in tensors if isinstance(tensor, OnGpu)]
        target = options.get("device")
        is_sent = target is not None and torch.device(target).type in ("cuda", "meta")
        if not here and not is_sent:
            options.pop("pin_memory", None)
            return function(*arguments, **options)
        self._check_one_device(function, arguments, tensors)
        self._note_waits(function, arguments, options, bool(here), is_sent)
        if target is not None:
            options["device"] = torch.device("cpu")
        options.pop("pin_memory", None)
        options.pop("non_blocking", None) if function.overloadpacket is aten._to_copy else None
        held = tree_map(_held, (arguments, options))
        result = function(*held[0], **held[1])
        stays = is_sent or (bool(here) and target is None)
        return self._as_given(function, arguments, result) if stays else result

    def _check_one_device(self, function: Any, arguments: Any, tensors: list[Tensor]) -> None:
        if function.overloadpacket in _INDEXED:  # places may come from the CPU, and are copied
            tensors = [arguments[0], *arguments[2:3]]
            if any(isinstance(part, Tensor) and not isinstance(part, OnGpu) for part in arguments[1]):
                self.waits.append(str(function))
        there = [tensor for tensor in tensors if not isinstance(tensor, OnGpu) and tensor.dim()]
        if there and len(there) < len(tensors) and function.overloadpacket not in _COPIES:
            raise RuntimeError(f"{function}: tensors are on cuda:0 and on the CPU")

    def _note_waits(self, function: Any, arguments: Any, options: Any, is_here: bool, is_sent: bool) -> None:
        packet = function.overloadpacket
        if packet in _COPIES:
            tensors = [leaf for leaf in tree_flatten(arguments)[0] if isinstance(leaf, Tensor)]
            sides = {isinstance(tensor, OnGpu) for tensor in tensors}
            if packet is aten._to_copy and options.get("device") is not None:
                sides.add(is_sent)
            is_late = options.get("non_blocking") or (packet is aten.copy_ and len(arguments) > 2 and arguments[2])
            if len(sides) > 1 and not is_late:
                self.waits.append(str(function))
        elif is_here and (packet in _OF_VALUES or _picks_by_mask(packet, arguments) or _repeats(packet, options)):
            self.waits.append(str(function))

    def _as_given(self, function: Any, arguments: Any, result: Any) -> Any:
        """Results as tensors of the GPU; of what is written in place the tensor that was given."""
        given = {id(leaf.held): leaf for leaf in tree_flatten(arguments)[0] if isinstance(leaf, OnGpu)}

        def wrap(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            same = given.get(id(value))
            return OnGpu(value) if same is None else same

        return tree_map(wrap, result)


def _places(place: Any) -> Any:
    """Lists of places as tensors: of a list torch would make one of the device meta, without what it says."""
    if isinstance(place, tuple):
        return tuple(map(_places, place))
    return torch.tensor(place) if isinstance(place, list) else place


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnGpu) else value


def _picks_by_mask(packet: Any, arguments: Any) -> bool:
    if packet not in _INDEXED:
        return False
    # A mask that is given one number is filled without being counted.
    is_filled = packet is not aten.index and arguments[2].numel() == 1
    return not is_filled and any(part is not None and part.dtype in (torch.bool, torch.uint8) for part in arguments[1])


def _repeats(packet: Any, options: Any) -> bool:
    return packet is aten.repeat_interleave and options.get("output_size") is None


class _Event:
    """Of a stream on which everything is over at once."""

    def __init__(self, **options: Any) -> None:
        """Whatever an event is asked for."""

    def record(self, stream: Any = None) -> None:
        """Nothing is to come."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        """Nothing is to be waited for."""

    def elapsed_time(self, other: "_Event") -> float:
        return 1.0


@contextmanager
def pretending() -> Iterator[Gpu]:
    """Have a GPU for a while, whose kernels Triton interprets: see above."""
    from triton.runtime.interpreter import GridExecutor

    launch: Callable[..., Any] = GridExecutor.__call__

    def launch_on_held(executor: Any, *arguments: Any, **options: Any) -> Any:
        held = tree_map(_held, (arguments, options))
        with _disable_current_modes():
            return launch(executor, *held[0], **held[1])

    gpu, before = Gpu(), torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=GPU): made on the CPU, and copied
    with pytest.MonkeyPatch.context() as patch, gpu:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setattr(GridExecutor, "__call__", launch_on_held)
        patch.setattr(Tensor, "pin_memory", lambda tensor, device=None: tensor.clone())
        patch.setattr(torch.cuda, "Event", _Event)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        patch.setattr(torch.cuda, "current_stream", lambda device=None: SimpleNamespace(cuda_stream=0))
        memory = SimpleNamespace(total_memory=1 << 30)
        patch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
        patch.setattr(torch.cuda, "synchronize", lambda device=None: gpu.waits.append("synchronize"))
        try:
            yield gpu
        finally:
            torch._C._set_only_lift_cpu_tensors(before)
