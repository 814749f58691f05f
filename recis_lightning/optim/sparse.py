"""Steps on the rows that backward has left gradients for. U touched rows, D row width, T tables of a group."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from recis_lightning.schema import Schedule
from recis_lightning.schema import SparseOptimizer as Declaration
from recis_lightning.tables import DynamicTable, PendingGrad, TableGroup
from triton_ops.row_layout import GRANULE, ID
from triton_ops.row_update import first_infinite, hyper_row, row_update
from triton_ops.transfer import is_capturing

# Schedulers that cycle momentum, and callbacks that log it, ask every group for these if they find them in one.
_FOR_SCHEDULERS = {"betas": (0.0, 0.0), "weight_decay": 0.0}
# Of new rows, of how state is kept, of the one who steps the schedule: not for a step to look at.
_FIXED = ("initial_accumulator_value", "state_dtype", "step", "schedule")


def _of_one_rank(value: Tensor) -> Tensor:
    return value


class SparseOptimizer:
    """Updates the rows of groups of tables, each table by the optimizer it declares, touched rows only.

    ``param_groups`` holds a mapping for each distinct declaration, {"name": "sparse/adagrad", "params": [], "lr": ...},
    as torch's optimizers do: what a scheduler writes there, the next step uses. Optimizer state lies in the tables, and
    so does the number of steps each has had.
    """

    def __init__(self, groups: Sequence[TableGroup], sum_over_ranks: Callable[[Tensor], Tensor] = _of_one_rank) -> None:
        """``sum_over_ranks`` adds up what ranks find of the rows that each of them holds, by default a single one."""
        self.groups = list(groups)
        self._sum_over_ranks = sum_over_ranks
        settings: dict[Declaration, dict[str, Any]] = {}
        for table in self.tables:
            if table.trainable and table.optimizer not in settings:
                settings[table.optimizer] = _param_group(table)
        names = [group["name"] for group in settings.values()]
        for declaration, group in settings.items():
            if names.count(group["name"]) > 1:
                first = next(table for table in self.tables if table.trainable and table.optimizer == declaration)
                group["name"] += f"/{first.name}"
        self.param_groups = list(settings.values())
        self.schedules: dict[str, Schedule] = {
            group["name"]: declaration.schedule
            for declaration, group in settings.items()
            if declaration.schedule is not None
        }
        """Schedules that tables declare, by the names of their groups; whoever steps this optimizer steps these."""
        self._settings_of_tables = [[settings.get(table.optimizer, {}) for table in group] for group in self.groups]

    @property
    def tables(self) -> list[DynamicTable]:
        return [table for group in self.groups for table in group]

    @property
    def device(self) -> torch.device:
        """Where its tables are."""
        return self.groups[0].device if self.groups else torch.device("cpu")

    @torch.no_grad()
    def step(self) -> None:
        """Update all rows that have gradients, and forget the gradients.

        Raises FloatingPointError, before anything is updated, where a gradient is infinite or not a number.
        """
        waiting = [
            (group, settings, pending)
            for group, settings in zip(self.groups, self._settings_of_tables, strict=True)
            if (pending := group.coalesce(summed=False)) is not None
        ]
        skip = _find_infinite(waiting)
        for group, settings, pending in waiting:
            _update(group, settings, pending, skip)
            group.pending.clear()
        for group in self.groups:
            for number in group.frozen_lookups:
                group[number].step += 1
            group.frozen_lookups.clear()

    def advance(self) -> None:
        """Count the step of a captured graph that is about to be replayed, with the learning rates of now."""
        for group in self.groups:
            if group.captured.updates is not None:
                advance(group, *group.captured.updates)
            for number in group.captured.frozen_lookups:
                group[number].step += 1

    def zero_grad(self) -> None:
        """Forget what backward has left."""
        for group in self.groups:
            group.pending.clear()

    def _coalesced_grads(self) -> list[Tensor]:
        grads = []
        for group in self.groups:
            if (pending := group.coalesce()) is not None:
                assert isinstance(pending.grads, Tensor)
                if group.is_deferred:  # behind the last row there is what was there before
                    pending.grads.masked_fill_((pending.rows < 0)[:, None], 0)
                grads.append(pending.grads)
        return grads

    @torch.no_grad()
    def grad_norm_sq(self) -> Tensor:
        """The sum of squares of all gradients, each row's summed up first; a float64 scalar, 0 where there are none."""
        norms = [torch.linalg.vector_norm(grads).double() for grads in self._coalesced_grads()]
        none = torch.zeros((), dtype=torch.float64, device=self.device)
        own = torch.stack(norms).square().sum() if norms else none
        return self._sum_over_ranks(own)

    @torch.no_grad()
    def scale_grads(self, factor: Tensor) -> None:
        """Multiply all gradients by a scalar."""
        for grads in self._coalesced_grads():
            grads.mul_(factor.to(grads.dtype))

    @torch.no_grad()
    def clamp_grads(self, bound: float) -> None:
        """Limit each element of each row's gradient to [-bound, bound]."""
        for grads in self._coalesced_grads():
            grads.clamp_(-bound, bound)

    @torch.no_grad()
    def unscale_(self, inv_scale: Tensor, found_inf: Tensor) -> None:
        """Undo a loss scaler: multiply by ``inv_scale``; set ``found_inf`` to 1 where a gradient is not finite."""
        for grads in self._coalesced_grads():
            torch._amp_foreach_non_finite_check_and_unscale_([grads], found_inf, inv_scale)
        # A rank sees its own rows only, and all have to skip the step.
        found_inf.copy_(self._sum_over_ranks(found_inf).clamp(max=1.0))

    def state_dict(self) -> list[dict[str, Any]]:
        """A copy of ``param_groups``: all else is the tables' own."""
        return [dict(group) for group in self.param_groups]

    def load_state_dict(self, saved: Sequence[Mapping[str, Any]]) -> None:
        """Take over what ``state_dict`` gave. Raises ValueError where its groups are others."""
        names, found = [group["name"] for group in self.param_groups], [group["name"] for group in saved]
        if names != found:
            raise ValueError(
                f"the saved optimizer has the groups {', '.join(found) or 'none'}, "
                f"this one {', '.join(names) or 'none'}; load it with the tables and optimizers it was saved with"
            )
        for group, values in zip(self.param_groups, saved, strict=True):
            group.update(values)


