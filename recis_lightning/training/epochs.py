"""Epochs that go on from a checkpoint: Lightning counts two kinds of them wrongly.

One is cut off by ``max_steps``, the other follows one that was saved behind its last batch, before its end.
"""

from typing import Any

from lightning.pytorch import Trainer


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


def count_begun_epoch(trainer: Trainer) -> None:
    """Within an epoch, count it as begun; changes nothing but in the epoch behind one that was resumed at its end.

    Lightning takes that epoch for the one it has just seen to its end. What such a run saves would say of a batch in
    the midst of the second epoch that one epoch is begun and one is done, as in one that was cut off.
    """
    epoch: Any = trainer.fit_loop.epoch_progress
    if epoch.current.started == epoch.current.processed:
        epoch.increment_ready()
        epoch.increment_started()
