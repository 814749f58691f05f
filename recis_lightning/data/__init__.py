"""ORC -> batches: which rows in which order, decoded by threads, packed; below it files, converters, made-up data."""
