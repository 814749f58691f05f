"""A trained model as files that score without this package: programs, tables, and the scorer that runs them."""

from recis_lightning.serving.export import export_model

__all__ = ["export_model"]
