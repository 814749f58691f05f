"""Does a schema fit the files? Asked of every file's tail before training, all mistakes in one error."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from recis_lightning.data.files.manifest import Manifest, OrcFile
from recis_lightning.data.sources import KEY, VALUE, file_column, follow_type
from recis_lightning.schema import Column, did_you_mean

ARROW_TYPES: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
    "binary": pa.binary(),
}
_NAMES = {dtype: name for name, dtype in ARROW_TYPES.items()}


def find_mismatches(manifest: Manifest, columns: Sequence[Column]) -> Iterator[str]:
    """Every column that is missing in some file, or not stored as declared; one message for each kind of mistake."""
    for column in columns:
        wrong: dict[str, list[OrcFile]] = defaultdict(list)
        for file in manifest.files:
            problem = _find_mismatch(file.columns, column)
            if problem is not None:
                wrong[problem].append(file)
        for problem, files in wrong.items():
            hint = did_you_mean(file_column(column, files[0].columns)[0], files[0].columns)
            where = f"in {_describe_files(files, len(manifest.files))}"
            yield problem.replace(_WHERE, where).replace(_HINT, hint)


_WHERE, _HINT = "<where>", "<hint>"  # put in once it is known which files share a problem


def _find_mismatch(types: Mapping[str, pa.DataType], column: Column) -> str | None:
    """What is wrong with one column in files of these types."""
    name, parts = file_column(column, types)
    if name not in types:
        wanted = f"column '{name}'" + (f" (source of '{column.name}')" if name != column.name else "")
        return f"{wanted} is missing {_WHERE}{_HINT}"
    found = follow_type(types[name], parts)
    if found is None:
        return (
            f"column '{column.name}': source '{column.source}' leads nowhere {_WHERE}, where '{name}' is "
            f"{_describe_type(types[name])}; name a field of a struct, or key or value of a map or of pairs"
        )
    if _is_stored_as(found, column):
        return None
    return (
        f"column '{column.name}' is {_describe_type(found)} {_WHERE}, "
        f"need {_describe(column)} as declared; {_advise(column, found)}"
    )


def _stored_levels(column: Column) -> int:
    """How many lists are around a value in the file."""
    if column.layout == "scalar" or column.split is not None:
        return 0
    return column.levels if column.layout == "nested_list" else 1


def _is_stored_as(found: pa.DataType, column: Column) -> bool:
    for _ in range(_stored_levels(column)):
        if not pa.types.is_list(found):
            return False
        found = found.value_type
    return _type_name(found) == column.dtype


def _type_name(dtype: pa.DataType) -> str | None:
    """What a schema calls a type; None where it has no name for it."""
    if pa.types.is_timestamp(dtype) or pa.types.is_date(dtype):
        return "timestamp"
    return "decimal" if pa.types.is_decimal(dtype) else _NAMES.get(dtype)


def stored_type(column: Column) -> pa.DataType:
    """The type to write a column as, for files that fit its declaration."""
    kinds = {"timestamp": pa.timestamp("ns"), "decimal": pa.decimal128(18, 6)}
    dtype = kinds.get(column.dtype) or ARROW_TYPES[column.dtype]
    for _ in range(_stored_levels(column)):
        dtype = pa.list_(dtype)
    return dtype


def _describe_files(files: Sequence[OrcFile], total: int) -> str:
    if len(files) == 1:
        return files[0].path
    return f"{len(files)} of {total} files ({files[0].path}, ...)" if len(files) < total else f"all {total} files"


def _describe(column: Column) -> str:
    return "a list of " * _stored_levels(column) + column.dtype


def _describe_type(found: pa.DataType) -> str:
    if pa.types.is_list(found):
        return f"a list of {_describe_type(found.value_type)}"
    return _NAMES.get(found, str(found))


def _advise(column: Column, found: pa.DataType) -> str:
    """What to write into the schema, where it can be read at all."""
    levels = 0
    while pa.types.is_list(found):
        found, levels = found.value_type, levels + 1
    dtype = _type_name(found)
    if dtype is None:
        parts = [KEY, VALUE] if pa.types.is_map(found) else [field.name for field in _fields(found)]
        if parts:
            return f"declare a column of one of its parts, such as source: {column.source or column.name}.{parts[0]}"
        return "this type can't be read; store the column otherwise"
    changes = [] if dtype == column.dtype else [f"dtype: {dtype}"]
    if dtype != column.dtype and "timestamp" in (dtype, column.dtype):
        changes.append("unit: s" if dtype == "timestamp" else "no unit")
    if levels != _stored_levels(column):
        more = f"layout: nested_list (of {levels} levels)"
        changes.append(
            ["layout: scalar", "layout: list (or optional_list where a row has one value at most)", more][
                min(levels, 2)
            ]
        )
    return f"declare {' and '.join(changes)}, or write the files again"


def _fields(dtype: pa.DataType) -> list[pa.Field]:
    return [dtype.field(index) for index in range(dtype.num_fields)] if pa.types.is_struct(dtype) else []
