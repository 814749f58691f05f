"""The error that names what is wrong with data: one class, so that callers can catch it and tests can ask for it."""

from collections.abc import Sequence

from recis_lightning.errors import UserError


class DataError(UserError, ValueError):
    """What was found in the data, where, what was expected, and what to do; one problem to a line."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        if len(self.problems) == 1:
            super().__init__(self.problems[0])
        else:
            lines = "\n".join(f"  - {problem}" for problem in self.problems)
            super().__init__(f"the data have {len(self.problems)} problems:\n{lines}")
