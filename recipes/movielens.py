"""MovieLens 1M with what is known of each movie in words, parted into movies that are trained on and movies held out.

    RECIS_DATA=<folder> python recipes/movielens.py demo/ml1m       # demo/ml1m/train, seen, held_out, tokenizer.json

`train` and `seen` share their movies (four fifths and one fifth of the ratings), `held_out` has the ratings of a tenth
of the movies, by the same users. A rating of 4 or 5 counts as liked.
"""

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import orc

from recis_lightning.data.files.manifest import find_files
from recis_lightning.data.files.orc_writer import PartWriter
from recis_lightning.data.hold_out import is_held_out
from recis_lightning.data.train_tokenizer import train_tokenizer

RATINGS, ITEMS = "${RECIS_DATA}/ml1m_ratings", "${RECIS_DATA}/ml1m_items"
PARTS = ("train", "seen", "held_out")
TEST_FOLD = 1
VOCABULARY = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description="Prepare MovieLens 1M for recipes/ml1m_text.yaml.")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of which movies are held out")
    args = parser.parse_args()
    for name, rows in prepare(args.out, args.seed).items():
        print(f"{args.out / name}: {rows:,} ratings")


def prepare(out: Path, seed: int = 0, share: float = 0.1) -> dict[str, int]:
    """Write the three parts, and a tokenizer of the texts that are trained on; returns the ratings of each part."""
    rows = read_ratings()
    held_out = pa.array(is_held_out(rows["movie_id"].combine_chunks(), share, seed))
    is_test = pc.equal(rows["fold5"], TEST_FOLD)
    chosen = {
        "train": pc.and_not(pc.invert(held_out), is_test),
        "seen": pc.and_not(is_test, held_out),
        "held_out": held_out,
    }
    counts = {}
    for name in PARTS:
        part = rows.filter(chosen[name]).drop_columns(["fold5"])
        with PartWriter(out / name, part_rows=200_000) as writer:
            writer.write(part)
        counts[name] = len(part)
    train_tokenizer(out / "train", "text", out / "tokenizer.json", vocab_size=VOCABULARY)
    return counts


def read_ratings() -> pa.Table:
    """user_id, movie_id, liked, text and fold5 of every rating."""
    ratings = read(RATINGS, ["user_id", "movie_id", "rating", "fold5"])
    texts = describe_movies(read(ITEMS, ["movie_id", "title", "genres", "plot"]))
    liked = pc.cast(pc.greater_equal(ratings["rating"], 4.0), pa.float32())
    place = pc.index_in(ratings["movie_id"], value_set=texts["movie_id"].combine_chunks())
    return pa.table(
        {
            "user_id": ratings["user_id"],
            "movie_id": ratings["movie_id"],
            "liked": liked,
            "text": texts["text"].take(place),
            "fold5": ratings["fold5"],
        }
    )


def read(paths: str, columns: list[str]) -> pa.Table:
    found, problems = find_files(paths)
    if problems:
        raise SystemExit("\n".join(problems))
    return pa.concat_tables([orc.ORCFile(path).read(columns=columns) for path in found])


def describe_movies(movies: pa.Table) -> pa.Table:
    """movie_id and text: `Jumanji (1995). Adventure, Children's, Fantasy. When two kids find and play a ...`"""
    texts = [
        ". ".join(part for part in (row["title"], ", ".join(row["genres"] or []), row["plot"]) if part)
        for row in movies.to_pylist()
    ]
    return pa.table({"movie_id": movies["movie_id"], "text": pa.array(texts, pa.string())})


if __name__ == "__main__":
    main()
