"""Raw files of public data sets, as their publishers ship them, into typed tables.

criteo      day_0, day_1.gz, ...: label, 13 counts, 26 values of 8 hexadecimal digits, tab-separated; also the Kaggle
            files train.txt and test.txt, which has no label
movielens   the folder of ml-100k, ml-1m, ml-10m, ml-20m, ml-25m, ml-32m or ml-latest-small
amazon      review files of 2014, 2018 or 2023, JSON lines or ratings only, and metadata (meta_*)
"""

import ast
import csv
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recis_lightning.data.convert.tables import Named
from recis_lightning.data.convert.text_files import (
    OnBytes,
    Piece,
    TextOptions,
    open_input,
    read_csv,
    read_json_lines,
    read_lines,
    type_objects,
    type_rows,
)
from recis_lightning.data.errors import DataError

TIME = pa.timestamp("s")

# -------------------------------------------------------------------------------------------------------------- Criteo

COUNTS, CATEGORIES = [f"i{n}" for n in range(1, 14)], [f"c{n}" for n in range(1, 27)]


def read_criteo(paths: Sequence[Path], on_bytes: OnBytes) -> Iterator[Named]:
    """Click logs: label float32, i1 to i13 float32, c1 to c26 int64 (the digits as a number)."""
    for path in paths:
        names = ["label", *COUNTS, *CATEGORIES]
        if _count_fields(path) == len(names) - 1:
            names = names[1:]
        types = dict.fromkeys(names, pa.float32()) | dict.fromkeys(CATEGORIES, pa.string())
        options = TextOptions(delimiter="\t", names=names)
        for piece in read_csv(path, options, on_bytes):
            rows = type_rows(piece, types, path, options)
            for name in CATEGORIES:
                rows = rows.set_column(
                    names.index(name), name, _parse_hex(rows[name].combine_chunks(), piece, path, name)
                )
            yield "", path, rows


def _count_fields(path: Path) -> int:
    _, stream = open_input(path)
    return stream.read(1 << 16).split(b"\n", 1)[0].count(b"\t") + 1


_NIBBLE = np.full(256, 255, np.uint8)
_NIBBLE[[*b"0123456789"]] = np.arange(10)
_NIBBLE[[*b"abcdef"]] = _NIBBLE[[*b"ABCDEF"]] = np.arange(10, 16)


def _parse_hex(texts: pa.Array, piece: Piece, path: Path, name: str) -> pa.Array:
    """Strings of 8 hexadecimal digits as int64: 0000001f -> 31; missing ones stay so."""
    filled = pc.fill_null(texts, "00000000")
    is_wrong = pc.not_equal(pc.binary_length(filled), 8).to_numpy(zero_copy_only=False)
    digits_B8: NDArray[np.uint8] = np.zeros((len(filled), 8), np.uint8)
    if not is_wrong.any():
        joined = pc.binary_join(pa.array([filled.to_pylist()], pa.list_(pa.string())), "")[0].as_py().encode()
        digits_B8 = _NIBBLE[np.frombuffer(joined, np.uint8)].reshape(-1, 8)
        is_wrong = (digits_B8 == 255).any(axis=1)
    if is_wrong.any():
        row = int(np.flatnonzero(is_wrong)[0])
        raise DataError(
            f"{path}, row {piece.first_row + row}: column '{name}' holds {texts[row].as_py()!r}, need 8 hexadecimal "
            "digits; is it a raw Criteo file?"
        )
    powers = 16 ** np.arange(7, -1, -1, dtype=np.int64)
    return pa.array(digits_B8.astype(np.int64) @ powers, mask=texts.is_null().to_numpy(zero_copy_only=False))


# ----------------------------------------------------------------------------------------------------------- MovieLens

GENRES_100K = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
GENRES = pa.list_(pa.string())
ROWS = 200_000
_RATING = {"user_id": pa.int64(), "movie_id": pa.int64(), "rating": pa.float32(), "timestamp": TIME}
_MOVIE = {"movie_id": pa.int64(), "title": pa.string(), "genres": GENRES}
_ZIP = {"zip": pa.string()}
_USER_100K = {"user_id": pa.int64(), "age": pa.int64(), "gender": pa.string(), "occupation": pa.string()} | _ZIP
_USER = {"user_id": pa.int64(), "gender": pa.string(), "age": pa.int64(), "occupation": pa.int64()} | _ZIP
# file -> (data set, separator, columns as they are written)
MOVIELENS: dict[str, tuple[str, str, dict[str, pa.DataType]]] = {
    "u.data": ("ratings", "\t", _RATING),
    "u.user": ("users", "|", _USER_100K),
    "u.item": ("movies", "|", _MOVIE),
    "ratings.dat": ("ratings", "::", _RATING),
    "users.dat": ("users", "::", _USER),
    "movies.dat": ("movies", "::", _MOVIE),
    "ratings.csv": ("ratings", ",", _RATING),
    "movies.csv": ("movies", ",", _MOVIE),
}


