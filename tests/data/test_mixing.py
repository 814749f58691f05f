"""Several sources in every batch: their shares, their order, and the place to go on from."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recis_lightning.data.columns import Selection
from recis_lightning.data.datamodule import OrcDataModule
from recis_lightning.data.errors import DataError
from recis_lightning.data.files.manifest import read_manifest
from recis_lightning.data.loader import OrcLoader
from recis_lightning.data.mixing import ChainedLoader, MixedLoader, join_batches, share_out
from recis_lightning.data.plan import Order
from recis_lightning.ragged import Batch, Ragged
from tests.data.click_rows import click_rows, click_schema, write_stripes

SELECTION = Selection.of(click_schema())
ROWS = {"ads": (0, 50), "feed": (1000, 22)}  # first row, rows


@pytest.fixture
def log(tmp_path: Path) -> Path:
    for name, (first, rows) in ROWS.items():
        write_stripes(
            tmp_path / name / "a.orc", [click_rows(first, rows // 2), click_rows(first + rows // 2, rows // 2)]
        )
    return tmp_path


def mixed(log: Path, until: Any = "longest", rank: int = 0, world_size: int = 1, **options: Any) -> MixedLoader:
    shares = share_out({"ads": 3, "feed": 1}, batch_size=16, streams=2)
    loaders = {}
    for name, share in shares.items():
        order = Order(batch_size=share, streams=2, window_rows=20, seed=1)
        manifest = read_manifest(log / name)[0]
        loaders[name] = OrcLoader(manifest, SELECTION, order, rank=rank, world_size=world_size, read_threads=1)
    return MixedLoader(loaders, until, **options)


def users(batch: Batch) -> list[Any]:
    entry = batch["user"]
    assert isinstance(entry, Ragged)
    return [row[0] if row else None for row in entry.check().to_lists()]


def entries(batch: Batch) -> dict[str, Any]:
    return {name: e.to_lists() if isinstance(e, Ragged) else e.tolist() for name, e in batch.items()}


@given(
    weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=6),
    streams=st.integers(1, 8),
    pieces=st.integers(6, 64),
)
def test_shares_add_up_and_are_within_one_piece_of_the_weights(weights: list[float], streams: int, pieces: int) -> None:
    named = {f"s{at}": weight for at, weight in enumerate(weights)}
    shares = share_out(named, pieces * streams, streams)
    assert sum(shares.values()) == pieces * streams
    assert all(share % streams == 0 < share for share in shares.values())
    exact = {name: pieces * weight / sum(weights) for name, weight in named.items()}
    if min(exact.values()) >= 1:
        assert all(abs(shares[name] / streams - exact[name]) < 1 for name in named)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1, "b": 0}, "weights of sources are above 0, but there is b: 0; leave a source out instead"),
        ({"a": 1, "b": 1, "c": 1}, "can't be shared by 3 sources; set batch_size=24 at least, or fewer streams"),
    ],
)
def test_weights_that_can_not_be_shared_are_named(weights: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        share_out(weights, batch_size=16, streams=8)


def test_every_batch_holds_the_next_rows_of_each_source(log: Path) -> None:
    loader = mixed(log)
    alone = {name: [*mixed(log).loaders[name]] for name in ROWS}
    batches = [*loader]
    assert (len(loader), len(batches), len(alone["ads"]), len(alone["feed"])) == (6, 6, 5, 6)
    for step, batch in enumerate(batches[:5]):
        assert batch.token["source_rows"] == {name: its[step].size for name, its in alone.items()}
        expected = [entries(its[step]) for its in alone.values()]
        assert entries(batch) == {name: expected[0][name] + expected[1][name] for name in expected[0]}
    assert set(users(batches[5])) - {None} <= {*range(50), *range(1000, 1022)}


def test_the_shorter_source_begins_anew_in_another_order(log: Path) -> None:
    ads = [users(batch)[: batch.token["source_rows"]["ads"]] for batch in mixed(log)]
    assert sorted(n for row in ads[:5] for n in row if n is not None) == [n for n in range(50) if n % 4 != 1]
    assert ads[5] != ads[0]
    assert len([*mixed(log, until="shortest")]) == 5


@pytest.mark.parametrize("stop", range(6))
def test_resuming_at_any_batch_goes_on_to_the_bit(log: Path, stop: int) -> None:
    loader = mixed(log)
    whole = [*loader, *loader]
    resumed = mixed(log)
    resumed.load_state_dict(dict(whole[stop].token))
    rest = [*resumed, *resumed][: len(whole) - stop - 1]
    assert len(rest) == len(whole) - stop - 1
    assert all(torch.equal(a.buffer, b.buffer) for a, b in zip(whole[stop + 1 :], rest, strict=True))


def test_ranks_read_the_rows_of_one(log: Path) -> None:
    whole = [sorted(str(user) for user in users(batch)) for batch in mixed(log)]
    parts = [[*mixed(log, rank=rank, world_size=2)] for rank in (0, 1)]
    together = [sorted(str(user) for batch in pair for user in users(batch)) for pair in zip(*parts, strict=True)]
    assert together == whole


def test_a_place_of_another_mix_is_refused(log: Path) -> None:
    state = mixed(log).state_dict()
    with pytest.raises(DataError, match="belongs to ads, feed until longest, not to ads, feed until shortest"):
        mixed(log, until="shortest").load_state_dict(state)
    with pytest.raises(DataError, match="belongs to no mix"):
        mixed(log).load_state_dict({"epoch": 0, "step": 1})
    write_stripes(log / "feed/b.orc", [click_rows(2000, 10)])
    with pytest.raises(DataError, match="the saved position of source 'feed' belongs to other data"):
        mixed(log).load_state_dict(state)


def test_joined_columns_go_on_to_share_their_offsets(log: Path) -> None:
    (first, *_), (second, *_) = (
        [*OrcLoader(read_manifest(log / name)[0], SELECTION, Order(batch_size=8, streams=1))] for name in ROWS
    )
    joined = join_batches([first, second], {})
    assert joined.size == 16
    for name in first:
        left, right, both = entries(first)[name], entries(second)[name], entries(joined)[name]
        assert both == left + right


def test_chained_sources_come_one_behind_the_other(log: Path) -> None:
    loader = ChainedLoader(mixed(log).loaders)
    batches = [*loader]
    assert len(batches) == len(loader) == 11
    assert [next(iter(batch.token["source_rows"])) for batch in batches] == ["ads"] * 5 + ["feed"] * 6


def data_module(log: Path, **options: Any) -> OrcDataModule:
    both = {name: str(log / name) for name in ROWS}
    data = OrcDataModule(click_schema(), train=both, validation=both, batch_size=16, streams=2, **options)
    data.setup("fit")
    return data


def test_a_data_module_mixes_what_train_names_and_chains_validation(log: Path) -> None:
    data = data_module(log, mix={"ads": 3, "feed": 1})
    loader = data.train_dataloader()
    assert isinstance(loader, MixedLoader)
    assert [each.prefetch_bytes for each in loader.loaders.values()] == [3 << 28, 1 << 28], "1 GiB together"
    first = next(iter(loader))
    assert first.token["source_rows"] == {"ads": 12, "feed": 4}
    assert sum(batch.size for batch in data.val_dataloader()) == 72
    data.teardown("fit")
    equal = next(iter(data_module(log).train_dataloader()))
    assert equal.token["source_rows"] == {"ads": 8, "feed": 8}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mix": {"ads": 1}}, "mix has weights for ads, train names ads, feed; give train as a mapping"),
        ({"mix_until": "end"}, "mix_until is 'end'; write longest or shortest"),
    ],
)
def test_a_mix_that_can_not_be_meant_is_refused(log: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        data_module(log, **options)


def test_a_problem_names_its_source(log: Path) -> None:
    (log / "feed" / "a.orc").write_bytes(b"")
    with pytest.raises(DataError, match="train/feed: .*a.orc is empty"):
        data_module(log)
