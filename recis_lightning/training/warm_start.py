"""Weights that a run begins with: an ordered list of places to take tables and dense weights from.

    model:
      warm_start:
        - path: yesterday.ckpt
          exclude: ["network.head.*"]
        - path: vectors/items.parquet
          rename: {tables.items: tables.item}
          clear: false                          # on top of yesterday's rows

In a file or checkpoint, and in a model, a table is called `tables.<name>`, and a dense weight what it is called in the
state_dict. Of entries that fill one name the last one counts, as in RecIS's model bank. Files that table declarations
name (`pretrained`) come first. Nothing of it happens where a checkpoint is loaded.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from itertools import zip_longest
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from recis_lightning.embedding.exchange import owned_shards
from recis_lightning.paths import expand_path
from recis_lightning.schema import Schema, did_you_mean, find_changed_hashes, find_changed_transforms
from recis_lightning.tables import DynamicTable
from recis_lightning.tables.transfer import fill_table
from recis_lightning.training.dense_shards import cut_state, cut_tensor
from recis_lightning.training.files import CheckpointError
from recis_lightning.training.ranks import Ranks
from recis_lightning.training.weight_files import TABLE, MatrixRows, SavedTable, Weights, open_weights

SHOWN = 12  # names in a message


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """One place to begin from, and what to take from it."""

    path: str
    """A checkpoint (folder or URL), a file or folder of `recis tables export`, any Parquet, ORC or safetensors file of
    ids and vectors, a folder of RecIS, a state_dict saved by torch or safetensors. `${NAME}` is an environment
    variable. The table of a file of rows is called as the file: `items.parquet` holds tables.items."""
    include: tuple[str, ...] = ("*",)
    """Which of its names to take; `*` stands for any characters: tables.* for tables alone."""
    exclude: tuple[str, ...] = ()
    """Which of these not to take."""
    rename: dict[str, str] = field(default_factory=dict)
    """What a name of it is called here, `{"tables.video_*": "tables.item_*"}`; the first pattern that fits counts. A
    matrix that becomes a table, `{"emb.weight": "tables.item"}`, gives the ids 0, 1, 2, ... its rows."""
    reset_optimizer: bool = False
    """Take embeddings and weights alone: the optimizer's state, last steps and counts begin anew."""
    clear: bool = True
    """Forget what a table holds from entries before; where not, its ids go on top of theirs."""
    id: str = "ids"
    """Of a file of rows, the column of ids."""
    vector: str = "weight"
    """And that of vectors."""

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            patterns = getattr(self, name)
            if isinstance(patterns, str) or not all(isinstance(pattern, str) for pattern in patterns):
                raise CheckpointError(f"warm_start: {name} is {patterns!r}, need a list of names: [tables.*]")
            object.__setattr__(self, name, tuple(patterns))
        if not isinstance(self.rename, Mapping) or not all(isinstance(target, str) for target in self.rename.values()):
            raise CheckpointError(f"warm_start: rename is {self.rename!r}, need a mapping of names: {{theirs: ours}}")
        for name in ("reset_optimizer", "clear"):
            if not isinstance(getattr(self, name), bool):
                raise CheckpointError(f"warm_start: {name} is {getattr(self, name)!r}, need true or false")


def read_entries(entries: Iterable[WarmStart | Mapping[str, Any]]) -> list[WarmStart]:
    """Entries as a recipe has them, `{path: x.ckpt, include: [tables.*]}`; CheckpointError for what is none."""
    known, found = [each.name for each in fields(WarmStart)], []
    for number, entry in enumerate(entries):
        if isinstance(entry, WarmStart):
            found.append(entry)
            continue
        if not isinstance(entry, Mapping) or not isinstance(entry.get("path"), str):
            raise CheckpointError(f"warm_start[{number}] is {entry!r}, need a mapping with a path")
        for name in entry:
            if name not in known:
                raise CheckpointError(f"warm_start[{number}] has no option '{name}'{did_you_mean(name, known)}")
        found.append(WarmStart(**entry))
    return found


@dataclass
class Taken:
    """What an entry gave, and what it did not."""

    entry: WarmStart
    rows: dict[str, int] = field(default_factory=dict)
    """Of each table it filled, how many rows, of all ranks together."""
    dense: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """Names of it, as they are called here, that this model does not have."""

    def describe(self) -> str:
        tables = ", ".join(f"{name} ({count:,} rows)" for name, count in self.rows.items())
        dense = f"{len(self.dense)} dense weights" if self.dense else ""
        lines = [f"begins from '{self.entry.path}': {', '.join(filter(None, (tables, dense))) or 'nothing'}"]
        if self.left:
            lines.append(f"  left, since nothing here is called so: {_listed(self.left)}")
        return "\n".join(lines)


