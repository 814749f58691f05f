"""Vectors that tables begin with, where no checkpoint fills them."""

import logging
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from recis_lightning.embedding.exchange import owned_shards
from recis_lightning.tables.transfer import load_pretrained

log = logging.getLogger(__name__)


class LoadPretrained(Callback):
    """Fills tables from the files that their declarations name: once, before the first batch of whatever runs first.

    Where several ranks share the tables, each takes the ids that it owns.

    Not where a checkpoint was loaded: then rows are its, and the files need not be there any more.
    """

    def __init__(self) -> None:
        self._is_done = False

    def _load(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_done or trainer.ckpt_path is not None:
            return
        self._is_done = True
        embedding: Any = pl_module.embedding
        shards = owned_shards(embedding.route.rank, embedding.route.world_size)
        for table in embedding.tables.values():
            if count := load_pretrained(table, shards):
                log.info("table '%s' begins with %s pretrained vectors", table.name, f"{count:,}")

    on_sanity_check_start = on_train_start = on_validation_start = on_test_start = on_predict_start = _load
