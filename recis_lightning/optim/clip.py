"""Clipping gradients of dense parameters and rows as those of one model."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm

from recis_lightning.optim.composite import CompositeOptimizer


def _dense_parameters(optimizer: CompositeOptimizer) -> list[Tensor]:
    groups = optimizer.dense.param_groups if optimizer.dense is not None else []
    return [parameter for group in groups for parameter in group["params"] if parameter.grad is not None]


def clip_grad_norm(optimizer: CompositeOptimizer, max_norm: float) -> Tensor:
    """Scale all gradients so that their joint 2-norm is at most ``max_norm``: dense 3, rows 4, max_norm 1 -> all / 5.

    As torch.nn.utils.clip_grad_norm_ over dense parameters and rows, the gradients of a row summed up first. Returns
    the norm before.
    """
    parameters = _dense_parameters(optimizer)
    dense = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if isinstance(dense, DTensor):  # of parameters that FSDP2 has cut
        dense = dense.full_tensor()
    total = (dense.double().square() + optimizer.sparse.grad_norm_sq()).sqrt()
    clip_grads_with_norm_(parameters, max_norm, total)
    optimizer.sparse.scale_grads(torch.clamp(max_norm / (total + 1e-6), max=1.0))
    return total


def clip_grad_value(optimizer: CompositeOptimizer, clip_value: float) -> None:
    """Limit each element of all gradients to [-clip_value, clip_value], those of a row summed up first."""
    parameters = _dense_parameters(optimizer)
    if parameters:  # torch takes no empty list here
        clip_grad_value_(parameters, clip_value)
    optimizer.sparse.clamp_grads(clip_value)