def _param_group(table: DynamicTable) -> dict[str, Any]:
    declared = {name: value for name, value in asdict(table.optimizer).items() if name not in _FIXED}
    return {"name": f"sparse/{table.optimizer.kind}", "params": []} | _FOR_SCHEDULERS | declared


def _update(
    group: TableGroup, settings_of_tables: Sequence[dict[str, Any]], pending: PendingGrad, skip: Tensor | None
) -> None:
    """Step the rows of one group, each by the settings of its table; none where ``skip`` is not 0."""
    if is_capturing():
        group.captured.updates = (settings_of_tables, pending.tables)
    else:
        advance(group, settings_of_tables, pending.tables)
    arrays = group.weight, group.state, group.meta, pending.rows, pending.grads, group.granule_table
    assert group.numbers_of_step is not None
    row_update(group.layout.rule, *arrays, *group.numbers_of_step, skip if group.is_deferred else None)


def advance(group: TableGroup, settings_of_tables: Sequence[dict[str, Any]], tables: Iterable[int]) -> None:
    """Count a step of some tables of a group, and put the numbers of that step where `row_update` takes them."""
    for number in tables:
        group[number].step += 1
    rows: dict[tuple[int, int], list[float]] = {}  # many tables have the same settings and as many steps
    hyper = []
    for table, settings in zip(group, settings_of_tables, strict=True):
        step = max(table.step, 1)
        key = id(settings), step
        if key not in rows:
            rows[key] = hyper_row(group.layout.rule, step, settings)
        hyper.append(rows[key])
    group.set_numbers_of_step(torch.tensor(hyper, dtype=torch.float64))


Waiting = Sequence[tuple[TableGroup, Sequence[dict[str, Any]], PendingGrad]]


def _find_infinite(waiting: Waiting) -> Tensor | None:
    """Raise where gradients are infinite; where nobody waits for the device, give how many groups have such."""
    broken = [_note_infinite(group, pending) for group, _, pending in waiting if group.is_deferred]
    for group, _, pending in waiting:
        if not group.is_deferred:
            check_finite(group, pending)
    return torch.cat(broken).sum(0, keepdim=True) if broken else None


def _note_infinite(group: TableGroup, pending: PendingGrad) -> Tensor:
    """Whether a gradient is infinite or not a number: bool [1] on the device, which `check_finite` would raise at."""
    if not len(pending.rows):
        return torch.zeros(1, dtype=torch.bool, device=group.device)
    place_1 = first_infinite(pending.rows, pending.grads)
    is_broken_1 = place_1 < len(pending.rows)
    row_1 = pending.rows.index_select(0, place_1.clamp(max=len(pending.rows) - 1))

    def explain(_: int, step: int, row: int) -> FloatingPointError:
        table = group[int(group.granule_table[row // GRANULE])]
        return FloatingPointError(
            f"table '{table.name}': at step {step} the gradient of id {int(group.meta[row, ID])} was not finite; no "
            "table was updated by that step. Look for a loss or weight that is inf or nan, lower the learning rate, or "
            "clip gradients"
        )

    group.watch.note("gradients", is_broken_1, explain, row_1)
    return is_broken_1


def check_finite(group: TableGroup, pending: PendingGrad) -> None:
    """Raise FloatingPointError, naming table and id, where a gradient is infinite or not a number."""
    assert isinstance(pending.grads, Tensor)
    # One sum is half a percent of a step; it may overflow where no element is infinite, so it only raises suspicion.
    if bool(pending.grads.sum().isfinite()):
        return
    broken = (~pending.grads.isfinite().all(dim=1)).nonzero()
    if len(broken) == 0:
        return
    row = int(pending.rows[broken[0, 0]])
    table = group[int(group.granule_table[row // GRANULE])]
    raise FloatingPointError(
        f"table '{table.name}': the gradient of id {int(group.meta[row, ID])} is not finite, as are those of "
        f"{len(broken)} of {len(pending.rows)} touched rows; no table was updated. Look for a loss or weight that is "
        "inf or nan, lower the learning rate, or clip gradients"
    )
