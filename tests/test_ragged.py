"""Ragged rows and the packed batch: conversions there and back, pytrees, and what is refused."""

import pytest
import torch
import torch.utils._pytree as pytree
from hypothesis import given
from hypothesis import strategies as st

from recis_lightning.ragged import ALIGNMENT, Batch, Part, Ragged

ROWS = [[1, 2], [], [3]]
NESTED_ROWS = [[[1, 2], [3]], [], [[], [4]]]

rows_of_integers = st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5), max_size=6)


def nested_ragged() -> Ragged:
    return Ragged.from_lists(NESTED_ROWS)


def same(left: Ragged, right: Ragged) -> bool:
    pairs = list(zip(pytree.tree_leaves(left), pytree.tree_leaves(right), strict=True))
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def test_from_lists_gives_values_and_offsets():
    ragged = Ragged.from_lists(ROWS)
    assert ragged.values.tolist() == [1, 2, 3]
    assert ragged.offsets.tolist() == [0, 2, 2, 3]
    assert ragged.values.dtype == ragged.offsets.dtype == torch.int64
    assert len(ragged) == 3
    assert ragged.lengths.tolist() == [2, 0, 1]


def test_from_lists_puts_the_outermost_offsets_first():
    ragged = nested_ragged()
    assert ragged.values.tolist() == [1, 2, 3, 4]
    assert ragged.offsets.tolist() == [0, 2, 2, 4]
    assert [offsets.tolist() for offsets in ragged.inner_offsets] == [[0, 2, 3, 3, 4]]
    assert ragged.innermost_offsets is ragged.inner_offsets[0]
    assert len(ragged) == 3
    assert ragged.lengths.tolist() == [2, 0, 2]


@given(rows=rows_of_integers)
def test_lists_come_back_as_they_went_in(rows):
    assert Ragged.from_lists(rows).check().to_lists() == rows


@given(rows=st.lists(st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=3), min_size=1, max_size=4))
def test_nested_lists_come_back_as_they_went_in(rows):
    assert Ragged.from_lists(rows).check().to_lists() == rows


def test_innermost_offsets_are_the_offsets_where_nothing_is_nested():
    ragged = Ragged.from_lists(ROWS)
    assert ragged.innermost_offsets is ragged.offsets


@pytest.mark.parametrize(
    ("values", "offsets", "options", "message"),
    [
        (torch.arange(3), torch.tensor([0, 3], dtype=torch.int32), {}, r"offsets is torch.int32 \[2\], need int64"),
        (torch.arange(3), torch.tensor([[0, 3]]), {}, r"offsets is torch.int64 \[1, 2\], need int64 \[rows \+ 1\]"),
        (
            torch.arange(3),
            torch.tensor([0, 3]),
            {"inner_offsets": (torch.tensor([0.0]),)},
            r"inner_offsets\[0\] is torch.float32 \[1\], need int64",
        ),
        (
            torch.arange(3),
            torch.tensor([0, 3]),
            {"weights": torch.ones(2)},
            r"weights are \[2\] for values \[3\]; give one weight a value",
        ),
        (torch.tensor(3), torch.tensor([0, 1]), {}, r"values are one number, need \[N, \.\.\.\]"),
    ],
)
def test_dtypes_and_ranks_that_do_not_fit_are_refused(values, offsets, options, message):
    with pytest.raises(ValueError, match=message):
        Ragged(values, offsets, **options)


