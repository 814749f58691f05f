"""A synthetic click log that knows its truth: the best AUC and logloss that any model can reach on it are known.

    write_click_log("log", rows=1_000_000, validation_rows=100_000, seed=0)  # log/train, log/valid, log/truth.json
    truth.best_reachable("log")["all"].auc  # what the true probabilities score: .834

A row is clicked with the probability

    sigmoid(-2.2 + eight additive id effects + user factors . item factors + .3 d0 - .2 d1 + .2 d2 d3)

and, where it was clicked, converts by effects of half that size of its own. Ids are zipf(1.05), unbounded 64-bit, and a
fifth of the users and items behind the first hundred enter while the log runs. The other columns (text, lists, strings,
nullable ones) tell about users and items what their ids tell already: they help where an id is new, and add nothing to
the best reachable. Rows are in the order of time, validation behind training.

B rows of a block, V values of an id column, K factors.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recis_lightning.data.errors import DataError
from recis_lightning.data.files.orc_writer import PartWriter
from recis_lightning.data.synthetic.truth import Reachable, measure_best_reachable

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

FORMAT = 1  # kept in truth.json; a change of what a seed means raises it
ZIPF_EXPONENT = 1.05
INTERCEPT, CONVERSION_INTERCEPT = -2.2, -1.5
FACTORS, FACTOR_SD = 4, 0.45
CONVERSION_SHARE = 0.5  # of a click effect's sd
FIRST_LATE_RANK, LATE_SHARE = 100, 0.2  # which users and items enter while the log runs
DAYS, DAY_SECONDS, FIRST_SECOND = 10, 86_400, 1_735_689_600  # training takes ten days from 2025-01-01 on
BLOCK_ROWS = 1 << 16  # rows drawn at once, each block by a generator of its own; part of what a seed means


@dataclass(frozen=True)
class IdColumn:
    """An id column: how many values it has, and the standard deviation of their effects on the click logit."""

    name: str
    values: int
    effect: float = 0.0
    enters_late: bool = False


ID_COLUMNS = (
    IdColumn("user_id", 100_000, 0.8, enters_late=True),
    IdColumn("item_id", 20_000, 1.0, enters_late=True),
    IdColumn("publisher_id", 2_000, 0.6),
    IdColumn("campaign_id", 500, 0.4),
    IdColumn("category_id", 100, 0.4),
    IdColumn("placement_id", 24, 0.3),
    IdColumn("region_id", 50, 0.3),
    IdColumn("device_id", 10, 0.2),
)
USER, ITEM, DEVICE = 0, 1, 7
REFERRER = IdColumn("referrer_id", 5_000)
REFERRER_SPACE, INTEREST_SPACE = 8, 9  # ids of different columns never meet: each column has a space of its own

# What a seed is mixed with, so that each thing drawn has a generator of its own.
IDS, EFFECTS, DESCRIPTIONS, TRAINING, VALIDATION = range(5)

OCTILES = np.array([-1.150, -0.674, -0.319, 0.0, 0.319, 0.674, 1.150])  # of a standard normal
SCALES = (  # the words that an item's text has for its effect and its four factors, from low to high
    ("dreadful", "poor", "plain", "decent", "good", "fine", "superb", "stunning"),
    ("tiny", "small", "compact", "medium", "large", "big", "huge", "giant"),
    ("ancient", "antique", "vintage", "dated", "recent", "modern", "new", "futuristic"),
    ("black", "dark", "dim", "muted", "clear", "bright", "vivid", "glowing"),
    ("frozen", "icy", "cold", "cool", "mild", "warm", "hot", "blazing"),
)
NOUNS = ("lamp", "chair", "watch", "jacket", "kettle", "guitar", "bicycle", "tent", "mirror", "camera", "sofa", "radio")
DEVICES = ("android", "ios", "windows", "mac", "linux", "tv", "console", "watch", "car", "other")


def to_ids(space: int, ranks: Integers, seed: int) -> Integers:
    """Map (space, rank), rank < 2^48, one to one to 64-bit ids that look drawn at random, negative ones among them.

    The finaliser of splitmix64 (Steele, Lea, Flood 2014) over the pair, keyed by the seed.
    """
    z = ranks.astype(np.uint64) | np.uint64(space << 48)
    z ^= np.random.SeedSequence([seed, IDS]).generate_state(1, np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))).view(np.int64)


def sigmoid(logits: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-logits))


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The values of one id column, most frequent first."""

    ids_V: Integers
    cumulated_V: Floats  # zipf weights, summed up
    entry_V: Floats  # when a value enters, as a share of the log's rows; 0 for most
    click_V: Floats  # effect on the click logit
    conversion_V: Floats

    @staticmethod
    def draw(column: IdColumn, space: int, seed: int) -> "Vocabulary":
        rng = np.random.default_rng([seed, EFFECTS, space])
        ranks = np.arange(column.values)
        entry_V = np.zeros(column.values)
        if column.enters_late:
            late = (ranks >= FIRST_LATE_RANK) & (rng.random(column.values) < LATE_SHARE)
            entry_V = np.where(late, rng.random(column.values), 0.0)
        return Vocabulary(
            ids_V=to_ids(space, ranks, seed),
            cumulated_V=np.cumsum((ranks + 1.0) ** -ZIPF_EXPONENT),
            entry_V=entry_V,
            click_V=rng.standard_normal(column.values) * column.effect,
            conversion_V=rng.standard_normal(column.values) * column.effect * CONVERSION_SHARE,
        )

    def draw_ranks(self, rng: np.random.Generator, time_B: Floats) -> Integers:
        """Draw one value a row, by zipf over those that have entered at the row's time."""
        ranks_B = self._draw_zipf(rng, len(time_B))
        while len(early := np.flatnonzero(self.entry_V[ranks_B] > time_B)):
            ranks_B[early] = self._draw_zipf(rng, len(early))
        return ranks_B

    def _draw_zipf(self, rng: np.random.Generator, count: int) -> Integers:
        return np.searchsorted(self.cumulated_V, rng.random(count) * self.cumulated_V[-1], side="right")


