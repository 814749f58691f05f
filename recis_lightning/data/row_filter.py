"""Leave rows out: conditions on columns of the files, all of which a row must meet.

    RowFilter.parse([["label", ">=", 0], ["country", "in", ["de", "fr"]], ["user_id", "is not null"]])

A filter is counted before the first batch: one pass over its columns alone says how many rows of each stripe are kept.
Order, length, steps and resuming are then those of files that hold the kept rows only.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recis_lightning.data.errors import DataError
from recis_lightning.data.files.formats import read_stripe
from recis_lightning.data.files.manifest import Manifest
from recis_lightning.data.sources import file_column, follow, follow_type
from recis_lightning.schema import Column, did_you_mean

_COMPARE = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_MEMBER, _NULL = ("in", "not in"), ("is null", "is not null")
OPERATORS = (*_COMPARE, *_MEMBER, *_NULL)


@dataclass(frozen=True)
class Condition:
    """One comparison; a null meets none of them but `is null`."""

    column: str
    """As it is in the files, declared or not; `user.age` for a field of a struct."""
    operator: str
    value: Any = None

    def __str__(self) -> str:
        return f"{self.column} {self.operator}" + ("" if self.operator in _NULL else f" {self.value!r}")

    def find(self, types: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        """The file's column, and the parts to follow in it."""
        return file_column(Column(name=self.column, dtype="int64", source=self.column), types)

    def mask(self, array: pa.Array) -> pa.Array:
        """Which values meet it."""
        if self.operator in _NULL:
            return array.is_null() if self.operator == "is null" else array.is_valid()
        if self.operator in _MEMBER:
            found = pc.is_in(array, value_set=self.cast(array.type))
            return found if self.operator == "in" else pc.and_(pc.invert(found), array.is_valid())
        return pc.fill_null(_COMPARE[self.operator](array, self.cast(array.type)), False)

    def cast(self, dtype: pa.DataType) -> Any:
        """The value in the column's type: text for times; ArrowException where it is none of that type."""
        values = pa.array(self.value if self.operator in _MEMBER else [self.value])
        if self.operator in _MEMBER:
            return pc.cast(values, dtype)
        # Numbers are compared as they are: 0.5 is between the values of an integer column.
        return values[0] if _is_number(values.type) and _is_number(dtype) else pc.cast(values, dtype)[0]


def _is_number(dtype: pa.DataType) -> bool:
    return pa.types.is_integer(dtype) or pa.types.is_floating(dtype)


@dataclass(frozen=True)
class RowFilter:
    """Conditions that a row must all meet."""

    conditions: tuple[Condition, ...]

    @staticmethod
    def parse(conditions: Sequence[Sequence[Any]]) -> "RowFilter | None":
        """Read [column, operator, value] lists; None for no conditions, DataError for one that can't be meant."""
        parsed = []
        for each in conditions:
            is_list = isinstance(each, Sequence) and not isinstance(each, str)
            if not is_list or len(each) not in (2, 3) or not all(isinstance(part, str) for part in each[:2]):
                raise DataError(f"the filter has {each!r}; write [column, operator, value], such as [label, '>=', 0]")
            if each[1] not in OPERATORS:
                raise DataError(f"the filter has operator {each[1]!r}{did_you_mean(each[1], OPERATORS)}")
            if (len(each) == 2) != (each[1] in _NULL):
                raise DataError(f"the filter has {each!r}; '{each[1]}' takes {'no' if each[1] in _NULL else 'a'} value")
            value = each[2] if len(each) == 3 else None
            if (isinstance(value, list | tuple)) != (each[1] in _MEMBER):
                need = "a list of values" if each[1] in _MEMBER else "one value"
                raise DataError(f"the filter has {each!r}; '{each[1]}' takes {need}")
            parsed.append(Condition(each[0], each[1], tuple(value) if isinstance(value, list) else value))
        return RowFilter(tuple(parsed)) if parsed else None

    def __str__(self) -> str:
        return " and ".join(map(str, self.conditions))

    def file_columns(self, types: Mapping[str, Any]) -> list[str]:
        """The columns to read of a file."""
        return list(dict.fromkeys(condition.find(types)[0] for condition in self.conditions))

    def mask(self, batch: pa.RecordBatch) -> pa.Array:
        """Which rows are kept, bool without nulls."""
        names = dict.fromkeys(batch.schema.names)
        kept = pa.array(np.ones(batch.num_rows, np.bool_))
        for condition in self.conditions:
            name, parts = condition.find(names)
            kept = pc.and_(kept, condition.mask(follow(batch.column(name), parts)))
        return kept

    def find_problems(self, manifest: Manifest) -> Iterator[str]:
        """Conditions that some file's columns do not allow, a line each."""
        for condition in self.conditions:
            for file in manifest.files:
                problem = _find_problem(condition, file.columns)
                if problem:
                    yield f"{file.path}: the filter '{condition}' {problem}"
                    break


def _find_problem(condition: Condition, types: Mapping[str, pa.DataType]) -> str | None:
    name, parts = condition.find(types)
    dtype = follow_type(types[name], parts) if name in types else None
    if dtype is None:
        return f"needs column '{condition.column}', which is missing{did_you_mean(name, types)}"
    if pa.types.is_nested(dtype) and condition.operator not in _NULL:
        return f"compares column '{condition.column}', which is {dtype}; only single values can be compared"
    if condition.operator in _NULL:
        return None
    try:
        condition.mask(pa.nulls(1, dtype))
    except (pa.ArrowException, TypeError, ValueError):
        return f"compares column '{condition.column}', which is {dtype}, with {condition.value!r}; write a {dtype}"
    return None


def apply_filter(
    manifest: Manifest, row_filter: RowFilter, threads: int = 1, *, leave_corrupt: bool = False
) -> Manifest:
    """The manifest of the rows that are kept: one pass over the filter's columns.

    DataError where a stripe can't be decoded; with ``leave_corrupt`` it counts whole, for the reader to leave out.
    """

    def count(stripe: int) -> int:
        file, index = manifest.locate(stripe)
        try:
            batch = read_stripe(file.path, file.format, index, row_filter.file_columns(file.columns))
        except (OSError, pa.ArrowException) as error:
            if leave_corrupt:
                return file.stripe_rows[index]
            where = manifest.describe_rows(stripe, 0, file.stripe_rows[index])
            raise DataError(f"{where}: can't be decoded ({error}); copy or write the file again") from error
        return int(pc.sum(row_filter.mask(batch)).as_py() or 0)

    with ThreadPoolExecutor(threads, thread_name_prefix="recis-filter") as pool:
        kept = tuple(pool.map(count, range(len(manifest.stripe_rows))))
    return replace(manifest, kept_rows=kept, row_filter=row_filter)
