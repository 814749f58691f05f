"""The definition of partition_ids in plain torch. N ids, K runs, T tables, S virtual shards, W owners, U unique ids."""

import torch
from torch import Tensor

from triton_ops.index.reference import virtual_shard


def partition_ids(
    ids_N: Tensor, splits_K1: Tensor, tables_K: Tensor, tables: int, owner_S: Tensor, owners: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See op.py."""
    tables_N = tables_K.repeat_interleave(splits_K1.diff()).to(ids_N.device)
    place_N = owner_S[virtual_shard(ids_N)] * tables + tables_N
    pairs_N2 = torch.stack([place_N, ids_N], dim=1)
    pairs_U2, inverse_N, count_U = torch.unique(pairs_N2, dim=0, return_inverse=True, return_counts=True)
    position_N = torch.arange(len(ids_N), device=ids_N.device)
    first_U = position_N.new_full((len(pairs_U2),), len(ids_N)).scatter_reduce(0, inverse_N, position_N, "amin")
    order_U = first_U.argsort()
    order_U = order_U[pairs_U2[order_U, 0].argsort(stable=True)]
    rank_U = torch.empty_like(order_U).scatter_(0, order_U, torch.arange(len(order_U), device=ids_N.device))
    sizes_WT = torch.bincount(pairs_U2[:, 0], minlength=owners * tables).view(owners, tables)
    return pairs_U2[order_U, 1], count_U[order_U], sizes_WT, rank_U[inverse_N]
