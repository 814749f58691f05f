"""`recis fit | validate | test | predict`: a recipe in YAML, run by Lightning's command line.

The schema is written once, under `data`; the model gets it from there.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

import recis_lightning.models  # noqa: F401  so that recipes may say class_path: DeepFM
from recis_lightning.cli.explain import UsageError, explain, told_by_class
from recis_lightning.data.datamodule import OrcDataModule
from recis_lightning.training import PredictionWriter, RecModule
from recis_lightning.training.files import DirectoryReader
from recis_lightning.training.progress import RunProgressBar
from recis_lightning.training.run_record import RunRecord, keep_aside, read_text, run_directory, write_text

TRAINER_DEFAULTS = {"strategy": "recis_sharded", "accelerator": "cpu", "devices": 1}


class Parser(LightningArgumentParser):
    """Tells mistakes in a few lines, with the option that was probably meant."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # an attempt, of which there are many: the next type may fit
            super().error(message, ex)
        raise UsageError(explain(message, list(_options(self)))) from ex


def _options(parser: LightningArgumentParser) -> Iterator[str]:
    """The options of a command, or of all commands where it is not known which."""
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for command in action.choices.values():
                yield from _options(command)
        else:
            yield action.dest


class SaveConfig(SaveConfigCallback):
    """Writes the resolved recipe to config.yaml in the run's directory.

    Every run has its own; where there is no logger to number them, those of earlier ones are kept as config.1.yaml.
    Loggers that keep a run's settings elsewhere, as W&B does, get them too.
    """

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        directory = run_directory(trainer)
        if directory is None:
            return
        path, text = os.path.join(directory, self.config_filename), self.parser.dump(self.config, skip_none=False)
        if read_text(path) != text:
            keep_aside(path)
            write_text(path, text)
        for logger in trainer.loggers:
            if not isinstance(logger, CSVLogger):  # it would write them beside config.yaml
                logger.log_hyperparams(yaml.safe_load(text))


class RecipeCLI(LightningCLI):
    """LightningCLI for one command, on a `RecModule` and an `OrcDataModule`."""

    def __init__(self, command: str, **options: Any) -> None:
        self.command = command
        super().__init__(RecModule, OrcDataModule, **options)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        # Only the one that is run: Lightning would build the parsers of all four, which takes a second.
        return {self.command: LightningCLI.subcommands()[self.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data", "model.schema", compute_fn=attrgetter("schema"), apply_on="instantiate")
        if self.command == "predict":
            where = "folder to write scores to; by default predictions in the run's directory"
            parser.add_argument("--predictions", type=Path | None, default=None, help=where)
            form = "of the files there"
            parser.add_argument("--predictions_format", type=Literal["orc", "parquet"], default="orc", help=form)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            if (told := told_by_class(str(error))) is None:
                raise
            raise UsageError(told) from error

    def instantiate_trainer(self, **options: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        if config.get("logger") in (None, True):
            options["logger"] = CSVLogger(config.get("default_root_dir") or ".", name="runs")
        callbacks = config.get("callbacks") or []
        if config.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks = [*callbacks, RunProgressBar()]
        if self.command == "predict":
            folder, form = (self._get(self.config_init, name) for name in ("predictions", "predictions_format"))
            callbacks = [*callbacks, PredictionWriter(folder, form)]
        options["callbacks"] = callbacks
        return super().instantiate_trainer(**options)

    def before_fit(self) -> None:
        """Refuse data and checkpoint that are not there before a logger begins a run, which W&B would keep.

        Of ranks that a launcher has started each would speak for itself; they tell each other once they are connected.
        """
        cluster = getattr(self.trainer.strategy, "cluster_environment", None)
        if cluster is not None and cluster.creates_processes_externally:
            return
        self.datamodule.setup(self.command)
        path = self._get(self.config_init, "ckpt_path")
        if path not in (None, "last", "best", "hpc", "registry"):
            DirectoryReader(path)

    before_validate = before_test = before_predict = before_fit

    def after_fit(self) -> None:
        directory = run_directory(self.trainer)
        if directory is None or not self.trainer.is_global_zero:
            return
        saver = self.trainer.checkpoint_callback
        saved = getattr(saver, "last_model_path", "") or getattr(saver, "best_model_path", "")
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        best = [each.describe_best() for each in callbacks if isinstance(each, RunRecord)]
        told = [f"the run is in {directory}", f"its checkpoint {saved}" if saved else "", *best]
        print(f"recis: {', '.join(filter(None, told))}", file=sys.stderr)

    def predict(self, **options: Any) -> None:
        """Leave the scores to `PredictionWriter`, instead of keeping all of them in memory."""
        self.trainer.predict(**{**options, "return_predictions": False})


def run(command: str, arguments: Sequence[str]) -> None:
    """Do what `recis fit --config ...` asks for, command fit; UsageError where the recipe or an option is wrong."""
    quiet()
    tell_what_is_logged()
    RecipeCLI(command, args=[command, *arguments], **_OPTIONS)


def read_recipe(path: str | os.PathLike[str]) -> RecipeCLI:
    """The model, untrained, and the data of a recipe, as `.model`, `.datamodule` and `.config`; UsageError as `run`."""
    return RecipeCLI("predict", args=["--config", os.fspath(path)], run=False, **_OPTIONS)


_OPTIONS: dict[str, Any] = {
    "parser_class": Parser,
    "parser_kwargs": {"prog": "recis", "allow_abbrev": False},
    "trainer_defaults": TRAINER_DEFAULTS,
    "seed_everything_default": 0,  # as Lightning's own, but without a warning
    "save_config_callback": SaveConfig,
    "save_config_kwargs": {"save_to_log_dir": False},
    "auto_configure_optimizers": False,
    "load_from_checkpoint_support": False,
}


class _Teller(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(f"recis: {record.getMessage()}", file=sys.stderr)


def tell_what_is_logged() -> None:
    """Show on the terminal what this package logs, of the first rank all, of others warnings."""
    logger = logging.getLogger("recis_lightning")
    is_first = getattr(rank_zero_only, "rank", 0) == 0  # from what launchers tell by the environment
    logger.setLevel(logging.INFO if is_first else logging.WARNING)
    if not any(isinstance(handler, _Teller) for handler in logger.handlers):
        logger.addHandler(_Teller())


def quiet() -> None:
    """Keep Lightning's advertisements, and warnings that are none for users of this command, off the terminal."""
    for message in (
        ".*LeafSpec.*",  # about its own code, on torch 2.13
        "LightningCLI's args parameter is intended",  # it looks at sys.argv
        "FSDP2-wrapped module .* returned a view",  # nobody changes logits in place
        "The dirpath has changed",  # each run has a directory of its own
        r"\s*By default only one Jsonargparse|\s*.* was deprecated in v4\.",  # of what Lightning calls, and what we do
    ):
        warnings.filterwarnings("ignore", message=message)
    chatter = ("\N{ELECTRIC LIGHT BULB} Tip", "GPU available", "TPU available", "HPU available", "`weights_only` was")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not record.getMessage().startswith(chatter)
    )
