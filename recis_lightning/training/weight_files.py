"""What a warm start can read, by names: tables as `tables.<name>`, dense weights as a state_dict names them.

    weights = open_weights("day=1.ckpt")
    weights.tables.keys()                  # tables.user, tables.item
    weights.dense.keys()                   # network.body.0.weight, ...

A path is one of our checkpoints (local or a URL), a file or folder of rows as `recis tables export` writes them, a
checkpoint folder of RecIS, or a file of dense weights: safetensors, or what torch.save made of a state_dict.

N rows of a piece, D row width.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from safetensors import SafetensorError, safe_open
from torch import Tensor

from recis_lightning.tables.recis_files import find_recis_checkpoint, recis_tables
from recis_lightning.tables.row_files import FORMATS, PIECE_BYTES, Chosen, RowFile, open_row_files
from recis_lightning.tables.transfer import SLOT
from recis_lightning.training.checkpoint import load_dense_files, read_rows
from recis_lightning.training.files import CheckpointError, DirectoryReader, NotPlainError, load_plain

TABLE = "tables."
PICKLES = (".pt", ".pth", ".bin", ".ckpt")

Shards = tuple[int, int]


@dataclass(frozen=True)
class SavedTable:
    """A table of a file or checkpoint, and what is known of it before its rows are read."""

    open: Callable[[Shards], list[RowFile]]
    """The files of the rows in virtual shards [first, last); they may give others as well."""
    step: int | None = None
    """How many steps its optimizer had made."""
    dim: int | None = None
    state: Mapping[str, str] | None = None
    """Its optimizer's state: names and dtypes."""
    named_columns: bool = False
    """Whether its ids and vectors are in the columns that were asked for; else in `ids` and `weight`."""


@dataclass(frozen=True)
class Weights:
    """What lies at a path."""

    path: str
    tables: Mapping[str, SavedTable] = field(default_factory=dict)
    """By name, `tables.` included."""
    dense: Mapping[str, Tensor] = field(default_factory=dict)
    dense_state: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What the dense optimizer keeps of each parameter, by the parameter's name."""
    dense_optimizer: str | None = None
    """The class of that optimizer."""
    schema: Mapping[str, Any] | None = None

    @property
    def names(self) -> list[str]:
        return [*self.tables, *self.dense]


def open_weights(path: str, id: str = "ids", vector: str = "weight") -> Weights:
    """Find out what a path is, and read its names; CheckpointError or TableFileError where it is nothing of the kind.

    ``id`` and ``vector`` are the columns of ids and vectors, where it is a file of rows.
    """
    fs, root = url_to_fs(path)
    place = Path(root) if isinstance(fs, LocalFileSystem) else None
    if place is None or _is_checkpoint(place):
        return _of_checkpoint(DirectoryReader(path))
    if place.is_dir() and (found := recis_tables(place)):
        return Weights(path, {TABLE + name: SavedTable(partial(_recis_rows, place, name)) for name in found})
    if place.suffix in PICKLES:
        return Weights(path, dense=_read_pickle(place))
    if place.suffix == ".safetensors" and (dense := _read_dense(place, id)) is not None:
        return Weights(path, dense=dense)
    files = open_row_files(place)
    step = next((file.step for file in files if file.step is not None), None)
    return Weights(
        path, {TABLE + place.stem: SavedTable(lambda shards: open_row_files(place), step, named_columns=True)}
    )


def _is_checkpoint(place: Path) -> bool:
    """Whether a local path is one of our checkpoints, or what is left of one, of which its reader tells."""
    if place.is_dir():
        if (place / "manifest.json").exists() or (place / "trainer.pt").exists() or (place / "tables").is_dir():
            return True
        holds_rows = any(file.suffix.removeprefix(".") in FORMATS for file in place.iterdir())
        return not holds_rows
    return not place.exists()


# --------------------------------------------------------------------------------------------------------- checkpoints


