"""Recommendation models with unbounded hash-table embeddings, trained with PyTorch Lightning."""

__version__ = "0.1.0"
