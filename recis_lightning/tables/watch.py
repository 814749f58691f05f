"""What must not be, found on a device without waiting for it, and told by a later call.

F things that are watched.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Explain = Callable[[int, int, int], Exception]
"""Gives the error for the thing of a number, the step that it was found at, and what was noted with it."""


class Watch:
    """Notes on a device at which step each of some things was first found, and raises it once the note has arrived.

    Every note is copied to the CPU behind the work that made it, and nobody waits for the copy. `raise_found` looks at
    what has arrived; so a later step raises what an earlier one has found. A captured graph takes notes like any other.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with torch.inference_mode(False):
            self.step = torch.zeros(1, dtype=torch.int64, device=device)
            """int64 [1]: the step that runs."""
        self._watched: dict[str, tuple[Tensor, Tensor, Explain]] = {}

    def __reduce__(self) -> tuple[type["Watch"], tuple[torch.device]]:
        return Watch, (self.device,)  # a copy has seen nothing yet

    def begin_step(self, step: int) -> None:
        """Say which step runs from here on."""
        with torch.inference_mode(False):
            self.step.fill_(step)

    def note(self, what: str, is_so_F: Tensor, explain: Explain, detail_F: Tensor | None = None) -> None:
        """Note which of some things are so (bool [F]) at the running step, where that was not noted before.

        ``detail_F``, int64 [F], is noted with it.
        """
        with torch.inference_mode(False):
            if what not in self._watched:
                found_2F = torch.zeros(2, len(is_so_F), dtype=torch.int64, device=self.device)
                arrived_2F = torch.zeros(found_2F.shape, dtype=torch.int64, pin_memory=self.device.type == "cuda")
                self._watched[what] = found_2F, arrived_2F, explain
            found_2F, arrived_2F, _ = self._watched[what]
            step_F = self.step.expand(len(is_so_F))
            new_2F = torch.stack([step_F, step_F if detail_F is None else detail_F])
            found_2F.copy_(torch.where((found_2F[0] == 0) & is_so_F, new_2F, found_2F))
            arrived_2F.copy_(found_2F, non_blocking=True)

    def raise_found(self, wait: bool = False) -> None:
        """Raise what has been found, the first of it, as far as notes have arrived; with ``wait`` all there is."""
        if wait and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        for found_2F, arrived_2F, explain in self._watched.values():
            steps, details = arrived_2F.numpy()
            if steps.any():
                number = int(steps.nonzero()[0][0])
                step, detail = int(steps[number]), int(details[number])
                with torch.inference_mode(False):
                    found_2F.zero_()  # it is told once
                    arrived_2F.zero_()
                raise explain(number, step, detail)
