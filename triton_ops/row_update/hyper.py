"""The numbers a row update needs for each table, worked out once a step on the host.

| kind                     | hyper row                                    |
|--------------------------|----------------------------------------------|
| sgd                      | lr                                           |
| adagrad, rowwise_adagrad | lr, eps                                      |
| adam, adamw              | step size, 1 - beta1, 1 - beta2, eps, shrink |

Adam's step size is lr * sqrt(1 - beta2^t) / (1 - beta1^t); shrink is 1 - lr * weight_decay, and so 1 for adam.
"""

import math

HYPER_COLUMNS = {"sgd": 1, "adagrad": 2, "rowwise_adagrad": 2, "adam": 5, "adamw": 5}


def hyper_row(
    kind: str,
    step: int,
    *,
    lr: float,
    eps: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
) -> list[float]:
    """A table's hyper row at its ``step``-th step, from 1 on: hyper_row("adagrad", 1, lr=0.5, eps=0.1) -> [0.5, 0.1].

    Raises ValueError for an unknown kind and for a step below 1.
    """
    if kind not in HYPER_COLUMNS:
        raise ValueError(f"there is no optimizer kind '{kind}'; there are: {', '.join(HYPER_COLUMNS)}")
    if step < 1:
        raise ValueError(f"step is {step}; the first one is 1")
    if kind == "sgd":
        return [lr]
    if kind in ("adagrad", "rowwise_adagrad"):
        return [lr, eps]
    beta1, beta2 = betas
    step_size = lr * math.sqrt(1 - beta2**step) / (1 - beta1**step)
    return [step_size, 1 - beta1, 1 - beta2, eps, 1 - lr * weight_decay]
