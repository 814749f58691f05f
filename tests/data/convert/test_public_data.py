"""Raw files as the publishers of data sets ship them, a few rows of each made up in their form."""

import datetime
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from pyarrow import orc

from recis_lightning.cli import main

CRITEO = "\t".join(["1", "5", "", *["7"] * 11, "0000001f", "", *["ffffffff"] * 24])
U_ITEM = "1|Toy Story (1995)|01-Jan-1995||http://a|" + "|".join("1" if n in (3, 5) else "0" for n in range(19))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.rglob("*.orc")) for row in orc.read_table(path).to_pylist()]


def convert(paths: list[Path], kind: str, out: Path, *more: str) -> int:
    return main(["data", "convert", *map(str, paths), "--format", kind, "--out", str(out), *more])


def test_criteo_days_keep_their_nulls_and_turn_digits_into_ids(tmp_path: Path) -> None:
    for day in (0, 1):
        (tmp_path / f"day_{day}.gz").write_bytes(gzip.compress(f"{CRITEO}\n{CRITEO}\n".encode()))
    paths = [tmp_path / "day_0.gz", tmp_path / "day_1.gz"]
    assert convert(paths, "criteo", tmp_path / "out", "--partition-by", "file") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["day_0", "day_1"]
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 4
    assert [rows[0][name] for name in ("label", "i1", "i2", "i3", "c1", "c2", "c3")] == [
        1,
        5,
        None,
        7,
        31,
        None,
        2**32 - 1,
    ]
    assert list(rows[0]) == ["label", *(f"i{n}" for n in range(1, 14)), *(f"c{n}" for n in range(1, 27))]


def test_criteo_rows_without_a_label_are_the_test_set_of_kaggle(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text(CRITEO.split("\t", 1)[1] + "\n")
    assert convert([tmp_path / "test.txt"], "criteo", tmp_path / "out") == 0
    (row,) = rows_of(tmp_path / "out")
    assert "label" not in row
    assert (row["i1"], row["c1"]) == (5, 31)


@pytest.mark.parametrize("digits", ["0000001g", "1f", "00000000f"])
def test_what_is_no_criteo_category_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], digits: str) -> None:
    (tmp_path / "day_0").write_text(f"{CRITEO}\n{CRITEO.replace('0000001f', digits)}\n")
    assert convert([tmp_path / "day_0"], "criteo", tmp_path / "out") == 2
    assert f"day_0, row 2: column 'c1' holds '{digits}', need 8 hexadecimal digits" in capsys.readouterr().err


def test_movielens_100k_has_genres_by_name(tmp_path: Path) -> None:
    (tmp_path / "u.data").write_text("196\t242\t3\t881250949\n")
    (tmp_path / "u.user").write_text("1|24|M|technician|85711\n")
    (tmp_path / "u.item").write_bytes(U_ITEM.replace("Toy", "Caf\xe9").encode("latin-1"))
    assert convert([tmp_path], "movielens", tmp_path / "out") == 0
    time = datetime.datetime(1997, 12, 4, 15, 55, 49)
    assert rows_of(tmp_path / "out/ratings") == [{"user_id": 196, "movie_id": 242, "rating": 3, "timestamp": time}]
    assert rows_of(tmp_path / "out/users") == [
        {"user_id": 1, "age": 24, "gender": "M", "occupation": "technician", "zip": "85711"}
    ]
    assert rows_of(tmp_path / "out/movies") == [
        {"movie_id": 1, "title": "Caf\xe9 Story (1995)", "genres": ["Animation", "Comedy"]}
    ]


