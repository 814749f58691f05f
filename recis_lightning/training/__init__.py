"""The Lightning side: `RecModule`, the strategy `recis_sharded`, checkpoints, callbacks.

Importing this package makes `Trainer(strategy="recis_sharded")` and "recis_sharded_fsdp2" known to Lightning, which
finds strategies in its registry only; whoever has a `RecModule` to train has imported it.
"""

from lightning.pytorch.strategies import StrategyRegistry

from recis_lightning.training.module import RecModule
from recis_lightning.training.predictions import PredictionWriter
from recis_lightning.training.strategy import ShardedStrategy

__all__ = ["PredictionWriter", "RecModule", "ShardedStrategy"]

StrategyRegistry.register(
    "recis_sharded",
    ShardedStrategy,
    description="Hash-table embeddings shared by ranks, dense part by DDP",
    override=True,
)
StrategyRegistry.register(
    "recis_sharded_fsdp2",
    ShardedStrategy,
    description="Hash-table embeddings shared by ranks, dense part by FSDP2",
    override=True,
    dense="fsdp2",
)
