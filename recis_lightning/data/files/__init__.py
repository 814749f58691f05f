"""Files of rows, on any file system: ORC and Parquet, their tails, stripes and checksums."""
