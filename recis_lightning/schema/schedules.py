"""How a learning rate changes over a run, for a tower or a table: warm-up, then a decay."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What a learning rate is multiplied by: rising over ``warmup_steps`` steps, then as ``decay`` says.

    linear and cosine fall to ``floor`` at step ``total_steps`` and stay there: warmup_steps 10, total_steps 110, linear
    gives 6/11 at step 5, 1 at 10, .5 at 60, 0 from 110 on. step multiplies by ``gamma`` after every ``every`` steps:
    warmup_steps 0, every 100, gamma .5 gives 1 until step 99, .5 from 100 on, .25 from 200 on.
    """

    warmup_steps: int = 0
    decay: Literal["constant", "linear", "cosine", "step"] = "constant"
    total_steps: int | None = None
    floor: float = 0.0
    every: int | None = None
    gamma: float = 0.1

    def factor(self, step: int) -> float:
        """The factor at optimizer step ``step``, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.decay == "step" and self.every is not None:
            power: float = self.gamma ** ((step - self.warmup_steps) // self.every)
            return self.floor + (1.0 - self.floor) * power
        if self.decay == "constant" or self.total_steps is None:
            return 1.0
        done = min((step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1), 1.0)
        left = 1.0 - done if self.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
        return self.floor + (1.0 - self.floor) * left


def find_mistakes(where: str, schedule: Schedule) -> Iterator[str]:
    """What cannot be meant in a schedule, one line each."""
    if schedule.warmup_steps < 0:
        yield f"{where}: schedule warmup_steps is {schedule.warmup_steps}, need at least 0"
    if not 0 <= schedule.floor <= 1:
        yield f"{where}: schedule floor is {schedule.floor}, need 0 to 1"
    if schedule.decay in ("constant", "step"):
        if schedule.total_steps is not None:
            yield (
                f"{where}: schedule total_steps is given, and decay is {schedule.decay}; write decay: linear or cosine"
            )
    elif schedule.total_steps is None or schedule.total_steps <= schedule.warmup_steps:
        yield (
            f"{where}: schedule decays until total_steps {schedule.total_steps}, "
            f"need more than warmup_steps {schedule.warmup_steps}"
        )
    if schedule.decay == "step":
        if schedule.every is None or schedule.every < 1:
            yield f"{where}: schedule decays by step, and every is {schedule.every}; need at least 1"
        if not 0 < schedule.gamma <= 1:
            yield f"{where}: schedule gamma is {schedule.gamma}, need more than 0 and at most 1"
    elif schedule.every is not None:
        yield f"{where}: schedule every is given, and decay is {schedule.decay}; write decay: step"
