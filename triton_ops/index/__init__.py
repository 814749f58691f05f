"""Id -> row: see op.py."""

from triton_ops.index.layout import SHARDS, DevicePool, Inserted, NoRoomError, RowPool
from triton_ops.index.op import Index
from triton_ops.index.reference import virtual_shard
from triton_ops.shared.reference import mix64, unmix64

__all__ = ["SHARDS", "DevicePool", "Index", "Inserted", "NoRoomError", "RowPool", "mix64", "unmix64", "virtual_shard"]