def test_movielens_1m_and_later_sets_are_told_apart_by_their_files(tmp_path: Path) -> None:
    one, later = tmp_path / "ml-1m", tmp_path / "ml-25m"
    one.mkdir()
    later.mkdir()
    (one / "ratings.dat").write_text("1::1193::5::978300760\n")
    (one / "users.dat").write_text("1::F::1::10::48067\n")
    (one / "movies.dat").write_text("1::Toy Story (1995)::Animation|Comedy\n")
    (later / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,296,4.5,1147880044\n")
    (later / "movies.csv").write_text('movieId,title,genres\n1,"A, B",(no genres listed)\n')
    for folder in (one, later):
        assert convert([folder], "movielens", tmp_path / "out" / folder.name) == 0
    assert rows_of(tmp_path / "out/ml-1m/movies") == [
        {"movie_id": 1, "title": "Toy Story (1995)", "genres": ["Animation", "Comedy"]}
    ]
    assert rows_of(tmp_path / "out/ml-1m/users")[0]["occupation"] == 10
    assert rows_of(tmp_path / "out/ml-25m/ratings")[0]["rating"] == 4.5
    assert rows_of(tmp_path / "out/ml-25m/movies") == [{"movie_id": 1, "title": "A, B", "genres": []}]


def test_movielens_ratings_go_to_days_and_what_has_no_time_beside_them(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("1::2::5::0\n1::3::5::90000\n")
    (tmp_path / "movies.dat").write_text("1::A::B\n")
    assert convert([tmp_path], "movielens", tmp_path / "out", "--partition-by", "timestamp") == 0
    folders = sorted(str(path.parent.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.orc"))
    assert folders == ["movies", "ratings/1970-01-01", "ratings/1970-01-02"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("u.data", "1\t2\t3\n", "u.data, row 1 has 3 fields, need 4"),
        ("ratings.dat", "1::2::5::0\n1::x::5::0\n", "ratings.dat, row 2: column 'movie_id' holds 'x', need int64"),
        ("other", "", "holds none of u.data, u.user"),
    ],
)
def test_what_is_no_movielens_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    assert convert([tmp_path], "movielens", tmp_path / "out") == 2
    assert message in capsys.readouterr().err


REVIEW_2014 = {
    "reviewerID": "A1", "asin": "B000000001", "overall": 5.0, "unixReviewTime": 0, "summary": "s", "reviewText": "t",
    "helpful": [0, 1],
}  # fmt: skip
REVIEW_2023 = {
    "user_id": "A1", "parent_asin": "B1", "asin": "B2", "rating": 4.0, "timestamp": 1000, "title": "s", "text": "t",
    "verified_purchase": True, "images": [],
}  # fmt: skip


def test_amazon_reviews_of_all_years_have_one_form(tmp_path: Path) -> None:
    (tmp_path / "reviews_Beauty_5.json.gz").write_bytes(gzip.compress(json.dumps(REVIEW_2014).encode()))
    (tmp_path / "Beauty.jsonl").write_text(json.dumps(REVIEW_2023))
    loose = {
        "asin": "B1",
        "price": 1.5,
        "brand": "x",
        "categories": [["All", "Beauty"], ["All", "Hair"]],
        "title": "i'm",
    }
    (tmp_path / "meta_Beauty.json").write_text(f"{loose}\n")
    (tmp_path / "meta_Other.jsonl").write_text(
        json.dumps({"parent_asin": "B2", "price": "$1,012.50", "store": "y", "categories": ["All"]})
    )
    names = ["reviews_Beauty_5.json.gz", "meta_Beauty.json", "Beauty.jsonl", "meta_Other.jsonl"]
    assert convert([tmp_path / name for name in names], "amazon", tmp_path / "out") == 0
    first, second = rows_of(tmp_path / "out/reviews")
    assert first == {
        "user_id": "A1", "item_id": "B000000001", "rating": 5, "timestamp": datetime.datetime(1970, 1, 1), "title": "s",
        "text": "t", "verified": None,
    }  # fmt: skip
    assert (second["item_id"], second["timestamp"].second, second["verified"]) == ("B1", 1, True)
    assert rows_of(tmp_path / "out/items") == [
        {"item_id": "B1", "title": "i'm", "brand": "x", "price": 1.5, "categories": ["All", "Beauty", "Hair"]},
        {"item_id": "B2", "title": None, "brand": "y", "price": 1012.5, "categories": ["All"]},
    ]


@pytest.mark.parametrize(
    "line",
    ["A2SUAM1J3GNN3B,0000013714,4.0,1400457600", "0000013714,A2SUAM1J3GNN3B,4.0,1400457600",
     "user_id,parent_asin,rating,timestamp\nA2SUAM1J3GNN3B,0000013714,4.0,1400457600000"],
)  # fmt: skip
def test_amazon_ratings_are_read_in_whichever_order_they_are(tmp_path: Path, line: str) -> None:
    (tmp_path / "ratings_Books.csv").write_text(f"{line}\n")
    assert convert([tmp_path / "ratings_Books.csv"], "amazon", tmp_path / "out") == 0
    time = datetime.datetime(2014, 5, 19)
    assert rows_of(tmp_path / "out/ratings") == [
        {"user_id": "A2SUAM1J3GNN3B", "item_id": "0000013714", "rating": 4, "timestamp": time}
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"x": 1}', "a.json, line 1: has keys x, need reviewerID and asin, or user_id and parent_asin"),
        ("a.csv", "a,b,1,2\n", "neither field of 'a', 'b' is clearly an item"),
        ("a.csv", "a,b\n", "a.csv has 2 fields a row, need user, item, rating and time"),
        ("meta_a.json", "{'a': \n", "meta_a.json, line 1: is no object"),
    ],
)
def test_what_is_no_amazon_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    assert convert([tmp_path / name], "amazon", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
