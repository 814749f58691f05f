"""Features: from the columns of a batch to what embeddings and models take."""

from recis_lightning.features.engine import FeatureEngine

__all__ = ["FeatureEngine"]
