"""What the metrics share: reading logits, targets and weights, and states that stay float64."""

from collections.abc import Callable

import torch
from torch import Tensor


def read_inputs(
    logits: Tensor, target: Tensor, weight: Tensor | None, hard_labels: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets and weights as float64 [N]; weights are 1 where none are given.

    The three are of one shape and any dtype. Raises ValueError, naming the first place, where a logit or weight is not
    finite, a weight is negative, or a target is outside [0, 1]; with ``hard_labels`` where it is not 0 or 1.
    """
    for name, tensor in (("target", target), ("weight", weight)):
        if tensor is not None and tensor.shape != logits.shape:
            raise ValueError(f"{name} is {list(tensor.shape)} for logits {list(logits.shape)}; give one for each logit")
    logits_N = logits.detach().reshape(-1).double()
    target_N = target.detach().reshape(-1).double()
    weight_N = torch.ones_like(logits_N) if weight is None else weight.detach().reshape(-1).double()
    in_range = (target_N == 0) | (target_N == 1) if hard_labels else (target_N >= 0) & (target_N <= 1)
    checks = {
        "logit": (logits_N, logits_N.isfinite(), "a finite number; the model has diverged, or an input holds NaN"),
        "target": (target_N, in_range, "0 or 1" if hard_labels else "a probability from 0 to 1"),
        "weight": (weight_N, weight_N.isfinite() & (weight_N >= 0), "a finite number that is not negative"),
    }
    # One read of the device for all three.
    if not bool(torch.stack([right.all() for _, right, _ in checks.values()]).all()):
        for name, (values, right, need) in checks.items():
            _refuse_misfits(name, values, right, need)
    return logits_N, target_N, weight_N


def _refuse_misfits(name: str, values: Tensor, right: Tensor, need: str) -> None:
    places = (~right).nonzero().flatten()
    if len(places):
        place = int(places[0])
        raise ValueError(f"{name} {place} of {len(values)} is {float(values[place])}, need {need}")


def keep_dtype(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A module's `_apply` function that still moves tensors to devices, but converts none.

    `Module.to(torch.bfloat16)`, as precision "bf16-true" calls it, would round float64 counts to three digits.
    """
    return lambda tensor: tensor.to(function(tensor.new_empty(0)).device)
