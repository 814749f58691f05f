"""Decoding stripes, and keeping those that several streams share."""

from collections import Counter
from pathlib import Path

import pytest

from recis_lightning.data.columns import Selection
from recis_lightning.data.files import stripes as stripes_module
from recis_lightning.data.files.manifest import Manifest, read_manifest
from recis_lightning.data.files.stripes import StripeReader
from recis_lightning.data.loader import OrcLoader
from recis_lightning.data.plan import Order
from tests.data.click_rows import click_rows, click_schema, write_stripes


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    write_stripes(tmp_path / "a.orc", [click_rows(0, 40), click_rows(40, 40), click_rows(80, 40)])
    return read_manifest(tmp_path)[0]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each stripe is decoded from here on."""
    counts: Counter[int] = Counter()
    decode = StripeReader._decode

    def count(self: StripeReader, stripe: int) -> object:
        counts[stripe] += 1
        return decode(self, stripe)

    monkeypatch.setattr(StripeReader, "_decode", count)
    return counts


def test_only_the_named_columns_are_read(manifest: Manifest) -> None:
    assert StripeReader(manifest, ["user", "label"]).read(1).to_pydict() == {
        name: values[40:80] for name, values in click_rows(0, 120).select(["label", "user"]).to_pydict().items()
    }


def test_a_shared_stripe_is_kept_until_its_last_use(manifest: Manifest, decoded: Counter[int]) -> None:
    reader = StripeReader(manifest, ["user"], uses=Counter({0: 2, 1: 1}))
    for _ in range(2):
        reader.read(0)
        reader.read(1)
    assert decoded == {0: 1, 1: 2}
    assert not reader._kept
    assert reader._room == stripes_module.KEPT_BYTES


def test_a_shared_stripe_that_finds_no_room_is_decoded_again(manifest: Manifest, decoded: Counter[int]) -> None:
    room = StripeReader(manifest, ["user"]).read(0).nbytes
    decoded.clear()
    reader = StripeReader(manifest, ["user"], uses=Counter({0: 2, 1: 2}), kept_bytes=room)
    for stripe in (0, 1, 0, 1):
        reader.read(stripe)
    assert decoded == {0: 1, 1: 2}


def test_streams_that_share_stripes_decode_each_once(manifest: Manifest, decoded: Counter[int]) -> None:
    order = Order(batch_size=16)
    assert sum(batch.size for batch in OrcLoader(manifest, Selection.of(click_schema()), order, read_threads=1)) == 120
    assert decoded == {0: 1, 1: 1, 2: 1}