@dataclass(frozen=True, eq=False)
class World:
    """All that is hidden behind a log: effects, factors and what describes them, a function of the seed alone."""

    vocabularies: tuple[Vocabulary, ...]
    referrers: Vocabulary
    user_factors_VK: Floats
    item_factors_VK: Floats
    titles_V: pa.Array  # string, one an item
    item_keys_V: pa.Array  # string, one an item
    prices_V: Floats
    interests_V: pa.Array  # list<int64>, one list a user
    interest_weights_V: pa.Array  # list<float32>, aligned with interests

    @staticmethod
    def draw(seed: int) -> "World":
        vocabularies = tuple(Vocabulary.draw(column, space, seed) for space, column in enumerate(ID_COLUMNS))
        rng = np.random.default_rng([seed, DESCRIPTIONS])
        users, items = vocabularies[USER], vocabularies[ITEM]
        user_factors_VK = rng.standard_normal((len(users.ids_V), FACTORS)) * FACTOR_SD
        item_factors_VK = rng.standard_normal((len(items.ids_V), FACTORS)) * FACTOR_SD
        interests_V, interest_weights_V = _describe_users(_standardise(USER, users, user_factors_VK), seed)
        return World(
            vocabularies=vocabularies,
            referrers=Vocabulary.draw(REFERRER, REFERRER_SPACE, seed),
            user_factors_VK=user_factors_VK,
            item_factors_VK=item_factors_VK,
            titles_V=_describe_items(_standardise(ITEM, items, item_factors_VK), rng),
            item_keys_V=pa.array([f"sku-{unsigned:016x}" for unsigned in items.ids_V.view(np.uint64).tolist()]),
            prices_V=np.exp(3.0 + rng.standard_normal(len(items.ids_V))),
            interests_V=interests_V,
            interest_weights_V=interest_weights_V,
        )


def _standardise(column: int, vocabulary: Vocabulary, factors_VK: Floats) -> Floats:
    """A value's effect and factors beside each other, in units of their standard deviations: [V, 1 + K]."""
    return np.column_stack([vocabulary.click_V / ID_COLUMNS[column].effect, factors_VK / FACTOR_SD])


