"""The definition of row_update in plain torch. U touched rows, D width, H hyper-parameters in the order of hyper.py."""

from collections.abc import Callable

import torch
from torch import Tensor

from triton_ops.places import Rows
from triton_ops.row_layout import GRANULE, ID
from triton_ops.row_update.rounding import noise, stochastic
from triton_ops.row_update.state import state_slices

# Each rule takes weight_UD, its state by name, grad_UD and its hyper-parameters [U, 1], writes the state's new values
# into the mapping, and returns the new weight. All are of the gradients' dtype, hyper-parameters of adam_per_row apart.
State = dict[str, Tensor]


def sgd(weight: Tensor, state: State, grad: Tensor, hyper: tuple[Tensor, ...]) -> Tensor:
    (lr,) = hyper
    return weight - lr * grad


def momentum(weight: Tensor, state: State, grad: Tensor, hyper: tuple[Tensor, ...]) -> Tensor:
    lr, keeps, of_grad, of_buffer = hyper
    state["momentum_buffer"] = keeps * state["momentum_buffer"] + grad
    return weight - lr * (of_grad * grad + of_buffer * state["momentum_buffer"])


def adagrad(weight: Tensor, state: State, grad: Tensor, hyper: tuple[Tensor, ...]) -> Tensor:
    lr, eps = hyper
    state["sum"] = state["sum"] + grad * grad
    return weight - lr * (grad / (state["sum"].sqrt() + eps))


def rowwise_adagrad(weight: Tensor, state: State, grad: Tensor, hyper: tuple[Tensor, ...]) -> Tensor:
    lr, eps = hyper
    state["sum"] = state["sum"] + (grad * grad).mean(1, keepdim=True)
    return weight - lr * (grad / (state["sum"].sqrt() + eps))


def adam(weight: Tensor, state: State, grad: Tensor, hyper: tuple[Tensor, ...]) -> Tensor:
    step_size, eps, shrink, beta1, one_minus_beta1, beta2, one_minus_beta2 = hyper
    state["exp_avg"] = state["exp_avg"] * beta1 + grad * one_minus_beta1
    state["exp_avg_sq"] = state["exp_avg_sq"] * beta2 + one_minus_beta2 * grad * grad
    return weight * shrink - step_size * (state["exp_avg"] / (state["exp_avg_sq"].sqrt() + eps))


def adam_per_row(weight: Tensor, state: State, grad: Tensor, hyper: tuple[Tensor, ...]) -> Tensor:
    lr, eps, shrink, beta1, one_minus_beta1, beta2, one_minus_beta2, scales_eps = hyper
    state["step"] = state["step"] + 1
    steps = state["step"].double()
    root = (1 - beta2**steps).sqrt()
    step_size, scaled = lr / (1 - beta1**steps) * root, torch.where(scales_eps > 0, eps * root, eps)
    numbers = step_size, scaled, shrink, beta1, one_minus_beta1, beta2, one_minus_beta2
    return adam(weight, state, grad, tuple(number.to(grad.dtype) for number in numbers))


def ftrl(weight: Tensor, state: State, grad: Tensor, hyper: tuple[Tensor, ...]) -> Tensor:
    lr, beta, l1, l2 = hyper
    before = state["sum"]
    state["sum"] = before + grad * grad
    root = state["sum"].sqrt()
    state["linear"] = state["linear"] + (lr * grad - (root - before.sqrt()) * weight)
    beyond = (state["linear"].abs() - l1).clamp(min=0)
    return -torch.copysign(beyond, state["linear"]) / (root + beta + l2)


RULES: dict[str, Callable[[Tensor, State, Tensor, tuple[Tensor, ...]], Tensor]] = {
    "sgd": sgd,
    "momentum": momentum,
    "adagrad": adagrad,
    "rowwise_adagrad": rowwise_adagrad,
    "adam": adam,
    "adam_per_row": adam_per_row,
    "ftrl": ftrl,
}


def row_update(
    rule: str,
    weight: Rows,
    state: Rows,
    meta: Rows,
    rows_U: Tensor,
    grads_UD: Tensor,
    granule_table: Tensor,
    hyper_TH: Tensor,
    keys_T: Tensor,
) -> None:
    """See op.py."""
    dtype, dim = grads_UD.dtype, weight.shape[1]
    table_U = granule_table[rows_U // GRANULE].long()
    hyper_UH = hyper_TH[table_U] if rule == "adam_per_row" else hyper_TH.to(dtype)[table_U]
    words_UD = noise(meta[rows_U, ID], keys_T[table_U], dim)
    slices = state_slices(rule, dim)
    state_UW = state[rows_U].to(dtype)
    by_name = {name: state_UW[:, columns] for name, columns in slices.items()}
    updated = RULES[rule](weight[rows_U].to(dtype), by_name, grads_UD, hyper_UH.split(1, dim=1))
    weight[rows_U] = stochastic(updated, weight.dtype, words_UD, 0)
    for part, (name, columns) in enumerate(slices.items(), start=1):
        value = by_name[name]
        state[rows_U, columns] = stochastic(value, state.dtype, words_UD[:, : value.shape[1]], part)
