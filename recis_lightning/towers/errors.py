"""The error of towers."""

from recis_lightning.errors import UserError


class TowerError(UserError, ValueError):
    """A tower that cannot be made as it is declared, or cannot take what a batch holds: which, why, what to do."""
