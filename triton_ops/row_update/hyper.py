"""The numbers a row update needs for each table, worked out once a step on the host.

| rule                     | hyper row                                                                  |
|--------------------------|----------------------------------------------------------------------------|
| sgd                      | lr                                                                         |
| momentum                 | lr, momentum, what the gradient counts, what the buffer counts             |
| adagrad, rowwise_adagrad | lr, eps                                                                    |
| adam                     | step size, eps, shrink, beta1, 1 - beta1, beta2, 1 - beta2                 |
| adam_per_row             | lr, eps, shrink, beta1, 1 - beta1, beta2, 1 - beta2, whether eps is scaled |
| ftrl                     | lr, beta, lr * l1, lr * l2                                                 |

Adam's step size is lr / (1 - beta1^t) * sqrt(1 - beta2^t), t the number of the step; of adam_per_row that of the row.
Where eps is added to the corrected root of the second moment it is scaled by sqrt(1 - beta2^t), which comes to the
same. Shrink is 1 - lr * weight_decay, or 1 - weight_decay.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

Settings = Mapping[str, Any]


def _sgd(step: int, lr: float, **_: Any) -> list[float]:
    return [lr]


def _momentum(step: int, lr: float, momentum: float, nesterov: bool = False, **_: Any) -> list[float]:
    return [lr, momentum, 1.0, momentum] if nesterov else [lr, momentum, 0.0, 1.0]


def _adagrad(step: int, lr: float, eps: float, **_: Any) -> list[float]:
    return [lr, eps]


def _moments(
    lr: float, eps: float, betas: tuple[float, float], weight_decay: float = 0.0, decay_by_lr: bool = True, **_: Any
) -> list[float]:
    beta1, beta2 = betas
    shrink = 1 - (lr * weight_decay if decay_by_lr else weight_decay)
    return [lr, eps, shrink, beta1, 1 - beta1, beta2, 1 - beta2]


def _adam(step: int, **settings: Any) -> list[float]:
    row = _moments(**settings)
    beta1, beta2 = settings["betas"]
    root = math.sqrt(1 - beta2**step)
    row[0] = row[0] / (1 - beta1**step) * root
    row[1] *= root if _scales_eps(settings) else 1.0
    return row


def _adam_per_row(step: int, **settings: Any) -> list[float]:
    return [*_moments(**settings), float(_scales_eps(settings))]


def _scales_eps(settings: Settings) -> bool:
    return bool(settings.get("eps_placement", "raw") == "corrected")


def _ftrl(step: int, lr: float, beta: float = 0.0, l1: float = 0.0, l2: float = 0.0, **_: Any) -> list[float]:
    return [lr, beta, lr * l1, lr * l2]


_ROWS: dict[str, Callable[..., list[float]]] = {
    "sgd": _sgd,
    "momentum": _momentum,
    "adagrad": _adagrad,
    "rowwise_adagrad": _adagrad,
    "adam": _adam,
    "adam_per_row": _adam_per_row,
    "ftrl": _ftrl,
}

HYPER_COLUMNS = {
    "sgd": 1,
    "momentum": 4,
    "adagrad": 2,
    "rowwise_adagrad": 2,
    "adam": 7,
    "adam_per_row": 8,
    "ftrl": 4,
}


def hyper_row(rule: str, step: int, settings: Settings) -> list[float]:
    """A table's hyper row at its ``step``-th step, from 1 on: ("adagrad", 1, {lr: 0.5, eps: 0.1}) -> [0.5, 0.1].

    ``settings`` are the options of an optimizer by name, lr, eps, betas, weight_decay, decay_by_lr, eps_placement,
    momentum, nesterov, beta, l1, l2; those that are not the rule's are passed over. Raises ValueError for an unknown
    rule and for a step below 1.
    """
    if rule not in _ROWS:
        raise ValueError(f"there is no rule '{rule}'; there are: {', '.join(_ROWS)}")
    if step < 1:
        raise ValueError(f"step is {step}; the first one is 1")
    return _ROWS[rule](step, **settings)
