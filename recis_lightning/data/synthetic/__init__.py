"""Data that is made up: the click log that knows its truth, and rows for any schema."""
