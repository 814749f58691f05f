"""The command lines of `recis data`, one module each."""
