"""partition_ids in Triton: ids claim slots of a scratch table as in the index, and go to their owners in a stable sort.

N ids, K runs, T tables, B blocks of ids of one run each, W owners, U unique ids.

Blocks of ids are ordered by table, and so are the numbers that ids get there. Sorted by owner without a change of that
order, they lie as they shall: each block counts its unique ids by owner, the counts are summed up owner by owner, and
each block puts its own behind those before it. Whoever came first among equals leaves its place for them in its slot.
"""

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_ops.index import kernels as index_kernels
from triton_ops.index.device_layout import EMPTY, SHIFT, SLOTS, TABLE_COLUMNS
from triton_ops.index.device_layout import PLACES as PLACES_COLUMN
from triton_ops.index.kernels import POSITION
from triton_ops.index.numbering import Numbered, Runs, make_runs, number, room_for
from triton_ops.index.segments import send
from triton_ops.launches import Configuration
from triton_ops.shared.kernels import mix64

OWNERS = 32  # that a program counts for
SHARD_SHIFT = tl.constexpr(52)  # the virtual shard of a mixed id is its top 12 bits


@triton.jit
def _firsts(ids, ends, positions, sums, owner_of_shard, BLOCK: tl.constexpr):
    """A block's numbers, their ids and owners, and which of them came first among their equals."""
    block = tl.program_id(0).to(tl.int64)
    begin = tl.load(ends + block - 1, mask=block > 0, other=0)
    numbers = begin + tl.arange(0, BLOCK)
    exists = numbers < tl.load(ends + block)
    up_to = tl.load(sums + numbers, mask=exists, other=0)
    is_first = exists & (up_to > tl.load(sums + numbers - 1, mask=exists & (numbers > 0), other=0))
    record = tl.load(positions + numbers, mask=exists, other=0)
    each_id = tl.load(ids + (record & POSITION), mask=exists, other=0)
    shards = (mix64(each_id.to(tl.uint64, bitcast=True)) >> SHARD_SHIFT).to(tl.int64)
    return numbers, each_id, tl.load(owner_of_shard + shards, mask=is_first, other=-1), is_first


@triton.jit(do_not_specialize=["owners", "blocks"])
def count(ids, ends, positions, sums, owner_of_shard, counted, owners, blocks, BLOCK: tl.constexpr,
          OWNERS: tl.constexpr):  # fmt: skip
    """Write how many unique ids a block has of each owner, int64 [W, B]."""
    _, _, owner, is_first = _firsts(ids, ends, positions, sums, owner_of_shard, BLOCK)
    each = tl.program_id(1) * OWNERS + tl.arange(0, OWNERS)
    is_of = is_first[:, None] & (owner[:, None] == each[None, :])
    target = counted + each.to(tl.int64) * blocks + tl.program_id(0)
    tl.store(target, tl.sum(is_of.to(tl.int64), axis=0), mask=each < owners)