def read_movielens(folder: Path, on_bytes: OnBytes) -> Iterator[Named]:
    """Ratings, movies (genres as a list) and, of the older sets, users; times as timestamps."""
    found = [name for name in MOVIELENS if (folder / name).is_file()]
    if not found:
        raise DataError(f"{folder} holds none of {', '.join(MOVIELENS)}; name the folder of an unpacked MovieLens set")
    for name in found:
        data_set, separator, types = MOVIELENS[name]
        path = folder / name
        lines = _split_lines(path, separator)
        if name.endswith(".csv"):
            next(lines, None)  # the header
        first_row = 1
        while rows := list(itertools.islice(lines, ROWS)):
            yield data_set, path, _type_fields(rows, first_row, types, path)
            first_row += len(rows)
        on_bytes(path.stat().st_size)


def _split_lines(path: Path, separator: str) -> Iterator[list[str]]:
    encoding = "utf-8" if path.suffix == ".csv" else "latin-1"
    with path.open(encoding=encoding, newline="") as file:
        if separator == ",":
            yield from csv.reader(file)
        else:
            yield from (line.rstrip("\r\n").split(separator) for line in file if line.strip())


def _type_fields(rows: list[list[str]], first_row: int, types: Mapping[str, pa.DataType], path: Path) -> pa.Table:
    is_flagged = path.name == "u.item"  # id, title, two dates, address, and a flag for each genre
    need = 5 + len(GENRES_100K) if is_flagged else len(types)
    for row, fields in enumerate(rows):
        if len(fields) != need:
            raise DataError(f"{path}, row {first_row + row} has {len(fields)} fields, need {need}: {fields[:4]}")
    if is_flagged:
        flags = [[genre for genre, flag in zip(GENRES_100K, each[5:], strict=True) if flag == "1"] for each in rows]
        rows = [[each[0], each[1], "|".join(genres)] for each, genres in zip(rows, flags, strict=True)]
    columns = dict(zip(types, map(list, zip(*rows, strict=True)), strict=True))
    if "genres" in columns:
        columns["genres"] = ["" if genres == "(no genres listed)" else genres for genres in columns["genres"]]
    texts = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    as_read = {name: pa.int64() if dtype == TIME else dtype for name, dtype in types.items()}
    typed = type_rows(Piece(texts, first_row), as_read, path, TextOptions())
    return pa.table({name: pc.cast(typed[name], dtype) for name, dtype in types.items()})


# -------------------------------------------------------------------------------------------------------------- Amazon

REVIEWS = {
    "user_id": pa.string(),
    "item_id": pa.string(),
    "rating": pa.float32(),
    "timestamp": TIME,
    "title": pa.string(),
    "text": pa.string(),
    "verified": pa.bool_(),
}
ITEMS = {
    "item_id": pa.string(),
    "title": pa.string(),
    "brand": pa.string(),
    "price": pa.float32(),
    "categories": pa.list_(pa.string()),
}
RATINGS = {name: REVIEWS[name] for name in ("user_id", "item_id", "rating", "timestamp")}


def read_amazon(paths: Sequence[Path], on_bytes: OnBytes) -> Iterator[Named]:
    """Reviews, ratings and items, told apart by what the files hold."""
    for path in paths:
        if ".csv" in path.suffixes:
            yield from _read_amazon_ratings(path, on_bytes)
        elif path.name.startswith("meta_"):
            for first_row, objects in _read_loose(path, on_bytes):
                yield "items", path, type_objects([_item(each) for each in objects], first_row, ITEMS, path)
        else:
            for first_row, objects in read_json_lines(path, on_bytes):
                rows = [_review(each, first_row + row, path) for row, each in enumerate(objects)]
                yield "reviews", path, type_objects(rows, first_row, REVIEWS, path)


