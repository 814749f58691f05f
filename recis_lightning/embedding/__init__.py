"""Features to rows to pooled or sequence tensors."""

from recis_lightning.embedding.collection import EmbeddingCollection

__all__ = ["EmbeddingCollection"]
