"""The dense part under FSDP2: parameters, gradients and optimizer state cut over the ranks, put together for a batch.

Checkpoints hold whole tensors, under the same names as those of one rank or of DDP, so that each goes on from any.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(modules: Iterable[nn.Module], device: torch.device) -> list[FSDPModule]:
    """Cut the parameters of each module over all ranks, as one unit: they come together when the module is called.

    Frozen parameters of a unit are left whole where the module says so, by ``replicated_parameters()``.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    units = []
    for module in modules:
        if any(parameter.requires_grad for parameter in module.parameters()):
            replicated = set(getattr(module, "replicated_parameters", tuple)())
            units.append(fully_shard(module, mesh=mesh, ignored_params=replicated))
    return units


def whole(value: Any) -> Any:
    """Tensors in nested mappings and lists, put together from all ranks' parts; all ranks call it, in one order."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, Mapping):
        return {key: whole(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(whole(item) for item in value)
    return value


def cut_state(state: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
    """A state_dict of whole tensors, with those cut that the module has cut."""
    present = module.state_dict()
    return {name: cut_tensor(value, present.get(name)) for name, value in state.items()}


def cut_like(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state_dict of an optimizer with the whole state of cut parameters cut as these are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        **state,
        "state": {
            number: {name: cut_tensor(value, parameters[number]) for name, value in slots.items()}
            for number, slots in state["state"].items()
        },
    }


def cut_tensor(value: Any, parameter: Any) -> Any:
    """A whole tensor cut as a parameter of its shape is; anything else as it is."""
    if isinstance(value, Tensor) and isinstance(parameter, DTensor) and value.shape == parameter.shape:
        mesh, placements = parameter.device_mesh, parameter.placements
        # Each rank has read all of it: nothing has to be sent.
        return distribute_tensor(value.to(parameter.device), mesh, placements, src_data_rank=None)
    return value
