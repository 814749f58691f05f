"""Watch: what a device notes is told by a later call, once, with the step that it was first found at."""

import copy
import pickle

import pytest
import torch

from recis_lightning.tables.watch import Watch

CPU = torch.device("cpu")


def explain(number: int, step: int, detail: int) -> ValueError:
    return ValueError(f"thing {number} at step {step} with {detail}")


def test_first_step_and_its_detail_are_told_once() -> None:
    watch = Watch(CPU)
    for step, is_so in ((1, [False, False]), (2, [False, True]), (3, [False, True])):
        watch.begin_step(step)
        watch.note("things", torch.tensor(is_so), explain, torch.tensor([70, 70 + step]))
    with pytest.raises(ValueError, match="thing 1 at step 2 with 72"):
        watch.raise_found()
    watch.raise_found(wait=True)
    watch.begin_step(4)
    watch.note("things", torch.tensor([True, False]), explain)
    with pytest.raises(ValueError, match="thing 0 at step 4"):
        watch.raise_found()


def test_notes_made_in_inference_mode_can_be_added_to_outside() -> None:
    with torch.inference_mode():
        watch = Watch(CPU)
        watch.begin_step(1)
        watch.note("things", torch.tensor([False]), explain)
    watch.begin_step(2)
    watch.note("things", torch.tensor([True]), explain)
    with pytest.raises(ValueError, match="step 2"):
        watch.raise_found()


def test_copies_have_seen_nothing() -> None:
    watch = Watch(CPU)
    watch.begin_step(1)
    watch.note("things", torch.tensor([True]), explain)
    for copied in (copy.deepcopy(watch), pickle.loads(pickle.dumps(watch))):
        copied.raise_found()