@pytest.mark.parametrize(
    ("offsets", "inner", "message"),
    [
        ([1, 3], [], r"offsets must start at 0, starts \[1\]"),
        ([], [], r"offsets must start at 0, starts \[\]"),
        ([0, 2], [], "offsets ends at 2, but there are 3 values below it; pass the offsets of these values"),
        ([0, 2, 1, 3], [], "offsets falls at row 1; offsets never fall"),
        ([0, 1], [[0, 1, 3]], "offsets ends at 1, but there are 2 values below it"),
        ([0, 2], [[0, 4, 3]], r"inner_offsets\[0\] falls at row 1"),
        ([0, 2], [[0, 1, 2]], r"inner_offsets\[0\] ends at 2, but there are 3 values"),
    ],
)
def test_check_names_the_offsets_that_do_not_fit(offsets, inner, message):
    levels = [torch.tensor(level, dtype=torch.int64) for level in [offsets, *inner]]
    ragged = Ragged(torch.arange(3), levels[0], None, tuple(levels[1:]))
    with pytest.raises(ValueError, match=message):
        ragged.check()


def test_with_values_keeps_rows_and_weights():
    ragged = Ragged(torch.arange(3), torch.tensor([0, 2, 2, 3]), torch.ones(3))
    embedded = ragged.with_values(torch.rand(3, 4))
    assert embedded.values.shape == (3, 4)
    assert embedded.offsets is ragged.offsets
    assert embedded.weights is ragged.weights
    with pytest.raises(ValueError, match="2 values for rows of 3; give one for each"):
        ragged.with_values(torch.rand(2, 4))


def test_to_padded_fills_behind_short_rows():
    ragged = Ragged.from_lists(ROWS)
    assert ragged.to_padded().tolist() == [[1, 2], [0, 0], [3, 0]]
    assert ragged.to_padded(padding=-1, length=3).tolist() == [[1, 2, -1], [-1, -1, -1], [3, -1, -1]]


def test_to_padded_keeps_the_width_of_values_and_their_gradient():
    values = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    padded = Ragged(values, torch.tensor([0, 2, 2, 3])).to_padded()
    assert padded.shape == (3, 2, 2)
    (padded * torch.arange(12.0).view(3, 2, 2)).sum().backward()
    assert values.grad.tolist() == [[0, 1], [2, 3], [8, 9]]


def test_to_padded_never_cuts():
    with pytest.raises(ValueError, match="the longest row has 2 values, length is 1; truncate first or give more"):
        Ragged.from_lists(ROWS).to_padded(length=1)
    with pytest.raises(ValueError, match="1 inner levels; only unnested rows convert to a padded tensor"):
        nested_ragged().to_padded()


@pytest.mark.parametrize("rows", [[], [[]], [[], []]])
def test_empty_rows_convert_to_padded_and_back(rows):
    ragged = Ragged.from_lists(rows)
    padded = ragged.to_padded()
    assert padded.shape == (len(rows), 0)
    assert Ragged.from_padded(padded, ragged.lengths).check().to_lists() == rows


@given(rows=rows_of_integers, extra=st.integers(0, 2))
def test_padded_comes_back_as_it_went_in(rows, extra):
    ragged = Ragged.from_lists(rows)
    padded = ragged.to_padded(padding=7, length=max(map(len, rows), default=0) + extra)
    assert same(Ragged.from_padded(padded, ragged.lengths), ragged)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([1], r"lengths are \[1\] for \[2, 3\]; give one length a row"),
        ([1, 4], "row 1 has length 4, but there are 3 places a row"),
        ([-1, 2], "row 0 has length -1, but there are 3 places a row"),
    ],
)
def test_from_padded_refuses_lengths_that_do_not_fit(lengths, message):
    with pytest.raises(ValueError, match=message):
        Ragged.from_padded(torch.zeros(2, 3), torch.tensor(lengths))


def test_nested_tensors_share_the_values():
    ragged = Ragged(torch.rand(3, 4), torch.tensor([0, 2, 2, 3]))
    nested = ragged.to_nested()
    assert [row.shape for row in nested.unbind()] == [(2, 4), (0, 4), (1, 4)]
    back = Ragged.from_nested(nested, weights=torch.ones(3))
    assert back.values.data_ptr() == ragged.values.data_ptr()
    assert back.offsets.tolist() == [0, 2, 2, 3]
    assert back.weights.tolist() == [1, 1, 1]