def _describe_items(traits_VK: Floats, rng: np.random.Generator) -> pa.Array:
    """Tell each item's traits in words: low, high, ... -> `dreadful giant ... lamp`, the adjectives in any order."""
    words = np.array(SCALES)[np.arange(len(SCALES)), np.searchsorted(OCTILES, traits_VK)]
    words = rng.permuted(words, axis=1)
    nouns = np.array(NOUNS)[rng.integers(len(NOUNS), size=len(words))]
    return pa.array(
        [" ".join([*adjectives, noun]) for adjectives, noun in zip(words.tolist(), nouns.tolist(), strict=True)]
    )


def _describe_users(traits_VK: Floats, seed: int) -> tuple[pa.Array, pa.Array]:
    """List each user's pronounced traits as ids, one for each trait and octile, weighted by how pronounced they are."""
    pronounced_VK = np.abs(traits_VK) > 0.4
    tags_VK = np.arange(traits_VK.shape[1]) * (len(OCTILES) + 1) + np.searchsorted(OCTILES, traits_VK)
    offsets = pa.array(np.concatenate([[0], pronounced_VK.sum(1).cumsum()]).astype(np.int32))
    ids = to_ids(INTEREST_SPACE, tags_VK[pronounced_VK], seed)
    weights = np.abs(traits_VK[pronounced_VK]).astype(np.float32)
    return pa.ListArray.from_arrays(offsets, ids), pa.ListArray.from_arrays(offsets, weights)


@dataclass(frozen=True, eq=False)
class Block:
    """Rows as drawn: the table to write, and the ranks behind its ids [columns, B]."""

    rows: pa.Table
    ranks_CB: Integers


def _draw_block(world: World, rng: np.random.Generator, time_B: Floats, day_B: Floats) -> Block:
    """Draw one row for each time; ``time_B`` runs over the whole log from 0 to 1, ``day_B`` counts days."""
    count = len(time_B)
    ranks_CB = np.stack([vocabulary.draw_ranks(rng, time_B) for vocabulary in world.vocabularies])
    dense_4B = rng.standard_normal((4, count)).astype(np.float32)
    p_click_B = sigmoid(_click_logits(world, ranks_CB, dense_4B))
    p_conversion_B = sigmoid(_conversion_logits(world, ranks_CB))
    click_B = rng.random(count) < p_click_B
    conversion_B = click_B & (rng.random(count) < p_conversion_B)
    columns: dict[str, Any] = {
        "click": click_B.astype(np.float32),
        "conversion": conversion_B.astype(np.float32),
        "timestamp": FIRST_SECOND + (day_B * DAY_SECONDS).astype(np.int64),
        "day": day_B.astype(np.int32),
    }
    for column, vocabulary, ranks_B in zip(ID_COLUMNS, world.vocabularies, ranks_CB, strict=True):
        columns[column.name] = vocabulary.ids_V[ranks_B]
    columns |= {f"d{index}": dense_B for index, dense_B in enumerate(dense_4B)}
    columns |= _draw_descriptions(world, rng, ranks_CB, time_B)
    columns |= {"p_click": p_click_B, "p_conversion": p_conversion_B}
    return Block(pa.table(columns), ranks_CB)


def _click_logits(world: World, ranks_CB: Integers, dense_4B: NDArray[np.float32]) -> Floats:
    d0, d1, d2, d3 = dense_4B.astype(np.float64)
    interaction_B = np.einsum("bk,bk->b", world.user_factors_VK[ranks_CB[USER]], world.item_factors_VK[ranks_CB[ITEM]])
    additive_B = sum(v.click_V[ranks_B] for v, ranks_B in zip(world.vocabularies, ranks_CB, strict=True))
    return INTERCEPT + additive_B + interaction_B + 0.3 * d0 - 0.2 * d1 + 0.2 * d2 * d3


def _conversion_logits(world: World, ranks_CB: Integers) -> Floats:
    additive_B = sum(v.conversion_V[ranks_B] for v, ranks_B in zip(world.vocabularies, ranks_CB, strict=True))
    return CONVERSION_INTERCEPT + additive_B


