"""Loss scalers that know of gradients of rows."""

import torch
from torch import Tensor

from recis_lightning.optim.composite import CompositeOptimizer


def unscale_rows(scaler: torch.amp.GradScaler) -> None:
    """Have a loss scaler undo its scale in gradients of rows too, as it does in dense ones when it comes to unscale.

    Where any of them is infinite or not a number, on any rank, `scaler.step` steps neither rows nor dense parameters,
    and the scale shrinks. The strategy calls this for Lightning's precision plugins; a loop of your own has to.
    """
    unscale_dense = scaler._unscale_grads_

    def unscale(
        optimizer: torch.optim.Optimizer, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool
    ) -> dict[torch.device, Tensor]:
        found = unscale_dense(optimizer, inv_scale, found_inf, allow_fp16)
        if isinstance(optimizer, CompositeOptimizer):
            place = optimizer.sparse.device
            overflow = found.get(place, torch.zeros((), dtype=torch.float32, device=place)).clone()
            optimizer.sparse.unscale_(inv_scale.to(place), overflow)
            found[place] = overflow
        return found

    scaler._unscale_grads_ = unscale  # type: ignore[method-assign]