class _CheckpointRows:
    """A table of a checkpoint as a file of rows; parts without any of the virtual shards asked for are not read."""

    def __init__(self, reader: DirectoryReader, name: str, has_state: bool, shards: Shards) -> None:
        entry = reader.manifest["tables"][name]
        self.path, self.step = reader.path, entry["step"]
        slots = [SLOT + slot for slot in entry["state"]] if has_state else []
        self.columns = ["ids", "weight", "last_step", "count", *slots]
        self._rows = lambda: read_rows(reader, name, *shards)

    def read(self, names: Iterable[str], chosen: Chosen | None = None) -> Iterator[dict[str, Tensor]]:
        names = list(names)
        for part in self._rows():
            columns = {"ids": part.ids, "weight": part.weight, "last_step": part.last_step, "count": part.count}
            columns |= {SLOT + name: slot for name, slot in part.slots.items()}
            piece = {name: columns[name] for name in names}
            yield piece if chosen is None else chosen.pick(piece)


def _checkpoint_rows(reader: DirectoryReader, name: str, has_state: bool, shards: Shards) -> list[RowFile]:
    return [_CheckpointRows(reader, name, has_state, shards)]


def _of_checkpoint(reader: DirectoryReader) -> Weights:
    dense, rest = load_dense_files(reader)
    optimizers = rest.get("optimizer_states")
    tables = {
        TABLE + name: SavedTable(
            partial(_checkpoint_rows, reader, name, optimizers is not None),
            entry["step"],
            entry["dim"],
            entry["state"] if optimizers is not None else None,
        )
        for name, entry in reader.manifest["tables"].items()
    }
    state = _state_by_name(optimizers[0].get("dense") if optimizers else None, rest.get("dense_parameters"))
    return Weights(reader.path, tables, dense, state, rest.get("dense_optimizer"), reader.manifest["schema"])


def _state_by_name(state: Mapping[str, Any] | None, names: list[str] | None) -> dict[str, Mapping[str, Any]]:
    """An optimizer's state by names of parameters, which torch numbers through all groups."""
    if state is None or names is None:
        return {}
    return {names[number]: slots for number, slots in state["state"].items()}


# -------------------------------------------------------------------------------------------------------------- others


def _recis_rows(place: Path, name: str, shards: Shards) -> list[RowFile]:
    table = find_recis_checkpoint(place, name)
    assert table is not None
    return [table]


def _read_pickle(place: Path) -> dict[str, Tensor]:
    """The tensors of a state_dict; one that Lightning or a trainer of one's own has put beside others is found."""
    try:
        content = load_plain(place.read_bytes())
    except NotPlainError as error:
        raise CheckpointError(
            f"'{place}' is refused: it holds more than tensors and plain values, or is no file of torch.save, and "
            f"nothing of it was run ({error}); save the state_dict alone, best as safetensors"
        ) from error
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    pairs = content.items() if isinstance(content, Mapping) else ()
    dense = {name: value for name, value in pairs if isinstance(value, Tensor)}
    if not dense:
        raise CheckpointError(
            f"'{place}' holds no state_dict: no mapping of names to tensors; save module.state_dict()"
        )
    return dense


def _read_dense(place: Path, id: str) -> dict[str, Tensor] | None:
    """The tensors of a safetensors file; None where it holds a table's rows, a column of ids among them."""
    try:
        with safe_open(place, framework="pt") as file:
            if id in file.keys():  # noqa: SIM118  # no mapping
                return None
        return safetensors.torch.load_file(place)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"'{place}' cannot be read: {error}") from error


class MatrixRows:
    """A matrix of a state_dict as a file of rows: row i is the embedding of id i, as in torch.nn.Embedding."""

    step: int | None = None

    def __init__(self, path: str, matrix_ND: Tensor, id: str, vector: str) -> None:
        self.path, self.columns = path, [id, vector]
        self._matrix_ND = matrix_ND

    def read(self, names: Iterable[str], chosen: Chosen | None = None) -> Iterator[dict[str, Tensor]]:
        count, width = self._matrix_ND.shape
        size = max(1, PIECE_BYTES // (8 * max(width, 1)))
        for begin in range(0, count, size):
            piece = self._matrix_ND[begin : begin + size]
            rows = dict(zip(self.columns, (torch.arange(begin, begin + len(piece)), piece), strict=True))
            yield rows if chosen is None else chosen.pick(rows)