@triton.jit(do_not_specialize=["owners", "blocks"])
def place(ids, ends, positions, spots, sums, owner_of_shard, begins, unique, owners, blocks, BLOCK: tl.constexpr,
          OWNERS: tl.constexpr):  # fmt: skip
    """Put a block's unique ids of some owners to their places; ``begins`` sums up what `count` gave, each included."""
    numbers, each_id, owner, is_first = _firsts(ids, ends, positions, sums, owner_of_shard, BLOCK)
    each = tl.program_id(1) * OWNERS + tl.arange(0, OWNERS)
    is_of = is_first[:, None] & (owner[:, None] == each[None, :])
    before = tl.sum(tl.where(is_of, tl.cumsum(is_of.to(tl.int64), axis=0), 0), axis=1) - 1
    mine = is_first & (owner // OWNERS == tl.program_id(1))
    cell = owner * blocks + tl.program_id(0)
    target = tl.load(begins + cell - 1, mask=mine & (cell > 0), other=0) + before
    tl.store(unique + target, each_id, mask=mine)
    spot = tl.load(spots + numbers, mask=mine, other=0)
    tl.store(spot.to(tl.pointer_type(tl.int64)) + 1, target, mask=mine)


@triton.jit(do_not_specialize=["blocks"])
def spread(ends, positions, spots, counts, inverse, blocks, BLOCK: tl.constexpr):
    """Write each value's place, which its slot holds, and count the values of each."""
    numbers = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = numbers < tl.load(ends + blocks - 1)
    spot = tl.load(spots + numbers, mask=exists, other=0)
    target = tl.load(spot.to(tl.pointer_type(tl.int64)) + 1, mask=exists, other=0)
    record = tl.load(positions + numbers, mask=exists, other=0)
    tl.store(inverse + (record & POSITION), target, mask=exists)
    tl.atomic_add(counts + target, tl.full([BLOCK], 1, tl.int64), mask=exists, sem="relaxed")


def partition_ids(
    ids_N: Tensor, splits_K1: Tensor, tables_K: Tensor, tables: int, owner_S: Tensor, owners: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See op.py."""
    device = ids_N.device
    sizes_WT = torch.zeros((owners, tables), dtype=torch.int64, device=device)
    if not len(ids_N):
        return torch.empty_like(ids_N), torch.empty_like(ids_N), sizes_WT, torch.empty_like(ids_N)
    runs = make_runs(splits_K1.numpy(), tables_K.numpy(), tables, device)
    ids_of_table = np.bincount(tables_K.numpy(), weights=splits_K1.diff().numpy(), minlength=tables).astype(np.int64)
    scratch = _scratch(ids_of_table, device)
    unique_N, inverse_N, counts_N = torch.empty_like(ids_N), torch.empty_like(ids_N), torch.zeros_like(ids_N)
    numbered = room_for(ids_N, runs)
    number(ids_N, inverse_N, runs, scratch[0], numbered)
    begins_WB = _sort(ids_N, numbered, runs, owner_S.to(device), owners, unique_N)
    grid = (-(-len(ids_N) // index_kernels.BLOCK),)
    arrays = numbered.ends, numbered.positions, numbered.spots, counts_N, inverse_N
    spread[grid](*arrays, runs.blocks, **_block())
    return unique_N, counts_N, _sizes(begins_WB, runs), inverse_N


def _scratch(ids_of_table: np.ndarray, device: torch.device) -> tuple[Tensor, ...]:
    """Empty tables that hold so many ids each, three quarters full at most, as the index's kernels look for them."""
    sizes = np.maximum(2 ** np.ceil(np.log2(np.maximum(ids_of_table * 4 / 3, 1))).astype(np.int64), SLOTS)
    begins = np.concatenate([[0], np.cumsum(sizes + SLOTS)])  # and a bucket for the ids that are no keys
    slots = torch.full((int(begins[-1]), 2), EMPTY, dtype=torch.int64, device=device)
    lines = np.zeros((len(sizes), 2, 4), dtype=np.int64)
    lines[:, 0, 0], lines[:, 0, 1] = slots.data_ptr() + 16 * begins[:-1], sizes - 1
    lines[:, 1, 0], lines[:, 1, 1] = lines[:, 0, 0] + 16 * sizes, SLOTS - 1
    places = torch.empty(lines.shape, dtype=torch.int64, device=device)
    described = np.zeros((len(sizes), TABLE_COLUMNS), dtype=np.int64)
    described[:, PLACES_COLUMN] = places.data_ptr() + 64 * np.arange(len(sizes))
    described[:, SHIFT] = 63
    on_device = torch.empty(described.shape, dtype=torch.int64, device=device)
    send(lines, places)
    send(described, on_device)
    return on_device, places, slots


def _sort(ids_N: Tensor, numbered: Numbered, runs: Runs, owner_S: Tensor, owners: int, unique_N: Tensor) -> Tensor:
    """Write unique ids to their places; how many there are up to each owner and block, int64 [W, B]."""
    counted_WB = ids_N.new_empty((owners, runs.blocks))
    grid, counts = (runs.blocks, -(-owners // OWNERS)), (owners, runs.blocks)
    listed = numbered.ends, numbered.positions
    count[grid](ids_N, *listed, numbered.sums, owner_S, counted_WB, *counts, **_block(), OWNERS=OWNERS)
    begins_WB = counted_WB.view(-1).cumsum(0).view_as(counted_WB)
    arrays = ids_N, *listed, numbered.spots, numbered.sums, owner_S, begins_WB, unique_N
    place[grid](*arrays, *counts, **_block(), OWNERS=OWNERS)
    return begins_WB


def _block() -> dict[str, int]:
    """As the index has it, whose blocks of ids these are."""
    return {"BLOCK": index_kernels.BLOCK, "num_warps": index_kernels.WARPS}


def _sizes(begins_WB: Tensor, runs: Runs) -> Tensor:
    """Unique ids of each owner and table, from those up to each owner and block."""
    begins = torch.cat([begins_WB.new_zeros(1), begins_WB.flatten()])
    first_blocks = torch.empty(len(runs.first_blocks), dtype=torch.int64, device=begins.device)
    send(runs.first_blocks, first_blocks)
    owners = torch.arange(len(begins_WB), device=begins.device)
    return begins[owners[:, None] * runs.blocks + first_blocks].diff(dim=1)


_ARRAYS = dict.fromkeys(("ids", "ends", "positions", "owner_of_shard"), "*i64") | {"sums": "*i32"}
_NUMBERS = {"owners": "i32", "blocks": "i32"}
_BLOCK, _WARPS = {"BLOCK": index_kernels.BLOCK}, {"num_warps": index_kernels.WARPS}

_SORTED = {**_ARRAYS, "spots": "*i64", "begins": "*i64", "unique": "*i64", **_NUMBERS}
_SPREAD = dict.fromkeys(("ends", "positions", "spots", "counts", "inverse"), "*i64") | {"blocks": "i32"}

CONFIGURATIONS = (
    Configuration(count, {**_ARRAYS, "counted": "*i64", **_NUMBERS}, {**_BLOCK, "OWNERS": OWNERS}, _WARPS),
    Configuration(place, _SORTED, {**_BLOCK, "OWNERS": OWNERS}, _WARPS),
    Configuration(spread, _SPREAD, _BLOCK, _WARPS),
)