def _review(each: Mapping[str, Any], row: int, path: Path) -> dict[str, Any]:
    if "reviewerID" in each:  # 2014, 2018
        keys = ("reviewerID", "asin", "overall", "unixReviewTime", "summary", "reviewText", "verified")
        seconds = each.get("unixReviewTime")
    elif "user_id" in each and "parent_asin" in each:  # 2023, in milliseconds
        keys = ("user_id", "parent_asin", "rating", "timestamp", "title", "text", "verified_purchase")
        seconds = each["timestamp"] // 1000 if isinstance(each.get("timestamp"), int) else None
    else:
        raise DataError(
            f"{path}, line {row}: has keys {', '.join(each)}, need reviewerID and asin, or user_id and parent_asin; "
            "name a file of reviews, or metadata (meta_*)"
        )
    return dict(zip(REVIEWS, (each.get(key) for key in keys), strict=True)) | {"timestamp": seconds}


def _item(each: Mapping[str, Any]) -> dict[str, Any]:
    categories = each.get("categories") or each.get("category") or []
    if categories and isinstance(categories[0], list):  # 2014: paths through the tree of categories
        categories = list(dict.fromkeys(name for path in categories for name in path))
    return {
        "item_id": each.get("parent_asin") or each.get("asin"),
        "title": each.get("title"),
        "brand": each.get("brand") or each.get("store"),
        "price": _price(each.get("price")),
        "categories": categories,
    }


def _price(value: Any) -> float | None:
    """12.5 of 12.5 and "$1,012.50"; None of what is no price, such as a range."""
    if isinstance(value, int | float):
        return float(value)
    match = re.fullmatch(r"\$?([\d,]+(\.\d+)?)", value.strip()) if isinstance(value, str) else None
    return float(match[1].replace(",", "")) if match else None


def _read_loose(path: Path, on_bytes: OnBytes) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """JSON lines; those of 2014 are Python's literals."""
    _, stream = open_input(path)
    if not re.match(rb"\s*\{\s*'", stream.read(64)):
        yield from read_json_lines(path, on_bytes)
        return
    raw, stream = open_input(path)
    lines = read_lines(stream, path)
    number = 1
    while piece := list(itertools.islice(lines, 20_000)):
        rows = []
        for row, line in enumerate(piece):
            try:
                rows.append(ast.literal_eval(line))
            except (ValueError, SyntaxError) as error:
                raise DataError(f"{path}, line {number + row}: is no object ({error}): {line[:60]!r}") from error
        yield number, rows
        number += len(piece)
    on_bytes(raw.size())


_ITEM = re.compile(r"[A-Z0-9]{10}")


def _read_amazon_ratings(path: Path, on_bytes: OnBytes) -> Iterator[Named]:
    """Ratings only: user, item, rating, time in 2014; item, user, rating, time in 2018; with a header in 2023."""
    _, stream = open_input(path)
    first = stream.read(1 << 16).decode("utf-8", "replace").split("\n")[0].strip().split(",")
    has_header = first[0] == "user_id"
    if len(first) < 4:
        raise DataError(f"{path} has {len(first)} fields a row, need user, item, rating and time")
    if has_header:
        names = first
    elif _ITEM.fullmatch(first[0]) and not _ITEM.fullmatch(first[1]):
        names = ["item_id", "user_id", "rating", "timestamp"]
    elif _ITEM.fullmatch(first[1]) and not _ITEM.fullmatch(first[0]):
        names = ["user_id", "item_id", "rating", "timestamp"]
    else:
        raise DataError(
            f"{path}: neither field of {first[0]!r}, {first[1]!r} is clearly an item (10 capitals and digits); convert "
            "it by --format csv --names user_id,item_id,rating,timestamp, in the order it has"
        )
    options = TextOptions(names=() if has_header else names)
    types = {name: pa.int64() if name == "timestamp" else RATINGS.get(name, pa.string()) for name in names}
    for piece in read_csv(path, options, on_bytes):
        rows = type_rows(piece, types, path, options)
        if has_header:
            seconds = pc.cast(pc.divide(rows["timestamp"], 1000), pa.int64())
            rows = rows.set_column(names.index("timestamp"), "timestamp", seconds)
            rows = rows.rename_columns(["item_id" if name == "parent_asin" else name for name in names])
        yield "ratings", path, pa.table({name: pc.cast(rows[name], dtype) for name, dtype in RATINGS.items()})
