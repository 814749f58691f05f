"""ORC folders as the data of a Trainer: `OrcDataModule(schema, train="logs/train", validation="logs/valid")`."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from lightning.pytorch import LightningDataModule

from recis_lightning.data.check import find_mismatches
from recis_lightning.data.columns import Selection
from recis_lightning.data.days import Day, split_days
from recis_lightning.data.delivery import receive
from recis_lightning.data.errors import DataError
from recis_lightning.data.files.checksums import Checks, Verify
from recis_lightning.data.files.manifest import Manifest, Paths, expand_variables, read_manifest
from recis_lightning.data.kept import KeptRows, find_unknown
from recis_lightning.data.loader import OrcLoader, default_read_threads
from recis_lightning.data.mixing import ChainedLoader, MixedLoader, Until, share_out
from recis_lightning.data.plan import EpochPlan, Order
from recis_lightning.data.row_filter import RowFilter, apply_filter
from recis_lightning.data.stream import Skips
from recis_lightning.data.tokens import find_tokenizer_problems
from recis_lightning.ragged import Batch
from recis_lightning.schema import Schema

log = logging.getLogger(__name__)

NamedPaths = Mapping[str, Sequence[str] | str]  # in this order: a list would be read as a string otherwise
MOST_UNPACKED = 8  # decoded bytes for each byte of a file, where columns are narrow and compress well
Source = Literal["train", "validation", "test", "predict"]
_SOURCES: dict[str | None, tuple[Source, ...]] = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("predict",),
    None: ("train", "validation", "test", "predict"),
}


class OrcDataModule(LightningDataModule):
    """ORC files in, `Batch`es out: shuffled, reproducible and resumable for training, in file order for evaluation.

    Before the first batch all tails are read and held against the schema; DataError lists everything that does not fit.
    Values are looked at as they are read: a missing label, or a string that is no number, is a DataError at the first
    batch that holds it. Evaluation reads each rank's share of the rows in the order of the files; `predict` needs no
    label columns.
    """

    def __init__(
        self,
        schema: Schema | Mapping[str, Any] | str | os.PathLike[str],
        train: NamedPaths | Paths | None = None,
        validation: NamedPaths | Paths | None = None,
        test: NamedPaths | Paths | None = None,
        predict: Paths | None = None,
        days: Paths | None = None,
        batch_size: int = 4096,
        shuffle: bool = True,
        seed: int = 0,
        streams: int = 8,
        window_rows: int = 131_072,
        read_threads: int | None = None,
        prefetch: int = 16,
        prefetch_bytes: int = 1 << 30,
        verify: Verify = "once",
        on_corrupt: Literal["error", "skip_stripe"] = "error",
        skip_limit: int = 10,
        drop_last: bool = False,
        keep: Sequence[str] = (),
        filter: Sequence[Sequence[Any]] = (),
        mix: Mapping[str, float] | None = None,
        mix_until: Until = "longest",
    ) -> None:
        """
        Args:
            schema: A Schema, the mapping a YAML file holds, or the path of one.
            train: A folder (its *.orc and *.parquet files, however deep), a file, a glob, or a list of these; `${NAME}`
                in a path is an environment variable.
            validation: As ``train``.
            test: As ``train``.
            predict: As ``train``; label columns may be missing.
            days: As ``train``, in the place of ``train`` and ``validation``: epoch N trains on the N-th day and
                validates on the next, up to the last; paths tell the days (`day=2025-01-31`, `20250131`, `day=7`).
            batch_size: Rows of a step over all ranks.
            shuffle: Shuffle the training rows.
            seed: Of the order of training rows.
            streams: Into how many streams the training rows are cut, of which ranks read equal shares: the order of
                rows does not depend on the number of ranks where that divides ``streams``. Must divide ``batch_size``.
            window_rows: How many rows, over all streams, are shuffled among each other and held in memory; as many
                again are read ahead. Whole stripes are read, so that large stripes need more.
            read_threads: Threads that decode stripes; by default 1, or 2 where there are cores to spare. The order of
                rows does not depend on it.
            prefetch: Batches held ready.
            prefetch_bytes: What all that is read ahead may take, decoded: windows, batches, stripes kept for a second
                use. Never less than a window for each stream of the rank and one more; on top come 32 MB, and one and
                a half decoded stripes a thread.
            verify: Hold stripes against the checksums that `recis data manifest` wrote: each when it is first read
                (`once`), each time (`always`, which also demands that all files have some), or not (`off`).
            on_corrupt: What becomes of a training stripe that can't be decoded or is not what was written: an `error`,
                or its rows are left out (`skip_stripe`), counted and logged; batches get smaller, not fewer.
            skip_limit: With `skip_stripe`, how many stripes a rank may leave out before it is an error after all.
            drop_last: Leave the last training batch out where it is not full.
            keep: Columns of the predict files, of the schema or not, that stand beside the scores where predictions are
                written: keys, labels.
            filter: Conditions that rows to train, validate and test on must all meet: [[label, ">=", 0],
                [country, in, [de, fr]], [user_id, is not null]]. They are counted before the first batch, so that
                length, order and resuming are those of the rows kept. Every row of predict is scored.
            mix: Weights of the sources of a train that names several ({ads: log/ads, feed: log/feed}): what share of
                every batch each gets; equal ones where none are given.
            mix_until: Which source an epoch of a mix ends with: the longest (others begin anew), or the shortest.
        """
        super().__init__()
        self._schema = _read_schema(schema)
        self._paths: dict[Source, Paths | NamedPaths | None] = {
            "train": train,
            "validation": validation,
            "test": test,
            "predict": predict,
        }
        self._days = days
        self.days: list[Day] = []
        """Once set up for a fit, where the data come by days."""
        if days is not None and (train is not None or validation is not None):
            raise DataError("days are given beside train or validation; give days alone, or train and validation")
        self._order = Order(
            batch_size=batch_size,
            streams=streams,
            window_rows=window_rows,
            seed=seed,
            shuffle=shuffle,
            drop_last=drop_last,
        )
        self._read_threads, self._prefetch, self._keep = read_threads, prefetch, tuple(keep)
        self._prefetch_bytes, self._verify = prefetch_bytes, verify
        if on_corrupt not in ("error", "skip_stripe"):
            raise DataError(f"on_corrupt is {on_corrupt!r}; write error or skip_stripe")
        self._skip_limit = skip_limit if on_corrupt == "skip_stripe" else None
        self._checks: dict[str, Checks] = {}
        self._filter = RowFilter.parse(filter)
        self._mix, self._mix_until = mix, mix_until
        self._check_mix()
        self._manifests: dict[str, Manifest] = {}
        self._loaders: list[OrcLoader] = []
        self._day_loaders: dict[Source, OrcLoader] = {}

    @property
    def schema(self) -> Schema:
        return self._schema

    def _check_mix(self) -> None:
        names, until = self._names("train"), self._mix_until
        if until not in ("longest", "shortest"):
            raise DataError(f"mix_until is {until!r}; write longest or shortest")
        if self._mix is not None and set(self._mix) != set(names):
            raise DataError(
                f"mix has weights for {', '.join(self._mix)}, train names {', '.join(names) or 'no sources'}; "
                "give train as a mapping of names to paths, and a weight for each"
            )

    # ------------------------------------------------------------------------------------------------- before training

    def setup(self, stage: str | None = None) -> None:
        """Read the tails of all files of the stage and check them; DataError lists every problem of all of them."""
        self.__dict__.pop("val_dataloader", None)
        if stage == "fit" and self._paths["validation"] is None and self._days is None:
            # A fit without validation is one whose hook is not overridden; of an empty list Lightning warns.
            self.__dict__["val_dataloader"] = super().val_dataloader
        problems: list[str] = []
        if self._days is not None and stage in ("fit", None):
            problems += self._set_up_days(self._days)
        for source in _SOURCES[stage]:
            for key, paths in self._parts(source).items():
                if key in self._manifests:
                    continue
                manifest, found = self._open(source, paths)
                problems += [f"{key}: {problem}" for problem in found]
                self._manifests[key] = manifest
                self._checks[key] = Checks(manifest, self._verify)
                problems += [f"{key}: {problem}" for problem in self._checks[key].find_problems()]
        if problems:
            self._manifests.clear()
            raise DataError(problems)

    def _set_up_days(self, paths: Paths) -> list[str]:
        """Read all days at once, and have the Trainer ask for a loader a day; gives the problems."""
        problems = [] if self.days else [f"days: {problem}" for problem in self._read_days(paths)]
        trainer: Any = self.trainer
        if trainer is not None and not problems:
            trainer.reload_dataloaders_every_n_epochs = 1
            epochs, last = trainer.fit_loop.max_epochs, len(self.days) - 1
            trainer.fit_loop.max_epochs = last if epochs in (None, -1) else min(epochs, last)
        return problems

    def _read_days(self, paths: Paths) -> list[str]:
        manifest, problems = self._open("train", paths)
        if problems:
            return problems
        try:
            days = split_days(manifest)
        except DataError as error:
            return list(error.problems)
        checks = {day.name: Checks(day.manifest, self._verify) for day in days}
        problems = [problem for each in checks.values() for problem in each.find_problems()]
        if not problems:
            self.days, self._day_checks = days, checks
        return problems

    def _take_day(self, source: Source) -> Day | None:
        """Make the day of this epoch the source's data."""
        if not self.days:
            return None
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        day = self.days[min(epoch + (source == "validation"), len(self.days) - 1)]
        self._manifests[source], self._checks[source] = day.manifest, self._day_checks[day.name]
        return day

    def _parts(self, source: Source) -> dict[str, Paths]:
        """The paths of a source; of several that are mixed each by its name: train/ads."""
        paths = self._paths[source]
        if isinstance(paths, Mapping):
            return {f"{source}/{name}": its for name, its in paths.items()}
        return {} if paths is None else {source: paths}

    def _open(self, source: Source, paths: Paths) -> tuple[Manifest, list[str]]:
        manifest, problems = read_manifest(paths)
        columns = self._selection(source).columns
        problems += [*find_mismatches(manifest, columns), *find_tokenizer_problems(columns)]
        problems += find_unknown(manifest, self._keep) if source == "predict" else []
        if self._filter is not None and source != "predict":
            problems += self._filter.find_problems(manifest)
            if not problems and manifest.files:
                return self._filter_rows(source, manifest, self._filter)
        if not manifest.files and not problems:
            problems.append(f"no file of {paths} has any row; write the data again, or name other files")
        return manifest, problems

    def _filter_rows(self, source: Source, manifest: Manifest, row_filter: RowFilter) -> tuple[Manifest, list[str]]:
        leave = source == "train" and self._skip_limit is not None
        threads = self._read_threads or default_read_threads()
        kept = apply_filter(manifest, row_filter, threads, leave_corrupt=leave)
        log.info("%s: the filter keeps %d of %d rows (%s)", source, kept.rows, manifest.rows, row_filter)
        return kept, [] if kept.rows else [f"the filter keeps none of {manifest.rows} rows ({row_filter}); relax it"]

    def _selection(self, source: Source) -> Selection:
        return Selection.of(self._schema, labels=source != "predict")

    # --------------------------------------------------------------------------------------------------------- loaders

    def train_dataloader(self) -> OrcLoader | MixedLoader:
        order = self._order
        if self.trainer is not None and self.trainer.overfit_batches > 0:  # type: ignore[attr-defined]
            order = replace(order, shuffle=False)  # the same batches in every epoch
        names = self._names("train")
        if not names:
            return self._load_train("train", order, self._epochs_of_trainer())
        shares = share_out(self._mix or dict.fromkeys(names, 1.0), order.batch_size, order.streams)
        log.info("train: a batch holds %s", ", ".join(f"{rows} rows of {name}" for name, rows in shares.items()))
        loaders = {
            name: self._load_train(f"train/{name}", replace(order, batch_size=shares[name]), {}) for name in names
        }
        return MixedLoader(loaders, self._mix_until, **self._epochs_of_trainer())

    def _load_train(self, key: str, order: Order, epochs: dict[str, Any]) -> OrcLoader:
        loader = self._load("train", key, order, epochs)
        self._log_over_decode(key, loader.manifest, order)
        if order.drop_last:
            rows, kept = loader.manifest.rows, len(loader) * order.batch_size
            if not kept:
                raise DataError(
                    f"{key}: {rows} rows do not fill one batch of {order.batch_size}, and drop_last drops the "
                    "last; set a smaller batch_size, or drop_last=False"
                )
            log.info("%s: drop_last leaves out %d of %d rows an epoch", key, rows - kept, rows)
        return loader

    def _log_over_decode(self, key: str, manifest: Manifest, order: Order) -> None:
        """Say where stripes are so large that decoding them several times may cost more than reading them once."""
        if MOST_UNPACKED * sum(file.nbytes for file in manifest.files) <= self._prefetch_bytes:
            return  # all of them are kept
        factor = EpochPlan(manifest.stripe_rows, order, 0).over_decode(order.streams_of(*self._place()))
        if factor > 1.2:
            log.info(
                "%s: stripes are large (%d in %d streams), and up to %.1f rows are decoded for each that is used; "
                "stripes of 8 MB (recis data convert), or fewer streams, make it less",
                key,
                len(manifest.stripe_rows),
                order.streams,
                factor,
            )

    def _names(self, source: Source) -> list[str]:
        """What the sources of a mix are called; none where there is one."""
        paths = self._paths[source]
        return list(paths) if isinstance(paths, Mapping) else []

    def val_dataloader(self) -> OrcLoader | ChainedLoader:
        return self._evaluate("validation")

    def test_dataloader(self) -> OrcLoader | ChainedLoader:
        return self._evaluate("test")

    def _evaluate(self, source: Source) -> OrcLoader | ChainedLoader:
        names = self._names(source)
        if not names:
            return self._load(source, source)
        return ChainedLoader({name: self._load(source, f"{source}/{name}") for name in names})

    def predict_dataloader(self) -> OrcLoader:
        return self._load("predict", "predict")

    def kept_rows(self) -> KeptRows:
        """The columns to keep of this rank's predict rows, batch by batch."""
        rank, world_size = self._place()
        order = self._evaluation_order(world_size)
        return KeptRows(self._manifests["predict"], self._keep, order, order.streams_of(rank, world_size))

    def _load(
        self, source: Source, key: str, order: Order | None = None, epochs: dict[str, Any] | None = None
    ) -> OrcLoader:
        day = self._take_day(source) if source in ("train", "validation") else None
        if self._paths[source] is None and day is None:
            given = ", ".join(name for name, paths in self._paths.items() if paths is not None) or "none"
            raise DataError(f"there are no data for {source}, only for: {given}; give {source}=<folder>")
        if key not in self._manifests:
            raise RuntimeError(f"the {source} data are not read yet; call setup() first, as a Trainer does")
        rank, world_size = self._place()
        training = order is not None
        # The sources of a mix are read at the same time, each its share of a batch.
        share = 1.0 if order is None else order.batch_size / self._order.batch_size
        loader = OrcLoader(
            self._manifests[key],
            self._selection(source),
            order or self._evaluation_order(world_size),
            rank=rank,
            world_size=world_size,
            read_threads=self._read_threads,
            prefetch=self._prefetch,
            prefetch_bytes=max(1, int(self._prefetch_bytes * share)),
            checks=self._checks[key],
            day=None if day is None else day.name,
            skip_limit=self._skip_limit if training else None,
            on_skips=self._log_skips if training else lambda skips: None,
            device=None if self._names(source) else self._device(),  # a mix is joined on the CPU
            **(epochs or {}),
        )
        if day is not None and source in self._day_loaders:
            past = self._day_loaders.pop(source)
            past.close()
            self._loaders.remove(past)
        if day is not None:
            self._day_loaders[source] = loader
        self._loaders.append(loader)
        return loader

    def _device(self) -> torch.device:
        """Where the Trainer trains."""
        trainer: Any = self.trainer
        return torch.device("cpu") if trainer is None else trainer.strategy.root_device

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """A batch that is on its way to the GPU is waited for by what is launched next, and by nobody else."""
        if isinstance(batch, Batch):
            return receive(batch, device)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def _log_skips(self, skips: Skips) -> None:
        """Say at the end of an epoch, in the log and to the loggers, what was left out."""
        log.warning("train: %d corrupt stripes were left out, %d rows", len(skips.stripes), skips.rows)
        trainer: Any = self.trainer
        for logger in trainer.loggers if trainer is not None else ():
            logger.log_metrics({"train/skipped_rows": float(skips.rows)}, step=trainer.global_step)

    def _evaluation_order(self, world_size: int) -> Order:
        """File order, each rank its own stretch of it; windows of one stripe, as there is nothing to shuffle."""
        batch_size = -(-self._order.batch_size // world_size) * world_size
        return Order(batch_size=batch_size, streams=world_size, window_rows=1, shuffle=False)

    def _place(self) -> tuple[int, int]:
        """Rank and world size among those that read different data."""
        settings = getattr(self.trainer, "distributed_sampler_kwargs", None) or {}
        return settings.get("rank", 0), settings.get("num_replicas", 1)

    def _epochs_of_trainer(self) -> dict[str, Any]:
        """What the Trainer knows of epochs, asked when one begins."""
        trainer: Any = self.trainer
        if trainer is None:
            return {}
        return {"first_epoch": lambda: trainer.current_epoch, "epoch_limit": lambda: trainer.num_training_batches}

    def teardown(self, stage: str) -> None:
        """End all threads."""
        for loader in self._loaders:
            loader.close()
        self._loaders.clear()
        self._day_loaders.clear()


def _read_schema(schema: Schema | Mapping[str, Any] | str | os.PathLike[str]) -> Schema:
    if isinstance(schema, str | os.PathLike):
        path = Path(expand_variables(os.fspath(schema)))
        if not path.is_file():
            raise DataError(f"the schema {path} is no file; name a YAML file with columns, features, tables and tasks")
        schema = yaml.safe_load(path.read_text())
        if not isinstance(schema, Mapping):
            raise DataError(f"the schema {path} holds {type(schema).__name__}, need a mapping with columns, ...")
    return Schema.from_dict(schema)
