"""What a rank asks other ranks for: its batch's ids, each once, by the rank that owns them.

N ids, K runs, T tables, S virtual shards, W owners, U unique ids.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from triton_ops.dispatch import choose
from triton_ops.index import SHARDS
from triton_ops.library import register
from triton_ops.partition import reference


class Partition(NamedTuple):
    """A batch's ids, each once for each of its tables, ordered by owner, then table, then first occurrence."""

    ids: Tensor
    """int64 [U]; where nobody waits for how many there are [N], of which the first ``sizes.sum()`` mean something."""
    counts: Tensor
    """int64, as long: how often each occurs."""
    sizes: Tensor
    """int64 [W, T]: how many of them belong to each owner and table."""
    inverse: Tensor
    """int64 [N]: where among them each value's id is."""


def partition_ids(
    ids_N: Tensor, splits_K1: Tensor, tables_K: Tensor, tables: int, owner_S: Tensor, owners: int
) -> Partition:
    """Each id once, by owner: ids [5, 7, 5] of table 0, where 7 is rank 0's and 5 rank 1's -> [7, 5], [1, 0, 1].

    Run k, ids from ``splits_K1[k]`` to ``splits_K1[k + 1]``, belongs to table ``tables_K[k]`` of ``tables``; a table
    may come up in several runs, and the same id in two tables is two. ``owner_S`` says which of ``owners`` each of the
    4096 virtual shards belongs to. All are int64; ids, owners and results may lie on a GPU, which nobody waits for.
    Raises ValueError where dtypes or shapes do not fit.
    """
    for name, tensor in (("ids", ids_N), ("splits", splits_K1), ("tables", tables_K), ("owners", owner_S)):
        if tensor.dtype != torch.int64 or tensor.dim() != 1:
            raise ValueError(f"{name} are {tensor.dtype} {list(tensor.shape)}; give int64 in one dimension")
    if len(owner_S) != SHARDS or len(splits_K1) != len(tables_K) + 1:
        raise ValueError(
            f"{len(owner_S)} virtual shards have owners, and {len(splits_K1)} splits stand beside {len(tables_K)} "
            f"tables; need {SHARDS}, and one split more than tables"
        )
    return Partition(*_partition_ids(ids_N.contiguous(), splits_K1, tables_K, tables, owner_S, owners))


def _fake(
    ids_N: Tensor, splits_K1: Tensor, tables_K: Tensor, tables: int, owner_S: Tensor, owners: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    unique = torch.library.get_ctx().new_dynamic_size()
    return ids_N.new_empty(unique), ids_N.new_empty(unique), ids_N.new_empty(owners, tables), torch.empty_like(ids_N)


@register(
    "partition_ids(Tensor ids, Tensor splits, Tensor tables_of_runs, int tables, Tensor owner_of_shard, int owners)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _fake,
)
def _partition_ids(
    ids_N: Tensor, splits_K1: Tensor, tables_K: Tensor, tables: int, owner_S: Tensor, owners: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    how = choose("partition", ids_N.device)
    if how == "reference":
        return reference.partition_ids(ids_N, splits_K1, tables_K, tables, owner_S, owners)
    if how == "triton":
        from triton_ops.partition import kernels

        return kernels.partition_ids(ids_N, splits_K1, tables_K, tables, owner_S, owners)
    from triton_ops.partition import cpu

    slots = torch.zeros(1 << max(2 * len(ids_N) - 1, 1).bit_length(), dtype=torch.int32)
    known = torch.empty(3, len(ids_N), dtype=torch.int64)
    sizes_WT = torch.zeros(owners, tables, dtype=torch.int64)
    unique_N, counts_N, inverse_N = torch.empty_like(ids_N), torch.empty_like(ids_N), torch.empty_like(ids_N)
    arrays = (ids_N, splits_K1, tables_K, owner_S, slots, *known.unbind(), sizes_WT, unique_N, counts_N, inverse_N)
    found = cpu.partition_ids(*(array.numpy() for array in arrays))
    return unique_N[:found], counts_N[:found], sizes_WT, inverse_N
