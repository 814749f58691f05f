"""Tables of other programs into ORC: text, Parquet, the field's public data sets, RecIS's feature configuration."""
