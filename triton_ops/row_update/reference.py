"""The definition of row_update in plain torch. U touched rows, D width, H hyper-parameters in the order of hyper.py."""

from collections.abc import Callable

import torch
from torch import Tensor

from triton_ops.row_layout import GRANULE
from triton_ops.row_update.state import state_slices

# Each rule takes weight_UD, its state by name, grad_UD and a list of hyper-parameters [U, 1], writes the state's new
# values into the mapping, and returns the new weight.
State = dict[str, Tensor]


def sgd(weight: Tensor, state: State, grad: Tensor, hyper: tuple[Tensor, ...]) -> Tensor:
    (lr,) = hyper
    return weight - lr * grad


def adagrad(weight: Tensor, state: State, grad: Tensor, hyper: tuple[Tensor, ...]) -> Tensor:
    lr, eps = hyper
    state["sum"] = state["sum"] + grad * grad
    return weight - lr * (grad / (state["sum"].sqrt() + eps))


def rowwise_adagrad(weight: Tensor, state: State, grad: Tensor, hyper: tuple[Tensor, ...]) -> Tensor:
    lr, eps = hyper
    state["sum"] = state["sum"] + (grad * grad).mean(1, keepdim=True)
    return weight - lr * (grad / (state["sum"].sqrt() + eps))


def adam(weight: Tensor, state: State, grad: Tensor, hyper: tuple[Tensor, ...]) -> Tensor:
    step_size, one_minus_beta1, one_minus_beta2, eps, shrink = hyper
    state["exp_avg"] = state["exp_avg"] + (grad - state["exp_avg"]) * one_minus_beta1
    state["exp_avg_sq"] = state["exp_avg_sq"] + (grad * grad - state["exp_avg_sq"]) * one_minus_beta2
    return weight * shrink - step_size * (state["exp_avg"] / (state["exp_avg_sq"].sqrt() + eps))


RULES: dict[str, Callable[[Tensor, State, Tensor, tuple[Tensor, ...]], Tensor]] = {
    "sgd": sgd,
    "adagrad": adagrad,
    "rowwise_adagrad": rowwise_adagrad,
    "adam": adam,
    "adamw": adam,
}


def row_update(
    kind: str,
    weight: Tensor,
    state: Tensor,
    rows_U: Tensor,
    grads_UD: Tensor,
    granule_table: Tensor,
    hyper_TH: Tensor,
) -> None:
    """See op.py."""
    hyper_UH = hyper_TH.to(weight.dtype)[granule_table[rows_U // GRANULE].long()]
    slices = state_slices(kind, weight.shape[1])
    state_UW = state[rows_U]
    by_name = {name: state_UW[:, columns] for name, columns in slices.items()}
    weight[rows_U] = RULES[kind](weight[rows_U], by_name, grads_UD, hyper_UH.split(1, dim=1))
    if by_name:
        state[rows_U] = torch.cat(list(by_name.values()), dim=1)
