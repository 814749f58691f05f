"""Score rows with an exported model: needs torch and NumPy, and nothing of recis-lightning.

    scorer = Scorer("exported")
    scorer.score({"user_id": [7, None], "device": ["phone", "tablet"], "tags": [[1, 2], []]})
    -> {"ctr": array([0.031, 0.027], dtype=float32)}

    python exported/scorer.py < rows.jsonl > scores.jsonl        one JSON object a line: column -> value

A column is a sequence or an array: numbers, strings, or lists for list columns. None and NaN are missing values: of ids
no id, of numbers the default that the schema declares. An id that training has not seen has no row, and reads zeros.

B rows of a request, N values of a column, D width of a table's rows, U rows of a table.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triton_ops.hash_bytes.reference import HASHES

FORMAT = 1
PADDING = 4  # rows, of one value each; graphs take that many of everything and more
LARGEST_WHOLE = 2**24  # beyond it float32 does not hold every whole number


class Lists(NamedTuple):
    """A list column as two arrays, which is faster than lists: values [1, 2, 3], offsets [0, 2, 2, 3] -> 3 rows."""

    values: NDArray[Any]
    offsets: NDArray[np.int64]


Values = Sequence[Any] | NDArray[Any] | Lists


class Scorer:
    """The model in a folder that `recis export` wrote; safe to call from several threads.

    Tables are mapped, not read: the operating system reads the pages that lookups touch, and processes share them.
    """

    def __init__(self, folder: str | Path) -> None:
        root = Path(folder)
        self.manifest: dict[str, Any] = json.loads((root / "manifest.json").read_text())
        if self.manifest["format"] != FORMAT:
            raise ValueError(f"{root} has format {self.manifest['format']}, this scorer reads {FORMAT}; take its own")
        self._features, self._scores = _load(root / "features.pt2"), _load(root / "scores.pt2")
        self._tables = {name: Table(root / "tables" / f"{name}.safetensors") for name in self.manifest["tables"]}

    def score(self, rows: Mapping[str, Values]) -> dict[str, NDArray[Any]]:
        """The scores [B] of each task; ValueError where a column is missing or does not fit, naming column and row."""
        columns, count = self._read(rows)
        with torch.no_grad():
            features, misfits = self._features(_pad(columns))
            self._refuse(misfits, count)
            dense, embedded = self._look_up(features)
            return {task: scores[:count].numpy() for task, scores in self._scores(dense, embedded).items()}

    def _read(self, rows: Mapping[str, Values]) -> tuple[dict[str, Any], int]:
        columns: dict[str, Any] = {}
        counts: dict[str, int] = {}
        for column in self.manifest["columns"]:
            name = column["name"]
            if name not in rows:
                raise ValueError(f"column '{name}' is missing; the model reads {_listed(self.manifest['columns'])}")
            columns[name], counts[name] = READERS[column["form"]](column, rows[name])
        if len(set(counts.values())) > 1:
            raise ValueError(f"the columns have unequal numbers of rows: {counts}")
        for group in self.manifest["aligned"]:
            for name in group[1:]:
                lengths, others = columns[group[0]]["offsets"].diff(), columns[name]["offsets"].diff()
                if not torch.equal(lengths, others):
                    row = int((lengths != others).nonzero()[0])
                    found = f"{int(lengths[row])} values in '{group[0]}', {int(others[row])} in '{name}'"
                    raise ValueError(f"row {row} has {found}; these columns go together, value by value")
        return columns, next(iter(counts.values()))

    def _refuse(self, misfits: Tensor, count: int) -> None:
        """ValueError for a value that a transform has no result for, as in training."""
        for look, row in zip(self.manifest["looks"], misfits.tolist(), strict=True):
            if row < count:  # beyond it are rows of padding, or none
                raise ValueError(f"{look['where']}, row {row} has no result, need {look['need']}")

    def _look_up(self, features: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """Put the rows of the tables in the place of ids."""
        dense: dict[str, Tensor] = {}
        embedded: dict[str, dict[str, Tensor]] = {}
        for feature in self.manifest["features"]:
            name, entry = feature["name"], features[feature["name"]]
            if feature["table"] is None:
                dense[name] = entry
            else:
                embedded[name] = {**entry, "values": self._tables[feature["table"]].rows(entry["values"])}
        return dense, embedded


def _load(path: Path) -> Any:
    """A graph; torch would warn of each size in it that data decides, and that it has simplified away."""
    logger = logging.getLogger("torch._export.serde.serialize")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return torch.export.load(path).module()
    finally:
        logger.setLevel(level)


def _pad(columns: Mapping[str, Any]) -> Mapping[str, Any]:
    """More rows where there is little of anything: to torch 0 and 1 are cases apart, of a size and of one less."""

    def size(entry: Any) -> int:
        return min(len(entry["values"]), len(entry["offsets"]) - 1) if isinstance(entry, dict) else len(entry)

    def pad(entry: Any) -> Any:
        if not isinstance(entry, dict):
            return torch.cat([entry, entry.new_zeros(PADDING)])
        values, offsets = entry["values"], entry["offsets"]
        more = len(values) + torch.arange(1, PADDING + 1)
        return {"values": torch.cat([values, values.new_zeros(PADDING)]), "offsets": torch.cat([offsets, more])}

    is_small = any(size(entry) < PADDING for entry in columns.values())
    return {name: pad(entry) for name, entry in columns.items()} if is_small else columns


class Table:
    """A table of rows by id, in a safetensors file with `ids`, rising, and `weight`."""

    KINDS = {  # NumPy has no bfloat16: its bits are copied
        "F64": (np.float64, torch.float64),
        "F32": (np.float32, torch.float32),
        "F16": (np.float16, torch.float16),
        "BF16": (np.uint16, torch.bfloat16),
        "I8": (np.int8, torch.int8),
        "I32": (np.int32, torch.int32),
        "I64": (np.int64, torch.int64),
    }

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        stored, self.dtype = self.KINDS[header["weight"]["dtype"]]
        self.ids_U = _map(path, 8 + size, header["ids"], np.int64)
        self.weight_UD = _map(path, 8 + size, header["weight"], stored)

    def rows(self, ids: Tensor) -> Tensor:
        """The rows [N, D] of ids [N], zeros where an id has none."""
        ids_N = ids.numpy()
        rows_ND = np.zeros((len(ids_N), self.weight_UD.shape[1]), self.weight_UD.dtype)
        if len(self.ids_U):
            place_N = np.minimum(np.searchsorted(self.ids_U, ids_N), len(self.ids_U) - 1)
            known_N = self.ids_U[place_N] == ids_N
            rows_ND[known_N] = self.weight_UD[place_N[known_N]]
        return torch.from_numpy(rows_ND).view(self.dtype)


def _map(path: Path, start: int, entry: Mapping[str, Any], dtype: Any) -> NDArray[Any]:
    shape = tuple(entry["shape"])
    if 0 in shape:
        return np.empty(shape, dtype)  # nothing can't be mapped
    return np.memmap(path, dtype, "r", start + entry["data_offsets"][0], shape)


# ------------------------------------------------------------------------------------------------------ reading columns


def _flatten(column: Mapping[str, Any], values: Values) -> tuple[NDArray[Any] | list[Any], NDArray[np.int64]]:
    """The values of all rows, and how many each row has; a missing row has none."""
    if isinstance(values, Lists):
        return values.values, np.diff(values.offsets).astype(np.int64)
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "biuf" and not np.ma.isMA(values):
        return values, np.ones(len(values), np.int64)
    rows = values.tolist() if isinstance(values, np.ndarray) else values
    if isinstance(rows, str | bytes):
        raise ValueError(f"column '{column['name']}' is one string; give a sequence with one entry a row")
    parts = [[] if row is None else list(row) if isinstance(row, list | tuple | np.ndarray) else [row] for row in rows]
    lengths = np.array([len(part) for part in parts], np.int64)
    if column["layout"] != "list" and len(lengths) and lengths.max() > 1:
        raise ValueError(f"column '{column['name']}', row {int(lengths.argmax())}: a list, where one value is expected")
    return [value for part in parts for value in part], lengths


def _numbers(
    column: Mapping[str, Any], values: NDArray[Any] | list[Any], convert: Callable[[Any], Any], dtype: Any
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The values as numbers, and which are there: None and NaN stand for what is missing."""
    if isinstance(values, np.ndarray) and not column["hash"] and not column["parse"]:
        is_there = ~np.isnan(values) if values.dtype.kind == "f" else np.ones(len(values), np.bool_)
        if values.dtype.kind in "biu" or dtype is np.float64:
            return values.astype(dtype), is_there
    plain = values.tolist() if isinstance(values, np.ndarray) else values
    numbers = np.zeros(len(plain), dtype)
    is_there = np.ones(len(plain), np.bool_)
    known: dict[Any, Any] = {}
    for place, value in enumerate(plain):
        if value is None or value != value:
            is_there[place] = False
            continue
        if value not in known:
            try:
                known[value] = convert(value)
            except (TypeError, ValueError, AttributeError):
                raise ValueError(
                    f"column '{column['name']}', value {place}: {value!r} is no {column['dtype']}"
                ) from None
        numbers[place] = known[value]
    return numbers, is_there