@dataclass
class Report:
    """What a warm start did."""

    taken: list[Taken]
    unfilled: list[str]
    """Names of the model that no entry filled: they begin as new."""

    def describe(self) -> str:
        lines = [taken.describe() for taken in self.taken]
        if self.unfilled:
            lines.append(f"begin as new: {_listed(self.unfilled)}")
        return "\n".join(lines)


class BeginWarm(Callback):
    """Fills tables and dense weights as declared: once, before the first batch of whatever runs first.

    Where several ranks share the tables, each takes the ids that it owns. Not where a checkpoint was loaded: then
    everything is that one's, and the files need not be there any more.
    """

    def __init__(self, entries: Iterable[WarmStart | Mapping[str, Any]]) -> None:
        self.entries = read_entries(entries)
        self.is_done = False

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.is_done or trainer.ckpt_path is not None:
            return
        self.is_done = True
        optimizers = trainer.optimizers
        ranks: Ranks = trainer.strategy.ranks  # type: ignore[attr-defined]
        report = warm_start(pl_module, self.entries, optimizers[0] if optimizers else None, ranks)
        if self.entries:
            rank_zero_info(report.describe())

    on_sanity_check_start = on_train_start = on_validation_start = on_test_start = on_predict_start = _begin


def warm_start(
    module: Any, entries: Sequence[WarmStart], optimizer: Any | None = None, ranks: Ranks | None = None
) -> Report:
    """Fill a RecModule's tables and dense weights from the entries, and from what its tables declare as pretrained.

    With ``optimizer``, the CompositeOptimizer that trains it, the state of dense parameters is taken too. All ranks
    call it. Raises CheckpointError, naming entry and weight, where something does not fit.
    """
    ranks = ranks or Ranks()
    labelled = [(f"pretrained vectors of table '{name}'", entry) for name, entry in pretrained_entries(module)]
    labelled += [(f"warm_start[{number}]", entry) for number, entry in enumerate(entries)]
    shards = owned_shards(ranks.rank, ranks.world_size)
    own, *others = ranks.together(lambda: _Filling(module, labelled, shards).carry_out(optimizer))
    for number, taken in enumerate(own.taken):
        for name in taken.rows:
            taken.rows[name] += sum(other.taken[number].rows[name] for other in others)
    return own


def pretrained_entries(module: Any) -> Iterator[tuple[str, WarmStart]]:
    """The files that declarations of tables name, by table, as entries."""
    for table in module.schema.tables:
        its = table.pretrained
        if its is not None and not len(module.tables[table.name]):  # what is trained must not be overwritten
            rename = {"*": TABLE + table.name}
            yield (
                table.name,
                WarmStart(path=its.path, rename=rename, reset_optimizer=True, id=its.id, vector=its.vector),
            )


@dataclass
class _Source:
    """An entry, what lies at its path, and which of its names fill which of the model's."""

    label: str
    entry: WarmStart
    weights: Weights
    names: dict[str, str] = field(default_factory=dict)
    """Its own name of each name of the model."""


