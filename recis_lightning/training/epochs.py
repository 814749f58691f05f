"""Epochs that end before their last batch, and go on from a checkpoint."""

from typing import Any


def reopen_cut_epoch(checkpoint: dict[str, Any]) -> None:
    """Let an epoch that ``max_steps`` has cut off go on where it was left; changes the state of loops in a checkpoint.

    Lightning counts it as done: of 2 epochs of 6 batches, left behind batch 4, a fit that goes on would train the two
    that are missing in the place of the second epoch, and end 6 batches short.
    """
    loops = checkpoint.get("loops", {}).get("fit_loop", {})
    if not loops:
        return
    epoch, batch = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    current = epoch["current"]
    is_counted = current["processed"] == current["started"] > 0
    if is_counted and batch["current"]["ready"] > 0 and not batch["is_last_batch"]:
        for progress in (epoch["current"], epoch["total"]):
            progress["processed"] -= 1
            progress["completed"] = min(progress["completed"], progress["processed"])