def test_to_nested_takes_the_innermost_level():
    assert [row.tolist() for row in nested_ragged().to_nested().unbind()] == [[1, 2], [3], [], [4]]


def test_from_nested_packs_the_holes_of_a_narrowed_tensor():
    dense = torch.arange(12).view(3, 4)
    nested = torch.nested.narrow(dense, 1, torch.tensor([0, 1, 2]), torch.tensor([2, 3, 1]), layout=torch.jagged)
    assert Ragged.from_nested(nested).check().to_lists() == [[0, 1], [5, 6, 7], [10]]


def test_from_nested_refuses_other_layouts():
    with pytest.raises(ValueError, match=r"the tensor is torch.strided \[2, 3\]; need a jagged nested tensor"):
        Ragged.from_nested(torch.zeros(2, 3))
    nested = Ragged(torch.rand(3, 4), torch.tensor([0, 2, 2, 3])).to_nested()
    with pytest.raises(ValueError, match="need a jagged nested tensor"):
        Ragged.from_nested(nested.transpose(1, 2))


def test_a_ragged_is_a_pytree_of_all_its_tensors():
    nested = nested_ragged()
    ragged = Ragged(torch.arange(4.0), nested.offsets, torch.ones(4), nested.inner_offsets)
    leaves, spec = pytree.tree_flatten(ragged)
    assert [leaf.tolist() for leaf in leaves] == [[0, 1, 2, 3], [0, 2, 2, 4], [0, 2, 3, 3, 4], [1, 1, 1, 1]]
    assert same(pytree.tree_unflatten(leaves, spec), ragged)
    doubled = pytree.tree_map(lambda tensor: tensor * 2, ragged)
    assert doubled.values.tolist() == [0, 2, 4, 6]
    assert doubled.inner_offsets[0].tolist() == [0, 4, 6, 6, 8]


def test_a_ragged_without_weights_has_no_leaf_in_their_place():
    ragged = Ragged.from_lists(ROWS)
    leaves, spec = pytree.tree_flatten(ragged)
    assert len(leaves) == 2
    assert pytree.tree_unflatten(leaves, spec).weights is None


def test_map_tensors_reaches_every_tensor():
    ragged = Ragged(torch.arange(4), nested_ragged().offsets, torch.ones(4), nested_ragged().inner_offsets)
    seen: list[torch.Tensor] = []
    mapped = ragged.map_tensors(lambda tensor: seen.append(tensor) or tensor.clone())
    assert len(seen) == 4
    assert same(mapped, ragged)
    assert mapped.values.data_ptr() != ragged.values.data_ptr()


def test_to_moves_every_tensor():
    ragged = Ragged(torch.arange(3), torch.tensor([0, 3]), torch.ones(3), (torch.tensor([0, 1, 2, 3]),))
    moved = ragged.to("meta")
    assert {leaf.device.type for leaf in pytree.tree_leaves(moved)} == {"meta"}
    assert moved.device.type == "meta"
    assert ragged.device.type == "cpu"


def entries() -> dict[str, torch.Tensor | Ragged]:
    return {
        "price": torch.tensor([0.5, 1.5, 2.5]),
        "clicked": torch.tensor([True, False, True]),
        "matrix": torch.arange(6, dtype=torch.float64).view(3, 2),
        "ids": Ragged.from_lists(ROWS),
        "nested": Ragged(torch.arange(4), nested_ragged().offsets, torch.rand(4), nested_ragged().inner_offsets),
        "nothing": Ragged.from_lists([[], [], []], torch.float32),
    }


def test_pack_keeps_every_entry():
    originals = entries()
    packed = Batch.pack(originals, size=3, token={"row": 7})
    assert (packed.size, packed.token, len(packed)) == (3, {"row": 7}, 6)
    assert list(packed) == list(originals)
    assert "other" not in packed
    for name, original in originals.items():
        for ours, theirs in zip(pytree.tree_leaves(packed[name]), pytree.tree_leaves(original), strict=True):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)


