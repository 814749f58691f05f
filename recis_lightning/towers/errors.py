"""The error of towers: one class, so that the command line can tell it in a line."""


class TowerError(ValueError):
    """A tower that cannot be made as it is declared, or cannot take what a batch holds: which, why, what to do."""