class _Filling:
    """Fills the share of one rank."""

    def __init__(self, module: Any, entries: Sequence[tuple[str, WarmStart]], shards: tuple[int, int]) -> None:
        self.module, self.shards = module, shards
        self.tables: dict[str, DynamicTable] = {TABLE + name: table for name, table in module.tables.items()}
        self.dense = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
        self.entries = entries

    def carry_out(self, optimizer: Any | None) -> Report:
        sources = [_open(label, entry) for label, entry in self.entries]
        report = Report([self._match(source) for source in sources], [])
        self._let_last_win(sources)
        self._check(sources)
        for source in sources:
            self._check_ids(source)
        for source, taken in zip(sources, report.taken, strict=True):
            taken.rows = self._fill_tables(source)
            taken.dense = [name for name in self.dense if name in source.names]
        self._fill_dense(sources, optimizer)
        filled = {name for source in sources for name in source.names}
        report.unfilled = [name for name in (*self.tables, *self.dense) if name not in filled]
        return report

    # --------------------------------------------------------------------------------------------------------- names

    def _match(self, source: _Source) -> Taken:
        """Find out which names of the model a source fills; those it has besides are told."""
        taken = Taken(source.entry)
        for name, target in _chosen(source):
            if target in source.names:
                raise CheckpointError(
                    f"{source.label}: '{source.names[target]}' and '{name}' of '{source.weights.path}' both become "
                    f"'{target}'; exclude one of them"
                )
            if target in self.tables or target in self.dense:
                source.names[target] = name
            elif name in source.entry.include or target in source.entry.rename.values():
                raise CheckpointError(
                    f"{source.label}: '{name}' is asked for, and this model has no '{target}'"
                    f"{did_you_mean(target, [*self.tables, *self.dense])}"
                )
            else:
                taken.left.append(target)
        return taken

    def _let_last_win(self, sources: Sequence[_Source]) -> None:
        """Of several sources of a name keep the last, and those that go on top of it."""
        for target in {name for source in sources for name in source.names}:
            offering = [source for source in sources if target in source.names]
            clearing = [source for source in offering if source.entry.clear or target in self.dense]
            for source in offering[: offering.index(clearing[-1]) if clearing else 0]:
                del source.names[target]

    def _check(self, sources: Sequence[_Source]) -> None:
        """CheckpointError that lists all that does not fit, before anything is changed."""
        problems = [
            f"{source.label}: {problem}"
            for source in sources
            for target, name in source.names.items()
            for problem in self._misfits(source, target, name)
        ]
        if problems:
            shown = problems[:SHOWN] + ([f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else [])
            raise CheckpointError("the weights to begin from do not fit this model:\n  - " + "\n  - ".join(shown))

    def _misfits(self, source: _Source, target: str, name: str) -> Iterator[str]:
        weights, advice = source.weights, f"exclude '{name}', or rename it"
        is_table = target in self.tables
        if (saved := weights.tables.get(name)) is not None:
            if not is_table:
                yield f"'{name}' of '{weights.path}' is a table, '{target}' is none here; {advice}"
            else:
                yield from _table_misfits(source, name, saved, self.tables[target])
            return
        shape = list(weights.dense[name].shape)
        if is_table and (len(shape) != 2 or shape[1] != self.tables[target].dim):
            yield (
                f"'{name}' of '{weights.path}' has shape {shape}; table '{target.removeprefix(TABLE)}' takes a matrix "
                f"[ids, {self.tables[target].dim}] whose row i is that of id i; {advice}"
            )
        elif not is_table and shape != list(self.dense[target].shape):
            here = list(self.dense[target].shape)
            yield f"'{name}' of '{weights.path}' has shape {shape}, '{target}' here has {here}; {advice}"

    # -------------------------------------------------------------------------------------------------------- filling

    def _fill_tables(self, source: _Source) -> dict[str, int]:
        """Load this rank's rows of a source; how many of each table."""
        saved = {target: self._saved(source, name) for target, name in source.names.items() if target in self.tables}
        if source.entry.clear:
            for target in saved:
                self.tables[target].clear()
        later = self._set_clocks(saved, source.entry.reset_optimizer)
        rows = {}
        for target, its in saved.items():
            try:
                rows[target] = fill_table(
                    self.tables[target],
                    its.open(self.shards),
                    ids=source.entry.id if its.named_columns else "ids",
                    vector=source.entry.vector if its.named_columns else "weight",
                    optimizer=not source.entry.reset_optimizer,
                    shards=self.shards,
                    later=later[target],
                )
            except ValueError as error:
                raise CheckpointError(f"{source.label}: {error}") from error
        return rows

    def _saved(self, source: _Source, name: str) -> SavedTable:
        weights, entry = source.weights, source.entry
        if name in weights.tables:
            return weights.tables[name]
        matrix = MatrixRows(weights.path, weights.dense[name], entry.id, entry.vector)
        return SavedTable(lambda shards: [matrix], named_columns=True)

    def _set_clocks(self, saved: Mapping[str, SavedTable], reset: bool) -> dict[str, int]:
        """Let tables go on from the steps they come with; by how many steps their rows' last ones are told later.

        Tables of a group have one clock, which evictions by age go by. Where sources stood at different steps, ages
        stay what they were.
        """
        later: dict[str, int] = {}
        for group in {id(self.tables[target].group): self.tables[target].group for target in saved}.values():
            mine = {target: its for target, its in saved.items() if self.tables[target].group is group}
            clock = 0 if reset else max(its.step or 0 for its in mine.values())
            group.pass_steps(clock - (group.clock - 1))
            if not reset:
                for target, its in mine.items():
                    self.tables[target].step = max(self.tables[target].step, its.step or 0)
            later |= dict.fromkeys(mine, group.clock - 1 - clock)
        return later

    def _fill_dense(self, sources: Sequence[_Source], optimizer: Any | None) -> None:
        values: dict[str, Tensor] = {}
        for source in sources:
            values |= {target: source.weights.dense[name] for target, name in self._dense_names(source)}
        if values:
            self.module.load_state_dict(cut_state(values, self.module), strict=False)
        dense = getattr(optimizer, "dense", None)
        for source in sources:
            if dense is not None and not source.entry.reset_optimizer:
                self._fill_state(source, dense)

    def _fill_state(self, source: _Source, dense: Any) -> None:
        weights, parameters = source.weights, dict(self.module.named_parameters())
        found = {
            target: weights.dense_state[name]
            for target, name in self._dense_names(source)
            if name in weights.dense_state and target in parameters and parameters[target].requires_grad
        }
        if found and weights.dense_optimizer != type(dense).__name__:
            raise CheckpointError(
                f"{source.label}: '{weights.path}' holds the state of the dense optimizer {weights.dense_optimizer}, "
                f"this run's is {type(dense).__name__}; leave the state out with reset_optimizer: true"
            )
        for target, slots in found.items():
            parameter = parameters[target]
            dense.state[parameter] = {key: cut_tensor(_copied(value), parameter) for key, value in slots.items()}

    def _dense_names(self, source: _Source) -> list[tuple[str, str]]:
        return [(target, name) for target, name in source.names.items() if target in self.dense]

    def _check_ids(self, source: _Source) -> None:
        if source.weights.schema is None or not any(target in self.tables for target in source.names):
            return
        saved = Schema.from_dict(source.weights.schema)
        if hashes := find_changed_hashes(saved.columns, self.module.schema.columns):
            listed = "\n".join(f"  - {change}" for change in hashes)
            raise CheckpointError(
                f"{source.label}: rows of '{source.weights.path}' belong to other ids than those this model reads:\n"
                f"{listed}\nGive the hash they were trained with, or take no tables: exclude ['tables.*']"
            )
        if changes := find_changed_transforms(saved.features, self.module.schema.features):
            listed = "\n".join(f"  - {change}" for change in changes)
            rank_zero_warn(
                f"{source.label}: transforms are others than those that '{source.weights.path}' was trained with, so "
                f"its rows may be those of other ids:\n{listed}"
            )


def _open(label: str, entry: WarmStart) -> _Source:
    try:
        weights = open_weights(expand_path(entry.path), entry.id, entry.vector)
    except ValueError as error:
        raise CheckpointError(f"{label}: {error}") from error
    for option, patterns in (("include", entry.include), ("exclude", entry.exclude), ("rename", entry.rename)):
        for pattern in patterns:
            is_wide = option == "exclude" and "*" in pattern  # says what is not wanted, be it there or not
            if not is_wide and pattern != "*" and not any(fnmatchcase(name, pattern) for name in weights.names):
                meant = did_you_mean(pattern, weights.names)
                raise CheckpointError(f"{label}: {option} '{pattern}' fits nothing in '{entry.path}'{meant}")
    return _Source(label, entry, weights)


def _chosen(source: _Source) -> Iterator[tuple[str, str]]:
    """The names that an entry takes, and what each is called here."""
    entry = source.entry
    for name in source.weights.names:
        is_taken = any(fnmatchcase(name, pattern) for pattern in entry.include)
        if is_taken and not any(fnmatchcase(name, pattern) for pattern in entry.exclude):
            yield name, _renamed(source.label, entry.rename, name)


def _renamed(label: str, rename: Mapping[str, str], name: str) -> str:
    """{"tables.video_*": "tables.item_*"} makes tables.item_id of tables.video_id."""
    for pattern, target in rename.items():
        if target.count("*") > pattern.count("*"):
            raise CheckpointError(f"{label}: rename '{pattern}': '{target}' has more stars than that; let them agree")
        if match := re.fullmatch(re.escape(pattern).replace(r"\*", "(.*)"), name):
            parts = match.groups()
            return "".join(
                text + part for text, part in zip_longest(target.split("*"), parts[: target.count("*")], fillvalue="")
            )
    return name


def _table_misfits(source: _Source, name: str, saved: SavedTable, table: DynamicTable) -> Iterator[str]:
    where = f"table '{name.removeprefix(TABLE)}' of '{source.weights.path}'"
    if saved.dim is not None and saved.dim != table.dim:
        yield (
            f"{where} has dim {saved.dim}, table '{table.name}' here has {table.dim}; exclude '{name}', or rename it "
            "to a table of its width"
        )
    state = table.group.state_slices
    if saved.state and state and set(saved.state) != set(state) and not source.entry.reset_optimizer:
        yield (
            f"{where} has the optimizer state {', '.join(saved.state)}, table '{table.name}' is updated by "
            f"{table.optimizer.kind}, with {', '.join(state)}; leave the state out with reset_optimizer: true"
        )


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
