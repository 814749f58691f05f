"""What cannot be meant in columns: options that contradict each other, or that this type or layout has no use for."""

from collections.abc import Iterator

from recis_lightning.schema.declarations import Column


def check_column(column: Column, holds_ids: bool) -> Iterator[str]:
    """Every mistake of one column; ``holds_ids`` says whether some feature reads it as ids."""
    where = f"column '{column.name}'"
    yield from (f"{where} {problem}" for problem in (*_check_strings(column), *_check_types(column, holds_ids)))
    yield from (f"{where}{problem}" for problem in (*_check_lists(column), *_check_default(column, holds_ids)))
    yield from (f"{where}{problem}" for problem in _check_dropout(column, holds_ids))


def _check_strings(column: Column) -> Iterator[str]:
    ways = [name for name in ("hash", "parse", "tokenizer") if getattr(column, name) is not None]
    if column.dtype != "string":
        if ways:
            yield f"is {column.dtype}; hash, parse and tokenizer are for strings"
        if column.split is not None:
            yield f"is {column.dtype}; only strings can be split"
        return
    if len(ways) != 1:
        yield (
            "is a string; say hash: farm (or murmur) to get ids, parse: float32 (or int64) to get numbers, "
            "or tokenizer: <file> to get token ids"
        )
    if column.tokenizer is not None and column.layout != "scalar":
        yield "is a list of strings; a tokenizer is for one string a row"
    if column.split is not None and column.layout not in ("list", "optional_list", "vector"):
        yield f"is split into lists, but its layout is {column.layout}; declare layout: list"


def _check_types(column: Column, holds_ids: bool) -> Iterator[str]:
    if (column.dtype == "timestamp") != (column.unit is not None):
        yield (
            f"is {column.dtype} and its unit is {column.unit}; a timestamp has one: ns, us, ms, s, minutes, hours or "
            "days; others have none"
        )
    if column.dtype == "binary":
        if column.layout != "scalar":
            yield f"is binary, its layout is {column.layout}; a row holds one string of bytes, declare layout: scalar"
        if holds_ids:
            yield "is binary, but a feature reads it as ids; decode it by a custom transform that takes numbers"
        if column.default is not None:
            yield "is binary; what is missing is an empty row, so leave default out"
    if column.layout == "vector" and (holds_ids or column.hash is not None):
        yield "is a vector of numbers, but is read as ids; declare layout: list to look its values up"


def _check_lists(column: Column) -> Iterator[str]:
    if (column.layout == "vector") != (column.dim is not None) or (column.dim or 1) < 1:
        yield f": layout is {column.layout} and dim {column.dim}; a vector has a dim of at least 1, others none"
    if column.levels != 2 and column.layout != "nested_list" or not 2 <= column.levels <= 8:
        yield f": levels is {column.levels} and layout {column.layout}; nested lists have 2 levels, or up to 8"
    can_be_cut = column.layout in ("list", "nested_list") or column.tokenizer is not None
    if column.max_length is not None and (not can_be_cut or column.max_length < 1):
        yield f": max_length is {column.max_length}; it cuts lists and what a tokenizer gives, to at least 1"
    if column.keep != "first" and (column.max_length is None or column.tokenizer is not None):
        yield f": keep is {column.keep}; it says what max_length keeps of a list, so declare both"
    if column.source is not None and "" in column.source.split("."):
        yield f": source '{column.source}' has an empty part; write a column's name, or column.part"


def _check_default(column: Column, holds_ids: bool) -> Iterator[str]:
    default = column.default
    if default is None:
        return
    if isinstance(default, tuple):
        if column.layout != "vector":
            yield f" has {len(default)} numbers for a default; that is for vectors, give one number"
        elif len(default) != column.dim:
            yield f" has a default of {len(default)} numbers, and dim {column.dim}; give as many, or one for all"
    elif column.hash or column.tokenizer:
        yield f" is {'hashed' if column.hash else 'tokenized'}; a missing id is no id, so leave default out"
    elif holds_ids and not (isinstance(default, int) and -(2**63) <= default < 2**63):
        yield f" holds ids, its default is {default!r}; give a 64-bit integer"


def _check_dropout(column: Column, holds_ids: bool) -> Iterator[str]:
    if column.dropout == 0:
        return
    if not 0 <= column.dropout < 1:
        yield f": dropout is {column.dropout}, need 0 <= dropout < 1"
    if column.layout not in ("scalar", "optional_list"):
        yield f" is a {column.layout}; dropout is for columns with one id a row"
    elif not holds_ids:
        yield " is read as ids by no feature; dropout is for ids, which may go missing"