def _draw_descriptions(
    world: World, rng: np.random.Generator, ranks_CB: Integers, time_B: Floats
) -> dict[str, pa.Array]:
    """The columns beside ids and dense values; nulls strike rows at random and say nothing about the click."""
    count = len(time_B)
    no_price_B, no_referrer_B, no_interests_B = rng.random((3, count)) < np.array([[0.1], [0.3], [0.05]])
    referrer_B = world.referrers.ids_V[world.referrers.draw_ranks(rng, time_B)]
    items_B = pa.array(ranks_CB[ITEM])
    users_B = pa.array(ranks_CB[USER], mask=no_interests_B)
    return {
        "price": pa.array(world.prices_V[ranks_CB[ITEM]].astype(np.float32), mask=no_price_B),
        "referrer_id": pa.array(referrer_B, mask=no_referrer_B),
        "item_key": world.item_keys_V.take(items_B),
        "device": pa.array(DEVICES).take(pa.array(ranks_CB[DEVICE])),
        "interests": world.interests_V.take(users_B),
        "interest_weights": world.interest_weights_V.take(users_B),
        "title": world.titles_V.take(items_B),
    }


def _draw_blocks(world: World, settings: "Settings", split: int) -> Iterator[Block]:
    """The blocks of one split, in the order of time."""
    training = split == TRAINING
    rows, first = (settings.rows, 0) if training else (settings.validation_rows, settings.rows)
    for block, start in enumerate(range(0, rows, BLOCK_ROWS)):
        position_B = first + np.arange(start, min(start + BLOCK_ROWS, rows))
        rng = np.random.default_rng([settings.seed, split, block])
        total = settings.rows + settings.validation_rows
        yield _draw_block(world, rng, position_B / total, position_B * DAYS / settings.rows)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a log is a function of."""

    rows: int = 1_000_000
    validation_rows: int = 100_000
    seed: int = 0
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.rows < DAYS or self.validation_rows < 1 or self.seed < 0:
            raise DataError(
                f"rows {self.rows}, validation_rows {self.validation_rows}, seed {self.seed}; "
                f"need at least {DAYS} rows (one a day), one validation row and a seed from 0 on"
            )


def write_click_log(
    folder: str | Path,
    *,
    rows: int = 1_000_000,
    validation_rows: int = 100_000,
    seed: int = 0,
    on_rows: Callable[[int], None] | None = None,
) -> dict[str, Reachable]:
    """Write ``folder/train`` and ``folder/valid`` (ORC, ten and up to two part files) and ``folder/truth.json``.

    The same settings give the same rows. Validation rows have a column ``min_train_count`` of their own: of a row's
    eight ids, how often the rarest was seen in training. ``on_rows`` is told after each block how many rows were
    written. Returns what `truth.best_reachable` reads later. FileExistsError where the folders hold ORC files already.
    """
    settings = Settings(rows=rows, validation_rows=validation_rows, seed=seed)
    world = World.draw(seed)
    counts = [np.zeros(column.values, np.int64) for column in ID_COLUMNS]
    with PartWriter(Path(folder, "train"), part_rows=-(-rows // DAYS)) as writer:
        for block in _draw_blocks(world, settings, TRAINING):
            for count_V, ranks_B in zip(counts, block.ranks_CB, strict=True):
                count_V += np.bincount(ranks_B, minlength=len(count_V))
            writer.write(block.rows)
            if on_rows:
                on_rows(len(block.rows))
    with PartWriter(Path(folder, "valid"), part_rows=-(-validation_rows // 2)) as writer:
        for block in _draw_blocks(world, settings, VALIDATION):
            seen_CB = [count_V[ranks_B] for count_V, ranks_B in zip(counts, block.ranks_CB, strict=True)]
            seen_B = np.min(seen_CB, axis=0).astype(np.int32)
            writer.write(block.rows.append_column("min_train_count", pa.array(seen_B)))
            if on_rows:
                on_rows(len(block.rows))
    truth = measure_best_reachable(folder)
    report = {"settings": asdict(settings), "best_reachable": {name: asdict(best) for name, best in truth.items()}}
    # Written last: a folder that has it is whole.
    Path(folder, "truth.json").write_text(json.dumps(report, indent=2) + "\n")
    return truth


def is_written(folder: str | Path, *, rows: int = 1_000_000, validation_rows: int = 100_000, seed: int = 0) -> bool:
    """Whether ``folder`` holds the whole log of these settings."""
    path = Path(folder, "truth.json")
    settings = Settings(rows=rows, validation_rows=validation_rows, seed=seed)
    return path.exists() and json.loads(path.read_text())["settings"] == asdict(settings)
