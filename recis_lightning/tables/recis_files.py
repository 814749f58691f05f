"""Checkpoints of RecIS as files of rows: model-000000-of-000004.safetensors and so on.

RecIS cuts a table in as many parts as there were ranks. A tensor of it is named `<table>.<slot>/part_<part>_<parts>`,
its slots are `id`, `embedding`, the optimizer's (`sparse_adamw_tf_exp_avg`, ...) and `step_filter`, and those of one
part may lie in different files. `tensorkey.json` says which table and slot a name is made of, for both may have dots.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from recis_lightning.schema import did_you_mean
from recis_lightning.tables.row_files import Chosen, TableFileError, cut_slices, read_pieces

_FILES = "model-*-of-*.safetensors"
_PART = re.compile(r"(?P<tensor>.+)/part_(?P<part>\d+)_(?P<parts>\d+)")
_STEP = re.compile(r"sparse_\w+_step\b.*")
_NAMES = {"id": "ids", "embedding": "weight", "step_filter": "last_step"}
_STATE = ("exp_avg", "exp_avg_sq", "sum")  # how RecIS's names of our state end


def find_recis_checkpoint(path: str | Path, table: str) -> "RecisTable | None":
    """A table of the RecIS checkpoint in a folder; None where the folder is none."""
    folder = Path(path)
    files = sorted(folder.glob(_FILES)) if folder.is_dir() else []
    return RecisTable(folder, files, table) if files else None


def recis_tables(path: str | Path) -> list[str]:
    """The names of the tables of the RecIS checkpoint in a folder; none where the folder is none."""
    folder = Path(path)
    internal, names = _internal_names(folder), set()
    for file in sorted(folder.glob(_FILES)):
        for key in _opened(file).keys():  # noqa: SIM118  # no mapping
            if not _STEP.fullmatch(key) and (match := _PART.fullmatch(key)):
                names.add(_table_and_slot(match["tensor"], internal.get(key))[0])
    return sorted(names)


def _internal_names(folder: Path) -> dict[str, str]:
    key_file = folder / "tensorkey.json"
    return json.loads(key_file.read_text()) if key_file.exists() else {}


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise TableFileError(f"file '{file}' cannot be read: {error}") from error


class RecisTable:
    """One table of a RecIS checkpoint, read as a `RowFile`. TableFileError where it is not there, or not whole."""

    def __init__(self, folder: Path, files: list[Path], table: str) -> None:
        self.path = str(folder)
        self.step: int | None = None
        self._parts: defaultdict[int, dict[str, tuple[Any, str]]] = defaultdict(dict)
        internal, tables, parts = _internal_names(folder), set(), 0
        for file in files:
            opened = _opened(file)
            for key in opened.keys():  # noqa: SIM118  # no mapping
                if _STEP.fullmatch(key):
                    self.step = int(opened.get_tensor(key).reshape(-1)[0])
                elif match := _PART.fullmatch(key):
                    name, slot = _table_and_slot(match["tensor"], internal.get(key))
                    tables.add(name)
                    if name == table:
                        self._parts[int(match["part"])][_our_name(slot)] = opened, key
                        parts = int(match["parts"])
        if not self._parts:
            raise TableFileError(f"the RecIS checkpoint '{folder}' has no table '{table}'{did_you_mean(table, tables)}")
        if missing := sorted(set(range(parts)) - self._parts.keys()):
            raise TableFileError(
                f"the RecIS checkpoint '{folder}' lacks part {missing[0]} of {parts} of table '{table}'; "
                "copy the files of all ranks"
            )
        self.columns = sorted(set.intersection(*(set(part) for part in self._parts.values())))

    def read(self, names: Iterable[str], chosen: Chosen | None = None) -> Iterator[dict[str, Tensor]]:
        names = list(names)
        for number in sorted(self._parts):
            slices = {
                name: opened.get_slice(key) for name, (opened, key) in self._parts[number].items() if name in names
            }
            pieces = cut_slices(slices, f"{self.path}, part {number}")
            for piece in read_pieces(pieces, names, chosen):
                if "last_step" in piece:
                    piece["last_step"] = piece["last_step"].reshape(-1)  # [N, 1], as all slots of RecIS
                yield piece


def _table_and_slot(tensor: str, internal: str | None) -> tuple[str, str]:
    """Of `item.embedding`, whose internal name is item@embedding^0@65536@65536: (item, embedding)."""
    name, _, slot = internal.split("^")[0].rpartition("@") if internal else tensor.rpartition(".")
    return name, slot


def _our_name(slot: str) -> str:
    state = next((name for name in _STATE if slot == name or slot.endswith(f"_{name}")), slot)
    return _NAMES.get(slot, f"slot.{state}")
