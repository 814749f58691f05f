"""One row a day of a run over days, in its directory: days.csv to read on with, days.md to look at."""

import csv
import io
import posixpath
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from recis_lightning.training.run_record import run_directory, write_text

_ABOUT = ("epoch", "train_day", "validation_day", "step")


class DayTable(Callback):
    """Writes what each day scored, where the data come by days; `RecModule` adds it to every Trainer.

    epoch,train_day,validation_day,step,train/loss,val/auc
    0,2025-01-01,2025-01-02,200,0.43,0.79
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rows = []  # of an earlier fit; a checkpoint is read after this

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        days = getattr(trainer.datamodule, "days", None)  # type: ignore[attr-defined]
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING or not days:
            return
        epoch = trainer.current_epoch
        about = (epoch, days[epoch].name, days[min(epoch + 1, len(days) - 1)].name, trainer.global_step)
        found = sorted(trainer.callback_metrics.items())
        metrics = {name: float(value) for name, value in found if name.startswith(("train/", "val/"))}
        # A day that is validated several times keeps the last.
        self.rows = [row for row in self.rows if row["epoch"] != epoch]
        self.rows.append(dict(zip(_ABOUT, about, strict=True)) | metrics)
        directory = run_directory(trainer)
        if directory is not None and trainer.is_global_zero:
            write_text(posixpath.join(directory, "days.csv"), self.to_csv())
            write_text(posixpath.join(directory, "days.md"), self.to_markdown())

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def to_csv(self) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def to_markdown(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns)]
        lines += [[_shorten(row.get(name, "")) for name in self.columns] for row in self.rows]
        return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])


def _shorten(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
