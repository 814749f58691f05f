"""Settings of all tests."""

from hypothesis import settings

# No deadline for one example: the first often pays for compilation or a lazy import.
settings.register_profile("recis", deadline=None)
settings.load_profile("recis")
