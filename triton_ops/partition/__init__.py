"""Which ids a batch needs from which rank, each once: see op.py."""

from triton_ops.partition.op import Partition, partition_ids

__all__ = ["Partition", "partition_ids"]