def test_entries_are_aligned_views_of_one_buffer():
    packed = Batch.pack(entries(), size=3)
    start, end = packed.buffer.data_ptr(), packed.buffer.data_ptr() + packed.buffer.nbytes
    for leaf in pytree.tree_leaves(dict(packed)):
        if leaf.numel():
            assert start <= leaf.data_ptr() < end
            assert (leaf.data_ptr() - start) % ALIGNMENT == 0
    packed["price"].mul_(2)
    assert packed["price"].tolist() == [1, 3, 5]


def test_the_layout_says_which_bytes_are_which_tensor():
    packed = Batch.pack({"a": torch.zeros(3), "b": torch.ones(3, 2)}, size=3)
    assert packed.layout == {"a": Part(torch.float32, (3,), 0), "b": Part(torch.float32, (3, 2), 64)}
    assert packed.layout["b"].nbytes == 24
    assert packed.buffer.nbytes == 64 + 24


def test_pack_refuses_entries_of_other_sizes():
    with pytest.raises(ValueError, match="entry 'ids' has 3 rows, the batch has 2"):
        Batch.pack({"ids": Ragged.from_lists(ROWS)}, size=2)
    with pytest.raises(ValueError, match="entry 'price' has 3 rows, the batch has 4"):
        Batch.pack({"price": torch.zeros(3)}, size=4)


def test_a_batch_may_have_no_rows_and_no_entries():
    assert len(Batch.pack({}, size=5)) == 0
    empty = Batch.pack({"ids": Ragged.from_lists([]), "price": torch.zeros(0)}, size=0)
    assert len(empty["ids"]) == 0
    assert empty["price"].shape == (0,)


def test_a_batch_moves_as_one_buffer():
    packed = Batch.pack(entries(), size=3, token={"row": 7})
    moved = packed.to("meta")
    assert moved.device.type == moved["ids"].device.type == "meta"
    assert packed.device.type == "cpu"
    assert (moved.size, moved.token, moved.layout) == (3, {"row": 7}, packed.layout)
    assert packed.to("cpu").buffer is packed.buffer


def test_a_batch_is_a_pytree_of_its_buffer():
    packed = Batch.pack(entries(), size=3, token={"row": 7})
    leaves, spec = pytree.tree_flatten(packed)
    assert len(leaves) == 1
    assert leaves[0] is packed.buffer
    back = pytree.tree_unflatten([packed.buffer.clone()], spec)
    assert same(back["ids"], packed["ids"])
    assert (back.size, back.token) == (3, {"row": 7})


def test_a_batch_is_equal_to_itself_alone():
    packed = Batch.pack(entries(), size=3)
    assert packed == packed  # noqa: PLR0124
    assert packed != Batch.pack(entries(), size=3)
    assert len({packed, packed}) == 1


@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=8),
    dtypes=st.lists(st.sampled_from([torch.int8, torch.int64, torch.float32, torch.bool]), min_size=1, max_size=4),
)
def test_pack_and_read_give_every_value_back(lengths, dtypes):
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    values = torch.arange(int(offsets[-1]))
    given_entries = {f"x{index}": Ragged(values.to(dtype), offsets) for index, dtype in enumerate(dtypes)}
    packed = Batch.pack(given_entries, size=len(lengths))
    assert all(same(packed[name].check(), entry) for name, entry in given_entries.items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_pinned_batch_reaches_the_gpu_in_one_copy():
    packed = Batch.pack(entries(), size=3).pin_memory()
    assert packed.buffer.is_pinned()
    moved = packed.to("cuda", non_blocking=True)
    moved.record_stream(torch.cuda.current_stream())
    moved["nested"].record_stream(torch.cuda.current_stream())
    assert same(moved["nested"].to("cpu"), packed["nested"])
    assert packed["ids"].pin_memory().values.is_pinned()
