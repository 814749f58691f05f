"""The base of all errors that the user of a recipe, of data or of a checkpoint can put right."""


class UserError(Exception):
    """A mistake of the user, told whole: what was found, what was expected, where, and what to do.

    `recis` ends with its message and status 2, and shows no traceback. Derived classes keep their Python kind too: a
    `SchemaError` is a ValueError.
    """
