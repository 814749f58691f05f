"""Does a schema fit the files? Asked of every file's tail before training, all mistakes in one error."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import pyarrow as pa

from recis_lightning.data.manifest import Manifest, OrcFile
from recis_lightning.schema import Column, did_you_mean

_TYPES: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


def find_mismatches(manifest: Manifest, columns: Sequence[Column]) -> Iterator[str]:
    """Every column that is missing in some file, or not stored as declared; one message for each kind of mistake."""
    for column in columns:
        wrong: dict[pa.DataType | None, list[OrcFile]] = defaultdict(list)
        for file in manifest.files:
            found = file.columns.get(column.name)
            if found != _stored_type(column):
                wrong[found].append(file)
        for found, files in wrong.items():
            where = _describe_files(files, len(manifest.files))
            if found is None:
                yield f"column '{column.name}' is missing in {where}{did_you_mean(column.name, files[0].columns)}"
            else:
                yield (
                    f"column '{column.name}' is {_describe_type(found)} in {where}, "
                    f"need {_describe(column)} as declared; {_advise(column, found)}"
                )


def _stored_type(column: Column) -> pa.DataType:
    dtype = _TYPES[column.dtype]
    return dtype if column.layout == "scalar" else pa.list_(dtype)


def _describe_files(files: Sequence[OrcFile], total: int) -> str:
    if len(files) == 1:
        return files[0].path
    return f"{len(files)} of {total} files ({files[0].path}, ...)" if len(files) < total else f"all {total} files"


def _describe(column: Column) -> str:
    return column.dtype if column.layout == "scalar" else f"a list of {column.dtype}"


def _describe_type(found: pa.DataType) -> str:
    if pa.types.is_list(found):
        return f"a list of {_describe_type(found.value_type)}"
    return _NAMES.get(found, str(found))


def _advise(column: Column, found: pa.DataType) -> str:
    """What to write into the schema, where it can be read at all."""
    is_list = pa.types.is_list(found)
    dtype = _NAMES.get(found.value_type if is_list else found)
    if dtype is None:
        return "this type can't be read; store the column otherwise"
    changes = [] if dtype == column.dtype else [f"dtype: {dtype}"]
    if is_list and column.layout == "scalar":
        changes.append("layout: list (or optional_list where a row has one value at most)")
    if not is_list and column.layout != "scalar":
        changes.append("layout: scalar")
    return f"declare {' and '.join(changes)}, or write the files again"
