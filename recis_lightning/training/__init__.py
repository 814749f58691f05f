"""The Lightning side: `RecModule`, the strategy `recis_sharded`, checkpoints, callbacks."""

from recis_lightning.training.module import RecModule
from recis_lightning.training.strategy import ShardedStrategy

__all__ = ["RecModule", "ShardedStrategy"]
