"""What a loader delivers, against the plan's definition: content, order, resume, threads, ranks."""

import gc
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from recis_lightning.data.columns import Selection
from recis_lightning.data.errors import DataError
from recis_lightning.data.files.manifest import Manifest, read_manifest
from recis_lightning.data.files.stripes import StripeReader
from recis_lightning.data.loader import OrcLoader
from recis_lightning.data.plan import EpochPlan, Order
from recis_lightning.ragged import Batch, Ragged
from tests.data.click_rows import click_rows, click_schema, write_stripes
from triton_ops.hash_bytes.reference import farm_fingerprint64

SCHEMA = click_schema()


def write_files(folder: Path, files: list[list[int]]) -> Manifest:
    """Files of stripes of so many rows, numbered on through all of them."""
    first = 0
    for index, stripes in enumerate(files):
        tables = []
        for rows in stripes:
            tables.append(click_rows(first, rows))
            first += rows
        write_stripes(folder / f"part-{index}.orc", tables)
    manifest, problems = read_manifest(folder)
    assert not problems
    return manifest


def make_loader(manifest: Manifest, order: Order, **options: Any) -> OrcLoader:
    return OrcLoader(manifest, Selection.of(SCHEMA), order, **options)


def row_numbers(manifest: Manifest, addresses: list[tuple[int, int]]) -> list[int]:
    starts = [0, *manifest.stripe_rows.cumsum().tolist()]
    return [starts[stripe] + row for stripe, row in addresses]


def assert_holds(batch: Batch, numbers: list[int]) -> None:
    """The batch must be these rows of `click_rows`, in this order."""
    expected = click_rows(0, max(numbers, default=0) + 1).take(pa.array(numbers, pa.int64())).to_pydict()
    assert batch.size == len(numbers)
    assert _tensor(batch["label"]).tolist() == expected["label"]
    assert _tensor(batch["price"]).tolist() == [-1.0 if value is None else value for value in expected["price"]]
    assert _ragged(batch["user"]).to_lists() == [[] if value is None else [value] for value in expected["user"]]
    hashes = [[] if text is None else [farm_fingerprint64(text.encode())] for text in expected["city"]]
    signed = [[value - (value >> 63 << 64) for value in row] for row in hashes]
    assert _ragged(batch["city"]).to_lists() == signed
    assert _ragged(batch["items"]).to_lists() == [row or [] for row in expected["items"]]
    assert _ragged(batch["item_weights"]).to_lists() == [row or [] for row in expected["item_weights"]]


def _tensor(entry: Tensor | Ragged) -> Tensor:
    assert isinstance(entry, Tensor)
    assert entry.dtype == torch.float32
    return entry


def _ragged(entry: Tensor | Ragged) -> Ragged:
    assert isinstance(entry, Ragged)
    return entry.check()


def buffers(loader: OrcLoader) -> list[Tensor]:
    return [batch.buffer for batch in loader]


def assert_same(left: list[Tensor], right: list[Tensor]) -> None:
    assert len(left) == len(right)
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@st.composite
def jobs(draw: st.DrawFn) -> tuple[list[list[int]], Order]:
    files = draw(st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=1, max_size=3))
    streams = draw(st.sampled_from([1, 2, 3, 4, 8, 12, 840]))
    order = Order(
        batch_size=streams * draw(st.integers(1, 9)),
        streams=streams,
        window_rows=draw(st.integers(1, 120)),
        seed=draw(st.integers(0, 5)),
        shuffle=draw(st.booleans()),
        drop_last=draw(st.booleans()),
    )
    return files, order


property_settings = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@property_settings
@given(job=jobs(), epoch=st.integers(0, 3))
def test_batches_hold_the_rows_of_the_plan(
    tmp_path_factory: pytest.TempPathFactory, job: tuple[list[list[int]], Order], epoch: int
) -> None:
    files, order = job
    manifest = write_files(tmp_path_factory.mktemp("data"), files)
    plan = EpochPlan(manifest.stripe_rows, order, epoch)
    batches = list(make_loader(manifest, order, first_epoch=lambda: epoch))
    assert len(batches) == plan.steps
    for step, batch in enumerate(batches):
        assert_holds(batch, row_numbers(manifest, plan.addresses(step, range(order.streams))))