def _to_id(column: Mapping[str, Any]) -> Callable[[Any], int]:
    """How one value of an id column becomes a signed 64-bit id."""

    def hash_string(text: str) -> int:
        unsigned = HASHES[column["hash"]](text.encode())
        return unsigned - (unsigned >> 63 << 64)

    def whole(value: Any) -> int:
        number = int(value)
        if number != value or not -(2**63) <= number < 2**63:
            raise ValueError
        return number

    return hash_string if column["hash"] else (lambda text: whole(int(text))) if column["parse"] else whole


def _fill(
    column: Mapping[str, Any], numbers: NDArray[Any], is_there: NDArray[np.bool_], lengths: NDArray[np.int64]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Put the default in the place of missing values; without one leave them out."""
    missing_rows = lengths == 0
    if column["layout"] == "list":
        missing_rows[:] = False  # an empty list is one
    row_N = np.repeat(np.arange(len(lengths)), lengths)
    if column["default"] is None:
        if column["layout"] == "list" and not is_there.all():
            raise ValueError(
                f"column '{column['name']}', row {int(row_N[~is_there][0])}: a missing value in a list, and no default"
            )
        return numbers[is_there], np.bincount(row_N[is_there], minlength=len(lengths))
    numbers[~is_there] = column["default"]
    if not missing_rows.any():
        return numbers, lengths
    filled = np.full(len(lengths), column["default"], numbers.dtype)
    filled[row_N] = numbers
    return filled, np.ones(len(lengths), np.int64)


def _parts(values: NDArray[Any], lengths: NDArray[np.int64]) -> dict[str, Tensor]:
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    return {"values": torch.from_numpy(values), "offsets": torch.from_numpy(offsets)}


def read_ids(column: Mapping[str, Any], values: Values) -> tuple[dict[str, Tensor], int]:
    """Ids of any number a row, as values int64 and offsets; and the number of rows."""
    flat, lengths = _flatten(column, values)
    numbers, is_there = _numbers(column, flat, _to_id(column), np.int64)
    return _parts(*_fill(column, numbers, is_there, lengths)), len(lengths)


def _read_floats(column: Mapping[str, Any], values: Values) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    flat, lengths = _flatten(column, values)
    numbers, is_there = _numbers(column, flat, float, np.float64)
    numbers, lengths = _fill(column, numbers, is_there, lengths)
    is_whole = column["dtype"].startswith("int") or column["parse"] == "int64"
    limit = LARGEST_WHOLE if is_whole else float(np.finfo(np.float32).max)
    unfit = np.isfinite(numbers) & (np.abs(numbers) > limit)
    if unfit.any():
        raise ValueError(f"column '{column['name']}': {numbers[unfit][0]:g} is no number that float32 can stand for")
    return numbers.astype(np.float32), lengths


def read_lists(column: Mapping[str, Any], values: Values) -> tuple[dict[str, Tensor], int]:
    """Lists of numbers, as values float32 and offsets; and the number of rows."""
    numbers, lengths = _read_floats(column, values)
    return _parts(numbers, lengths), len(lengths)


def read_dense(column: Mapping[str, Any], values: Values) -> tuple[Tensor, int]:
    """One number a row, float32 [B]; and the number of rows."""
    numbers, lengths = _read_floats(column, values)
    if not (lengths == 1).all():
        row = int((lengths != 1).argmax())
        raise ValueError(f"column '{column['name']}', row {row}: the value is missing, and the schema has no default")
    return torch.from_numpy(numbers), len(lengths)


READERS: dict[str, Callable[[Mapping[str, Any], Values], tuple[Any, int]]] = {
    "ids": read_ids,
    "dense": read_dense,
    "lists": read_lists,
}


def _listed(columns: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"'{column['name']}'" for column in columns)


# ----------------------------------------------------------------------------------------------------- the command line


def main(batch_size: int = 4096) -> None:
    """Score JSON lines from the standard input."""
    scorer = Scorer(Path(__file__).parent)
    for rows in _batches(sys.stdin, batch_size):
        columns = {column["name"]: [row.get(column["name"]) for row in rows] for column in scorer.manifest["columns"]}
        scores = {task: found.tolist() for task, found in scorer.score(columns).items()}
        for place in range(len(rows)):
            print(json.dumps({task: found[place] for task, found in scores.items()}))


def _batches(lines: Iterator[str], size: int) -> Iterator[list[dict[str, Any]]]:
    rows = []
    for line in lines:
        if line.strip():
            rows.append(json.loads(line))
        if len(rows) == size:
            yield rows
            rows = []
    if rows:
        yield rows


if __name__ == "__main__":
    main()