@property_settings
@given(job=jobs(), threads=st.integers(1, 4), prefetch=st.integers(1, 3), data=st.data())
def test_batches_are_bit_equal_for_any_threads_and_behind_any_batch(
    tmp_path_factory: pytest.TempPathFactory,
    job: tuple[list[list[int]], Order],
    threads: int,
    prefetch: int,
    data: st.DataObject,
) -> None:
    files, order = job
    manifest = write_files(tmp_path_factory.mktemp("data"), files)
    bound = data.draw(st.sampled_from([1, 10_000, 1 << 30]), label="prefetch_bytes")
    whole = list(make_loader(manifest, order, read_threads=1))
    again = make_loader(manifest, order, read_threads=threads, prefetch=prefetch, prefetch_bytes=bound)
    assert_same(buffers(again), [batch.buffer for batch in whole])
    if whole:
        stop = data.draw(st.integers(0, len(whole) - 1), label="stop")
        resumed = make_loader(manifest, order, read_threads=threads)
        resumed.load_state_dict(whole[stop].token)
        rest = whole[stop + 1 :] or list(make_loader(manifest, order, first_epoch=lambda: 1))
        assert_same(buffers(resumed), [batch.buffer for batch in rest])


@property_settings
@given(job=jobs(), data=st.data())
def test_ranks_together_hold_the_same_rows_in_the_same_order(
    tmp_path_factory: pytest.TempPathFactory, job: tuple[list[list[int]], Order], data: st.DataObject
) -> None:
    files, order = job
    world_size = data.draw(st.sampled_from([n for n in range(1, order.streams + 1) if order.streams % n == 0]))
    manifest = write_files(tmp_path_factory.mktemp("data"), files)
    plan = EpochPlan(manifest.stripe_rows, order, 0)
    ranks = [list(make_loader(manifest, order, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {plan.steps}
    for step in range(plan.steps):
        for rank, batches in enumerate(ranks):
            addresses = plan.addresses(step, order.streams_of(rank, world_size))
            assert_holds(batches[step], row_numbers(manifest, addresses))


@property_settings
@given(job=jobs(), data=st.data())
def test_a_state_of_any_world_size_goes_on_in_any_other(
    tmp_path_factory: pytest.TempPathFactory, job: tuple[list[list[int]], Order], data: st.DataObject
) -> None:
    files, order = job
    fitting = [n for n in range(1, 9) if order.streams % n == 0]
    before, after = (data.draw(st.sampled_from(fitting), label=label) for label in ("before", "after"))
    manifest = write_files(tmp_path_factory.mktemp("data"), files)
    plan = EpochPlan(manifest.stripe_rows, order, 0)
    if not plan.steps:
        return
    stop = data.draw(st.integers(0, plan.steps - 1), label="stop")
    saved = list(make_loader(manifest, order, rank=before - 1, world_size=before))[stop].token
    epoch, first = (0, stop + 1) if stop + 1 < plan.steps else (1, 0)
    plan = EpochPlan(manifest.stripe_rows, order, epoch)
    for rank in range(after):
        resumed = make_loader(manifest, order, rank=rank, world_size=after)
        resumed.load_state_dict(saved)
        batches = list(resumed)
        assert len(batches) == plan.steps - first
        for step, batch in enumerate(batches[:3], first):
            assert_holds(batch, row_numbers(manifest, plan.addresses(step, order.streams_of(rank, after))))


def test_fewer_stripes_than_streams_hold_every_row_once_and_say_what_they_cost(tmp_path: Path) -> None:
    manifest = write_files(tmp_path, [[30, 20]])
    order = Order(batch_size=840, streams=840)
    (batch,) = make_loader(manifest, order)
    assert sorted(_tensor(batch["price"]).tolist()) == sorted(-1.0 if n % 3 == 0 else n / 2 for n in range(50))
    # 50 of the 840 streams have a row, for which they decode a stripe of 20 or 30.
    factor = EpochPlan(manifest.stripe_rows, order, 0).over_decode(range(840))
    assert factor == (30 * 30 + 20 * 20) / 50
    assert EpochPlan(manifest.stripe_rows, Order(batch_size=8, streams=1), 0).over_decode([0]) == 1.0


def test_epochs_differ_and_hold_every_row_once(tmp_path: Path) -> None:
    manifest = write_files(tmp_path, [[30, 20], [50]])
    loader = make_loader(manifest, Order(batch_size=16))
    epochs = [torch.cat([_ragged(batch["user"]).values for batch in loader]).tolist() for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == [n for n in range(100) if n % 4 != 1]


def test_without_shuffle_rows_come_in_the_order_of_the_files(tmp_path: Path) -> None:
    manifest = write_files(tmp_path, [[30, 20], [50]])
    batches = list(make_loader(manifest, Order(batch_size=16, streams=1, shuffle=False)))
    for step, batch in enumerate(batches):
        assert_holds(batch, list(range(100))[step * 16 : step * 16 + 16])


def test_columns_without_missing_ids_share_their_offsets(tmp_path: Path) -> None:
    def offsets_of_first_batch(rows: int) -> list[int]:
        manifest = write_files(tmp_path / str(rows), [[rows]])
        batch = next(iter(make_loader(manifest, Order(batch_size=rows, streams=1, shuffle=False))))
        return [_ragged(batch[name]).offsets.data_ptr() for name in ("user", "city")]

    user, city = offsets_of_first_batch(1)
    assert user == city
    user, city = offsets_of_first_batch(2)  # the second row misses its user
    assert user != city


# ---------------------------------------------------------------------------------------------- position and iteration


def test_state_is_the_last_committed_batch_however_far_was_read_ahead(tmp_path: Path) -> None:
    manifest = write_files(tmp_path, [[60]])
    loader = make_loader(manifest, Order(batch_size=8))
    batches = iter(loader)
    used, ahead = next(batches), next(batches)
    loader.commit(used.token)
    resumed = make_loader(manifest, Order(batch_size=8))
    resumed.load_state_dict(loader.state_dict())
    assert torch.equal(next(iter(resumed)).buffer, ahead.buffer)
    loader.close()
    resumed.close()


def test_last_token_means_the_start_of_the_next_epoch(tmp_path: Path) -> None:
    manifest = write_files(tmp_path, [[60]])
    last = list(make_loader(manifest, Order(batch_size=8)))[-1]
    assert (last.token["epoch"], last.token["step"]) == (1, 0)


def test_state_before_the_first_batch_is_the_beginning(tmp_path: Path) -> None:
    manifest = write_files(tmp_path, [[60]])
    loader = make_loader(manifest, Order(batch_size=8))
    resumed = make_loader(manifest, Order(batch_size=8))
    resumed.load_state_dict(loader.state_dict())
    assert_same(buffers(resumed), buffers(loader))


@pytest.mark.trap(4)
def test_an_iter_more_costs_no_epoch_and_starts_no_thread(tmp_path: Path) -> None:
    manifest = write_files(tmp_path, [[60]])
    loader, control = make_loader(manifest, Order(batch_size=8)), make_loader(manifest, Order(batch_size=8))
    iter(loader)
    before = threading.active_count()
    iter(loader)
    assert threading.active_count() == before
    assert_same(buffers(loader), buffers(control))


def test_a_second_iter_ends_the_first(tmp_path: Path) -> None:
    loader = make_loader(write_files(tmp_path, [[60]]), Order(batch_size=8))
    first = iter(loader)
    next(first)
    second = iter(loader)
    assert list(first) == []
    assert len(list(second)) == len(loader)


def join_threads() -> None:
    """Wait for the threads of cancelled pipelines."""
    for thread in threading.enumerate():
        if thread.name.startswith("recis-"):
            thread.join(timeout=60)
            assert not thread.is_alive()


def test_an_abandoned_iterator_ends_its_threads(tmp_path: Path) -> None:
    iterator = iter(make_loader(write_files(tmp_path, [[60] * 5]), Order(batch_size=8), prefetch=1))
    next(iterator)
    assert any(thread.name.startswith("recis-") for thread in threading.enumerate())
    del iterator
    gc.collect()
    join_threads()


def test_an_iterator_collected_in_a_thread_of_its_own_pipeline_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As happens where a cycle holds the iterator and the garbage collector runs while a stripe is being decoded.
    manifest = write_files(tmp_path, [[60] * 30])
    loader = make_loader(manifest, Order(batch_size=8, streams=1, window_rows=1, shuffle=False), prefetch=1)
    holder, go = [iter(loader)], threading.Event()
    decode = StripeReader._decode

    def collect_and_decode(self: StripeReader, stripe: int) -> Any:
        if stripe == 1:  # read ahead, while batches come from stripe 0
            go.wait(timeout=60)
            holder.clear()
        return decode(self, stripe)

    monkeypatch.setattr(StripeReader, "_decode", collect_and_decode)
    next(holder[0])
    go.set()
    join_threads()
    assert not holder


def test_a_process_that_ends_in_the_middle_of_an_epoch_ends_by_itself(tmp_path: Path) -> None:
    write_files(tmp_path, [[60] * 20])
    script = f"""
from recis_lightning.data.columns import Selection
from recis_lightning.data.loader import OrcLoader
from recis_lightning.data.files.manifest import read_manifest
from recis_lightning.data.plan import Order
from recis_lightning.schema import Schema
selection = Selection.of(Schema.from_dict({SCHEMA.to_dict()!r}))
batches = iter(OrcLoader(read_manifest({str(tmp_path)!r})[0], selection, Order(batch_size=8), prefetch=1))
print(next(batches).size)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "8\n", "")


@pytest.mark.parametrize("option", ["read_threads", "prefetch"])
def test_options_below_one_are_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} is 0, need at least 1"):
        make_loader(write_files(tmp_path, [[6]]), Order(batch_size=8), **{option: 0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"seed": 1}, "seed was 0, is 1"), ({"batch_size": 16}, "batch_size was 8, is 16"), ({"streams": 4}, "streams")],
)
def test_a_state_of_another_order_is_refused(tmp_path: Path, changes: dict[str, int], message: str) -> None:
    manifest = write_files(tmp_path, [[60]])
    saved = make_loader(manifest, Order(batch_size=8)).state_dict()
    other = make_loader(manifest, Order(**({"batch_size": 8} | changes)))
    with pytest.raises(DataError, match=message):
        other.load_state_dict(saved)


def test_a_state_over_other_files_is_refused_with_the_difference(tmp_path: Path) -> None:
    saved = make_loader(write_files(tmp_path, [[60]]), Order(batch_size=8)).state_dict()
    changed = make_loader(write_files(tmp_path, [[60], [5]]), Order(batch_size=8))
    with pytest.raises(DataError, match="files was 1, is 2; rows was 60, is 65; fingerprint was"):
        changed.load_state_dict(saved)


def test_a_changed_file_set_is_named_file_by_file(tmp_path: Path) -> None:
    loader = make_loader(write_files(tmp_path, [[60], [20], [30]]), Order(batch_size=8))
    saved = loader.state_dict()
    (tmp_path / "part-0.orc").unlink()
    write_stripes(tmp_path / "part-1.orc", [click_rows(0, 7)])
    write_stripes(tmp_path / "part-9.orc", [click_rows(0, 5)])
    changed = make_loader(read_manifest(tmp_path)[0], Order(batch_size=8))
    with pytest.raises(DataError, match="added: part-9.orc; gone: part-0.orc; changed: part-1.orc; train on the same"):
        changed.load_state_dict(saved)
